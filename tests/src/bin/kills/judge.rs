//! Who lost what: three ledgers on the disk and the bytes at the sockets, compared.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use sluice_ledger::{Edge, LeaseRow, Role as Side, StoredVoucher};
use sluice_metering::Terms;
use sluice_proto::{Amount, LeaseId, amount_due};

use crate::stage::{Bytes, Role, Stage};

/// What a provider may have read from one connection and not sent yet: one read of its pump.
const READ_AHEAD: u64 = 128 * 1024;

/// Bytes that vouchers pay for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Paid {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

impl Paid {
    const fn total(self) -> u64 {
        self.up + self.down
    }

    fn of(voucher: Option<&StoredVoucher>) -> Self {
        voucher.map_or(Self::default(), |v| Self { up: v.up, down: v.down })
    }

    fn since(self, base: Self) -> Self {
        Self { up: self.up.saturating_sub(base.up), down: self.down.saturating_sub(base.down) }
    }

    fn plus(self, other: Self) -> Self {
        Self { up: self.up + other.up, down: self.down + other.down }
    }

    fn max(self, other: Self) -> Self {
        if self.total() >= other.total() { self } else { other }
    }
}

/// What both ledgers of an edge say, over all leases of this epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ledgers {
    /// On the payer's disk.
    pub(crate) signed: Paid,
    /// On the payee's disk.
    pub(crate) earned: Paid,
    window: u64,
}

/// Both edges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Both {
    pub(crate) tenant: Ledgers,
    pub(crate) relay: Ledgers,
}

impl Both {
    /// The same, with what payees had earned by an earlier time.
    pub(crate) fn with_earned_of(mut self, before: &Self) -> Self {
        (self.tenant.earned, self.relay.earned) = (before.tenant.earned, before.relay.earned);
        self
    }
}

/// Bytes that somebody lost, and the window that bounds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    pub(crate) bytes: u64,
    pub(crate) window: u64,
}

/// What each lost at one kill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    /// The provider: given to the tenant or taken from it, and not paid.
    pub(crate) provider: Lost,
    /// The same with what it had read from the workload and not sent.
    pub(crate) with_read_ahead: Lost,
    /// The tenant: paid, and neither got nor delivered.
    pub(crate) tenant: Lost,
    /// The relay: forwarded and not paid.
    pub(crate) relay: Lost,
    /// The provider again: paid to the relay for frames that never were.
    pub(crate) holder: Lost,
}

/// Where the accounts of one edge began: what both sides went on from, and the bytes by then.
#[derive(Debug, Clone, Copy, Default)]
struct Base {
    paid: Paid,
    bytes: Bytes,
}

/// Keeps the accounts of both edges.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    tenant: Base,
    relay: Base,
    /// Amounts only grow: the newest of each lease that was seen, of payer and payee.
    seen: BTreeMap<(LeaseId, bool), Amount>,
}

impl Judge {
    /// Both accounts of the tenant's edge go on from the higher voucher.
    pub(crate) fn begin_tenant(&mut self, ledgers: &Both, bytes: Bytes) {
        let Ledgers { signed, earned, .. } = ledgers.tenant;
        self.tenant = Base { paid: signed.max(earned), bytes };
    }

    /// The same of the relay's edge.
    pub(crate) fn begin_relay(&mut self, ledgers: &Both, bytes: Bytes) {
        let Ledgers { signed, earned, .. } = ledgers.relay;
        self.relay = Base { paid: signed.max(earned), bytes };
    }

