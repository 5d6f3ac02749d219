//! Measures the round trip to relays, as a node that is nobody: a relay cannot tell who looks.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use sluice_proto::{Keypair, PeerId, RelayAddr};
use sluice_transport::{
    AcceptPolicy, Clock, NatOptions, Network, Node, NodeConfig, NoiseKeys, Random,
};
use tokio::task::JoinSet;

/// Relays that are measured at a time; others wait.
const AT_ONCE: usize = 8;
/// The idle timeout of a node that opens no session.
const NO_SESSIONS: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probed {
    /// Round trip of the relay's control connection; `None`: it did not answer.
    pub(crate) rtt: Option<Duration>,
}

/// Measurements that are under way.
pub(crate) struct Probing {
    ip: IpAddr,
    asked: HashSet<PeerId>,
    waiting: Vec<(PeerId, RelayAddr)>,
    running: JoinSet<(PeerId, Probed)>,
    /// There while any is under way.
    node: Option<Node>,
}

impl Probing {
    /// None yet; `ip` is the local address to measure from.
    pub(crate) fn new(ip: IpAddr) -> Self {
        let (asked, waiting, running) = (HashSet::new(), Vec::new(), JoinSet::new());
        Self { ip, asked, waiting, running, node: None }
    }

    /// Measures a relay, unless that is under way.
    pub(crate) fn ask(&mut self, peer: PeerId, relay: RelayAddr) {
        if self.asked.insert(peer) {
            self.waiting.push((peer, relay));
            self.start();
        }
    }

    /// Whether none is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    /// The next that is done; waits for ever while none is under way.
    pub(crate) async fn next(&mut self) -> (PeerId, Probed) {
        loop {
            match self.running.join_next().await {
                Some(Ok((peer, probed))) => {
                    self.asked.remove(&peer);
                    self.start();
                    self.rest();
                    return (peer, probed);
                }
                // Nothing in it panics, and nobody aborts it.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn start(&mut self) {
        while self.running.len() < AT_ONCE
            && let Some((peer, relay)) = self.waiting.pop()
        {
            let node = match &self.node {
                Some(node) => Ok(node.clone()),
                None => nobody(self.ip),
            };
            match node {
                Ok(node) => {
                    self.node = Some(node.clone());
                    self.running.spawn(async move { (peer, probe(&node, relay).await) });
                }
                Err(error) => {
                    tracing::warn!(%error, "relays cannot be measured");
                    self.running.spawn(async move { (peer, Probed { rtt: None }) });
                }
            }
        }
    }

    /// Gives its port back once nothing is under way.
    fn rest(&mut self) {
        if self.asked.is_empty()
            && let Some(node) = self.node.take()
        {
            tokio::spawn(async move { node.shutdown().await });
        }
    }
}

async fn probe(node: &Node, relay: RelayAddr) -> Probed {
    let link = node.link(relay, None);
    let rtt = match link.ready().await {
        Ok(()) => link.rtt(),
        Err(reason) => {
            tracing::debug!(%relay, reason, "not measured");
            None
        }
    };
    Probed { rtt }
}

/// A node with a name that nobody knows, which nobody can reach.
fn nobody(ip: IpAddr) -> Result<Node> {
    let random = Random::default();
    let node = Node::bind(NodeConfig {
        key: Keypair::ed25519_from_bytes(random.bytes::<32>())?,
        noise: NoiseKeys::from_secret(random.bytes())?,
        bind: SocketAddr::new(ip, 0),
        reset_key: random.bytes(),
        incarnation: random.number(),
        accept: AcceptPolicy::Nobody,
        idle_timeout: NO_SESSIONS,
        clock: Clock::default(),
        network: Network::Kernel,
        random,
    })?;
    node.set_nat_options(NatOptions {
        survey: false,
        port_mapping: false,
        ..NatOptions::default()
    });
    Ok(node)
}
