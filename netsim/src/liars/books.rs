//! The books, compared by somebody who believes nobody.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use sluice_ledger::StoredVoucher;
use sluice_metering::{Counts, counted_as_sent, grant_limit};
use sluice_proto::{Amount, frame};

use super::{Case, Client, Host, ProviderLie, RelayLie, Stage, TenantLie};
use crate::net::{Net, PlaceId, Seen};
use crate::paid::{Outcome, Purser};

/// Frames that passed a provider's wire, to its relay and from it.
#[derive(Debug, Default)]
pub(super) struct Wires {
    sent: u64,
    /// How many of those sent are large, and as long as if they carried payload.
    large: u64,
    /// What the small ones lack to count as 1,200 bytes, the largest lack first: how many lack so much.
    small: BTreeMap<Reverse<u64>, u64>,
    received: u64,
}

impl Wires {
    pub(super) fn watch(watching: Arc<Mutex<Self>>, net: &Net, host: PlaceId, relay: IpAddr) {
        net.watch(Box::new(move |_, place, seen, packet| {
            let first = packet.bytes.first().copied().unwrap_or_default();
            if place != host || !frame::is_frame(first) || first == frame::PROBE {
                return;
            }
            let (mut wires, len) = (watching.lock(), packet.bytes.len() as u64);
            if seen == Seen::Sent && packet.dst.ip() == relay {
                wires.sent += len;
                match counted_as_sent(len) - len {
                    0 => wires.large += 1,
                    lack => *wires.small.entry(Reverse(lack)).or_default() += 1,
                }
            } else if seen == Seen::Delivered && packet.src.ip() == relay {
                wires.received += len;
            }
        }));
    }

    /// What small packets lack in all.
    pub(super) fn lacking(&self) -> u64 {
        self.small.iter().map(|(Reverse(lack), count)| lack * count).sum()
    }

    /// What the holder sent, small packets with payload counted as 1,200 bytes: no more of them carried
    /// payload than QUIC sent frames of streams that were not in large packets. Which, nobody can see on
    /// a wire: those that lack most. `others` large packets carried none.
    fn counted(&self, stream_frames: u64, others: u64) -> u64 {
        let mut left = stream_frames.saturating_sub(self.large.saturating_sub(others));
        let mut counted = self.sent;
        for (Reverse(lack), count) in &self.small {
            let taken = left.min(*count);
            left -= taken;
            counted += taken * lack;
        }
        counted
    }
}

/// Large packets of a handshake, at most, that carry no payload: certificates, and padding.
const HANDSHAKE_LARGE: u64 = 8;

/// What each party lost to the others, in bytes, if it was honest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// The provider: served to the tenant and not paid.
    pub provider: Option<u64>,
    /// The tenant: paid and not got.
    pub tenant: Option<u64>,
    /// The relay: forwarded and not paid.
    pub relay: Option<u64>,
    /// The provider again: paid to the relay for what it neither sent nor got; what was lost on the
    /// way from the relay is part of it.
    pub holder: Option<u64>,
    /// The provider again: paid to the relay for garbage, beyond what may be.
    pub flood: Option<u64>,
    /// The window of the tenant's lease, and of the reservation.
    pub windows: [u64; 2],
    /// Bytes that the tenant's programs heard, and the provider's.
    pub heard: [u64; 2],
    /// Bytes that were paid on the tenant's lease, both ways.
    pub paid: u64,
    /// Bytes that a stranger sent, and that it was answered with.
    pub stranger: [u64; 2],
    /// Lies that honest parties noticed.
    pub noticed: u64,
}

/// What is looked into.
pub(super) struct Books<'a> {
    pub(super) case: Case,
    pub(super) outcomes: &'a [Arc<Outcome>],
    pub(super) host: &'a Host,
    pub(super) client: &'a Client,
}

