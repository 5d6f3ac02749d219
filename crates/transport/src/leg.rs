//! Our side of one control connection to a relay: frame keys, counters, counts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use sluice_proto::FlowId;
use sluice_proto::frame::{self, FrameKey, FrameType, HEADER_LEN, Header, ReplayWindow};

/// A packet with payload counts as at least this many bytes towards a flow's grant.
const GRANT_PACKET_MIN: u64 = 1200;
/// Packets longer than this carry payload: longer than any bare acknowledgement.
const PAYLOAD_PACKET: usize = 120;

/// One leg: made when the control connection is up, replaced when it is made anew.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) relay: SocketAddr,
    pub(crate) own_flow: FlowId,
    out_key: FrameKey,
    in_key: FrameKey,
    out_counter: AtomicU64,
    replay: Mutex<ReplayWindow>,
    pub(crate) counts: LegCounts,
}

/// Frame bytes of a leg since the process started.
#[derive(Debug, Clone, Default)]
pub struct LegCounts(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    sent: AtomicU64,
    received: AtomicU64,
}

impl LegCounts {
    /// Bytes handed to the kernel for the relay.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Relaxed)
    }

    /// Bytes of frames that came from the relay with a right tag.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.0.received.load(Relaxed)
    }
}

/// Frame bytes of one flow.
#[derive(Debug, Default)]
pub struct FlowCounts {
    sent: AtomicU64,
    sent_granting: AtomicU64,
    received: AtomicU64,
}

impl FlowCounts {
    /// Bytes sent on the flow.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    /// The same with each packet that has payload counted as at least 1,200 bytes: an eighth of
    /// it is granted to the other side.
    pub fn sent_granting(&self) -> u64 {
        self.sent_granting.load(Relaxed)
    }

    /// Bytes received on the flow.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

impl Leg {
    pub(crate) fn new(
        relay: SocketAddr,
        own_flow: FlowId,
        exported: &[u8; 32],
        counts: LegCounts,
    ) -> Self {
        let (out_key, in_key) = FrameKey::pair(exported);
        Self {
            relay,
            own_flow,
            out_key,
            in_key,
            out_counter: AtomicU64::new(0),
            replay: Mutex::default(),
            counts,
        }
    }

    /// Appends `contents`, cut into segments of `segment` bytes, to `out`, each behind its header.
    pub(crate) fn wrap(
        &self,
        flow: FlowId,
        counts: &FlowCounts,
        contents: &[u8],
        segment: usize,
        out: &mut Vec<u8>,
    ) {
        let packets = contents.len().div_ceil(segment) as u64;
        let counters = self.out_counter.fetch_add(packets, Relaxed)..;
        let (mut bytes, mut granting) = (0, 0);
        for (counter, payload) in counters.zip(contents.chunks(segment)) {
            let start = out.len();
            out.extend_from_slice(&[0; HEADER_LEN]);
            out.extend_from_slice(payload);
            let header = Header { kind: FrameType::Data, flow, counter };
            frame::seal(&mut out[start..], header, &self.out_key);
            let len = (HEADER_LEN + payload.len()) as u64;
            bytes += len;
            granting +=
                if payload.len() > PAYLOAD_PACKET { len.max(GRANT_PACKET_MIN) } else { len };
        }
        counts.sent.fetch_add(bytes, Relaxed);
        counts.sent_granting.fetch_add(granting, Relaxed);
        self.counts.0.sent.fetch_add(bytes, Relaxed);
    }

    /// A frame other than data: keepalive or the echo of a challenge.
    pub(crate) fn control_frame(&self, kind: FrameType, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_LEN];
        out.extend_from_slice(payload);
        let counter = self.out_counter.fetch_add(1, Relaxed);
        frame::seal(&mut out, Header { kind, flow: self.own_flow, counter }, &self.out_key);
        out
    }

    /// Whether a frame is the relay's and new.
    pub(crate) fn admit(&self, bytes: &[u8], header: Header) -> bool {
        frame::check(bytes, &self.in_key).is_ok() && self.replay.lock().accept(header.counter)
    }

    /// Whether a frame that is only set aside is the relay's; it is admitted later.
    pub(crate) fn admit_unseen(&self, bytes: &[u8]) -> bool {
        frame::check(bytes, &self.in_key).is_ok()
    }

    pub(crate) fn count_received(&self, flow: &FlowCounts, bytes: usize) {
        flow.received.fetch_add(bytes as u64, Relaxed);
        self.counts.0.received.fetch_add(bytes as u64, Relaxed);
    }
}
