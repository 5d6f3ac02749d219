//! How the session's streams flow.

use std::time::Duration;

use sluice_metering::{
    Counts, Direction, Permit, RECEIVE_WINDOW_BASE, StreamIndex, StreamState, receive_window,
};

use super::Sabotage;
use super::carriage::Half;
use super::network::{Body, Cargo, Packet};
use super::plan::{Party, Path, StreamPlan};
use super::world::World;

/// Bytes handed over at a time.
const WRITE_MAX: u64 = 64 << 10;
/// Bytes that leave either end in a tick.
const BURST: u64 = 60_000;
/// Receive window of a session that no relay carries.
const DIRECT_WINDOW: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Stream {
    plan: StreamPlan,
    down: Half,
    up: Half,
    is_open: bool,
    /// The tenant's end, and the provider's: nothing more is read or written there.
    closed: [bool; 2],
    /// Given up by whomever: its bytes are no longer under way.
    is_reset: bool,
    /// Reading goes on at this moment.
    resumes_at: Option<Duration>,
}

impl Stream {
    pub(super) fn new(plan: StreamPlan) -> Self {
        Self {
            plan,
            down: Half::new(plan.down),
            up: Half::new(plan.up),
            is_open: false,
            closed: [false; 2],
            is_reset: false,
            resumes_at: None,
        }
    }

    /// Whether it carried all that it should, or was given up.
    pub(super) const fn is_over(&self) -> bool {
        self.is_reset || (self.down.is_through() && self.up.is_through())
    }

    /// What may still be read down of what was written.
    pub(super) const fn under_way(&self) -> u64 {
        if self.is_reset { 0 } else { self.down.unread() }
    }

    /// What is left of it for the next session.
    pub(super) fn rest(&self) -> Option<StreamPlan> {
        let (down, up) = (self.down.left + self.down.unread(), self.up.left + self.up.unread());
        let plan = StreamPlan {
            down,
            up,
            opens_at: Duration::ZERO,
            resets: None,
            pauses: None,
            ..self.plan
        };
        (!self.is_over()).then_some(plan)
    }

    /// When something is to be done for it.
    pub(super) fn deadlines(&self, began_at: Duration) -> impl Iterator<Item = Duration> {
        let opens = (!self.is_open).then_some(began_at + self.plan.opens_at);
        [self.down.timeout(), self.up.timeout(), self.resumes_at, opens].into_iter().flatten()
    }
}

impl World {
    /// A packet of the session reached its end.
    pub(super) fn take_packet(&mut self, packet: Packet) {
        if let (Path::Relay(i), true) = (packet.path, packet.is_up) {
            self.holders[i].receive(&packet);
        }
        if packet.session != self.session || !self.session_up {
            return;
        }
        let end = usize::from(packet.is_up);
        let now = self.clock(if packet.is_up { Party::Provider } else { Party::Tenant });
        match packet.body {
            Body::Pay(message) => match (packet.is_up, &mut self.payer, &mut self.gate) {
                (true, _, Some(gate)) => gate.payee_mut().handle_datagram(&message, now),
                (false, Some(payer), _) => payer.handle_datagram(&message, now),
                _ => {}
            },
            Body::Data { stream, from, len } => {
                self.acks[end].push((stream, from));
                let Some(s) = self.streams.get_mut(&stream) else { return };
                let half = if packet.is_up { &mut s.up } else { &mut s.down };
                let first = half.handle_arrival(from, len);
                if !first
                    && !packet.is_up
                    && self.sabotage == Sabotage::CountsCopies
                    && let Some(payer) = &mut self.payer
                {
                    payer.handle_read(stream, len, now);
                }
            }
            Body::Acks(acks) => {
                for (stream, from) in acks {
                    let Some(s) = self.streams.get_mut(&stream) else { continue };
                    let half = if packet.is_up { &mut s.down } else { &mut s.up };
                    half.handle_ack(from);
                }
            }
            Body::Reset(stream) => self.close(stream, end, StreamState::Reset),
        }
    }

