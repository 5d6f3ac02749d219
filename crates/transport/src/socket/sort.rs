//! Sorts what arrives: relay frames, QUIC, probes, and what nobody asked for.
//!
//! A GRO batch may mix flows and kinds, so each segment is looked at. Payloads of one sender and
//! size become one run. The first run is compacted where it stands, later ones are copied to
//! quinn's other buffers; nearly every batch is one run.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use quinn_udp::RecvMeta;
use sluice_path::{PACKET_MAX, Pair, Path};
use sluice_proto::FlowId;
use sluice_proto::frame::{self, FrameType, HEADER_LEN, Header};

use super::DataSocket;
use crate::knock::PROBE_LEN;
use crate::leg::Leg;
use crate::observe;
use crate::peer::{DIRECT, Peer};
use crate::tables::{FlowEntry, canonical, to_quinn};

/// Packets of flows whose rendezvous was not opened yet: so many for each flow ..
const HELD_PER_FLOW: usize = 4;
/// .. of so many flows.
const HELD_FLOWS: usize = 64;
/// .. for at most this long, in nanoseconds.
const HELD_NS: u64 = 200_000_000;

/// Where a segment goes: the sender that quinn shall see, and bytes to skip.
type Verdict = Option<(SocketAddr, usize)>;

#[derive(Debug, Default)]
pub(crate) struct Sorter {
    generation: u64,
    flow: Option<(SocketAddr, FlowId, FlowEntry)>,
    direct: Option<(SocketAddr, Arc<Peer>)>,
    waiting: VecDeque<(Vec<u8>, RecvMeta)>,
    held: Vec<Held>,
    /// What is being sorted came over a stream.
    streamed: bool,
}

#[derive(Debug)]
struct Held {
    relay: SocketAddr,
    flow: FlowId,
    until_ns: u64,
    frames: Vec<Vec<u8>>,
}

/// A run being written.
struct Run {
    addr: SocketAddr,
    stride: usize,
    len: usize,
    closed: bool,
}

impl Sorter {
    /// Leaves a waker for [`DataSocket::release_held`] if anything is held.
    pub(crate) fn wake_when_released(&self, waker: &Waker, socket: &DataSocket) {
        if !self.held.is_empty() {
            *socket.receiver.lock() = Some(waker.clone());
            // It may have been released just before the waker was there.
            if socket.tables.generation() != self.generation {
                waker.wake_by_ref();
            }
        }
    }

