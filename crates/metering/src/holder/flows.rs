//! A holder's flows at one relay, and what it grants on each.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use sluice_proto::{FlowId, RelayFlow};

use crate::grant::{GRANT_BASE, GRANT_PER_SENT, receive_window, stated};

/// The relay is told of a grant that grew by so many bytes: a sixteenth of its base, so that an honest
/// sender does not feel that word takes its time.
const STEP: u64 = GRANT_BASE / 16;
/// Or by this part of it, if that is more: the grant's room above an honest sender's window grows by a
/// thirty-eighth of it, and fast uploads would else send more messages than a relay takes.
const STEP_PART: u64 = 128;

#[derive(Debug)]
struct Held {
    flow: Arc<RelayFlow>,
    tenant: [u8; 32],
    /// Whether it brought the base.
    first: bool,
    /// What the relay was told, or may have been before the account began.
    told: u64,
    /// Payload that was delivered, of that which its tenant's share knows.
    delivered: u64,
    /// The credit that was looked at.
    credit: u64,
}

impl Held {
    /// What the relay may bill. It sums what it got on all flows of a tenant before it takes an eighth.
    fn granted(&self) -> u64 {
        let base = if self.first { GRANT_BASE } else { 0 };
        let sent = self.flow.sent().div_ceil(GRANT_PER_SENT);
        base.saturating_add(sent).saturating_add(self.told)
    }
}

/// What all flows of one tenant share, since the account began.
#[derive(Debug, Default)]
struct Share {
    /// Payload that they delivered.
    delivered: u64,
    /// Credit of sessions that came to them from other paths, as far as it was granted.
    carried: u64,
}

/// The flows that stand, and what was granted on those that are closed.
#[derive(Debug, Default)]
pub(super) struct Flows {
    open: BTreeMap<FlowId, Held>,
    shares: BTreeMap<[u8; 32], Share>,
    closed: u64,
    grants: VecDeque<FlowId>,
}

impl Flows {
    /// Whether a flow ever opened: before that nobody knows what is granted.
    pub(super) fn any(&self) -> bool {
        !self.shares.is_empty()
    }

    pub(super) fn open(&mut self, id: FlowId, flow: Arc<RelayFlow>, tenant: [u8; 32]) {
        let first = !self.shares.contains_key(&tenant);
        self.shares.entry(tenant).or_default();
        // A flow that goes on over another connection brought payload before: the relay, which begins
        // anew, hears of it once more, but grants no more for it. Its session's credit is out.
        let (told, delivered) = (stated(&flow), flow.delivered());
        if delivered > 0 {
            flow.take_over(receive_window(delivered));
        }
        let held = Held { flow, tenant, first, told, delivered, credit: 0 };
        self.close(id);
        self.open.insert(id, held);
        self.look_at(id);
        if told > 0 && self.grants.back() != Some(&id) {
            self.grants.push_back(id);
        }
    }

    pub(super) fn close(&mut self, id: FlowId) {
        if let Some(held) = self.open.remove(&id) {
            self.closed = self.closed.saturating_add(held.granted());
        }
    }

    /// Frame bytes that the relay may bill for what it sent, on all flows.
    pub(super) fn granted(&self) -> u64 {
        self.open.values().fold(self.closed, |sum, held| sum.saturating_add(held.granted()))
    }

    pub(super) fn look_at(&mut self, id: FlowId) {
        let Some(held) = self.open.get_mut(&id) else { return };
        let Some(share) = self.shares.get_mut(&held.tenant) else { return };
        let delivered = held.flow.delivered();
        let news = delivered.saturating_sub(held.delivered);
        (held.delivered, share.delivered) = (delivered, share.delivered.saturating_add(news));
        let credit = held.flow.credit();
        if credit > held.credit {
            held.credit = credit;
            // What was delivered here grants for as much credit as it brought.
            let needed = credit.saturating_sub(receive_window(share.delivered));
            let more = needed.saturating_sub(share.carried);
            share.carried = share.carried.saturating_add(more);
            held.flow.carry(more);
        }
        let step = STEP.max(held.told / STEP_PART);
        if stated(&held.flow) >= held.told.saturating_add(step) {
            held.told = stated(&held.flow);
            self.grants.push_back(id);
        }
    }

    pub(super) fn look_at_all(&mut self) {
        for id in self.open.keys().copied().collect::<Vec<_>>() {
            self.look_at(id);
        }
    }

    pub(super) fn poll_grant(&mut self) -> Option<(FlowId, u64)> {
        loop {
            let id = self.grants.pop_front()?;
            if let Some(held) = self.open.get(&id) {
                return Some((id, held.told));
            }
        }
    }
}
