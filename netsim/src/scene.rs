//! Relays, homes and the nodes in them: the real code, on the in-memory network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_proto::eth::keccak256;
use sluice_proto::wire::{control, pay};
use sluice_proto::{Invite, Keypair, RelayAddr, Ticket, Topic, sign};
use sluice_relay::{Relay, RelayConfig};
use sluice_transport::{
    AcceptPolicy, Clock, LinkEvent, LinkState, MessageReader, Node, NodeConfig, NoiseKeys,
    PathKind, Random, RelayLink, Session, send_message,
};
use tokio::sync::mpsc;

use crate::nat::NatSpec;
use crate::net::{LinkSpec, Net, PlaceId};
use crate::rng::Rng;

/// The port of every relay.
const RELAY_PORT: u16 = 4433;
/// With it providers issue invites.
pub(crate) const SECRET: [u8; 16] = [7; 16];
/// In virtual time; whatever takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Events of a link that wait for their owner.
pub(crate) const EVENTS: usize = 1024;

/// A home: its NATs, the outermost first, and its access line.
#[derive(Debug, Clone, Default)]
pub struct HomeSpec {
    /// None for a public address; two for a home behind a carrier's NAT.
    pub nats: Vec<NatSpec>,
    /// The access line, towards the Internet.
    pub up: LinkSpec,
    /// And from it.
    pub down: LinkSpec,
    /// Whether there is IPv6, behind a firewall that lets nothing in unasked.
    pub ipv6: bool,
}

/// One relay: its host and, while it lives, its process.
#[derive(Debug)]
pub struct SimRelay {
    /// Its host.
    pub place: PlaceId,
    /// How to reach it.
    pub addr: RelayAddr,
    /// Its line, as it was at first.
    pub line: LinkSpec,
    config: RelayConfig,
    relay: Option<Relay>,
}

/// A node in its home.
#[derive(Debug)]
pub struct Party {
    /// Its host.
    pub host: PlaceId,
    /// Its clock.
    pub clock: Clock,
    /// The gateways above it, the outermost first.
    pub gateways: Vec<PlaceId>,
    /// The node.
    pub node: Node,
    /// Its links, one for each relay.
    pub links: Vec<RelayLink>,
    pub(crate) key: Keypair,
    noise: NoiseKeys,
}

/// A network with relays, for parties to meet on.
#[derive(Debug)]
pub struct Scene {
    /// The network.
    pub net: Net,
    /// Its relays.
    pub relays: Vec<SimRelay>,
    /// The homes, in the order in which they came.
    pub sites: Vec<Site>,
    /// How many homes were given another address.
    pub renumbered: u8,
    /// What is random beside the network.
    pub rng: Rng,
    /// Starts of nodes so far.
    starts: u64,
}

/// A home's host, and the gateways above it, the outermost first.
#[derive(Debug, Clone)]
pub struct Site {
    /// The host.
    pub host: PlaceId,
    /// Its clock.
    pub clock: Clock,
    /// The gateways.
    pub gateways: Vec<PlaceId>,
}

impl Scene {
    /// Starts a relay behind each of `lines`.
    ///
    /// # Errors
    /// When a relay does not start.
    pub async fn new(clock: Clock, seed: u64, lines: &[LinkSpec]) -> Result<Self> {
        Self::charging(clock, seed, lines, |_, _| Ok(())).await
    }

