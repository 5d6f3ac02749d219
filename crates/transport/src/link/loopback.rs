//! A node's flow to itself through a relay at which it reserved.
//!
//! A relay may answer keepalive frames and still lose data frames. What a tenant says of that, or
//! what becomes of its frames, proves nothing: it could drop them itself. So a provider sends data
//! frames to itself, through the same sockets, keys and table as all others.

use std::sync::Arc;
use std::time::Instant;

use sluice_proto::{FlowId, RelayBudget, RelayFlow};

use super::beat::Beat;
use crate::leg::Leg;

/// Bytes of payload: as few as a data frame may have, with room.
const PAYLOAD: [u8; 18] = [0; 18];

/// The state of one control connection's flow to itself.
#[derive(Debug)]
pub(super) struct Loopback {
    /// The request that was not answered yet.
    asked: Option<u32>,
    flow: Option<FlowId>,
    beat: Beat,
    /// The relay does not bill it, and neither is it counted here.
    counts: Arc<RelayFlow>,
}

impl Loopback {
    /// `forwards`: as far as was known of the relay before.
    pub(super) fn new(forwards: bool, now: Instant) -> Self {
        let counts = RelayFlow::new(RelayBudget::new(u64::MAX));
        Self { asked: None, flow: None, beat: Beat::new(forwards, now), counts }
    }

    /// The relay was asked for the flow.
    pub(super) const fn asked(&mut self, request: u32) {
        self.asked = Some(request);
    }

    /// Whether this is the answer's number.
    pub(super) fn awaits(&self, request: u32) -> bool {
        self.asked == Some(request)
    }

    /// The flow stands.
    pub(super) const fn opened(&mut self, flow: FlowId) {
        self.asked = None;
        self.flow = Some(flow);
    }

    /// When [`Self::handle`] is due, once the flow stands.
    pub(super) fn due(&self) -> Option<Instant> {
        self.flow.map(|_| self.beat.due())
    }

    /// Takes in what came back; the next frame, if one is to be sent now.
    pub(super) fn handle(&mut self, leg: &Leg, now: Instant) -> Option<Vec<u8>> {
        let flow = self.flow?;
        if !self.beat.handle(leg.looped(), now) {
            return None;
        }
        let mut frame = Vec::new();
        leg.wrap(flow, &self.counts, &PAYLOAD, PAYLOAD.len(), &mut frame);
        Some(frame)
    }

    /// Whether frames come back, as far as is known.
    pub(super) const fn forwards(&self) -> bool {
        self.beat.forwards()
    }
}
