//! The truth of one edge, beside what its parties say of it.

use anyhow::{Result, ensure};
use sluice_metering::{Counts, VoucherRecord};
use sluice_proto::{BYTES_PER_PRICE_UNIT, Price};

/// What was given on one edge and what was paid for it, kept by somebody who sees every byte pass
/// and every voucher become durable.
///
/// Every byte that was given is paid once, or was lost when somebody forgot what it had not yet
/// written down: never more than a window at a time.
#[derive(Debug)]
pub(super) struct Books {
    name: &'static str,
    window: u64,
    price: Price,
    base: u128,
    given: Counts,
    paid: Counts,
    lost: Counts,
    amount: u128,
    /// The most that was ever given or under way and not paid.
    pub(super) exposed_max: u64,
    /// The most that was ever lost at once.
    pub(super) lost_max: u64,
    pub(super) vouchers: u64,
}

impl Books {
    pub(super) fn new(name: &'static str, window: u64, price: Price, base: u128) -> Self {
        let (given, paid, lost) = Default::default();
        let (exposed_max, lost_max, vouchers) = (0, 0, 0);
        let amount = base;
        Self {
            name,
            window,
            price,
            base,
            given,
            paid,
            lost,
            amount,
            exposed_max,
            lost_max,
            vouchers,
        }
    }

    /// Bytes reached whoever pays for them, or were taken from it.
    pub(super) fn give(&mut self, bytes: Counts) {
        self.given.up += bytes.up;
        self.given.down += bytes.down;
    }

    /// What was given in all.
    pub(super) const fn given(&self) -> Counts {
        self.given
    }

    /// What was lost in all.
    pub(super) const fn lost(&self) -> Counts {
        self.lost
    }

    /// A voucher is durable at the payee.
    pub(super) fn earn(&mut self, record: &VoucherRecord) -> Result<()> {
        let (name, counts) = (self.name, record.counts);
        ensure!(counts.covers(self.paid), "{name}: {counts} were paid after {}", self.paid);
        for (way, counts, lost, given) in [
            ("up", counts.up, self.lost.up, self.given.up),
            ("down", counts.down, self.lost.down, self.given.down),
        ] {
            ensure!(
                counts + lost <= given,
                "{name}: {counts} bytes {way} are billed and {lost} lost, but {given} were given"
            );
        }
        let (up, down) = (u128::from(counts.up), u128::from(counts.down));
        let due = self.base + (up * self.price.up + down * self.price.down) / BYTES_PER_PRICE_UNIT;
        ensure!(record.amount.0 == due, "{name}: {counts} cost {due}, not {}", record.amount);
        ensure!(due >= self.amount, "{name}: the amount falls from {} to {due}", self.amount);
        (self.paid, self.amount) = (counts, due);
        self.vouchers += 1;
        Ok(())
    }

    /// Both go on from `base`: what was given and is not in it is lost for good.
    pub(super) fn resume(&mut self, base: Counts) -> Result<()> {
        let (name, given, lost) = (self.name, self.given, self.lost);
        ensure!(base.covers(self.paid), "{name}: they go on from {base} after {}", self.paid);
        ensure!(
            base.up + lost.up <= given.up && base.down + lost.down <= given.down,
            "{name}: they go on from {base}, but {given} were given and {lost} lost"
        );
        let now =
            Counts { up: given.up - lost.up - base.up, down: given.down - lost.down - base.down };
        let total = now.total();
        ensure!(total <= self.window, "{name}: {total} bytes are lost at once");
        self.lost = Counts { up: lost.up + now.up, down: lost.down + now.down };
        self.lost_max = self.lost_max.max(total);
        Ok(())
    }

    /// `under_way` more bytes were sent and neither arrived nor are given up.
    pub(super) fn expose(&mut self, under_way: u64) -> Result<()> {
        let (name, window) = (self.name, self.window);
        let open = self.given.total() - self.lost.total() - self.paid.total() + under_way;
        ensure!(open <= window, "{name}: {open} bytes are unpaid, in flight included");
        self.exposed_max = self.exposed_max.max(open);
        Ok(())
    }

    /// All is settled.
    pub(super) fn conclude(&self) -> Result<()> {
        let Self { name, given, paid, lost, .. } = self;
        let all = Counts { up: paid.up + lost.up, down: paid.down + lost.down };
        ensure!(all == *given, "{name}: {given} were given, {paid} paid and {lost} lost");
        Ok(())
    }
}
