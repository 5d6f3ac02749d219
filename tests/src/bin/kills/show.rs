//! One kill after another on one stage: what is going on when somebody is killed, what follows, and
//! what it cost.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tests::{PATIENCE, Process};

use crate::chain;
use crate::judge::{Both, Judge, Losses, Paid, at_rest};
use crate::report::Report;
use crate::rng::Rng;
use crate::stage::{Role, Stage};
use crate::transfer::{Errand, Transfer, Way};

/// What is going on when somebody is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum During {
    /// A transfer, after some of its bytes.
    Bytes,
    /// A transfer, after some time.
    Time,
    /// Provider and tenant meet for the first time: channels are opened.
    Open,
    /// It was killed just before, and starts again.
    Resume,
    /// Somebody was asked to stop.
    Close,
    /// Nothing, after a transfer.
    Idle,
}

/// Which comes how often.
const ORDER: [During; 10] = [
    During::Bytes,
    During::Open,
    During::Time,
    During::Resume,
    During::Bytes,
    During::Close,
    During::Time,
    During::Idle,
    During::Bytes,
    During::Time,
];
/// Bytes of a transfer: two windows and more, so that it cannot end unpaid.
const LONG: std::ops::Range<u64> = (1 << 20)..(4 << 20);
/// Of one before somebody is asked to stop, or rests.
const SHORT: std::ops::Range<u64> = 1_000..(1 << 20);
/// By when a start, an end, a transfer and a rest are interrupted, in milliseconds.
const START_MS: u64 = 300;
const END_MS: u64 = 100;
const TRANSFER_MS: u64 = 800;
const REST_MS: u64 = 300;
/// Times that an end is interrupted earlier when it was over before.
const ATTEMPTS: u32 = 6;

/// What a kill left behind.
struct Strike {
    ledgers: Both,
    losses: Losses,
    /// The same if the payees had written nothing since the transfer began.
    control: Losses,
    /// Who will say what was acknowledged to it, in which event, and how many it had told by then.
    witness: Option<(Role, &'static str, usize)>,
}

/// All that goes on.
pub(crate) struct Show {
    stage: Stage,
    judge: Judge,
    rng: Rng,
    /// The tenant's edge begins anew with the next session, and no transfer may go on before.
    is_new: bool,
    /// Sessions of the tenant's process when its edge began.
    sessions: usize,
    /// What the provider had told when the relay started.
    relay_since: usize,
    /// What the ledgers said when the last transfer began.
    before: Both,
    transfers: Vec<Transfer>,
    /// Whether a transfer did not end in time, so that nothing more can be tried here.
    is_stalled: bool,
}

impl Show {
    pub(crate) fn start(seed: u64) -> Result<Self> {
        let mut show = Self {
            stage: Stage::start()?,
            judge: Judge::default(),
            rng: Rng::new(seed),
            is_new: true,
            sessions: 0,
            relay_since: 0,
            before: Both::default(),
            transfers: Vec::new(),
            is_stalled: false,
        };
        show.recover()?;
        Ok(show)
    }

    /// Kills `victim` for the `number`th time, and brings all to a good end.
    pub(crate) fn kill(&mut self, victim: Role, number: usize, report: &mut Report) -> Result<()> {
        let during = ORDER[number % ORDER.len()];
        let outcome = match during {
            During::Bytes | During::Time | During::Idle | During::Resume => {
                self.kill_in_transfer(victim, during)
            }
            During::Open => self.kill_in_open(victim),
            During::Close => self.kill_in_close(victim),
        };
        let outcome = outcome.and_then(|strike| {
            self.recover()?;
            report.note(victim, &strike.losses, &strike.control);
            self.check_acknowledged(&strike, report)?;
            self.finish_transfers()
        });
        outcome.map_err(|error| anyhow!("{during:?}: {error:#}{}", self.stage.story()))
    }

    pub(crate) const fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    fn kill_in_transfer(&mut self, victim: Role, during: During) -> Result<Strike> {
        let long = self.begin_transfers(if during == During::Idle { SHORT } else { LONG })?;
        match during {
            During::Bytes => {
                let bytes = self.rng.below(long);
                self.transfers[0].wait_for_bytes(bytes)?;
            }
            During::Idle => {
                self.finish_transfers()?;
                self.pause(REST_MS);
            }
            During::Time | During::Resume | During::Open | During::Close => self.pause(TRANSFER_MS),
        }
        let strike = self.strike(victim)?.context("it had ended")?;
        if during != During::Resume {
            return Ok(strike);
        }
        self.spawn(victim)?;
        self.pause(START_MS);
        self.strike(victim)?.context("it ended by itself")
    }