    /// Hands over runs that did not fit quinn's buffers before.
    pub(crate) fn take_waiting(
        &mut self,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> usize {
        let mut n = 0;
        while n < bufs.len().min(meta.len()) {
            let Some((bytes, m)) = self.waiting.pop_front() else { break };
            bufs[n][..bytes.len()].copy_from_slice(&bytes);
            meta[n] = m;
            n += 1;
        }
        n
    }

    /// The same as [`Self::sort`], for a batch that came over a stream.
    pub(crate) fn sort_streamed(
        &mut self,
        socket: &DataSocket,
        bufs: &mut [IoSliceMut<'_>],
        batch: &RecvMeta,
        meta: &mut [RecvMeta],
    ) -> usize {
        self.streamed = true;
        let runs = self.sort(socket, bufs, batch, meta);
        self.streamed = false;
        runs
    }

    /// Sorts the batch in `bufs[0]`; returns how many of `bufs` and `meta` hold packets for quinn.
    pub(crate) fn sort(
        &mut self,
        socket: &DataSocket,
        bufs: &mut [IoSliceMut<'_>],
        batch: &RecvMeta,
        meta: &mut [RecvMeta],
    ) -> usize {
        let from = canonical(batch.addr);
        let stride = batch.stride.max(1);
        let capacity = bufs.len().min(meta.len());
        let Some((first, rest)) = bufs.split_first_mut() else { return 0 };
        let mut runs = 0;
        let mut run: Option<Run> = None;
        let mut at = 0;
        while at < batch.len {
            let end = (at + stride).min(batch.len);
            if let Some((addr, skip)) = self.judge(socket, from, &first[at..end]) {
                let payload = at + skip..end;
                let len = payload.len();
                let fits =
                    run.as_ref().is_some_and(|r| r.addr == addr && !r.closed && len <= r.stride);
                if !fits {
                    self.finish(run.take(), runs, capacity, batch, meta);
                    runs += 1;
                    run = Some(Run { addr, stride: len, len: 0, closed: false });
                    if runs > capacity {
                        self.waiting.push_back((Vec::new(), *batch));
                    }
                }
                let Some(run) = &mut run else { break };
                match runs {
                    1 if payload.start == run.len => {}
                    1 => first.copy_within(payload, run.len),
                    n if n <= capacity => {
                        rest[n - 2][run.len..run.len + len].copy_from_slice(&first[payload]);
                    }
                    _ => {
                        if let Some((bytes, _)) = self.waiting.back_mut() {
                            bytes.extend_from_slice(&first[payload]);
                        }
                    }
                }
                run.len += len;
                run.closed = len < run.stride;
            }
            at = end;
        }
        self.finish(run, runs, capacity, batch, meta);
        runs.min(capacity)
    }

    fn finish(
        &mut self,
        run: Option<Run>,
        runs: usize,
        capacity: usize,
        batch: &RecvMeta,
        meta: &mut [RecvMeta],
    ) {
        let Some(run) = run else { return };
        let mut m = *batch;
        m.addr = run.addr;
        m.len = run.len;
        m.stride = run.stride;
        if runs <= capacity {
            meta[runs - 1] = m;
        } else if let Some((_, waiting)) = self.waiting.back_mut() {
            *waiting = m;
        }
    }

    /// Drops what was remembered of tables that have changed.
    pub(crate) fn refresh(&mut self, socket: &DataSocket) {
        let generation = socket.tables.generation();
        if generation != self.generation {
            self.generation = generation;
            self.flow = None;
            self.direct = None;
            self.release_held(socket);
        }
    }

    fn judge(&mut self, socket: &DataSocket, from: SocketAddr, bytes: &[u8]) -> Verdict {
        let first = *bytes.first()?;
        if first == frame::PROBE {
            socket.take_probe(Path::direct(from), bytes);
            return None;
        }
        if !frame::is_frame(first) {
            return self.judge_quic(socket, from, bytes.len());
        }
        let verdict = frame::peek(bytes).ok().and_then(|h| match h.kind {
            FrameType::Data => self.judge_data(socket, from, bytes, h),
            FrameType::KeepaliveAck | FrameType::Challenge => {
                take_control(socket, from, bytes, h, self.streamed).then_some(None)
            }
            FrameType::Observed => {
                observe::take_observed(&socket.tables, from, bytes).then_some(None)
            }
            FrameType::Keepalive | FrameType::ChallengeEcho | FrameType::Observe => None,
        });
        verdict.unwrap_or_else(|| {
            socket.stats.bad_frame.fetch_add(1, Relaxed);
            None
        })
    }

    fn judge_quic(&mut self, socket: &DataSocket, from: SocketAddr, len: usize) -> Verdict {
        if let Some((addr, peer)) = &self.direct
            && *addr == from
        {
            return Some(direct_verdict(peer, len));
        }
        if let Some(peer) = socket.tables.direct.read().get(&Pair::data(from)) {
            self.direct = Some((from, peer.clone()));
            return Some(direct_verdict(peer, len));
        }
        if socket.tables.legs.read().contains_key(&from) {
            return Some((to_quinn(from), 0));
        }
        socket.stats.stranger.fetch_add(1, Relaxed);
        None
    }

    /// `None`: a bad frame; `Some(None)`: dealt with.
    fn judge_data(
        &mut self,
        socket: &DataSocket,
        from: SocketAddr,
        bytes: &[u8],
        header: Header,
    ) -> Option<Verdict> {
        let known = matches!(&self.flow, Some((a, f, _)) if *a == from && *f == header.flow);
        if !known {
            let entry = socket.tables.flows.read().get(&(from, header.flow)).cloned();
            let Some(entry) = entry else {
                return self.hold(socket, from, bytes, header).then_some(None);
            };
            self.flow = Some((from, header.flow, entry));
        }
        let (_, _, entry) = self.flow.as_ref()?;
        if !entry.leg.admit(bytes, header) {
            return None;
        }
        entry.counts.count_received(bytes.len() as u64);
        entry.peer.received(entry.path);
        entry.peer.relayed_received.fetch_add(bytes.len() as u64, Relaxed);
        let inner = *bytes.get(HEADER_LEN)?;
        if inner == frame::PROBE {
            let probe = &bytes[HEADER_LEN..];
            if !(PROBE_LEN..=usize::from(PACKET_MAX)).contains(&probe.len()) {
                return None;
            }
            entry.peer.probe(Path::Relay(entry.path), probe);
            return Some(None);
        }
        if frame::is_frame(inner) {
            return None;
        }
        Some(Some((entry.peer.addr, HEADER_LEN)))
    }

    /// Keeps a frame of a flow that a rendezvous may be about to open. The tag is checked first.
    fn hold(
        &mut self,
        socket: &DataSocket,
        relay: SocketAddr,
        bytes: &[u8],
        header: Header,
    ) -> bool {
        let leg = socket.tables.legs.read().get(&relay).cloned().flatten();
        let Some(leg) = leg else { return false };
        if leg.is_loopback(header.flow) {
            return leg.take_looped(bytes, header, socket.now());
        }
        if !leg.admit_unseen(bytes) {
            return false;
        }
        let now = socket.now_ns();
        self.held.retain(|h| h.until_ns > now);
        let at = self.held.iter().position(|h| h.relay == relay && h.flow == header.flow);
        let at = at.or_else(|| {
            (self.held.len() < HELD_FLOWS).then(|| {
                let until_ns = now + HELD_NS;
                self.held.push(Held { relay, flow: header.flow, until_ns, frames: Vec::new() });
                self.held.len() - 1
            })
        });
        let Some(held) = at.map(|i| &mut self.held[i]) else { return false };
        if held.frames.len() < HELD_PER_FLOW {
            held.frames.push(bytes.to_vec());
        }
        true
    }

    /// Frames whose flow is known by now go to quinn with the next poll.
    fn release_held(&mut self, socket: &DataSocket) {
        let now = socket.now_ns();
        let held = std::mem::take(&mut self.held);
        for h in held {
            if h.until_ns <= now {
                continue;
            }
            if !socket.tables.flows.read().contains_key(&(h.relay, h.flow)) {
                self.held.push(h);
                continue;
            }
            for bytes in h.frames {
                let Ok(header) = frame::peek(&bytes) else { continue };
                let verdict = self.judge_data(socket, h.relay, &bytes, header).flatten();
                if let Some((addr, skip)) = verdict {
                    let payload = bytes[skip..].to_vec();
                    let len = payload.len();
                    let meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    self.waiting.push_back((payload, meta));
                }
            }
        }
    }
}

fn direct_verdict(peer: &Peer, len: usize) -> (SocketAddr, usize) {
    peer.received(DIRECT);
    peer.direct_received.fetch_add(len as u64, Relaxed);
    (peer.addr, 0)
}

/// False: not the relay's.
fn take_control(
    socket: &DataSocket,
    from: SocketAddr,
    bytes: &[u8],
    header: Header,
    streamed: bool,
) -> bool {
    let leg: Option<Arc<Leg>> = socket.tables.legs.read().get(&from).cloned().flatten();
    let Some(leg) = leg.filter(|leg| leg.admit(bytes, header)) else { return false };
    if header.kind == FrameType::KeepaliveAck {
        leg.take_answer(&bytes[HEADER_LEN..], socket.now());
    }
    if header.kind == FrameType::Challenge {
        let nonce = &bytes[HEADER_LEN..];
        if !streamed && socket.carried.queue(from).is_some() {
            leg.handle_udp_challenge(nonce);
        } else {
            socket.send_one(from, &leg.control_frame(FrameType::ChallengeEcho, nonce));
        }
    }
    true
}