    /// What each has lost if nothing but the ledgers is left. The provider reads from so many
    /// `connections`.
    pub(crate) fn losses(&self, ledgers: &Both, now: Bytes, connections: u64) -> Losses {
        let (base, ours) = (&self.tenant, ledgers.tenant);
        let took = now.provider_took.saturating_sub(base.bytes.provider_took);
        let got_up = now.workload_got.saturating_sub(base.bytes.workload_got);
        let got_down = now.client_got.saturating_sub(base.bytes.client_got);
        let paid = ours.earned.since(base.paid).total();
        // What it has in hand it has not given; what arrived was given in any case.
        let gave = took.saturating_sub(READ_AHEAD * connections).max(got_down);
        let provider = (gave + got_up).saturating_sub(paid);
        let with_read_ahead = (took + got_up).saturating_sub(paid);
        let signed = ours.signed.since(base.paid);
        let tenant = signed.down.saturating_sub(got_down) + signed.up.saturating_sub(got_up);
        let (base, theirs) = (&self.relay, ledgers.relay);
        let (now, begin) = (now.frames, base.bytes.frames);
        let up = now.up.saturating_sub(begin.up);
        let down = now.down.saturating_sub(begin.down);
        let served = down + now.forwarded.saturating_sub(begin.forwarded);
        let relay = served.saturating_sub(theirs.earned.since(base.paid).total());
        let signed = theirs.signed.since(base.paid);
        let holder = signed.up.saturating_sub(up) + signed.down.saturating_sub(down);
        let lost = |bytes: u64, edge: Ledgers| Lost { bytes, window: edge.window };
        Losses {
            provider: lost(provider, ours),
            with_read_ahead: lost(with_read_ahead, ours),
            tenant: lost(tenant, ours),
            relay: lost(relay, theirs),
            holder: lost(holder, theirs),
        }
    }

    /// Reads what all ledgers say by now, and checks what must always hold: no amount falls, each
    /// is what its bytes cost, and nobody holds a voucher that its payer has not on the disk.
    pub(crate) fn read(&mut self, stage: &Stage) -> Result<Both> {
        // The payees first: what they hold was on their payers' disks before.
        let [relay, provider, tenant] = Role::ALL.map(|role| stage.books(role));
        let (relay, provider, tenant) = (relay?, provider?, tenant?);
        let mut both = Both::default();
        for (edge, payer, payee) in
            [(Edge::Relay, &provider, &relay), (Edge::Tenant, &tenant, &provider)]
        {
            let Some(payer) = payer else { continue };
            let ledgers = match edge {
                Edge::Tenant => &mut both.tenant,
                Edge::Relay => &mut both.relay,
            };
            for lease in payer.leases(edge)?.iter().filter(|l| l.role == Side::Payer) {
                ledgers.window = Terms::parse(&lease.terms)?.window;
                let earned = match payee {
                    Some(payee) => {
                        payee.newest(&LeaseRow { role: Side::Payee, ..lease.clone() })?
                    }
                    None => None,
                };
                let signed = payer.newest(lease)?;
                self.check(lease, signed.as_ref(), earned.as_ref())
                    .with_context(|| format!("{edge:?} edge, lease {}", lease.id))?;
                ledgers.signed = ledgers.signed.plus(Paid::of(signed.as_ref()));
                ledgers.earned = ledgers.earned.plus(Paid::of(earned.as_ref()));
            }
        }
        Ok(both)
    }

    fn check(
        &mut self,
        lease: &LeaseRow,
        signed: Option<&StoredVoucher>,
        earned: Option<&StoredVoucher>,
    ) -> Result<()> {
        let price = Terms::parse(&lease.terms)?.price;
        for (is_payer, voucher) in [(true, signed), (false, earned)] {
            let amount = voucher.map_or(Amount(0), |v| v.amount);
            if let Some(v) = voucher {
                let due = amount_due(lease.base, v.up, v.down, price);
                ensure!(due == Some(v.amount), "{} for {} up and {} down", v.amount, v.up, v.down);
            }
            let before = self.seen.insert((lease.id, is_payer), amount).unwrap_or_default();
            ensure!(amount >= before, "an amount fell from {before} to {amount}");
        }
        let [signed, earned] = [signed, earned].map(|v| v.map_or(Amount(0), |v| v.amount));
        ensure!(earned <= signed, "{earned} is held, but only {signed} is on the payer's disk");
        Ok(())
    }
}

/// Waits until what ledgers say does not change: what was under way when somebody died is written.
pub(crate) fn at_rest(judge: &mut Judge, stage: &Stage) -> Result<Both> {
    let mut last = judge.read(stage)?;
    tests::until("ledgers at rest", || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let now = judge.read(stage);
        match now {
            Ok(now) if now == last => Some(Ok(now)),
            Ok(now) => {
                last = now;
                None
            }
            Err(error) => Some(Err(error)),
        }
    })?
}