    /// A new provider and a new tenant; `victim` does not live to see them meet.
    fn kill_in_open(&mut self, victim: Role) -> Result<Strike> {
        self.end_epoch()?;
        self.stage.epoch += 1;
        self.spawn(Role::Provider)?;
        if victim == Role::Provider || victim == Role::Relay && self.rng.coin() {
            self.pause(START_MS);
            return self.strike(victim)?.context("it ended by itself");
        }
        self.stage.ready(Role::Provider)?;
        self.spawn(Role::Tenant)?;
        self.pause(START_MS);
        self.strike(victim)?.context("it ended by itself")
    }

    /// `victim`, or who it deals with, was asked to stop.
    fn kill_in_close(&mut self, victim: Role) -> Result<Strike> {
        let other = if victim == Role::Provider { Role::Tenant } else { Role::Provider };
        let closer = if self.rng.coin() { victim } else { other };
        for attempt in 0..ATTEMPTS {
            self.begin_transfers(SHORT)?;
            self.finish_transfers()?;
            self.stage.ask_to_stop(closer)?;
            self.pause(END_MS >> attempt);
            let strike = self.strike(victim)?;
            if strike.is_none() || closer != victim {
                self.stage.await_end(closer)?;
            }
            match strike {
                Some(strike) => return Ok(strike),
                None => self.recover()?,
            }
        }
        bail!("the {} ends faster than it can be killed", victim.name())
    }

    fn pause(&mut self, ms_max: u64) {
        let us = self.rng.below(ms_max * 1_000);
        std::thread::sleep(Duration::from_micros(us));
    }

    /// Freezes `victim`, lets the dust settle, kills it, and sees what is left. `None`: it had ended.
    fn strike(&mut self, victim: Role) -> Result<Option<Strike>> {
        let witness = self.witness(victim);
        if !self.stage.freeze(victim)? {
            return Ok(None);
        }
        let bytes = self.stage.bytes_at_rest()?;
        self.stage.kill(victim)?;
        let ledgers = at_rest(&mut self.judge, &self.stage)?;
        let downloads = self.transfers.iter().filter(|t| t.way() == Way::Down).count() as u64;
        let mut losses = self.judge.losses(&ledgers, bytes, downloads);
        let before = ledgers.with_earned_of(&self.before);
        let mut control = self.judge.losses(&before, bytes, downloads);
        if self.is_new {
            // Nothing went since its last session was killed, and was judged.
            for of in [&mut losses, &mut control] {
                (of.provider, of.with_read_ahead, of.tenant) = Default::default();
            }
        }
        Ok(Some(Strike { ledgers, losses, control, witness }))
    }

    /// The payer of `victim`, if an account of theirs is open.
    fn witness(&self, victim: Role) -> Option<(Role, &'static str, usize)> {
        let (payer, event) = match victim {
            Role::Relay => (Role::Provider, "reservation"),
            Role::Provider => (Role::Tenant, "account"),
            Role::Tenant => return None,
        };
        let process = self.stage.process(payer).ok()?;
        let told = process.told();
        let is_open = match victim {
            Role::Relay => is_reserved(process),
            Role::Provider | Role::Tenant => {
                process.events("session").len() > process.events("session_ended").len()
            }
        };
        is_open.then_some((payer, event, told))
    }

    /// Whatever a payer was told that it is on the payee's disk was there when the payee died.
    fn check_acknowledged(&self, strike: &Strike, report: &mut Report) -> Result<()> {
        let Some((payer, event, told)) = strike.witness else { return Ok(()) };
        // Who was asked to stop meanwhile tells nobody any more.
        let Ok(process) = self.stage.process(payer) else { return Ok(()) };
        if process.told() < told {
            return Ok(());
        }
        let event = process.event(told, event)?;
        let count = |key: &str| event[key].as_u64().with_context(|| format!("{key}: {event}"));
        let acknowledged = Paid { up: count("up")?, down: count("down")? };
        let of = |both: &Both| match payer {
            Role::Provider => both.relay.earned,
            Role::Relay | Role::Tenant => both.tenant.earned,
        };
        report.acknowledged(acknowledged, of(&strike.ledgers), of(&self.before));
        Ok(())
    }

    /// Starts a role. Its edges begin anew: what is unpaid on them is lost.
    fn spawn(&mut self, role: Role) -> Result<()> {
        self.stage.spawn(role)?;
        match role {
            Role::Relay => {
                self.relay_since = self.stage.process(Role::Provider).map_or(0, Process::told)
            }
            Role::Provider => (self.is_new, self.relay_since) = (true, 0),
            Role::Tenant => self.is_new = true,
        }
        if role == Role::Tenant {
            self.sessions = 0;
        }
        if role != Role::Tenant {
            let ledgers = self.judge.read(&self.stage)?;
            self.judge.begin_relay(&ledgers, self.stage.bytes()?);
        }
        Ok(())
    }