    /// Starts a relay behind each of `lines`, as `charge` wants the one with its number to be.
    ///
    /// # Errors
    /// When a relay does not start.
    pub async fn charging(
        clock: Clock,
        seed: u64,
        lines: &[LinkSpec],
        charge: impl Fn(usize, &mut RelayConfig) -> Result<()>,
    ) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let net = Net::new(clock, rng.split());
        let (relays, sites) = Default::default();
        let mut scene = Self { net, relays, sites, renumbered: 0, rng, starts: 0 };
        for line in lines {
            scene.add_relay(*line, &charge).await?;
        }
        Ok(scene)
    }

    /// The address of the home that was given another one as the `number`th, from 1.
    #[must_use]
    pub const fn renumbered(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, 100 + number)
    }

    async fn add_relay(
        &mut self,
        line: LinkSpec,
        charge: &impl Fn(usize, &mut RelayConfig) -> Result<()>,
    ) -> Result<()> {
        let number = self.relays.len() as u8;
        // Of different networks, as the relays of a node should be.
        let v4 = IpAddr::V4(Ipv4Addr::new(198, 51, 100 + number, 10));
        let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, number.into(), 0, 0, 0, 1));
        let place = self.net.add_host(self.net.core(), &[v4, v6], line, line);
        let keypair = keypair(&mut self.rng);
        let addr = RelayAddr::new(keypair.public().to_peer_id(), SocketAddr::new(v4, RELAY_PORT));
        let bind = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), RELAY_PORT);
        let mut config = RelayConfig::new(keypair, bind);
        config.clock = self.net.clock().apart();
        config.network = self.net.network(place);
        config.random = Random::seeded(self.rng.number());
        config.reset_key = self.rng.bytes();
        charge(self.relays.len(), &mut config)?;
        let relay = Relay::start(config.clone()).await.context("failed to start a relay")?;
        self.relays.push(SimRelay { place, addr, line, config, relay: Some(relay) });
        Ok(())
    }

    /// Adds a home and the host in it.
    pub fn add_home(&mut self, home: &HomeSpec) -> Site {
        let number = self.sites.len() as u8 + 1;
        let mut gateways = Vec::new();
        let mut parent = self.net.core();
        let (mut up, mut down) = (home.up, home.down);
        for (depth, nat) in home.nats.iter().enumerate() {
            let outside = match depth {
                0 => Ipv4Addr::new(203, 0, 113, number),
                _ => Ipv4Addr::new(100, 64, number, depth as u8 + 1),
            };
            parent = self.net.add_gateway(parent, outside, *nat, up, down);
            (up, down) = (LinkSpec::default(), LinkSpec::default());
            gateways.push(parent);
        }
        let v4 = match home.nats.is_empty() {
            true => Ipv4Addr::new(203, 0, 113, number),
            false => Ipv4Addr::new(192, 168, number, 2),
        };
        let mut addresses = vec![IpAddr::V4(v4)];
        if home.ipv6 {
            let v6 = Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, 2);
            addresses.push(IpAddr::V6(v6));
        }
        let host = self.net.add_host(parent, &addresses, up, down);
        let site = Site { host, clock: self.net.clock().apart(), gateways };
        self.sites.push(site.clone());
        site
    }

    /// A provider that holds reservations at the first `relays` relays.
    ///
    /// # Errors
    /// When it does not get them in time.
    pub async fn provider(&mut self, home: &HomeSpec, relays: usize) -> Result<Party> {
        let mut party = self.party(home, AcceptPolicy::Invited(SECRET))?;
        self.reserve(&mut party, relays).await?;
        Ok(party)
    }

    /// A provider's process, which died, comes back with the same keys.
    ///
    /// # Errors
    /// When it does not start, or does not get its reservations in time.
    pub async fn revive(&mut self, party: &mut Party) -> Result<()> {
        let relays = party.links.len();
        let (host, key, noise) = (party.host, party.key.clone(), party.noise.clone());
        party.links.clear();
        let clock = party.clock.clone();
        party.node = self.node(host, &clock, key, noise, AcceptPolicy::Invited(SECRET))?;
        self.reserve(party, relays).await
    }

    async fn reserve(&self, party: &mut Party, relays: usize) -> Result<()> {
        for relay in &self.relays[..relays] {
            let (sender, events) = mpsc::channel(EVENTS);
            party.links.push(party.node.link(relay.addr, Some(sender)));
            tokio::spawn(accept_offers(party.key.clone(), events));
        }
        for link in &party.links {
            let mut state = link.state();
            let reserved = state.wait_for(|s| matches!(s, LinkState::Reserved(_)));
            self.within("a reservation", reserved).await??;
        }
        Ok(())
    }

    /// A tenant that is connected to the first `relays` relays.
    ///
    /// # Errors
    /// When it does not get there in time.
    pub async fn tenant(&mut self, home: &HomeSpec, relays: usize) -> Result<Party> {
        let mut party = self.party(home, AcceptPolicy::Nobody)?;
        for relay in &self.relays[..relays] {
            party.links.push(party.node.link(relay.addr, None));
        }
        for link in &party.links {
            let ready = self.within("a relay", link.ready()).await?;
            ready.map_err(|e| anyhow::anyhow!("no relay: {e}"))?;
        }
        Ok(party)
    }

    pub(crate) fn party(&mut self, home: &HomeSpec, accept: AcceptPolicy) -> Result<Party> {
        let Site { host, clock, gateways } = self.add_home(home);
        let key = keypair(&mut self.rng);
        let noise = NoiseKeys::from_secret(self.rng.bytes())?;
        let node = self.node(host, &clock, key.clone(), noise.clone(), accept)?;
        Ok(Party { host, clock, gateways, node, links: Vec::new(), key, noise })
    }

    fn node(
        &mut self,
        host: PlaceId,
        clock: &Clock,
        key: Keypair,
        noise: NoiseKeys,
        accept: AcceptPolicy,
    ) -> Result<Node> {
        self.starts += 1;
        let node = Node::bind(NodeConfig {
            key,
            noise,
            bind: (Ipv6Addr::UNSPECIFIED, 0).into(),
            reset_key: self.rng.bytes(),
            incarnation: (self.starts << 32) | (self.rng.number() >> 32),
            accept,
            idle_timeout: Duration::from_secs(600),
            clock: clock.clone(),
            network: self.net.network(host),
            random: Random::seeded(self.rng.number()),
        })?;
        Ok(node)
    }

    /// Opens a session; both of its ends.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn session(&self, tenant: &Party, provider: &Party) -> Result<(Session, Session)> {
        let ticket = provider.ticket();
        let both = async {
            let ours = async { Ok(tenant.node.connect(&ticket, &tenant.links[0]).await?) };
            let theirs = async { provider.node.accept().await.context("the node has shut down") };
            tokio::try_join!(ours, theirs)
        };
        self.within("a session", both).await?
    }

    /// Waits for `future` in virtual time.
    ///
    /// # Errors
    /// When it takes longer than [`PATIENCE`].
    pub async fn within<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T> {
        let done = self.net.clock().timeout(PATIENCE, future).await;
        done.with_context(|| format!("{what} did not come within {} s", PATIENCE.as_secs()))
    }

    /// Waits for `span`.
    pub async fn sleep(&self, span: Duration) {
        self.net.clock().sleep(span).await;
    }

    /// Waits until the session uses such a path; when it did. `None` if it does not within `span`.
    pub async fn until_path(
        &self,
        session: &Session,
        kind: PathKind,
        span: Duration,
    ) -> Option<Duration> {
        let mut path = session.path();
        let there = path.wait_for(|p| p.is_some_and(|p| p.kind == kind));
        let in_time = self.net.clock().timeout(span, there).await;
        in_time.ok().and_then(Result::ok).map(|_| self.net.elapsed())
    }
}

