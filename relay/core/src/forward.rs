//! The hot path: one received batch in, runs that leave as one batch each out.

use std::sync::atomic::Ordering;
use std::time::Instant;

use siphasher::sip::SipHasher24;
use sluice_proto::FlowId;
use sluice_proto::frame::{self, FrameType, HEADER_LEN, OBSERVE_LEN, Observe};

use crate::account::Way;
use crate::drops::{Dropped, Drops};
use crate::flow::{Flow, Side};
use crate::leg::{CHALLENGE_LEN, FRAME_MAX, GROUP_MAX, KEEPALIVE_LEN, Leg, ReturnAddress};
use crate::limits::FedClock;
use crate::loopback::Loopback;
use crate::table::{Entry, Table};

/// Most bytes of one outgoing batch: what one UDP send may carry, with room for headers.
const RUN_BYTES_MAX: usize = 65_000;

/// What [`Forwarder::forward`] gives out.
#[derive(Debug)]
pub enum Output<'a> {
    /// Send as one batch: segments of `segment` bytes, the last may be shorter; at most 64
    /// segments and 65,000 bytes. Carry the received batch's ECN bits.
    Frames {
        /// Where to.
        to: ReturnAddress,
        /// The segments, one after the other.
        bytes: &'a [u8],
        /// Size of each but the last.
        segment: usize,
    },
    /// QUIC packets of the same source, for the relay's endpoint.
    Quic {
        /// The segments, one after the other.
        bytes: &'a [u8],
        /// Size of each but the last.
        segment: usize,
    },
    /// One frame of the relay's own, to be sent: never larger than what it answers.
    Answer {
        /// Where to.
        to: ReturnAddress,
        /// From which of the relay's ports.
        port: RelayPort,
        /// The frame.
        bytes: &'a [u8],
    },
    /// Something that the control plane must hear ([`crate::Admission::handle_event`]).
    Event(Event),
}

/// Which of the relay's two UDP ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayPort {
    /// The one that it is known by.
    Main,
    /// One that only observe frames are answered at and from: what can reach a client from there
    /// tells what its NAT lets in.
    Alternate,
}

impl RelayPort {
    const fn other(self) -> Self {
        match self {
            Self::Main => Self::Alternate,
            Self::Alternate => Self::Main,
        }
    }
}

/// What the forwarding path tells the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The reservation's limit held back a packet of this flow (its number at the holder), for
    /// the first time since the limit was raised.
    Unpaid(FlowId),
    /// The reservation that pays for this flow (its number at the holder) reached the total at
    /// which its owner wants to hear.
    Alarm(FlowId),
}

/// The forwarding table and its counters. Shared by threads.
#[derive(Debug)]
pub struct Forwarder {
    pub(crate) table: Table,
    pub(crate) clock: FedClock,
    pub(crate) secret: SipHasher24,
    drops: Drops,
}

impl Forwarder {
    /// An empty table. `seed` keys challenges and flow numbers: random, and secret.
    #[must_use]
    pub fn new(seed: [u8; 16], now: Instant) -> Self {
        Self {
            table: Table::new(),
            clock: FedClock::new(now),
            secret: SipHasher24::new_with_key(&seed),
            drops: Drops::default(),
        }
    }

