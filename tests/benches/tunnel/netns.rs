//! The place of the measurement: three network namespaces in a row, or else loopback.
//!
//! ```text
//! tenant 10.91.1.2 ---- 10.91.1.1 relay 10.91.2.1 ---- 10.91.2.2 provider
//!                         10.91.0.1 on lo
//! ```
//!
//! veth pairs of MTU 1500, TCP with cubic, no loss and no delay. Namespaces carry the benchmark's
//! process id in their names and are removed with the [`Lab`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cleanup;
use crate::load;
use crate::process::command;
use crate::results::Results;

/// The links, as (namespace, device): both ends of both veth pairs.
const VETH_ENDS: [(Place, &str); 4] = [
    (Place::Tenant, "eth"),
    (Place::Relay, "tenant"),
    (Place::Relay, "provider"),
    (Place::Provider, "eth"),
];

/// One of the three roles' hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    Tenant,
    Relay,
    Provider,
}

impl Place {
    pub(crate) const ALL: [Self; 3] = [Self::Tenant, Self::Relay, Self::Provider];

    fn name(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Relay => "relay",
            Self::Provider => "provider",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Three hosts, and how to run programs on them.
#[derive(Debug)]
pub(crate) enum Lab {
    /// Three namespaces.
    Namespaces { prefix: String, ethtool: bool, _made: Vec<cleanup::Namespace> },
    /// All on the machine's loopback.
    Loopback,
}

impl Lab {
    /// Makes the namespaces, or falls back to loopback and notes why.
    ///
    /// # Errors
    ///
    /// If namespaces can be made here, but not furnished.
    pub(crate) fn open(loopback: bool, results: &mut Results) -> Result<Self> {
        if loopback {
            results.note("ALL ON LOOPBACK, as asked: no veth, no MTU of 1500, no routing");
            return Ok(Self::Loopback);
        }
        let prefix = format!("sluice-bench-{}", std::process::id());
        let mut made = Vec::new();
        for place in Place::ALL {
            let name = format!("{prefix}-{place}");
            if let Err(error) = run("ip", &["netns", "add", &name]) {
                results.note(format!(
                    "ALL ON LOOPBACK: no namespaces here ({error:#}). Not comparable with a run \
                     in namespaces: no veth, no MTU of 1500, no routing"
                ));
                return Ok(Self::Loopback);
            }
            made.push(cleanup::Namespace::register(&name));
        }
        let ethtool = run("ethtool", &["--version"]).is_ok();
        if !ethtool {
            results.note("No ethtool here: nothing measured with the veths' offloads off");
        }
        let lab = Self::Namespaces { prefix, ethtool, _made: made };
        lab.furnish().context("failed to set the namespaces up")?;
        results.note("Three network namespaces joined by veths of MTU 1500, TCP with cubic");
        Ok(lab)
    }

    /// A command for `program` on the host at `place`.
    pub(crate) fn command(&self, place: Place, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match self {
            Self::Namespaces { .. } => {
                command(&["ip", "netns", "exec", &self.namespace(place)], program)
            }
            Self::Loopback => command(&[], program),
        }
    }

    /// Where the host at `place` is reached by the others.
    pub(crate) fn ip(&self, place: Place) -> IpAddr {
        match (self, place) {
            (Self::Loopback, _) => Ipv4Addr::LOCALHOST,
            (Self::Namespaces { .. }, Place::Tenant) => Ipv4Addr::new(10, 91, 1, 2),
            (Self::Namespaces { .. }, Place::Relay) => Ipv4Addr::new(10, 91, 0, 1),
            (Self::Namespaces { .. }, Place::Provider) => Ipv4Addr::new(10, 91, 2, 2),
        }
        .into()
    }

    /// An address and port at `place`, reached by the others, that were free a moment ago.
    ///
    /// # Errors
    ///
    /// If the host has no free port.
    pub(crate) fn free_address(&self, place: Place) -> Result<SocketAddr> {
        self.free_at(place, self.ip(place))
    }

    /// A loopback address and port at `place` that were free a moment ago.
    ///
    /// # Errors
    ///
    /// If the host has no free port.
    pub(crate) fn free_local(&self, place: Place) -> Result<SocketAddr> {
        self.free_at(place, Ipv4Addr::LOCALHOST.into())
    }

    /// Whether tenant and provider are on hosts of their own.
    pub(crate) fn is_namespaces(&self) -> bool {
        matches!(self, Self::Namespaces { .. })
    }

    /// Whether [`set_offloads`](Self::set_offloads) works here.
    pub(crate) fn can_switch_offloads(&self) -> bool {
        matches!(self, Self::Namespaces { ethtool: true, .. })
    }

    /// Lets packets pass between tenant and provider, or not. On loopback they always do.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub(crate) fn set_forwarding(&self, on: bool) -> Result<()> {
        if !self.is_namespaces() {
            return Ok(());
        }
        self.sysctl(Place::Relay, "net/ipv4/ip_forward", if on { "1" } else { "0" })
    }

    /// Lets batches cross the veths whole, as they do by default, or has the kernel segment and
    /// coalesce each packet at each end.
    ///
    /// # Errors
    ///
    /// If `ethtool` fails.
    pub(crate) fn set_offloads(&self, on: bool) -> Result<()> {
        let (batches, gro) = if on { ("on", "off") } else { ("off", "on") };
        for (place, device) in VETH_ENDS {
            let settings = ["tso", "gso", "tx-udp-segmentation"];
            let mut command = self.command(place, "ethtool");
            command.args(["-K", device]);
            command.args(settings.iter().flat_map(|setting| [*setting, batches]));
            command.args(["gro", gro]);
            finish("ethtool", &mut command)?;
        }
        Ok(())
    }

    fn furnish(&self) -> Result<()> {
        self.join(Place::Tenant, 1)?;
        self.join(Place::Provider, 2)?;
        self.ip_in(Place::Relay, &["addr", "add", "10.91.0.1/32", "dev", "lo"])?;
        for place in Place::ALL {
            self.ip_in(place, &["link", "set", "lo", "up"])?;
            let local = "table local local 127.0.0.1 dev lo scope host src 127.0.0.1";
            self.route(place, &local.split(' ').collect::<Vec<_>>())?;
        }
        self.set_forwarding(false)
    }

    /// Joins `place` to the relay by a veth pair in the network 10.91.`net`.0/24.
    fn join(&self, place: Place, net: u8) -> Result<()> {
        let (relay, host) = (format!("10.91.{net}.1"), format!("10.91.{net}.2/24"));
        let (device, namespace) = (place.name(), self.namespace(place));
        self.ip_in(
            Place::Relay,
            &["link", "add", device, "type", "veth", "peer", "name", "eth", "netns", &namespace],
        )?;
        let network = format!("10.91.{net}.0/24");
        for (place, device, address) in
            [(Place::Relay, device, format!("{relay}/24")), (place, "eth", host)]
        {
            self.ip_in(place, &["addr", "add", &address, "dev", device, "noprefixroute"])?;
            self.ip_in(place, &["link", "set", device, "mtu", "1500", "up"])?;
            self.route(place, &[&network, "dev", device])?;
        }
        self.route(place, &["default", "via", &relay])
    }

    /// Sets a route whose TCP uses cubic: of a namespace's own, only the machine's settings could
    /// make that the default, where they have another.
    fn route(&self, place: Place, route: &[&str]) -> Result<()> {
        self.ip_in(place, &[&["route", "replace"], route, &["congctl", "cubic"]].concat())
    }

    fn namespace(&self, place: Place) -> String {
        match self {
            Self::Namespaces { prefix, .. } => format!("{prefix}-{place}"),
            Self::Loopback => String::new(),
        }
    }

    fn ip_in(&self, place: Place, args: &[&str]) -> Result<()> {
        let namespace = self.namespace(place);
        run("ip", &[&["-n", namespace.as_str()], args].concat())
    }

    fn sysctl(&self, place: Place, key: &str, value: &str) -> Result<()> {
        let script = format!("echo {value} > /proc/sys/{key}");
        finish(key, self.command(place, "sh").args(["-c", &script]))
    }

    fn free_at(&self, place: Place, ip: IpAddr) -> Result<SocketAddr> {
        let mut child = load::spawn(self, place, &["free-port", &ip.to_string()])?;
        child.wait_for(crate::START, |line| line.strip_prefix("free ")?.parse().ok())
    }
}

/// A program run by the host's shell rules: started, waited for, its complaint in the error.
fn run(program: &str, args: &[&str]) -> Result<()> {
    finish(program, Command::new(program).args(args))
}

fn finish(name: &str, command: &mut Command) -> Result<()> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("failed to start {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