    /// Starts all who are missing, and waits until they can work.
    fn recover(&mut self) -> Result<()> {
        for role in Role::ALL {
            if role == Role::Tenant {
                self.await_reservation()?;
            }
            if self.stage.has_ended(role)? {
                self.spawn(role)?;
            }
            if let Err(error) = self.stage.ready(role) {
                // Who starts while another is gone may say so and end.
                ensure!(self.stage.has_ended(role)?, error);
                self.spawn(role)?;
                self.stage.ready(role)?;
            }
        }
        self.meet()
    }

    /// Waits until the provider is at its relay: a tenant that starts does not wait for that.
    fn await_reservation(&self) -> Result<()> {
        let provider = self.stage.process(Role::Provider)?;
        provider.wait_for(self.relay_since, "a reservation", |event| {
            (event["event"] == "link" && event["state"] == "reserved").then_some(())
        })
    }

    /// Waits for the session that the next transfer goes over; its edge begins where both sides
    /// agreed to go on.
    fn meet(&mut self) -> Result<()> {
        let tenant = self.stage.process(Role::Tenant)?;
        let sessions = tests::until("a session", || {
            let sessions = tenant.events("session").len();
            (!self.is_new || sessions > self.sessions).then_some(sessions)
        })?;
        if sessions == self.sessions {
            return Ok(());
        }
        tests::until("the end of old connections", || self.stage.is_idle().then_some(()))?;
        let ledgers = at_rest(&mut self.judge, &self.stage)?;
        self.judge.begin_tenant(&ledgers, self.stage.bytes()?);
        (self.is_new, self.sessions) = (false, sessions);
        Ok(())
    }

    /// Begins a download, an upload or both; how long the first is.
    fn begin_transfers(&mut self, lengths: std::ops::Range<u64>) -> Result<u64> {
        self.before = self.judge.read(&self.stage)?;
        let ways: &[Way] = match self.rng.below(4) {
            0 => &[Way::Up],
            1 => &[Way::Up, Way::Down],
            _ => &[Way::Down],
        };
        let mut lens = Vec::new();
        for way in ways {
            let errand =
                Errand { way: *way, seed: self.rng.next(), len: self.rng.within(&lengths) };
            lens.push(errand.len);
            self.transfers.push(self.stage.transfer(errand));
        }
        Ok(lens[0])
    }

    /// Sees all transfers to their end, through as many interruptions as it takes.
    fn finish_transfers(&mut self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut are_done = true;
            for transfer in &self.transfers {
                are_done &= transfer.is_done()?;
            }
            if are_done {
                self.transfers.clear();
                return Ok(());
            }
            if Instant::now() > end {
                self.is_stalled = true;
                bail!("a transfer does not end: {:?}", self.transfers);
            }
            let cut: Vec<_> = self.transfers.iter().filter(|t| t.is_cut()).cloned().collect();
            if cut.is_empty() {
                std::thread::sleep(Duration::from_millis(2));
            } else {
                self.meet()?;
                cut.iter().for_each(Transfer::go_on);
            }
        }
    }

    /// Stops tenant and provider in order: payer and payee agree to the byte, and the chain pays
    /// what the ledgers say.
    pub(crate) fn end_epoch(&mut self) -> Result<()> {
        self.stage.stop(Role::Tenant)?;
        self.stage.stop(Role::Provider)?;
        let both = at_rest(&mut self.judge, &self.stage)?;
        for (edge, ledgers) in [("tenant", both.tenant), ("relay", both.relay)] {
            let (signed, earned) = (ledgers.signed, ledgers.earned);
            ensure!(signed == earned, "{edge}'s edge: {signed:?} is signed, {earned:?} earned");
        }
        chain::check(&self.stage).context("on the chain")
    }

    /// Ends all, the relay too.
    pub(crate) fn end(mut self) -> Result<()> {
        self.end_epoch()?;
        self.stage.stop(Role::Relay)?;
        chain::check(&self.stage).context("on the chain")
    }
}

/// Whether a provider is at its relay and pays it.
fn is_reserved(provider: &Process) -> bool {
    let links = provider.events("link");
    let away = |state: &str| state.starts_with("not connected") || state.starts_with("its offer");
    let mut states = links.iter().filter_map(|link| link["state"].as_str());
    states.rfind(|state| away(state) || *state == "reserved") == Some("reserved")
}
