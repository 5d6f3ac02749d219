//! A folder with everything that a few `sluice` processes need, and the processes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_ledger::{ChannelRow, Role};
use sluice_proto::Amount;
use tempfile::TempDir;

use crate::{Books, Process, sluice};

/// Every role's configuration when nothing is charged.
const FREE: &str = "version = 1\n";

/// Every role's configuration when both edges are paid. A tenant's edge costs 2 base units a byte
/// each way, a relay's 1; nothing is given for free; the window is the smallest.
const PAID: &str = r#"version = 1

[chain]
kind = "embedded"
dir = "CHAIN"

[relay]
price = 1_073_741_824
starter_bytes = "0 B"
rate_max = "1 Gbit/s"

[provide]
price_up = 2_147_483_648
price_down = 2_147_483_648
starter_bytes = "0 B"
rate_max = "10 Mbit/s"
relay_deposit = 100_000_000_000
relay_price_max = 1_073_741_824

[connect]
deposit = 100_000_000_000
max_price_up = 2_147_483_648
max_price_down = 2_147_483_648
"#;

/// A relay that runs.
#[derive(Debug)]
pub struct RelayRole {
    /// The process.
    pub process: Process,
    /// `<peer id>@<ip>:<port>`, with `+tcp:<port>` if it listens on TCP too.
    pub address: String,
}

impl RelayRole {
    /// Its socket.
    ///
    /// # Errors
    /// When the address is not one.
    pub fn socket(&self) -> Result<SocketAddr> {
        let (_, socket) = self.address.split_once('@').context("no address")?;
        Ok(socket.split('+').next().unwrap_or_default().parse()?)
    }

    /// The same relay for those who cannot reach it over UDP: `nowhere` stands in its socket's place.
    ///
    /// # Errors
    /// When the address is not one.
    pub fn without_udp(&self, nowhere: SocketAddr) -> Result<String> {
        Ok(self.address.replace(&self.socket()?.to_string(), &nowhere.to_string()))
    }
}

/// A provider that runs.
#[derive(Debug)]
pub struct Provider {
    /// The process.
    pub process: Process,
    /// What tenants need.
    pub ticket: String,
}

/// A tenant that runs.
#[derive(Debug)]
pub struct Tenant {
    /// The process.
    pub process: Process,
    ports: Vec<(String, SocketAddr)>,
}

impl Tenant {
    /// The local port of a service.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn port(&self, service: &str) -> SocketAddr {
        self.ports.iter().find(|(name, _)| name == service).expect("a mapped service").1
    }
}

/// A folder with state directories and one configuration for all.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    paid: bool,
}

