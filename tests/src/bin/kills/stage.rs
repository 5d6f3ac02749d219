//! The three processes, started, stopped and killed, with a workload, a client and a tap.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use sluice_ledger::LedgerError;
use tests::{Books, Lab, PATIENCE, Process};

use crate::queues::waiting;
use crate::store::{Store, Wire};
use crate::tap::{Frames, Tap};
use crate::transfer::{Errand, Transfer};

/// Small windows, and deposits that have to grow every few transfers. Play money is redeemed by
/// itself, each second.
const CHANGES: [(&str, &str); 5] = [
    ("[chain]\n", "[chain]\nlook = \"1s\"\n"),
    ("rate_max = \"1 Gbit/s\"", "rate_max = \"200 Mbit/s\""),
    (
        "relay_deposit = 100_000_000_000",
        "relay_deposit = 16_000_000\nrelay_deposit_max = 100_000_000_000",
    ),
    ("\ndeposit = 100_000_000_000", "\ndeposit = 32_000_000\ndeposit_max = 100_000_000_000"),
    ("[provide]\n", "[node]\nport_mapping = false\n\n[provide]\n"),
];
/// Nothing moved for so long: what was under way is where it can get. Above the 40 ms by which the
/// kernel delays an acknowledgement.
const STILL: Duration = Duration::from_millis(60);
const LOOK: Duration = Duration::from_millis(5);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Relay,
    Provider,
    Tenant,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Relay, Self::Provider, Self::Tenant];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Provider => "provider",
            Self::Tenant => "tenant",
        }
    }
}

/// Bytes at all sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bytes {
    /// Payload that the provider took from the workload.
    pub(crate) provider_took: u64,
    /// Payload that the workload got.
    pub(crate) workload_got: u64,
    /// Payload that the client got.
    pub(crate) client_got: u64,
    /// Frames between the provider and the relay.
    pub(crate) frames: Frames,
}

/// Everything that runs. Provider and tenant begin anew with each epoch; the relay lasts.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    pub(crate) epoch: u32,
    store: Store,
    wire: Arc<Wire>,
    tap: Tap,
    relay_at: SocketAddr,
    holder: SocketAddr,
    client_port: SocketAddr,
    relay_address: String,
    ticket: String,
    processes: [Option<Process>; 3],
}

fn free_udp_port() -> Result<SocketAddr> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?)
}

impl Stage {
    /// A relay that runs, and nobody else.
    pub(crate) fn start() -> Result<Self> {
        let lab = Lab::paid_with(&CHANGES)?;
        let (relay_at, holder) = (free_udp_port()?, free_udp_port()?);
        let mut stage = Self {
            lab,
            epoch: 0,
            store: Store::start()?,
            wire: Arc::default(),
            tap: Tap::start(relay_at, holder)?,
            relay_at,
            holder,
            client_port: TcpListener::bind("127.0.0.1:0")?.local_addr()?,
            relay_address: String::new(),
            ticket: String::new(),
            processes: [None, None, None],
        };
        stage.spawn(Role::Relay)?;
        stage.ready(Role::Relay)?;
        Ok(stage)
    }

    /// The name of a role's state directory.
    pub(crate) fn state(&self, role: Role) -> String {
        match role {
            Role::Relay => "relay".to_owned(),
            Role::Provider => format!("provide-{}", self.epoch),
            Role::Tenant => format!("connect-{}", self.epoch),
        }
    }

