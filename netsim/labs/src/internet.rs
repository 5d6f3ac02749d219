//! A small internet: a backbone, and who is on its legs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use crate::{Access, Conditioner, Link, Namespace, Tally};

/// A queue in front of a limited link holds what takes this long.
const QUEUE_MS: u32 = 100;
/// Bytes that a limited link passes at once.
const BURST: u32 = 32 * 1024;

/// The way from the backbone to somebody.
#[derive(Debug)]
pub(crate) struct Leg {
    /// What holds the public address at its end.
    pub edge: Arc<Namespace>,
    /// The address.
    pub addr: Ipv4Addr,
    /// As asked.
    pub link: Link,
}

/// A machine with a public address.
#[derive(Debug)]
pub struct Host {
    /// Its network.
    pub namespace: Arc<Namespace>,
    /// Its address.
    pub addr: Ipv4Addr,
}

impl Host {
    /// A port of it.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.addr, port).into()
    }
}

/// A machine at home, and what stands between it and the internet.
#[derive(Debug)]
pub struct Home {
    /// How it reaches the internet.
    pub access: Access,
    /// The machine's network.
    pub host: Arc<Namespace>,
    /// The machine's address at home.
    pub addr: Ipv4Addr,
    /// The home's router, if the machine is not on the internet itself. Its interfaces are `wan` and
    /// the bridge `lan`, 192.168.1.1.
    pub router: Option<Arc<Namespace>>,
    /// The address that the internet sees.
    pub public: Ipv4Addr,
}

impl Home {
    /// Gives its router another public address, as if the line had been down; the address. A carrier
    /// in front keeps its own.
    ///
    /// # Errors
    /// When there is no router.
    pub fn renumber(&self) -> Result<Ipv4Addr> {
        let router = self.router.as_ref().context("no router")?;
        let [a, b, leg, _] = self.public.octets();
        let (inner, addr) = (Ipv4Addr::new(a, b, leg, 1), Ipv4Addr::new(a, b, leg, 3));
        router.ip(&format!(
            "addr flush dev wan scope global\naddr add {addr}/24 dev wan\nroute add default via {inner}"
        ))?;
        Ok(addr)
    }

    /// Puts one more machine on the LAN, at 192.168.1.`number`, on the interface `lan`.
    ///
    /// # Errors
    /// When there is no LAN, or such a machine already.
    pub fn neighbour(&self, number: u8) -> Result<Arc<Namespace>> {
        let router = self.router.as_ref().context("a machine on the internet has no LAN")?;
        let machine = Arc::new(Namespace::new(format!("neighbour {number}"))?);
        to_lan(router, &machine, number)?;
        Ok(machine)
    }
}

/// A backbone and its legs. Public addresses are 11.22.n.2, as real ones look; none of them leads
/// out of the lab.
#[derive(Debug)]
pub struct Internet {
    legs: Vec<Leg>,
    conditioner: Conditioner,
    backbone: Namespace,
}

impl Internet {
    /// A backbone without legs; `seed` decides jitter and loss.
    ///
    /// # Errors
    /// When root or something of the kernel is missing.
    pub fn new(seed: u64) -> Result<Self> {
        Self::with(seed, false)
    }

    /// As [`Self::new`], for links that lose packets: batches are taken apart, so that each packet
    /// has its own luck.
    ///
    /// # Errors
    /// When root or something of the kernel is missing.
    pub fn lossy(seed: u64) -> Result<Self> {
        Self::with(seed, true)
    }

    fn with(seed: u64, splits: bool) -> Result<Self> {
        let backbone = Namespace::new("backbone")?;
        backbone.forward()?;
        let conditioner = Conditioner::start(&backbone, seed, splits)?;
        Ok(Self { legs: Vec::new(), conditioner, backbone })
    }

    /// A machine with a public address.
    ///
    /// # Errors
    /// When something of the kernel is missing.
    pub fn host(&mut self, name: &str, link: Link) -> Result<Host> {
        let namespace = Arc::new(Namespace::new(name)?);
        let addr = self.leg(&namespace, link)?;
        Ok(Host { namespace, addr })
    }