    /// One end of a stream is done with it.
    fn close(&mut self, stream: StreamIndex, end: usize, state: StreamState) {
        let now = self.clock(Party::Tenant);
        let Some(s) = self.streams.get_mut(&stream) else { return };
        if std::mem::replace(&mut s.closed[end], true) {
            return;
        }
        match (end, &mut self.payer, &mut self.gate) {
            (0, Some(payer), _) => payer.handle_closed(stream, state, now),
            (1, _, Some(gate)) => gate.payee_mut().handle_closed(stream),
            _ => {}
        }
    }

    pub(super) fn send(&mut self, is_up: bool, body: Body) {
        if !self.session_up {
            return;
        }
        let path = self.paths[usize::from(!is_up)];
        self.numbers += 1;
        let (session, number) = (self.session, self.numbers);
        let leg = match path {
            Path::Relay(i) => self.holders[i].next_flow(),
            Path::Direct => 0,
        };
        let packet = Packet { session, is_up, path, leg, number, body };
        let to = match path {
            Path::Relay(i) => {
                if !is_up {
                    // Without a flow there is no way.
                    let Some(flow) = self.holders[i].flow() else { return };
                    flow.count_sent(packet.bytes());
                    flow.count_small(super::relay::lacking(&packet));
                }
                Party::Relay(i)
            }
            Path::Direct if is_up => Party::Provider,
            Path::Direct => Party::Tenant,
        };
        self.net.launch(self.now, to, &Cargo::Packet(packet));
    }

    pub(super) fn send_acks(&mut self) {
        for end in 0..2 {
            let acks = std::mem::take(&mut self.acks[end]);
            for chunk in acks.chunks(32) {
                // What the provider got it acknowledges downwards.
                self.send(end == 0, Body::Acks(chunk.to_vec()));
            }
        }
    }

    pub(super) fn run_streams(&mut self) {
        if !self.session_up {
            return;
        }
        let mut bursts = [BURST; 2];
        for index in self.streams.keys().copied().collect::<Vec<_>>() {
            let Some(mut s) = self.streams.remove(&index) else { continue };
            if !s.is_open && self.now >= self.began_at + s.plan.opens_at {
                s.is_open = true;
                if let Some(gate) = &mut self.gate {
                    gate.payee_mut().handle_opened(index);
                }
            }
            let carries = s.is_open && !s.is_reset;
            if carries && !s.closed[1] {
                self.write_down(index, &mut s);
                self.read_up(index, &mut s);
            }
            if carries && !s.closed[0] {
                self.write_up(&mut s);
                self.read_down(index, &mut s);
            }
            let through = s.down.is_through() && s.up.is_through();
            let resets = s.plan.resets.filter(|(at, _)| !s.is_reset && s.down.read >= *at);
            let open = s.is_open && s.closed == [false; 2];
            self.streams.insert(index, s);
            self.transmit(index, &mut bursts);
            if let (Some((_, by)), true, false) = (resets, open, through) {
                self.reset(index, by);
            } else if through && open {
                self.close(index, 0, StreamState::Ended);
                self.close(index, 1, StreamState::Ended);
            }
        }
    }

    fn reset(&mut self, index: StreamIndex, by: Party) {
        if let Some(s) = self.streams.get_mut(&index) {
            s.is_reset = true;
        }
        self.moved = true;
        let tenant = by == Party::Tenant;
        self.close(index, usize::from(!tenant), StreamState::Reset);
        // QUIC repeats it until it is heard, by whatever way there is.
        let at = if tenant { Party::Provider } else { Party::Tenant };
        let body = Body::Reset(index);
        let path = Path::Direct;
        let (session, number, leg) = (self.session, 0, 0);
        let packet = Packet { session, is_up: tenant, path, leg, number, body };
        self.net.surely(self.now, at, packet);
    }

