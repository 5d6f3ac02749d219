//! What a role knows of the mesh, as it is written down for those who look.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sluice_mesh::Multiaddr;
use sluice_proto::SignedRecord;

use super::KnownRelay;

/// Most nodes that are written down: as many as a person might look through.
const NODES_MAX: usize = 1024;

/// A relay, its place in the choice, and why it has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranked {
    pub(crate) relay: KnownRelay,
    /// As measured, if it was.
    pub(crate) latency: Option<Duration>,
    pub(crate) chosen: bool,
    pub(crate) why: String,
}

/// What is known at a moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Known {
    /// Unix seconds.
    pub(crate) at_unix_s: u64,
    /// Nodes whose records this node holds.
    pub(crate) nodes: Vec<NodeLine>,
    /// Relays, best first where there was a choice.
    pub(crate) relays: Vec<RelayLine>,
}

/// A node's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeLine {
    pub(crate) peer: String,
    /// `relay`, `provider`, both or none.
    pub(crate) roles: Vec<String>,
    pub(crate) services: Vec<String>,
    /// A provider's relays, or a relay's own sockets.
    pub(crate) relays: Vec<String>,
    /// Token base units per GiB, decimal; of the provider, else of the relay.
    pub(crate) price_up: String,
    pub(crate) price_down: String,
    pub(crate) sequence: u64,
    pub(crate) expires_unix_s: u64,
    pub(crate) mesh: Vec<String>,
}

/// A relay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RelayLine {
    pub(crate) peer: String,
    pub(crate) address: String,
    /// Token base units per GiB, decimal.
    pub(crate) price_up: String,
    pub(crate) price_down: String,
    pub(crate) latency_ms: Option<f64>,
    pub(crate) chosen: bool,
    /// Empty where nothing was chosen.
    pub(crate) why: String,
}

impl NodeLine {
    fn of(signed: &SignedRecord) -> Self {
        let record = signed.record();
        let price = record.provider.as_ref().map(|p| p.price);
        let price = price.or(record.relay.as_ref().map(|r| r.price)).unwrap_or_default();
        let roles = [("provider", record.provider.is_some()), ("relay", record.relay.is_some())];
        let of_provider = record.provider.iter().flat_map(|p| &p.relays);
        let relays = of_provider.chain(record.relay.iter().flat_map(|r| &r.addresses));
        let services = record.provider.iter().flat_map(|p| &p.services);
        let mesh = record.mesh.iter().filter_map(|b| Multiaddr::try_from(b.to_vec()).ok());
        Self {
            peer: record.peer.to_string(),
            roles: roles.iter().filter(|(_, is)| *is).map(|(role, _)| (*role).to_owned()).collect(),
            services: services.map(|(name, kind)| format!("{name}/{}", kind.as_str())).collect(),
            relays: relays.map(ToString::to_string).collect(),
            price_up: price.up.to_string(),
            price_down: price.down.to_string(),
            sequence: record.sequence,
            expires_unix_s: record.expires_unix_s,
            mesh: mesh.map(|address| address.to_string()).collect(),
        }
    }
}

impl From<&Ranked> for RelayLine {
    fn from(ranked: &Ranked) -> Self {
        let KnownRelay { peer, address, price, .. } = &ranked.relay;
        Self {
            peer: peer.to_string(),
            address: address.to_string(),
            price_up: price.up.to_string(),
            price_down: price.down.to_string(),
            latency_ms: ranked.latency.map(|latency| latency.as_secs_f64() * 1000.0),
            chosen: ranked.chosen,
            why: ranked.why.clone(),
        }
    }
}

impl Known {
    /// The newest records, and relays as they were ranked.
    pub(crate) fn new(at_unix_s: u64, mut records: Vec<SignedRecord>, ranked: &[Ranked]) -> Self {
        records.sort_by_key(|signed| std::cmp::Reverse(signed.record().sequence));
        records.truncate(NODES_MAX);
        Self {
            at_unix_s,
            nodes: records.iter().map(NodeLine::of).collect(),
            relays: ranked.iter().map(RelayLine::from).collect(),
        }
    }

    /// Whether it says the same, but for when and how fast.
    pub(crate) fn says_as(&self, other: &Self) -> bool {
        let verdicts = |known: &Self| -> Vec<_> {
            known.relays.iter().map(|r| (r.peer.clone(), r.chosen, r.why.clone())).collect()
        };
        self.nodes == other.nodes && verdicts(self) == verdicts(other)
    }
}
