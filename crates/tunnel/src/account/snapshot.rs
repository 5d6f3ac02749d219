//! What a person wants to know of an account.

use std::sync::atomic::Ordering::Relaxed;

use sluice_metering::{Counts, Losses, Reason};
use sluice_proto::Amount;

use super::{Account, Meter};

/// What an account says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Payload both ways: read and accepted (payer), read and granted (payee). Cumulative over the
    /// lease.
    pub counted: Counts,
    /// What durable vouchers pay for.
    pub paid: Counts,
    /// Sent or read and not paid, in flight included (payee); owed and not acknowledged (payer).
    pub unpaid: u64,
    /// The highest that the payee's `unpaid` ever was.
    pub unpaid_max: u64,
    /// The lease's window.
    pub window: u64,
    /// The newest voucher's amount, cumulative.
    pub amount: Amount,
    /// Vouchers that became durable at the payee.
    pub vouchers: u64,
    /// Why bytes wait now, if they do.
    pub stalled: Option<Reason>,
    /// Lies that the peer told in this session.
    pub lies: u64,
}

impl Account {
    /// What a payee lost on the lease, and what is open.
    #[must_use]
    pub fn losses(&self) -> Losses {
        match &*self.0.meter.lock() {
            Meter::Payee(gate) => gate.payee().losses(),
            Meter::Payer(_) | Meter::Closed(_) => Losses::default(),
        }
    }

    /// What the account says of itself.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let stalled = *self.0.stalled.lock();
        let lies = self.0.lies.load(Relaxed);
        match &*self.0.meter.lock() {
            Meter::Payer(payer) => Snapshot {
                counted: payer.counts(),
                paid: payer.acked(),
                unpaid: payer.counts().since(payer.acked()),
                unpaid_max: 0,
                window: payer.terms().window,
                amount: payer.amount(),
                vouchers: 0,
                stalled,
                lies,
            },
            Meter::Payee(gate) => {
                let payee = gate.payee();
                Snapshot {
                    counted: payee.counted(),
                    paid: payee.paid(),
                    unpaid: payee.unpaid(),
                    unpaid_max: payee.unpaid_max(),
                    window: payee.terms().window,
                    amount: payee.amount(),
                    vouchers: payee.vouchers(),
                    stalled,
                    lies,
                }
            }
            Meter::Closed(snapshot) => *snapshot,
        }
    }
}