impl Lab {
    /// Nothing is charged, and there is no chain.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn free() -> Result<Self> {
        Self::with(FREE, false)
    }

    /// Both edges are paid, on an embedded chain that all roles share.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn paid() -> Result<Self> {
        Self::with(PAID, true)
    }

    /// The same with texts of the configuration replaced by others.
    ///
    /// # Errors
    /// When one of them is not there.
    pub fn paid_with(changes: &[(&str, &str)]) -> Result<Self> {
        let lab = Self::paid()?;
        let mut config = std::fs::read_to_string(lab.path().join("sluice.toml"))?;
        for (from, to) in changes {
            ensure!(config.contains(from), "{from:?} is not in the configuration");
            config = config.replacen(from, to, 1);
        }
        lab.write("sluice.toml", &config)?;
        Ok(lab)
    }

    fn with(config: &str, paid: bool) -> Result<Self> {
        let lab = Self { dir: tempfile::tempdir()?, paid };
        let chain = lab.path().join("chain").display().to_string();
        lab.write("sluice.toml", &config.replace("CHAIN", &chain))?;
        Ok(lab)
    }

    /// Whether something is charged.
    #[must_use]
    pub fn is_paid(&self) -> bool {
        self.paid
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file of its own.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    }

    /// The state directory called `name`.
    #[must_use]
    pub fn state(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The ledger of the state directory called `name`, once its role ended.
    ///
    /// # Errors
    /// When the ledger does not open.
    pub fn books(&self, name: &str) -> Result<Books> {
        Books::open(&self.state(name))
    }

    /// The one channel on one side of the state directory called `name`, whose role may run.
    ///
    /// # Errors
    /// When there is none, or another.
    pub fn channel(&self, name: &str, side: Role) -> Result<ChannelRow> {
        let mut rows = Books::look(&self.state(name))?.channels()?;
        rows.retain(|row| row.role == side);
        ensure!(rows.len() == 1, "{} channels", rows.len());
        rows.pop().context("one channel")
    }

    /// What the newest voucher says that the state directory called `name` holds, whose role may run.
    ///
    /// # Errors
    /// When there is none.
    pub fn earned(&self, name: &str) -> Result<Amount> {
        let channel = self.channel(name, Role::Payee)?;
        let newest = Books::look(&self.state(name))?.newest_on(&channel)?;
        Ok(newest.context("a voucher")?.amount)
    }

    /// Starts `sluice` with these arguments, the folder's configuration and a state directory.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, state: &str, args: &[&str]) -> Result<Process> {
        Process::start(format!("sluice {state}"), sluice(), |command| {
            command.args(args).arg("--json").arg("--state").arg(self.state(state));
            command.arg("--config").arg(self.path().join("sluice.toml"));
            command.current_dir(self.path()).env_remove("SLUICE_LOG");
        })
    }

    /// Starts a relay on a port of its own.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn relay(&self) -> Result<RelayRole> {
        self.relay_at("127.0.0.1:0".parse()?)
    }

    /// Starts a relay on this port.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn relay_at(&self, bind: SocketAddr) -> Result<RelayRole> {
        self.relay_with(&["--bind", &bind.to_string()])
    }

    /// Starts a relay with these arguments.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn relay_with(&self, args: &[&str]) -> Result<RelayRole> {
        self.relay_called("relay", args)
    }

    /// Starts a relay with these arguments and the state directory `name`.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn relay_called(&self, name: &str, args: &[&str]) -> Result<RelayRole> {
        let process = self.run(name, &[&["relay"], args].concat())?;
        let ready = process.event(0, "ready")?;
        let address = ready["address"].as_str().context("no address")?.to_owned();
        Ok(RelayRole { process, address })
    }

    /// Starts a provider of these services.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn provide(
        &self,
        relay: &RelayRole,
        services: &[(&str, SocketAddr)],
        direct: &str,
    ) -> Result<Provider> {
        self.provide_at(&relay.address, services, direct)
    }

    /// Starts a provider of these services, at a relay of this address.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn provide_at(
        &self,
        relay: &str,
        services: &[(&str, SocketAddr)],
        direct: &str,
    ) -> Result<Provider> {
        self.provide_through(&[relay], services, direct)
    }

    /// Starts a provider of these services, at relays of these addresses.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn provide_through(
        &self,
        relays: &[&str],
        services: &[(&str, SocketAddr)],
        direct: &str,
    ) -> Result<Provider> {
        let exposed: Vec<_> = services.iter().map(|(n, a)| format!("{n}=tcp:{a}")).collect();
        let mut args = vec!["provide", "--direct", direct];
        args.extend(relays.iter().flat_map(|relay| ["--relay", relay]));
        args.extend(exposed.iter().flat_map(|e| ["--expose", e.as_str()]));
        let process = self.run("provide", &args)?;
        let ready = process.event(0, "ready")?;
        let ticket = ready["ticket"].as_str().context("no ticket")?.to_owned();
        Ok(Provider { process, ticket })
    }

    /// Starts a tenant with a local port for each service.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn connect(&self, ticket: &str, services: &[&str], direct: &str) -> Result<Tenant> {
        let map: Vec<_> =
            services.iter().map(|s| (String::from(*s), "127.0.0.1:0".to_owned())).collect();
        self.connect_at(ticket, &map, direct)
    }

    /// Starts a tenant with these services on these local ports.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn connect_at(
        &self,
        ticket: &str,
        map: &[(String, String)],
        direct: &str,
    ) -> Result<Tenant> {
        let mapped: Vec<_> = map.iter().map(|(name, addr)| format!("{addr}={name}")).collect();
        let mut args = vec!["connect", ticket, "--direct", direct];
        args.extend(mapped.iter().flat_map(|m| ["--map", m.as_str()]));
        let process = self.run("connect", &args)?;
        let ready = process.event(0, "ready")?;
        let ports = ready["map"].as_array().context("no map")?.iter().map(parse_port);
        Ok(Tenant { ports: ports.collect::<Result<_>>()?, process })
    }

    /// Starts a tenant again, on the ports that it had.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn connect_again(&self, ticket: &str, before: &Tenant, direct: &str) -> Result<Tenant> {
        let map: Vec<_> = before.ports.iter().map(|(n, a)| (n.clone(), a.to_string())).collect();
        self.connect_at(ticket, &map, direct)
    }
}

fn parse_port(mapped: &Value) -> Result<(String, SocketAddr)> {
    let (addr, name) = mapped.as_str().and_then(|m| m.split_once('=')).context("no port")?;
    Ok((name.to_owned(), addr.parse()?))
}

/// Picks events of one kind that hold `value` at `key`.
pub fn event_kind<'a>(
    kind: &'a str,
    key: &'a str,
    value: &'a str,
) -> impl FnMut(&Value) -> Option<()> + 'a {
    move |event| (event["event"] == kind && event[key] == value).then_some(())
}
