//! What the machines want done: ledgers, messages, timers.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use sluice_metering::{
    HolderMeter, PayeeEvent, PayerEvent, RelayMeter, RelayMeterEvent, VoucherRecord,
};

use super::network::{Body, Cargo, Control};
use super::plan::{Party, RELAYS};
use super::world::{LOOK, World};

/// A holder looks at its account this often at least.
const HOLDER_LOOK: Duration = Duration::from_secs(1);
/// Of a packet that carries nothing but one message: IPv4 20, UDP 8, QUIC's short header with an
/// 8-byte connection id and a 2-byte number 11, its tag 16, the datagram's type and length 3.
const HEADERS: u64 = 20 + 8 + 11 + 16 + 3;
/// The session's packets bear a relay's frame header too.
const SESSION_HEADERS: u64 = HEADERS + 19;

impl World {
    /// When a ledger has written something.
    pub(super) fn ledger_deadlines(&self) -> impl Iterator<Item = Duration> {
        let mut ledgers = vec![&self.signing, &self.earning];
        for (holder, relay) in self.holders.iter().zip(&self.relays) {
            ledgers.extend([&holder.writing, &relay.writing]);
        }
        ledgers
            .into_iter()
            .filter_map(|l| l.front().map(|(at, ..)| *at))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// When an account wants to be asked, each by its own clock.
    pub(super) fn account_deadlines(&self) -> impl Iterator<Item = Duration> {
        let mut next: Vec<(Party, Option<(Instant, &'static str)>)> = vec![
            (Party::Tenant, self.payer.as_ref().and_then(|p| p.poll_timeout())),
            (Party::Provider, self.gate.as_ref().and_then(|g| g.payee().poll_timeout())),
        ];
        for (i, (holder, relay)) in self.holders.iter().zip(&self.relays).enumerate() {
            next.push((Party::Provider, holder.meter.as_ref().and_then(HolderMeter::poll_timeout)));
            let meter = relay.process.as_ref().and_then(|p| p.meter.as_ref());
            next.push((Party::Relay(i), meter.and_then(RelayMeter::poll_timeout)));
        }
        let at = |(party, next): (Party, Option<(Instant, _)>)| {
            next.map(|(at, _)| self.now + at.saturating_duration_since(self.clock(party)))
        };
        next.into_iter().filter_map(at).collect::<Vec<_>>().into_iter()
    }

    fn ledger_takes(&mut self, after: Option<Duration>) -> Duration {
        let at = self.now + self.rng.span(Duration::ZERO, self.plan.ledger);
        after.map_or(at, |after| at.max(after))
    }

    pub(super) fn run_ledgers(&mut self) -> Result<()> {
        while let Some((_, seq, record)) = self.signing.pop_front_if(|(at, ..)| *at <= self.now) {
            self.moved = true;
            self.signed = Some(record);
            let now = self.clock(Party::Tenant);
            if let Some(payer) = &mut self.payer {
                payer.handle_persisted(seq, now);
            }
        }
        while let Some((_, seq, record)) = self.earning.pop_front_if(|(at, ..)| *at <= self.now) {
            self.moved = true;
            self.earn(record)?;
            if let Some(gate) = &mut self.gate {
                gate.payee_mut().handle_durable(seq);
            }
        }
        for i in 0..RELAYS {
            self.run_relay_ledgers(i)?;
        }
        Ok(())
    }

    fn run_relay_ledgers(&mut self, i: usize) -> Result<()> {
        let provider = self.clock(Party::Provider);
        let holder = &mut self.holders[i];
        while let Some((_, seq, record)) = holder.writing.pop_front_if(|(at, ..)| *at <= self.now) {
            self.moved = true;
            holder.signed = Some(record);
            if let Some(meter) = &mut holder.meter {
                meter.handle_persisted(seq, provider);
            }
        }
        let now = self.clock(Party::Relay(i));
        let relay = &mut self.relays[i];
        if let Some((_, seq, record)) = relay.writing.pop_front_if(|(at, ..)| *at <= self.now) {
            self.moved = true;
            relay.books.earn(&record)?;
            relay.earned = Some(record);
            if let Some(meter) = relay.process.as_mut().and_then(|p| p.meter.as_mut()) {
                meter.handle_durable(seq, now);
            }
        }
        Ok(())
    }

    pub(super) fn run_timeouts(&mut self) {
        let [tenant, provider] = [Party::Tenant, Party::Provider].map(|p| self.clock(p));
        let is_due = |next: Option<(Instant, &str)>, now| next.is_some_and(|(at, _)| at <= now);
        if let Some(payer) = self.payer.as_mut().filter(|p| is_due(p.poll_timeout(), tenant)) {
            payer.handle_timeout(tenant);
        }
        if let Some(gate) = &mut self.gate
            && is_due(gate.payee().poll_timeout(), provider)
        {
            gate.payee_mut().handle_timeout(provider);
        }
        for i in 0..RELAYS {
            let (now, at) = (self.clock(Party::Relay(i)), self.now);
            let looks = at >= self.holders[i].looks_at;
            if let Some(meter) = &mut self.holders[i].meter
                && (looks || is_due(meter.poll_timeout(), provider))
            {
                self.holders[i].looks_at = at + HOLDER_LOOK;
                meter.handle_timeout(provider);
            }
            let Some(process) = &mut self.relays[i].process else { continue };
            if at >= process.looks_at + LOOK {
                process.looks_at = at;
                process.report(now);
            }
            if let Some(meter) = process.meter.as_mut().filter(|m| is_due(m.poll_timeout(), now)) {
                meter.handle_timeout(now);
            }
        }
    }

    /// Does what every machine wants done.
    pub(super) fn drain(&mut self) -> Result<()> {
        self.drain_payer()?;
        self.drain_payee()?;
        for i in 0..RELAYS {
            self.drain_holder(i)?;
            self.drain_relay(i)?;
        }
        Ok(())
    }

    fn drain_payer(&mut self) -> Result<()> {
        let now = self.clock(Party::Tenant);
        let Some(payer) = &mut self.payer else { return Ok(()) };
        payer.handle_pto(self.plan.delay * 4);
        let events: Vec<_> = std::iter::from_fn(|| payer.poll_event()).collect();
        let messages: Vec<_> = std::iter::from_fn(|| payer.poll_transmit(now)).collect();
        for event in events {
            if let Some((seq, record)) = payers_voucher(event)? {
                let at = self.ledger_takes(self.signing.back().map(|(at, ..)| *at));
                self.signing.push_back((at, seq, record));
            }
        }
        self.say(true, messages);
        Ok(())
    }

    fn say(&mut self, is_up: bool, messages: Vec<Bytes>) {
        for message in messages {
            self.moved = true;
            self.messages += 1;
            self.message_bytes[0] += message.len() as u64 + SESSION_HEADERS;
            self.send(is_up, Body::Pay(message));
        }
    }

    fn drain_payee(&mut self) -> Result<()> {
        let now = self.clock(Party::Provider);
        let Some(gate) = &mut self.gate else { return Ok(()) };
        let payee = gate.payee_mut();
        payee.handle_pto(self.plan.delay * 4);
        let events: Vec<_> = std::iter::from_fn(|| payee.poll_event()).collect();
        let messages: Vec<_> = std::iter::from_fn(|| payee.poll_transmit(now)).collect();
        for event in events {
            match event {
                PayeeEvent::Persist { seq, record } => {
                    let at = self.ledger_takes(self.earning.back().map(|(at, ..)| *at));
                    self.earning.push_back((at, seq, record));
                }
                PayeeEvent::Lie(evidence) => bail!("a tenant is accused: {}", evidence.lie),
                PayeeEvent::Stale | PayeeEvent::Writable => {}
            }
        }
        self.say(false, messages);
        Ok(())
    }

    fn drain_holder(&mut self, i: usize) -> Result<()> {
        let now = self.clock(Party::Provider);
        let Some(meter) = &mut self.holders[i].meter else { return Ok(()) };
        meter.handle_pto(self.plan.delay * 2);
        let events: Vec<_> = std::iter::from_fn(|| meter.poll_event()).collect();
        let messages: Vec<_> = std::iter::from_fn(|| meter.poll_transmit(now)).collect();
        for event in events {
            if let Some((seq, record)) = payers_voucher(event)? {
                let at = self.ledger_takes(self.holders[i].writing.back().map(|(at, ..)| *at));
                self.holders[i].writing.push_back((at, seq, record));
            }
        }
        self.tell(Party::Relay(i), i, messages);
        while let Some((flow, granted)) = self.holders[i].grant() {
            let grant = Control::Grant { flow, granted };
            self.net.deliver(self.now, Party::Relay(i), i, grant);
        }
        Ok(())
    }

    fn tell(&mut self, to: Party, i: usize, messages: Vec<Bytes>) {
        for message in messages {
            self.moved = true;
            self.messages += 1;
            self.message_bytes[1] += message.len() as u64 + HEADERS;
            self.net.launch(self.now, to, &Cargo::Control(i, Control::Pay(message)));
        }
    }

    fn drain_relay(&mut self, i: usize) -> Result<()> {
        let now = self.clock(Party::Relay(i));
        let Some(process) = &mut self.relays[i].process else { return Ok(()) };
        let Some(meter) = &mut process.meter else { return Ok(()) };
        meter.handle_pto(self.plan.delay * 2);
        let events: Vec<_> = std::iter::from_fn(|| meter.poll_event()).collect();
        let messages: Vec<_> = std::iter::from_fn(|| meter.poll_transmit(now)).collect();
        let mut closes = false;
        for event in events {
            match event {
                RelayMeterEvent::Persist { seq, record } => process.pending = Some((seq, record)),
                RelayMeterEvent::Lie(evidence) => bail!("a holder is accused: {}", evidence.lie),
                RelayMeterEvent::Close => closes = true,
                RelayMeterEvent::Stale | RelayMeterEvent::Unpaid | RelayMeterEvent::Paid => {}
            }
        }
        process.set_limits(now);
        let speaks = process.speaks_on == self.holders[i].next_flow();
        if self.relays[i].writing.is_empty()
            && let Some((seq, record)) =
                self.relays[i].process.as_mut().and_then(|p| p.pending.take())
        {
            let at = self.ledger_takes(None);
            self.relays[i].writing.push_back((at, seq, record));
        }
        if speaks && self.holders[i].meter.is_some() {
            self.tell(Party::Provider, i, messages);
        }
        if closes {
            self.break_link(i);
        }
        Ok(())
    }
}

/// The voucher that a payer wants written down.
fn payers_voucher(event: PayerEvent) -> Result<Option<(u64, VoucherRecord)>> {
    match event {
        PayerEvent::Persist { seq, record } => Ok(Some((seq, record))),
        PayerEvent::Lie(evidence) => bail!("a payee is accused: {}", evidence.lie),
        PayerEvent::DepositExhausted { due, deposit } => bail!("{due} are due of {deposit}"),
    }
}
