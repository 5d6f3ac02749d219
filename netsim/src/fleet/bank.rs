//! What the fleet's members send their transactions to: a chain that pays the difference, and notes
//! who sends what that somebody else was at.

use std::collections::HashMap;

/// Somebody who redeems: a member and its task.
type Redeemer = (usize, u64);

/// One that looked at a channel and has not ended yet.
#[derive(Debug, Clone, Copy)]
struct Look {
    who: Redeemer,
    /// How often its member had been stopped and let go on when it began, before it asked the ledger
    /// for the channel: odd while it is stopped.
    stops: u64,
}

impl Look {
    /// Whether its member ran all the time since.
    fn ran(&self, stops: &[u64]) -> bool {
        self.stops == stops[self.who.0] && self.stops.is_multiple_of(2)
    }
}

/// A transaction that paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tx {
    pub(super) number: u64,
    pub(super) channel: u64,
    pub(super) redeemed: u64,
    pub(super) paid: u64,
}

/// Vouchers are cumulative: it pays what is new, and nothing for what is not.
#[derive(Debug, Default)]
pub(super) struct Bank {
    redeemed: HashMap<u64, u64>,
    began: HashMap<Redeemer, u64>,
    looks: HashMap<u64, Look>,
    pub(super) log: Vec<Tx>,
    /// Transactions that paid nothing, since another had been there.
    pub(super) wasted: u64,
    /// The same by a member that was stopped between its look and its transaction: no ledger can keep
    /// it from that.
    pub(super) late: u64,
    /// How often two redeemed a channel at a time, neither of them stopped meanwhile.
    pub(super) together: u64,
    sent: u64,
}

impl Bank {
    /// A redeemer is about to ask the ledger for a channel.
    pub(super) fn begin(&mut self, who: Redeemer, stops: &[u64]) {
        self.began.insert(who, stops[who.0]);
    }

    /// A redeemer looks what was redeemed.
    pub(super) fn look(&mut self, who: Redeemer, channel: u64, stops: &[u64]) -> u64 {
        let look = Look { who, stops: self.began.get(&who).copied().unwrap_or(stops[who.0]) };
        let is_other_at_it = self.looks.get(&channel).is_some_and(|other| other.ran(stops));
        if look.ran(stops) || !is_other_at_it {
            self.looks.insert(channel, look);
            self.together += u64::from(is_other_at_it);
        }
        self.redeemed.get(&channel).copied().unwrap_or(0)
    }

    /// A redeemer sends a transaction; gives its number.
    pub(super) fn send(&mut self, who: Redeemer, channel: u64, amount: u64, stops: &[u64]) -> u64 {
        self.sent += 1;
        let number = self.sent;
        let redeemed = self.redeemed.entry(channel).or_default();
        if amount > *redeemed {
            let paid = amount - *redeemed;
            *redeemed = amount;
            self.log.push(Tx { number, channel, redeemed: amount, paid });
            return number;
        }
        let look = self.looks.get(&channel).filter(|look| look.who == who);
        match look.is_some_and(|look| look.ran(stops)) {
            true => self.wasted += 1,
            // Stopped since it looked, or so long that somebody looked after it.
            false => self.late += 1,
        }
        number
    }

    /// A redeemer is done.
    pub(super) fn end(&mut self, who: Redeemer, channel: u64) {
        if self.looks.get(&channel).is_some_and(|look| look.who == who) {
            self.looks.remove(&channel);
        }
    }
}
