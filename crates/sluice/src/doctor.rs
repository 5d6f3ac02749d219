//! `sluice doctor`: what this network allows, and what can be done about it.
//!
//! [`examine`] asks relays and the router, with a node of its own that nobody can reach and that is
//! gone afterwards, so that a running role is not disturbed. [`expect`] and [`advice`] draw
//! conclusions from what was found, and read nothing else.

mod advice;
mod expect;
mod show;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_path::{Nat, Timer};
use sluice_proto::{Keypair, RelayAddr};
use sluice_transport::{
    AcceptPolicy, Clock, NatOptions, NatState, Network, Node, NodeConfig, NoiseKeys, Random,
    RelayLink,
};
use tokio::sync::watch;

pub use advice::advice;
pub use expect::{Expectation, Reach, expect};
pub use show::{json, text};

/// A relay has so long to answer, over UDP or else over TCP.
const RELAY_WITHIN: Duration = Duration::from_secs(8);
/// The survey of the NAT has so long: some questions are answered by silence.
const SURVEY_WITHIN: Duration = Duration::from_secs(6);
/// A router has so long to forward a port.
const MAPPING_WITHIN: Duration = Duration::from_secs(5);
/// The NAT's timer is known by then, wherever relays answer.
const TIMER_WITHIN: Duration = Duration::from_secs(1200);

/// What shall be examined.
#[derive(Debug)]
pub struct DoctorOptions {
    /// The relays that are asked.
    pub relays: Vec<RelayAddr>,
    /// Local address of the UDP socket.
    pub bind: SocketAddr,
    /// Whether the router may be asked to forward a port.
    pub port_mapping: bool,
    /// Whether the NAT's timer is measured, which takes minutes.
    pub nat_timer: bool,
}

/// How a relay was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    /// Over UDP, as it should be.
    Udp,
    /// Over TCP only.
    Tcp,
    /// Not at all; why.
    No(String),
}

/// One relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayFinding {
    /// The relay.
    pub relay: RelayAddr,
    /// How it was reached.
    pub reached: Reached,
    /// Round-trip time to it.
    pub rtt: Option<Duration>,
    /// How it sees the data socket.
    pub observed: Option<SocketAddr>,
}

/// Whether the router forwards a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// It does: from this public address.
    Yes(SocketAddr),
    /// It was asked and did not.
    No,
    /// It was not asked.
    NotAsked,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Addresses of this machine that lead out.
    pub addresses: Vec<IpAddr>,
    /// The relays, in the order given.
    pub relays: Vec<RelayFinding>,
    /// What the NAT does, as far as relays could tell.
    pub nat: Nat,
    /// Whether machines behind the NAT reach one another at their public addresses.
    pub hairpins: Option<bool>,
    /// How long it keeps a mapping that nothing goes over, if that was measured.
    pub timer: Option<Timer>,
    /// Whether the router forwards a port.
    pub mapped: Mapped,
}

impl Findings {
    /// Relays that were reached over UDP.
    pub fn over_udp(&self) -> impl Iterator<Item = &RelayFinding> {
        self.relays.iter().filter(|r| r.reached == Reached::Udp)
    }

    /// Whether any relay was reached.
    #[must_use]
    pub fn any_relay(&self) -> bool {
        self.relays.iter().any(|r| !matches!(r.reached, Reached::No(_)))
    }

    /// Whether relays see one of this machine's own addresses: there is no NAT in between.
    #[must_use]
    pub fn is_public(&self) -> bool {
        self.over_udp().filter_map(|r| r.observed).any(|seen| self.addresses.contains(&seen.ip()))
    }

    /// Whether this machine has an IPv6 address that leads out.
    #[must_use]
    pub fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// Whether anybody can reach the data socket without its doing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_public() || matches!(self.mapped, Mapped::Yes(_))
    }
}

/// Asks the relays and the router. Takes up to some 20 s, where much is silent, without the timer.
///
/// # Errors
/// When the socket cannot be bound.
pub async fn examine(options: DoctorOptions) -> Result<Findings> {
    let (clock, random) = (Clock::default(), Random::default());
    let node = Node::bind(NodeConfig {
        key: Keypair::ed25519_from_bytes(random.bytes::<32>()).context("no key could be made")?,
        noise: NoiseKeys::from_secret(random.bytes())?,
        bind: options.bind,
        reset_key: random.bytes(),
        incarnation: random.number(),
        accept: AcceptPolicy::Nobody,
        idle_timeout: Duration::from_secs(30),
        clock: clock.clone(),
        network: Network::Kernel,
        random,
    })?;
    let port_mapping = options.port_mapping;
    node.set_nat_options(NatOptions { port_mapping, ..NatOptions::default() });
    let links: Vec<RelayLink> = options.relays.iter().map(|r| node.link(*r, None)).collect();
    let mut relays = Vec::new();
    for (link, relay) in links.iter().zip(options.relays) {
        relays.push(look_at(link, relay, &clock).await);
    }
    let mut nat = node.nat();
    let over_udp = relays.iter().any(|r| r.reached == Reached::Udp);
    if over_udp {
        let surveyed = nat.wait_for(|state| state.complete && !state.relays.is_empty());
        let _ = clock.timeout(SURVEY_WITHIN, surveyed).await;
    }
    let mapped = if port_mapping { mapping(&mut nat, &clock).await } else { Mapped::NotAsked };
    if over_udp && options.nat_timer {
        let measured = nat.wait_for(|state| state.timer.is_complete());
        let _ = clock.timeout(TIMER_WITHIN, measured).await;
    }
    let state = nat.borrow().clone();
    for relay in &mut relays {
        let view = state.relays.iter().find(|view| view.relay == relay.relay.addr);
        relay.observed = view.and_then(|v| v.observed).or(relay.observed);
        relay.rtt = view.and_then(|v| v.rtt).or(relay.rtt);
    }
    let addresses = Network::Kernel.local_addrs();
    node.shutdown().await;
    let timer = Some(state.timer).filter(|timer| options.nat_timer && *timer != Timer::default());
    let (nat, hairpins) = (state.nat, state.hairpins);
    Ok(Findings { addresses, relays, nat, hairpins, timer, mapped })
}

/// Waits until a relay answered in one way or another.
async fn look_at(link: &RelayLink, relay: RelayAddr, clock: &Clock) -> RelayFinding {
    let reached = match clock.timeout(RELAY_WITHIN, link.ready()).await {
        Ok(Ok(())) if *link.over_tcp().borrow() => Reached::Tcp,
        Ok(Ok(())) => Reached::Udp,
        Ok(Err(reason)) => Reached::No(reason),
        Err(_) => Reached::No(format!("no answer within {} s", RELAY_WITHIN.as_secs())),
    };
    RelayFinding { relay, reached, rtt: link.rtt(), observed: link.observed() }
}

async fn mapping(nat: &mut watch::Receiver<NatState>, clock: &Clock) -> Mapped {
    let mapped = nat.wait_for(|state| state.mapped.is_some());
    let mapped = clock.timeout(MAPPING_WITHIN, mapped).await;
    let address = mapped.ok().and_then(Result::ok).and_then(|state| state.mapped);
    address.map_or(Mapped::No, Mapped::Yes)
}