impl Books<'_> {
    /// Compares everything. `in_time` tells whether the tenant got all that it wanted.
    pub(super) async fn audit(&self, stage: &Stage, in_time: bool) -> Result<Losses> {
        let lease = stage.meeting.terms.lease;
        let down: u64 = self.outcomes.iter().map(|o| o.heard()).sum();
        let (up, wrong) = self.heard_up();
        ensure!(!wrong && !self.outcomes.iter().any(|o| o.is_wrong()), "a byte is wrong");
        let earned = match self.host {
            Host::Honest(_) => stage.deal.provider_ledger.newest_earned(lease).await?,
            Host::Cheat(cheat) => cheat.newest().as_ref().map(crate::paid::stored),
        };
        let paid = counts(earned.as_ref());
        let mut losses = Losses { heard: [down, up], paid: sum(paid), ..Losses::default() };
        losses.windows = [stage.meeting.terms.window, stage.deal.edges[0].view.lock().window];
        losses.stranger = stage.stranger.lock().bytes();
        losses.noticed = self.noticed() + stage.deal.edges[0].view.lock().lies;
        if let Host::Honest(served) = self.host {
            // Its own count, and that of whoever heard the bytes: the higher is what it gave.
            let counted = sum(served.account.snapshot().counted);
            losses.provider = Some(counted.max(down + up).saturating_sub(sum(paid)));
        }
        if self.tenant_is_honest() {
            let signed = counts(stage.deal.tenant_ledger.newest_signed(lease).await?.as_ref());
            losses.tenant = Some(signed.down.saturating_sub(down) + signed.up.saturating_sub(up));
        } else if let Client::Cheat(cheat) = self.client
            && self.case.tenant != TenantLie::StrangersChannel
        {
            // Nobody is paid what the payer never signed for.
            ensure!(cheat.stated().covers(paid), "{paid} was paid, but {} stated", cheat.stated());
        }
        self.audit_relay(stage, &mut losses, up).await?;
        redeemed(stage, &stage.deal.purser, earned.as_ref()).await?;
        if self.case.must_succeed() {
            ensure!(in_time && self.outcomes.iter().all(|o| o.is_whole()), "not all arrived");
            if let (Client::Honest(guest), Host::Honest(served)) = (self.client, self.host) {
                let (ours, theirs) = (guest.account.snapshot(), served.account.snapshot());
                ensure!(
                    ours.paid == theirs.paid && ours.counted == theirs.paid,
                    "honest parties do not agree: {ours:?}, {theirs:?}"
                );
                ensure!(
                    theirs.paid == Counts { up, down },
                    "{} was paid, but {up} up and {down} down were heard",
                    theirs.paid
                );
                ensure!(ours.lies + theirs.lies == 0, "honest parties accuse each other");
            }
        }
        Ok(losses)
    }

    async fn audit_relay(&self, stage: &Stage, losses: &mut Losses, up: u64) -> Result<()> {
        let relay = stage.deal.scene.relays[0].process().context("the relay lives")?;
        let stats = relay.stats();
        let meter = stats.meters.first().context("the relay has an account")?;
        let (earned, signed) = (
            stage.deal.edges[0].ledger.newest_earned(meter.lease).await?,
            stage.deal.provider_ledger.newest_signed(meter.lease).await?,
        );
        if !matches!(self.case.relay, RelayLie::Inflates) {
            let lost = sum(meter.counts).saturating_sub(sum(counts(earned.as_ref())));
            losses.relay = Some(lost);
        }
        if self.provider_is_honest() {
            let (wires, signed) = (stage.wires.lock(), counts(signed.as_ref()));
            let over_up = signed.up.saturating_sub(wires.sent);
            let over_down = signed.down.saturating_sub(wires.received);
            losses.holder = Some(over_up + over_down);
            let quic = stage.meeting.theirs.connection().stats();
            let others = HANDSHAKE_LARGE + quic.path.sent_plpmtud_probes;
            let counted = wires.counted(quic.frame_tx.stream, others);
            let bound = grant_limit(up, counted, true);
            losses.flood = Some(signed.down.saturating_sub(bound));
        }
        redeemed(stage, &stage.deal.edges[0].purser, earned.as_ref()).await
    }

    fn heard_up(&self) -> (u64, bool) {
        let outcomes = match self.host {
            Host::Honest(served) => served.outcomes.lock().clone(),
            Host::Cheat(cheat) => cheat.outcomes.lock().clone(),
        };
        (outcomes.iter().map(|o| o.heard()).sum(), outcomes.iter().any(|o| o.is_wrong()))
    }

    fn noticed(&self) -> u64 {
        let ours = match self.client {
            Client::Honest(guest) => guest.account.snapshot().lies,
            Client::Cheat(_) => 0,
        };
        let theirs = match self.host {
            Host::Honest(served) => served.account.snapshot().lies,
            Host::Cheat(_) => 0,
        };
        ours + theirs
    }

    fn tenant_is_honest(&self) -> bool {
        matches!(self.client, Client::Honest(_))
    }

    fn provider_is_honest(&self) -> bool {
        self.case.provider == ProviderLie::None
    }
}

/// The chain pays the payee what its newest voucher says, and nothing else.
async fn redeemed(stage: &Stage, purser: &Purser, newest: Option<&StoredVoucher>) -> Result<()> {
    let due = newest.map_or(Amount(0), |v| v.amount);
    let paid = stage.deal.bank.redeem(purser, newest).await?;
    ensure!(paid == due, "the voucher says {due}, but the chain paid {paid}");
    Ok(())
}

fn counts(voucher: Option<&StoredVoucher>) -> Counts {
    voucher.map_or(Counts::default(), |v| Counts { up: v.up, down: v.down })
}

const fn sum(counts: Counts) -> u64 {
    counts.up + counts.down
}
