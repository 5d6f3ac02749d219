//! The forwarding table: flow numbers to flows and legs.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use sluice_proto::FlowId;

use crate::flow::{Flow, Side};
use crate::leg::Leg;
use crate::loopback::Loopback;

/// What a flow number stands for.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    /// A leg's own flow: keepalives.
    Own(Arc<Leg>),
    /// One end of a flow.
    Flow(Arc<Flow>, Side),
    /// A holder's flow to itself.
    Loopback(Arc<Loopback>),
}

/// Locks of the table: enough that threads seldom meet.
const SHARDS: usize = 64;

#[derive(Debug)]
pub(crate) struct Table([RwLock<HashMap<FlowId, Entry>>; SHARDS]);

impl Table {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| RwLock::default()))
    }

    fn shard(&self, flow: FlowId) -> &RwLock<HashMap<FlowId, Entry>> {
        // The low bits choose the thread: taking the high ones spreads each thread over all.
        &self.0[(flow.0 >> 26) as usize % SHARDS]
    }

    #[inline]
    pub(crate) fn find(&self, flow: FlowId) -> Option<Entry> {
        self.shard(flow).read().get(&flow).cloned()
    }

    /// Adds an entry. False: the number is taken.
    pub(crate) fn insert(&self, flow: FlowId, entry: Entry) -> bool {
        let mut shard = self.shard(flow).write();
        if shard.contains_key(&flow) {
            return false;
        }
        shard.insert(flow, entry);
        true
    }

    pub(crate) fn remove(&self, flow: FlowId) -> Option<Entry> {
        self.shard(flow).write().remove(&flow)
    }
}
