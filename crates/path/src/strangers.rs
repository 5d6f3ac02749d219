//! Addresses that have not echoed, and what they may be sent.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use crate::STRANGER_PROBES_MAX;

/// Addresses without an echo that are sent anything in one session; others are ignored.
const STRANGERS_MAX: usize = 32;
/// Addresses with one that are remembered: those of one node, old and new.
const FRIENDS_MAX: usize = 8;

/// Bounds what a session sends to addresses that have not echoed, so that whoever names a
/// stranger's address troubles the stranger with a handful of probes at most.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    /// How many probes each may still be sent.
    left: BTreeMap<IpAddr, u32>,
    friends: VecDeque<IpAddr>,
}

impl Strangers {
    /// Whether one more probe may go there.
    pub(crate) fn may_be_sent(&self, ip: IpAddr) -> bool {
        match self.left.get(&ip) {
            Some(left) => *left > 0,
            None => self.friends.contains(&ip) || self.left.len() < STRANGERS_MAX,
        }
    }

    /// How many may.
    pub(crate) fn left(&self, ip: IpAddr) -> u32 {
        self.left.get(&ip).copied().unwrap_or(STRANGER_PROBES_MAX)
    }

    /// One went there.
    pub(crate) fn sent(&mut self, ip: IpAddr) {
        if !self.friends.contains(&ip) {
            let left = self.left.entry(ip).or_insert(STRANGER_PROBES_MAX);
            *left = left.saturating_sub(1);
        }
    }

    /// One came from there: it may be answered by as much, whoever wrote that sender on it.
    pub(crate) fn heard(&mut self, ip: IpAddr) {
        if let Some(left) = self.left.get_mut(&ip) {
            *left = left.saturating_add(1);
        }
    }

    /// It echoed: the other node is there.
    pub(crate) fn echoed(&mut self, ip: IpAddr) {
        self.left.remove(&ip);
        if !self.friends.contains(&ip) {
            if self.friends.len() == FRIENDS_MAX {
                self.friends.pop_front();
            }
            self.friends.push_back(ip);
        }
    }

    /// This node's own addresses changed, so that those which could not be reached may be now.
    pub(crate) fn renew(&mut self) {
        self.left.clear();
    }
}
