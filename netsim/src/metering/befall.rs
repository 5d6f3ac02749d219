//! What befalls the parties, and how they come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_metering::{Gate, Payee, Payer, VoucherRecord};

use super::Sabotage;
use super::network::Control;
use super::plan::{Event, Party, Path, RELAYS};
use super::relay::{Holder, Writing};
use super::streams::Stream;
use super::world::World;
use crate::rng::Rng;

/// A clock that steps goes so far forward.
const DAY: Duration = Duration::from_secs(24 * 3600);

impl World {
    pub(super) fn befall(&mut self) -> Result<()> {
        while let Some((at, event)) = self.plan.events.get(self.events_done).copied() {
            // A second session break waits until the first is mended.
            if at > self.now || !self.session_up {
                break;
            }
            self.events_done += 1;
            self.moved = true;
            match event {
                Event::Switches(path) => self.switch(path),
                Event::Dies(Party::Tenant) => self.kill_tenant(),
                Event::Dies(Party::Provider) => self.kill_provider()?,
                Event::Dies(Party::Relay(i)) => self.kill_relay(i)?,
                Event::SessionBreaks => self.break_session(true),
                Event::LinkBreaks(i) => self.break_link(i),
                Event::ClockSteps(party) => self.skew[party.index()] += DAY,
            }
        }
        for i in 0..RELAYS {
            if self.revives_at[i].is_some_and(|at| at <= self.now) {
                self.revives_at[i] = None;
                self.relays[i].start(self.now);
                self.holders[i].connects_at = Some(self.now);
            }
            self.reach_relay(i);
        }
        if self.follows_at.is_some_and(|at| at <= self.now) {
            self.follows_at = None;
            self.paths[0] = self.paths[1];
        }
        Ok(())
    }

    /// The provider connects to a relay, and comes to terms with it a round trip later.
    fn reach_relay(&mut self, i: usize) {
        let now = self.now;
        let Some(process) = &self.relays[i].process else { return };
        if self.holders[i].connects_at.is_some_and(|at| at <= now) {
            self.holders[i].connects_at = None;
            let is_kept = process.meter.is_some() && process.is_kept;
            let flow = self.holders[i].connected(now + self.plan.delay * 2, is_kept);
            if is_kept {
                self.relays[i].resume_flow(flow);
            }
            self.follow_path();
        }
        // What it signed before must be in its ledger, or not at all.
        let wrote = self.holders[i].writing.is_empty();
        if wrote && self.holders[i].agrees_at.is_some_and(|at| at <= now) {
            self.holders[i].agrees_at = None;
            let (terms, purse) = self.deal.relay(i);
            self.holders[i].accept(terms, purse);
            let (newest, flow) = (self.holders[i].signed.clone(), self.holders[i].next_flow());
            self.net.deliver(now, Party::Relay(i), i, Control::Accept { newest, flow });
        }
    }

    fn switch(&mut self, path: Path) {
        self.paths[1] = path;
        self.follows_at = Some(self.now + self.plan.delay * 2);
        self.follow_path();
    }

    /// The gate follows the provider's path.
    pub(super) fn follow_path(&mut self) {
        let flow = match self.paths[1] {
            Path::Relay(i) => self.holders[i].flow().cloned(),
            Path::Direct => None,
        };
        if let Some(gate) = &mut self.gate {
            gate.set_relay(flow);
        }
    }

    /// A moment between 20 and 300 ms from now.
    fn soon(&mut self) -> Duration {
        self.now + self.rng.span(Duration::from_millis(20), Duration::from_millis(300))
    }

    fn kill_tenant(&mut self) {
        self.signed = outlives(&mut self.rng, &mut self.signing).or(self.signed.take());
        self.payer = None;
        self.break_session(false);
    }

    fn kill_provider(&mut self) -> Result<()> {
        if let Some(record) = outlives(&mut self.rng, &mut self.earning) {
            // It was written down, though nobody heard of it.
            self.earn(record)?;
        }
        self.gate = None;
        for i in 0..RELAYS {
            let holder = &mut self.holders[i];
            let signed = outlives(&mut self.rng, &mut holder.writing).or(holder.signed.take());
            self.net.drop_control(i);
            if let Some(process) = &mut self.relays[i].process {
                process.close_flow();
                // Another incarnation: the flows of the old one are closed.
                process.is_kept = false;
            }
            self.holders[i] = Holder::new(signed, holder.next_flow());
            self.holders[i].connects_at = Some(self.soon());
        }
        self.break_session(true);
        Ok(())
    }