    /// The ledger of a role as it stands on the disk, if it has one: who was killed while it made
    /// one has none yet.
    pub(crate) fn books(&self, role: Role) -> Result<Option<Books>> {
        let state = self.lab.state(&self.state(role));
        if !state.join("ledger.db").exists() {
            return Ok(None);
        }
        match Books::look(&state) {
            Ok(books) => Ok(Some(books)),
            Err(error) => match error.downcast_ref() {
                Some(LedgerError::Foreign { .. }) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// A role that was started.
    pub(crate) fn process(&self, role: Role) -> Result<&Process> {
        self.processes[role as usize].as_ref().with_context(|| format!("no {}", role.name()))
    }

    fn process_mut(&mut self, role: Role) -> Result<&mut Process> {
        self.processes[role as usize].as_mut().with_context(|| format!("no {}", role.name()))
    }

    /// Whether a role was started and not taken away since.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.processes[role as usize].is_some()
    }

    /// Whether a role does not run.
    pub(crate) fn has_ended(&mut self, role: Role) -> Result<bool> {
        match &mut self.processes[role as usize] {
            Some(process) => process.has_ended(),
            None => Ok(true),
        }
    }

    /// Whether somebody runs on a state directory.
    pub(crate) fn runs(&self, state: &str) -> bool {
        Role::ALL.into_iter().any(|role| self.has(role) && self.state(role) == state)
    }

    /// The last that each said.
    pub(crate) fn story(&self) -> String {
        self.processes.iter().flatten().map(Process::story).collect()
    }

    /// Starts a role; [`Self::ready`] waits for it.
    pub(crate) fn spawn(&mut self, role: Role) -> Result<()> {
        let expose = format!("store=tcp:{}", self.store.addr());
        let map = format!("{}=store", self.client_port);
        let bind = match role {
            Role::Relay => self.relay_at.to_string(),
            Role::Provider | Role::Tenant => self.holder.to_string(),
        };
        let args = match role {
            Role::Relay => vec!["relay", "--bind", &bind],
            Role::Provider => vec![
                "provide",
                "--direct",
                "never",
                "--bind",
                &bind,
                "--relay",
                &self.relay_address,
                "--expose",
                &expose,
            ],
            Role::Tenant => vec!["connect", &self.ticket, "--direct", "never", "--map", &map],
        };
        let process = self.lab.run(&self.state(role), &args)?;
        self.processes[role as usize] = Some(process);
        Ok(())
    }

    /// Waits until a role that was started does its work.
    pub(crate) fn ready(&mut self, role: Role) -> Result<()> {
        let ready = self.process(role)?.event(0, "ready")?;
        let text = |key: &str| ready[key].as_str().with_context(|| format!("{key} in {ready}"));
        match role {
            // Everybody goes through the tap.
            Role::Relay => {
                let (peer, _) = text("address")?.split_once('@').context("no address")?;
                self.relay_address = format!("{peer}@{}", self.tap.addr());
            }
            Role::Provider => text("ticket")?.clone_into(&mut self.ticket),
            Role::Tenant => {}
        }
        Ok(())
    }

    /// Stops a role in order.
    pub(crate) fn stop(&mut self, role: Role) -> Result<()> {
        if let Some(mut process) = self.processes[role as usize].take() {
            process.stop()?;
        }
        Ok(())
    }

    /// Takes away a role that ends by itself.
    pub(crate) fn await_end(&mut self, role: Role) -> Result<()> {
        if let Some(mut process) = self.processes[role as usize].take() {
            process.wait()?;
        }
        Ok(())
    }

    /// Asks a role to stop, and does not wait.
    pub(crate) fn ask_to_stop(&self, role: Role) -> Result<()> {
        self.process(role)?.signal(Signal::TERM)
    }

    /// Stops a role in its tracks (SIGSTOP). False: it has ended already.
    pub(crate) fn freeze(&mut self, role: Role) -> Result<bool> {
        let process = self.process_mut(role)?;
        if process.has_ended()? {
            return Ok(false);
        }
        process.signal(Signal::STOP)?;
        let tasks = format!("/proc/{}/task", process.pid());
        let end = Instant::now() + PATIENCE;
        while !all_stand(&tasks)? {
            if self.process_mut(role)?.has_ended()? {
                return Ok(false);
            }
            ensure!(Instant::now() < end, "the {} does not stand still", role.name());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Kills a role (SIGKILL).
    pub(crate) fn kill(&mut self, role: Role) -> Result<()> {
        let mut process = self.processes[role as usize].take().context("nobody to kill")?;
        process.kill()
    }

    /// Starts a transfer.
    pub(crate) fn transfer(&self, errand: Errand) -> Transfer {
        Transfer::start(errand, self.client_port, self.wire.clone())
    }

    /// Whether the workload has no connection.
    pub(crate) fn is_idle(&self) -> bool {
        self.store.is_idle()
    }

    /// What went by now.
    pub(crate) fn bytes(&self) -> Result<Bytes> {
        use std::sync::atomic::Ordering::Relaxed;
        let store = waiting(self.store.addr())?;
        let at_store = self.store.wire();
        Ok(Bytes {
            provider_took: at_store.written.load(Relaxed).saturating_sub(store.from),
            workload_got: at_store.read.load(Relaxed),
            client_got: self.wire.read.load(Relaxed),
            frames: self.tap.frames(),
        })
    }

    /// Waits until nothing moves any more while somebody is frozen; what went by then.
    pub(crate) fn bytes_at_rest(&self) -> Result<Bytes> {
        let end = Instant::now() + PATIENCE;
        let (mut last, mut since) = (self.bytes()?, Instant::now());
        while since.elapsed() < STILL {
            if Instant::now() > end {
                bail!("bytes go on and on: {last:?}");
            }
            std::thread::sleep(LOOK);
            let now = self.bytes()?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(last)
    }
}

/// Whether each thread of a process is stopped.
fn all_stand(tasks: &str) -> Result<bool> {
    for task in std::fs::read_dir(tasks)? {
        let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
        // The name in parentheses may hold anything; the state follows it.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}