    /// What was dropped so far. The owner adds what its sockets drop.
    #[must_use]
    pub const fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Takes one received batch: segments of `stride` bytes from one source, the last may be
    /// shorter. Headers are rewritten in place; `out` is called with what is to be done, in order.
    pub fn forward(
        &self,
        now: Instant,
        from: ReturnAddress,
        batch: &mut [u8],
        stride: usize,
        out: &mut impl FnMut(Output<'_>),
    ) {
        let now_ms = self.clock.feed(now);
        let stride = stride.clamp(1, batch.len().max(1));
        let mut rest = batch;
        while !rest.is_empty() {
            let (class, len) = leading_group(rest, stride);
            let (group, tail) = rest.split_at_mut(len);
            rest = tail;
            match class {
                Class::Quic => out(Output::Quic { bytes: group, segment: stride.min(len) }),
                Class::Data(flow) => self.data(flow, now_ms, from, group, stride, out),
                Class::Own(FrameType::Observe, flow) => {
                    self.observe(flow, now_ms, from, RelayPort::Main, group, out);
                }
                Class::Own(kind, flow) => self.own(kind, flow, now_ms, from, group, out),
                Class::Junk(kind) => self.drops.add(kind, 1),
            }
        }
    }

    /// Takes one batch received at the alternate port: observe frames are answered, the rest dropped.
    pub fn forward_alternate(
        &self,
        now: Instant,
        from: ReturnAddress,
        batch: &[u8],
        stride: usize,
        out: &mut impl FnMut(Output<'_>),
    ) {
        let now_ms = self.clock.feed(now);
        for segment in batch.chunks(stride.max(1)) {
            match classify(segment) {
                Class::Own(FrameType::Observe, flow) => {
                    self.observe(flow, now_ms, from, RelayPort::Alternate, segment, out);
                }
                Class::Junk(kind) => self.drops.add(kind, 1),
                Class::Quic | Class::Data(_) | Class::Own(..) => self.drops.add(Dropped::Type, 1),
            }
        }
    }

    /// A question how the relay sees a socket of a client. It may come from any address, and moves
    /// nothing.
    fn observe(
        &self,
        flow: FlowId,
        now_ms: u64,
        from: ReturnAddress,
        at: RelayPort,
        frame: &[u8],
        out: &mut impl FnMut(Output<'_>),
    ) {
        let Some(Entry::Own(leg)) = self.table.find(flow) else {
            return self.drops.add(Dropped::NoFlow, 1);
        };
        let Some(question) = Observe::decode(&frame[HEADER_LEN..]) else {
            return self.drops.add(Dropped::Size, 1);
        };
        if leg.verify(frame, frame.len(), from, now_ms, &self.drops).accepted == 0 {
            return;
        }
        let Some((to, bytes, len)) = leg.observed(from, &question) else {
            return self.drops.add(Dropped::Rate, 1);
        };
        let port = if question.from_other_port { at.other() } else { at };
        out(Output::Answer { to, port, bytes: &bytes[..len] });
    }

    /// Data frames of one flow number, at most [`GROUP_MAX`].
    fn data(
        &self,
        flow: FlowId,
        now_ms: u64,
        from: ReturnAddress,
        group: &mut [u8],
        stride: usize,
        out: &mut impl FnMut(Output<'_>),
    ) {
        let count = u64::try_from(group.len().div_ceil(stride)).expect("at most 64");
        let (flow, side) = match self.table.find(flow) {
            Some(Entry::Flow(flow, side)) => (flow, side),
            Some(Entry::Loopback(loopback)) => {
                return self.loop_back(&loopback, now_ms, from, group, stride, out);
            }
            Some(Entry::Own(_)) | None => return self.drops.add(Dropped::NoFlow, count),
        };
        let leg = &flow.end(side).leg;
        let verified = leg.verify(group, stride, from, now_ms, &self.drops);
        if verified.accepted == 0 {
            return;
        }
        if !verified.from_home {
            self.challenge(leg, from, now_ms, out);
        }
        let mask = self.permit(&flow, side, group, stride, verified.accepted, out);
        if mask == 0 {
            return;
        }
        let other = flow.other(side);
        let Some(to) = other.leg.seal_group(group, stride, mask, other.number) else {
            return self.drops.add(Dropped::Exhausted, u64::from(mask.count_ones()));
        };
        flow.end(side).forwarded.fetch_add(bytes_of(mask, group.len(), stride), Ordering::Relaxed);
        emit_runs(mask, group, stride, |bytes| {
            out(Output::Frames { to, bytes, segment: stride.min(bytes.len()) });
        });
    }

    /// Data frames of a holder's flow to itself: they go back to where its leg is answered.
    fn loop_back(
        &self,
        loopback: &Loopback,
        now_ms: u64,
        from: ReturnAddress,
        group: &mut [u8],
        stride: usize,
        out: &mut impl FnMut(Output<'_>),
    ) {
        let leg = &loopback.leg;
        let verified = leg.verify(group, stride, from, now_ms, &self.drops);
        if verified.accepted == 0 {
            return;
        }
        if !verified.from_home {
            self.challenge(leg, from, now_ms, out);
        }
        let mut mask = 0;
        for (i, frame) in group.chunks(stride).enumerate() {
            let bit = 1 << i;
            if verified.accepted & bit != 0 && loopback.allows(frame.len()) {
                mask |= bit;
            }
        }
        if mask != verified.accepted {
            self.drops.add(Dropped::Rate, u64::from((verified.accepted & !mask).count_ones()));
        }
        let Some(to) = leg.seal_group(group, stride, mask, loopback.number) else {
            return self.drops.add(Dropped::Exhausted, u64::from(mask.count_ones()));
        };
        emit_runs(mask, group, stride, |bytes| {
            out(Output::Frames { to, bytes, segment: stride.min(bytes.len()) });
        });
    }

    /// Which of the accepted segments may go on; charges them.
    fn permit(
        &self,
        flow: &Flow,
        side: Side,
        group: &[u8],
        stride: usize,
        accepted: u64,
        out: &mut impl FnMut(Output<'_>),
    ) -> u64 {
        if !flow.is_open() {
            match side {
                Side::Tenant => return self.permit_provisional(flow, group, stride, accepted),
                // The holder's own tag is its consent.
                Side::Holder => flow.open(),
            }
        }
        let bytes = bytes_of(accepted, group.len(), stride);
        let within_rate = match side {
            Side::Tenant => flow.tenant.leg.throttle.allows(to_usize(bytes)),
            Side::Holder => true,
        } && flow.account.throttle.allows(to_usize(bytes));
        if !within_rate {
            self.drops.add(Dropped::Rate, u64::from(accepted.count_ones()));
            return 0;
        }
        if flow.account.is_metered() {
            self.permit_metered(flow, side, group, stride, accepted, out)
        } else {
            // Nothing is billed, but it is counted: the operator wants to know.
            flow.account.charge(way(side), bytes);
            accepted
        }
    }

    fn permit_provisional(&self, flow: &Flow, group: &[u8], stride: usize, accepted: u64) -> u64 {
        let mut left = flow.take_provisional(accepted.count_ones());
        let mut mask = 0;
        for bit in bits(accepted) {
            if left == 0 {
                break;
            }
            left -= 1;
            mask |= bit;
        }
        if mask != accepted {
            self.drops.add(Dropped::Provisional, u64::from((accepted & !mask).count_ones()));
        }
        flow.account.count_unbilled(bytes_of(mask, group.len(), stride));
        mask
    }

    fn permit_metered(
        &self,
        flow: &Flow,
        side: Side,
        group: &[u8],
        stride: usize,
        accepted: u64,
        out: &mut impl FnMut(Output<'_>),
    ) -> u64 {
        let bytes = bytes_of(accepted, group.len(), stride);
        if let Ok(alarm) = charge(flow, side, bytes) {
            if side == Side::Holder {
                flow.grant.sent(bytes);
            }
            if alarm {
                out(Output::Event(Event::Alarm(flow.holder.number)));
            }
            return accepted;
        }
        // Somewhere in this group the window or the grant ends: find out where.
        let mut mask = 0;
        for (i, frame) in group.chunks(stride).enumerate() {
            let bit = 1 << i;
            if accepted & bit != 0 && self.permit_one(flow, side, frame.len(), out) {
                mask |= bit;
            }
        }
        mask
    }

    fn permit_one(
        &self,
        flow: &Flow,
        side: Side,
        len: usize,
        out: &mut impl FnMut(Output<'_>),
    ) -> bool {
        let bytes = len as u64;
        let (kind, passes) = match charge(flow, side, bytes) {
            Ok(alarm) => {
                if side == Side::Holder {
                    flow.grant.sent(bytes);
                }
                if alarm {
                    out(Output::Event(Event::Alarm(flow.holder.number)));
                }
                return true;
            }
            Err(Short::Window) => {
                flow.account.mark_unpaid();
                if flow.mark_unpaid() {
                    out(Output::Event(Event::Unpaid(flow.holder.number)));
                }
                (Dropped::Unpaid, flow.account.trickles(len))
            }
            Err(Short::Grant) => (Dropped::Grant, flow.trickle.allows(len)),
        };
        if passes {
            flow.account.count_unbilled(bytes);
        } else {
            self.drops.add(kind, 1);
        }
        passes
    }

    /// A frame for the relay itself.
    fn own(
        &self,
        kind: FrameType,
        flow: FlowId,
        now_ms: u64,
        from: ReturnAddress,
        frame: &[u8],
        out: &mut impl FnMut(Output<'_>),
    ) {
        let Some(Entry::Own(leg)) = self.table.find(flow) else {
            return self.drops.add(Dropped::NoFlow, 1);
        };
        let verified = leg.verify(frame, frame.len(), from, now_ms, &self.drops);
        if verified.accepted == 0 {
            return;
        }
        let payload = &frame[HEADER_LEN..];
        if kind == FrameType::ChallengeEcho {
            leg.echo(from, payload, now_ms);
            return;
        }
        if !verified.from_home && self.challenge(&leg, from, now_ms, out) {
            return;
        }
        if let Some((bytes, len)) = leg.keepalive_ack(from) {
            out(Output::Answer { to: from, port: RelayPort::Main, bytes: &bytes[..len] });
        }
    }

    fn challenge(
        &self,
        leg: &Leg,
        from: ReturnAddress,
        now_ms: u64,
        out: &mut impl FnMut(Output<'_>),
    ) -> bool {
        let Some((bytes, len)) = leg.challenge(from, &self.secret, now_ms) else { return false };
        out(Output::Answer { to: from, port: RelayPort::Main, bytes: &bytes[..len] });
        true
    }
}

/// What the first byte of a segment, and its length, say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Quic,
    Data(FlowId),
    Own(FrameType, FlowId),
    Junk(Dropped),
}

fn classify(segment: &[u8]) -> Class {
    let first = segment[0];
    if !frame::is_frame(first) {
        // Without its fixed bit it is no QUIC packet of an endpoint that we speak with.
        return if first & 0x40 != 0 { Class::Quic } else { Class::Junk(Dropped::Type) };
    }
    if segment.len() > FRAME_MAX {
        return Class::Junk(Dropped::Size);
    }
    let Ok(header) = frame::peek(segment) else {
        let known = FrameType::parse(first).is_some();
        return Class::Junk(if known { Dropped::Size } else { Dropped::Type });
    };
    let payload = segment.len() - HEADER_LEN;
    match header.kind {
        // A challenge is no larger than what it answers.
        FrameType::Data if payload >= CHALLENGE_LEN => Class::Data(header.flow),
        FrameType::Keepalive if payload >= KEEPALIVE_LEN => Class::Own(header.kind, header.flow),
        FrameType::Observe if payload == OBSERVE_LEN => Class::Own(header.kind, header.flow),
        FrameType::ChallengeEcho if payload == CHALLENGE_LEN => {
            Class::Own(header.kind, header.flow)
        }
        FrameType::Data | FrameType::Keepalive | FrameType::ChallengeEcho | FrameType::Observe => {
            Class::Junk(Dropped::Size)
        }
        FrameType::KeepaliveAck | FrameType::Challenge | FrameType::Observed => {
            Class::Junk(Dropped::Type)
        }
    }
}

/// The class of the first segment, and the bytes of those behind it that belong with it.
fn leading_group(batch: &[u8], stride: usize) -> (Class, usize) {
    let mut segments = batch.chunks(stride);
    let first = segments.next().expect("the batch is not empty");
    let class = classify(first);
    let mut len = first.len();
    let joins = match class {
        Class::Quic | Class::Data(_) => GROUP_MAX - 1,
        Class::Own(..) | Class::Junk(_) => 0,
    };
    for segment in segments.take(joins) {
        if classify(segment) != class {
            break;
        }
        len += segment.len();
    }
    (class, len)
}

enum Short {
    Window,
    Grant,
}

const fn way(side: Side) -> Way {
    match side {
        Side::Tenant => Way::Down,
        Side::Holder => Way::Up,
    }
}

/// Charges window and grant, or neither. True: the account's alarm went off.
fn charge(flow: &Flow, side: Side, bytes: u64) -> Result<bool, Short> {
    if side == Side::Tenant && !flow.grant.take(bytes) {
        return Err(Short::Grant);
    }
    if let Some(alarm) = flow.account.charge(way(side), bytes) {
        return Ok(alarm);
    }
    if side == Side::Tenant {
        flow.grant.give_back(bytes);
    }
    Err(Short::Window)
}

/// Bytes of the segments in `mask` of a group of `len` bytes.
fn bytes_of(mask: u64, len: usize, stride: usize) -> u64 {
    let last = (len - 1) / stride;
    let full = mask & !(1 << last);
    let mut bytes = full.count_ones() as usize * stride;
    if mask & (1 << last) != 0 {
        bytes += len - last * stride;
    }
    bytes as u64
}

fn bits(mut mask: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = mask & mask.wrapping_neg();
        mask &= !bit;
        (bit != 0).then_some(bit)
    })
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Calls `send` with each stretch of set bits, cut to what one send may carry.
fn emit_runs(mask: u64, group: &[u8], stride: usize, mut send: impl FnMut(&[u8])) {
    let most = (RUN_BYTES_MAX / stride).clamp(1, GROUP_MAX);
    let count = group.len().div_ceil(stride);
    let mut start = 0;
    while start < count {
        if mask & (1 << start) == 0 {
            start += 1;
            continue;
        }
        let mut end = start + 1;
        while end < count && end - start < most && mask & (1 << end) != 0 {
            end += 1;
        }
        send(&group[start * stride..group.len().min(end * stride)]);
        start = end;
    }
}