    fn kill_relay(&mut self, i: usize) -> Result<()> {
        let relay = &mut self.relays[i];
        relay.process = None;
        if let Some(record) = outlives(&mut self.rng, &mut relay.writing) {
            relay.books.earn(&record)?;
            relay.earned = Some(record);
        }
        self.net.drop_control(i);
        self.holders[i].lose_link();
        let back = self.soon();
        self.revives_at[i] = Some(back);
        if self.paths[1] == Path::Relay(i) {
            let other = if self.rng.chance(0.5) { Path::Direct } else { Path::Relay(1 - i) };
            self.switch(other);
        }
        Ok(())
    }

    /// The provider's connection to a relay is lost.
    pub(super) fn break_link(&mut self, i: usize) {
        self.net.drop_control(i);
        self.holders[i].lose_link();
        if let Some(process) = &mut self.relays[i].process {
            process.is_kept = true;
        }
        self.follow_path();
        if self.revives_at[i].is_none() {
            self.holders[i].connects_at = Some(self.soon());
        }
    }

    /// The session is lost. A tenant that lives signs for all that it read.
    fn break_session(&mut self, tenant_lives: bool) {
        let now = self.clock(Party::Tenant);
        if let Some(payer) = self.payer.as_mut().filter(|_| tenant_lives) {
            payer.flush(now);
        }
        self.session_up = false;
        self.connects_at = Some(self.soon());
        let rest = self.streams.values().filter_map(Stream::rest).collect();
        self.add_streams(rest);
        self.acks = Default::default();
    }

    /// Opens a session: both go on from the newest voucher that either holds.
    pub(super) fn reconnect(&mut self) -> Result<()> {
        // A tenant that lives waits for its own ledger.
        if self.connects_at.is_none_or(|at| at > self.now) || !self.signing.is_empty() {
            return Ok(());
        }
        self.connects_at = None;
        self.moved = true;
        self.session += 1;
        let (terms, purse) = self.deal.session();
        let channel = purse.channel;
        let forgets = [Sabotage::ForgetsSigned, Sabotage::BeginsAnew].contains(&self.sabotage);
        if self.gate.is_none() || self.sabotage == Sabotage::BeginsAnew {
            let earned = self.earned.clone().filter(|_| self.sabotage != Sabotage::BeginsAnew);
            let payee = Payee::new(terms.clone(), Some(channel), self.session, earned);
            self.gate = Some(Gate::new(payee));
        }
        let gate = self.gate.as_ref().context("it was just made")?;
        let signed = self.signed.clone().filter(|_| !forgets);
        let shown = match &signed {
            Some(signed) => gate.payee().check_presented(&signed.voucher)?,
            None => None,
        };
        if let Some(newer) = &shown {
            self.earning.clear();
            self.earn(newer.clone())?;
        }
        let gate = self.gate.as_mut().context("it was just made")?;
        gate.set_relay(None);
        gate.payee_mut().begin_session(self.session, shown);
        let theirs = gate.payee().newest().cloned();
        let theirs = theirs.filter(|_| !forgets);
        let newest = match (signed, theirs) {
            (Some(a), Some(b)) => Some(if b.exceeds(Some(&a)) { b } else { a }),
            (a, b) => a.or(b),
        };
        self.signed.clone_from(&newest);
        let payer = Payer::new(terms, Some(purse), self.session, newest.as_ref());
        let counted = gate.payee().counted();
        ensure!(
            payer.counts() == counted,
            "the tenant goes on from {}, the provider from {counted}",
            payer.counts()
        );
        self.books.resume(counted)?;
        self.payer = Some(payer);
        self.began_at = self.now;
        self.session_up = true;
        self.follow_path();
        Ok(())
    }
}

/// Of what a process that dies had on its way to its ledger, what is found there: the newest.
fn outlives(rng: &mut Rng, writing: &mut Writing) -> Option<VoucherRecord> {
    let written = rng.below(writing.len() as u64 + 1) as usize;
    let survivor = writing.get(written.wrapping_sub(1)).map(|(_, _, record)| record.clone());
    writing.clear();
    survivor
}