    /// A home, whose machine is 192.168.1.`number` if it has no public address.
    ///
    /// # Errors
    /// When something of the kernel is missing.
    pub fn home(&mut self, name: &str, access: Access, link: Link, number: u8) -> Result<Home> {
        if access == Access::Public {
            let Host { namespace, addr } = self.host(name, link)?;
            return Ok(Home { access, host: namespace, addr, router: None, public: addr });
        }
        let router = Arc::new(Namespace::new(format!("{name}'s router"))?);
        router.forward()?;
        let (public, wan) = if access == Access::Cgnat {
            (self.carrier(name, &router, link)?, BEHIND_CARRIER)
        } else {
            let public = self.leg(&router, link)?;
            (public, public)
        };
        router.nft(&access.rules(wan))?;
        router.ip(
            "link add name lan type bridge\naddr add 192.168.1.1/24 dev lan\nlink set lan up",
        )?;
        let host = Arc::new(Namespace::new(name)?);
        to_lan(&router, &host, number)?;
        let addr = Ipv4Addr::new(192, 168, 1, number);
        Ok(Home { access, host, addr, router: Some(router), public })
    }

    /// Puts a carrier's NAT in front of a home's router.
    fn carrier(&mut self, name: &str, router: &Namespace, link: Link) -> Result<Ipv4Addr> {
        let carrier = Arc::new(Namespace::new(format!("{name}'s carrier"))?);
        carrier.forward()?;
        let public = self.leg(&carrier, link)?;
        carrier.nft(&Access::Cgnat.rules(public))?;
        carrier.join("lan", router, "wan")?;
        carrier.ip("addr add 100.64.0.1/10 dev lan")?;
        router.ip(&format!(
            "addr add {BEHIND_CARRIER}/10 dev wan\nroute add default via 100.64.0.1"
        ))?;
        Ok(public)
    }

    /// A new leg that ends at the interface `wan` of `edge`; the address there.
    fn leg(&mut self, edge: &Arc<Namespace>, link: Link) -> Result<Ipv4Addr> {
        let number = u8::try_from(self.legs.len() + 1).context("too many legs")?;
        let (inner, addr) = (Ipv4Addr::new(11, 22, number, 1), Ipv4Addr::new(11, 22, number, 2));
        let interface = interface(self.legs.len());
        self.backbone.join(&interface, edge, "wan")?;
        self.backbone.ip(&format!("addr add {inner}/24 dev {interface}"))?;
        edge.ip(&format!("addr add {addr}/24 dev wan\nroute add default via {inner}"))?;
        limit(&self.backbone, &interface, link.down)?;
        limit(edge, "wan", link.up)?;
        self.conditioner.set(self.backbone.index(&interface)?, link);
        self.legs.push(Leg { edge: edge.clone(), addr, link });
        Ok(addr)
    }

    /// What forwards packets in the middle. Leg number n, from 0 on in the order they were made, ends
    /// at its interface `leg<n>`.
    #[must_use]
    pub fn backbone(&self) -> &Namespace {
        &self.backbone
    }

    /// What was held back and lost so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.conditioner.tally()
    }

    /// Sends packets across each leg, and refuses to go on if one is not as it was asked for. The
    /// first leg must be a host's without a limited rate: it is the other end of all measurements.
    ///
    /// # Errors
    /// When a rate is off by more than 2 %, a delay by more than 1 ms, or losses by more than chance
    /// explains; or when packets were lost that nobody asked to lose.
    pub fn measure(&self) -> Result<()> {
        let (reference, legs) = self.legs.split_first().context("nothing to measure against")?;
        ensure!(reference.link.up == 0 && reference.link.down == 0, "the first leg is limited");
        let measure = |leg: &Leg| {
            let refused = || format!("refused: the leg to {} is not as asked", leg.edge.name());
            crate::measure::leg(leg, reference).with_context(refused)
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = legs.iter().map(|leg| scope.spawn(|| measure(leg))).collect();
            let done = running.into_iter().map(|leg| leg.join().expect("measuring does not panic"));
            // All of them end before the first refusal is told.
            done.collect::<Vec<_>>().into_iter().collect::<Result<()>>()
        })?;
        let overruns = self.tally().overruns;
        ensure!(overruns == 0, "refused: packets were lost {overruns} times on this machine");
        Ok(())
    }
}

/// A home router's address towards its carrier.
const BEHIND_CARRIER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);

fn interface(leg: usize) -> String {
    format!("leg{leg}")
}

fn limit(sender: &Namespace, interface: &str, rate: u64) -> Result<()> {
    if rate > 0 {
        sender.run(&format!(
            "tc qdisc replace dev {interface} root tbf rate {rate}bit burst {BURST} latency {QUEUE_MS}ms"
        ))?;
    }
    Ok(())
}

fn to_lan(router: &Namespace, machine: &Namespace, number: u8) -> Result<()> {
    let port = format!("lan{number}");
    router.join(&port, machine, "lan")?;
    router.ip(&format!("link set {port} master lan"))?;
    machine
        .ip(&format!("addr add 192.168.1.{number}/24 dev lan\nroute add default via 192.168.1.1"))
}