    fn write_down(&mut self, index: StreamIndex, s: &mut Stream) {
        let now = self.clock(Party::Provider);
        let credit = s.plan.credit.saturating_sub(s.down.unread());
        let want = s.down.left.min(WRITE_MAX).min(credit);
        let Some(gate) = self.gate.as_mut().filter(|_| want > 0) else { return };
        let Permit::Granted(n) = gate.permit(index, Direction::Down, want, now) else { return };
        // Sometimes QUIC takes less than was granted.
        let back = if self.rng.chance(0.1) { self.rng.below(n) } else { 0 };
        gate.refund(index, Direction::Down, back);
        s.down.write(n - back);
        if self.sabotage == Sabotage::IgnoresFlight {
            gate.refund(index, Direction::Down, n - back);
        }
        self.moved = true;
    }

    fn write_up(&mut self, s: &mut Stream) {
        let now = self.clock(Party::Tenant);
        let window = match self.paths[1] {
            Path::Relay(i) => self.holders[i]
                .flow()
                .map_or(RECEIVE_WINDOW_BASE, |flow| receive_window(flow.count_delivered(0))),
            Path::Direct => DIRECT_WINDOW,
        };
        let all: u64 = self.streams.values().filter(|s| !s.is_reset).map(|s| s.up.unread()).sum();
        let room = window.saturating_sub(all + s.up.unread());
        let want = s.up.left.min(WRITE_MAX).min(s.plan.credit.saturating_sub(s.up.unread()));
        let n = want.min(room);
        if let Some(payer) = self.payer.as_mut().filter(|_| n > 0) {
            payer.handle_written(n, now);
            s.up.write(n);
            self.moved = true;
        }
    }

    fn read_down(&mut self, index: StreamIndex, s: &mut Stream) {
        if let Some((at, span)) = s.plan.pauses
            && s.down.read >= at
        {
            let resumes = *s.resumes_at.get_or_insert(self.now + span);
            if resumes > self.now {
                return;
            }
            (s.plan.pauses, s.resumes_at) = (None, None);
        }
        let now = self.clock(Party::Tenant);
        let n = s.down.readable().min(1 + self.rng.below(s.plan.reads_max));
        if let Some(payer) = self.payer.as_mut().filter(|_| n > 0) {
            s.down.read += n;
            self.books.give(Counts { up: 0, down: n });
            payer.handle_read(index, n, now);
            self.moved = true;
        }
    }

    fn read_up(&mut self, index: StreamIndex, s: &mut Stream) {
        let now = self.clock(Party::Provider);
        let ready = s.up.readable();
        let Some(gate) = self.gate.as_mut().filter(|_| ready > 0) else { return };
        let Permit::Granted(granted) = gate.permit(index, Direction::Up, WRITE_MAX, now) else {
            return;
        };
        let n = granted.min(ready);
        s.up.read += n;
        self.books.give(Counts { up: n, down: 0 });
        gate.payee_mut().handle_read(n, now);
        gate.refund(index, Direction::Up, granted - n);
        self.moved = true;
        if let Path::Relay(i) = self.paths[1] {
            self.holders[i].delivered(n);
        }
    }

    fn transmit(&mut self, index: StreamIndex, bursts: &mut [u64; 2]) {
        let wait = self.plan.delay * 3 + Duration::from_millis(30);
        for is_up in [false, true] {
            let burst = &mut bursts[usize::from(is_up)];
            let mut segments = Vec::new();
            if let Some(s) = self.streams.get_mut(&index).filter(|s| !s.is_reset) {
                let half = if is_up { &mut s.up } else { &mut s.down };
                half.handle_timeout(self.now);
                while *burst > 0 && half.flying() < self.plan.flight {
                    let Some((from, len)) = half.next(self.now, wait) else { break };
                    *burst = burst.saturating_sub(len);
                    segments.push((from, len));
                }
            }
            for (from, len) in segments {
                self.moved = true;
                self.send(is_up, Body::Data { stream: index, from, len });
            }
        }
    }
}