impl SimRelay {
    /// The process dies; its port is silent.
    pub fn kill(&mut self, net: &Net) {
        net.crash(self.place);
        self.relay = None;
    }

    /// It comes back at the same address, remembering nothing.
    ///
    /// # Errors
    /// When it lives, or does not start.
    pub async fn restart(&mut self) -> Result<()> {
        ensure!(self.relay.is_none(), "the relay lives");
        self.relay = Some(Relay::start(self.config.clone()).await?);
        Ok(())
    }

    /// Its clock.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.config.clock
    }

    /// The process, while it lives.
    #[must_use]
    pub const fn process(&self) -> Option<&Relay> {
        self.relay.as_ref()
    }
}

impl Party {
    /// A ticket for this provider, as it hands it out now: it names the relays that forward.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        Ticket {
            peer: self.node.id(),
            noise_key: self.noise.public(),
            relays: self.links.iter().filter(|l| l.forwards()).map(RelayLink::relay).collect(),
            invite: Invite::issue(&SECRET, 0),
            expires_unix_s: 0,
            services: Vec::new(),
        }
    }
}

/// Allows direct paths at both ends, and tells each, in the session, where the other may be reached.
///
/// # Errors
/// When the session is lost.
pub async fn allow_direct(tenant: &Session, provider: &Session) -> Result<()> {
    tenant.set_direct_allowed(true);
    provider.set_direct_allowed(true);
    tokio::try_join!(tell_candidates(tenant, provider), tell_candidates(provider, tenant))?;
    Ok(())
}

/// Sends one side's candidates to the other over a stream of the session.
async fn tell_candidates(from: &Session, to: &Session) -> Result<()> {
    let send = async {
        let (mut stream, _) = from.connection().open_bi().await?;
        send_message(&mut stream, &from.local_candidates()).await?;
        stream.finish()?;
        anyhow::Ok(())
    };
    let receive = async {
        let (_, stream) = to.connection().accept_bi().await?;
        let mut reader = MessageReader::new(stream);
        if let Some(candidates) = reader.next().await? {
            to.add_candidates(&candidates);
        }
        anyhow::Ok(())
    };
    tokio::try_join!(send, receive)?;
    Ok(())
}

fn keypair(rng: &mut Rng) -> Keypair {
    Keypair::ed25519_from_bytes(rng.bytes::<32>()).expect("any 32 bytes are a key")
}

/// Accepts whatever a free relay offers.
async fn accept_offers(key: Keypair, mut events: mpsc::Receiver<LinkEvent>) {
    while let Some(event) = events.recv().await {
        if let LinkEvent::Offer { offer, reply, .. } = event {
            let _ = reply.send(accept(&key, &offer));
        }
    }
}

fn accept(key: &Keypair, offer: &control::ReserveOffer) -> Result<pay::Accept, pay::Refusal> {
    let Some(terms) = &offer.terms else {
        return Err(pay::Refusal { code: 0, message: "no terms".to_owned() });
    };
    let hash = keccak256(&terms.terms);
    Ok(pay::Accept {
        terms_hash: hash.to_vec().into(),
        signature: sign(key, Topic::Accept, &hash).into(),
        channel: None,
        newest: None,
    })
}
