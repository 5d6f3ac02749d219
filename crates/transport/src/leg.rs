//! Our side of one control connection to a relay: frame keys, counters, counts.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_proto::frame::{self, FrameKey, FrameType, HEADER_LEN, Header, ReplayWindow};
use sluice_proto::{FlowId, RelayFlow};
use tokio::sync::Notify;

/// One leg: made when the control connection is up, replaced when it is made anew.
#[derive(Debug)]
pub(crate) struct Leg {
    pub(crate) relay: SocketAddr,
    /// Another port of the relay, that answers observe frames.
    pub(crate) alternate: Option<SocketAddr>,
    pub(crate) own_flow: FlowId,
    out_key: FrameKey,
    in_key: FrameKey,
    out_counter: AtomicU64,
    replay: Mutex<ReplayWindow>,
    /// Frames that were admitted.
    heard: AtomicU64,
    /// What the relay asked to be echoed over UDP while a stream carries the link.
    udp_challenge: Mutex<Option<Bytes>>,
    udp_works: Notify,
    answered: Mutex<Option<Answer>>,
    /// Number of the node's flow to itself; 0: none.
    loopback: AtomicU32,
    looped: Mutex<Option<Instant>>,
}

/// The newest answer to a keepalive.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// When it came.
    pub(crate) at: Instant,
    /// How the relay sees this node; over TCP it does not say.
    pub(crate) observed: Option<SocketAddr>,
}

impl Leg {
    pub(crate) fn new(
        relay: SocketAddr,
        alternate: Option<SocketAddr>,
        own_flow: FlowId,
        exported: &[u8; 32],
    ) -> Self {
        let (out_key, in_key) = FrameKey::pair(exported);
        Self {
            relay,
            alternate,
            own_flow,
            out_key,
            in_key,
            out_counter: AtomicU64::new(0),
            replay: Mutex::default(),
            heard: AtomicU64::new(0),
            udp_challenge: Mutex::default(),
            udp_works: Notify::new(),
            answered: Mutex::default(),
            loopback: AtomicU32::new(0),
            looped: Mutex::default(),
        }
    }

    /// The relay gave the node a flow to itself.
    pub(crate) fn set_loopback(&self, flow: FlowId) {
        self.loopback.store(flow.0, Relaxed);
    }

    /// Whether frames of this number are the node's own, come back.
    pub(crate) fn is_loopback(&self, flow: FlowId) -> bool {
        self.loopback.load(Relaxed) == flow.0 && flow.0 != 0
    }

    /// Takes a frame that came back. False: it did not.
    pub(crate) fn take_looped(&self, bytes: &[u8], header: Header, at: Instant) -> bool {
        let admitted = self.admit(bytes, header);
        if admitted {
            *self.looped.lock() = Some(at);
        }
        admitted
    }

    /// When a frame came back last.
    pub(crate) fn looped(&self) -> Option<Instant> {
        *self.looped.lock()
    }

    /// Takes the payload of an answer to a keepalive.
    pub(crate) fn take_answer(&self, payload: &[u8], at: Instant) {
        let Some((ip, port)) = payload.split_first_chunk::<16>() else { return };
        let Ok(port) = port.try_into().map(u16::from_be_bytes) else { return };
        let observed = (port != 0).then(|| SocketAddr::new(IpAddr::from(*ip).to_canonical(), port));
        *self.answered.lock() = Some(Answer { at, observed });
    }

    pub(crate) fn answered(&self) -> Option<Answer> {
        *self.answered.lock()
    }

    /// Appends `contents`, cut into segments of `segment` bytes, to `out`, each behind its header.
    pub(crate) fn wrap(
        &self,
        flow: FlowId,
        counts: &RelayFlow,
        contents: &[u8],
        segment: usize,
        out: &mut Vec<u8>,
    ) {
        let packets = contents.len().div_ceil(segment) as u64;
        let counters = self.out_counter.fetch_add(packets, Relaxed)..;
        // Counted before it goes, so that an honest relay's claim is never above our count.
        let bytes = contents.len() as u64 + packets * HEADER_LEN as u64;
        counts.count_sent(bytes);
        for (counter, payload) in counters.zip(contents.chunks(segment)) {
            let start = out.len();
            out.extend_from_slice(&[0; HEADER_LEN]);
            out.extend_from_slice(payload);
            let header = Header { kind: FrameType::Data, flow, counter };
            frame::seal(&mut out[start..], header, &self.out_key);
        }
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
        let admitted =
            frame::check(bytes, &self.in_key).is_ok() && self.replay.lock().accept(header.counter);
        if admitted {
            self.heard.fetch_add(1, Relaxed);
        }
        admitted
    }

    /// Frames of the relay so far.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// The relay's challenge came over UDP while a stream carries the link: UDP works.
    pub(crate) fn handle_udp_challenge(&self, nonce: &[u8]) {
        *self.udp_challenge.lock() = Some(Bytes::copy_from_slice(nonce));
        self.udp_works.notify_one();
    }

    /// Waits for [`Self::handle_udp_challenge`]; returns what is to be echoed.
    pub(crate) async fn challenged_over_udp(&self) -> Bytes {
        loop {
            if let Some(nonce) = self.udp_challenge.lock().take() {
                return nonce;
            }
            self.udp_works.notified().await;
        }
    }

    /// Whether a frame that is only set aside is the relay's; it is admitted later.
    pub(crate) fn admit_unseen(&self, bytes: &[u8]) -> bool {
        frame::check(bytes, &self.in_key).is_ok()
    }
}
