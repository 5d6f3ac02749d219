//! A holder's flow to itself: what it sends comes back, which shows that frames are forwarded.

use std::sync::Arc;

use sluice_proto::FlowId;

use crate::account::Account;
use crate::leg::Leg;
use crate::limits::{FedClock, Throttle};

/// A flow whose two ends are one leg, under one number. Shared by threads.
#[derive(Debug)]
pub(crate) struct Loopback {
    pub(crate) number: FlowId,
    pub(crate) leg: Arc<Leg>,
    account: Arc<Account>,
    trickle: Throttle,
}

impl Loopback {
    pub(crate) fn new(
        number: FlowId,
        leg: Arc<Leg>,
        account: Arc<Account>,
        clock: &FedClock,
    ) -> Self {
        Self { number, leg, account, trickle: Throttle::trickle(clock) }
    }

    /// Whether `len` bytes may go back. They are never billed, so no more may than a trickle.
    pub(crate) fn allows(&self, len: usize) -> bool {
        let allows = self.trickle.allows(len);
        if allows {
            self.account.count_unbilled(len as u64);
        }
        allows
    }
}
