//! Whether a relay is reached over UDP or over a stream: decided anew while the link stands.
//!
//! On UDP, silence is doubted: the relay is asked by keepalive frames, and if it answers none of
//! them, its TCP port is dialled. On a stream, UDP is tried now and then by a keepalive frame. The
//! relay challenges the address that it came from; a challenge that comes over UDP proves that UDP
//! works both ways, so packets go there again and the echo moves what comes back. Neither change
//! touches the control connection (to QUIC it is a migration of the client), the keys or the flows.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_proto::RelayAddr;
use sluice_proto::frame::FrameType;
use tokio::sync::{Notify, watch};

use super::Carriage;
use crate::leg::Leg;
use crate::node::Inner;

/// A control connection keeps itself alive every 5 s: nothing for longer is doubted.
const QUIET: Duration = Duration::from_secs(7);
/// A doubted relay is asked so many times ..
const ASKS: u32 = 3;
/// .. and has so long to answer each of them: together about a second.
const ANSWER_WITHIN: Duration = Duration::from_millis(350);
/// Over a stream it is asked so many times that often.
const STREAM_ASKS: u32 = 3;
/// A relay that answered is not doubted again before.
const TRUSTED: Duration = Duration::from_secs(1);
/// Waits between dials that fail, or whose stream is soon lost: the first after one that was not,
/// and the longest; each doubles the last.
const REDIAL_MIN: Duration = Duration::from_secs(1);
const REDIAL_MAX: Duration = Duration::from_secs(30);
/// Waits between tries of UDP: the first, and the longest; each doubles the last.
const RETRY_MIN: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// What fails sooner than this after it was found to work is tried again less eagerly.
const STEADY: Duration = Duration::from_secs(60);
/// A stream that was left stands so long, for what is on its way over it; meanwhile the relay is
/// told so many times where to answer.
const LINGER: Duration = Duration::from_secs(2);
const TELLS: u32 = 4;

/// Payload of a keepalive frame that asks or tries: nothing, as long as the smallest packet that
/// each path must carry (RFC 9000, 14). UDP that lets small packets through alone is of no use.
const KEEPALIVE: [u8; 1200] = [0; 1200];

/// Where a link's stream is kept while it has one.
pub(crate) type Slot = Arc<Mutex<Option<Carriage>>>;

/// Watches over the way of one control connection.
pub(crate) struct Keeper {
    pub(crate) node: Arc<Inner>,
    pub(crate) relay: RelayAddr,
    pub(crate) leg: Arc<Leg>,
    pub(crate) connection: quinn::Connection,
    pub(crate) slot: Slot,
    /// Told when a session hears nothing.
    pub(crate) doubt: Arc<Notify>,
    /// Whether a stream carries the link.
    pub(crate) over_tcp: watch::Sender<bool>,
}

impl Keeper {
    /// Goes on until it is dropped.
    pub(crate) async fn run(self) -> Infallible {
        if self.relay.tcp.is_none() {
            return std::future::pending().await;
        }
        let clock = &self.node.clock;
        let (mut retry, mut redial, mut lost) = (RETRY_MIN, Duration::ZERO, false);
        loop {
            if self.slot.lock().is_none() {
                let began = clock.now();
                self.stay_on_udp(lost, &mut redial).await;
                if clock.now() > began + STEADY {
                    retry = RETRY_MIN;
                }
                tracing::debug!(relay = %self.relay, "UDP is silent: relay reached over TCP");
                self.moved(true);
            }
            let began = clock.now();
            lost = self.stay_on_stream(&mut retry).await;
            if !lost || clock.now() > began + STEADY {
                redial = Duration::ZERO;
            }
        }
    }

    /// Returns once UDP failed and a stream stands. `doubted`: there is reason for doubt already.
    async fn stay_on_udp(&self, mut doubted: bool, redial: &mut Duration) {
        loop {
            if !doubted {
                self.until_doubted().await;
            }
            if self.answers().await {
                (doubted, *redial) = (false, Duration::ZERO);
                self.node.clock.sleep(TRUSTED).await;
                continue;
            }
            self.node.clock.sleep(*redial).await;
            *redial = (*redial * 2).clamp(REDIAL_MIN, REDIAL_MAX);
            match Carriage::dial(&self.node, &self.relay).await {
                Ok(carriage) => return *self.slot.lock() = Some(carriage),
                Err(reason) => {
                    tracing::debug!(relay = %self.relay, %reason, "the relay's TCP port: in vain");
                    doubted = true;
                }
            }
        }
    }

    async fn until_doubted(&self) {
        let received = || self.connection.stats().udp_rx.datagrams;
        loop {
            let before = received();
            tokio::select! {
                biased;
                () = self.doubt.notified() => return,
                () = self.node.clock.sleep(QUIET) => {
                    if received() == before {
                        return;
                    }
                }
            }
        }
    }

    /// Whether the relay answers the way that packets go now.
    async fn answers(&self) -> bool {
        let before = self.leg.heard();
        for _ in 0..ASKS {
            self.tell();
            self.node.clock.sleep(ANSWER_WITHIN).await;
            if self.leg.heard() != before {
                return true;
            }
        }
        false
    }

    /// Returns once packets go over UDP again. True: because the stream is gone.
    async fn stay_on_stream(&self, retry: &mut Duration) -> bool {
        let Some(mut alive) = self.slot.lock().as_ref().map(Carriage::alive) else { return true };
        let clock = &self.node.clock;
        let (mut second, mut try_at) = (false, clock.now() + *retry);
        loop {
            tokio::select! {
                biased;
                nonce = self.leg.challenged_over_udp() => {
                    self.return_to_udp(&nonce).await;
                    return false;
                }
                // It never changes: this is its end.
                _ = alive.changed() => {
                    *self.slot.lock() = None;
                    self.moved(false);
                    return true;
                }
                () = clock.sleep_until(try_at) => {
                    let keepalive = self.leg.control_frame(FrameType::Keepalive, &KEEPALIVE);
                    self.node.socket.send_udp(self.relay.addr, &keepalive);
                    if second {
                        *retry = (*retry * 2).min(RETRY_MAX);
                    }
                    second = !second;
                    try_at = clock.now() + if second { ANSWER_WITHIN } else { *retry };
                }
                () = self.doubt.notified() => {
                    if !self.stream_answers().await {
                        *self.slot.lock() = None;
                        self.moved(false);
                        return true;
                    }
                    clock.sleep(TRUSTED).await;
                }
            }
        }
    }

    /// Whether the relay answers over the stream. What waits in front of a question takes its time.
    async fn stream_answers(&self) -> bool {
        for _ in 0..STREAM_ASKS {
            if self.answers().await {
                return true;
            }
        }
        false
    }

    async fn return_to_udp(&self, nonce: &[u8]) {
        let Some(carriage) = self.slot.lock().take() else { return };
        tracing::debug!(relay = %self.relay, "UDP works: relay no longer reached over TCP");
        carriage.stand_aside();
        let echo = self.leg.control_frame(FrameType::ChallengeEcho, nonce);
        self.node.socket.send_one(self.relay.addr, &echo);
        self.moved(false);
        // An echo that was lost is asked for again.
        for _ in 0..TELLS {
            self.node.clock.sleep(LINGER / TELLS).await;
            self.tell();
        }
    }

    /// Speaks to the relay the way that packets go now: it answers there.
    fn tell(&self) {
        let keepalive = self.leg.control_frame(FrameType::Keepalive, &KEEPALIVE);
        self.node.socket.send_one(self.relay.addr, &keepalive);
    }

    /// Packets go another way: both ends of it, and whoever looks on, must learn that.
    fn moved(&self, over_tcp: bool) {
        self.over_tcp.send_replace(over_tcp);
        self.tell();
        // QUIC moves with its next packet.
        let _ = self.connection.send_datagram(Bytes::new());
        self.node.tables.carrier_changed(self.relay.addr, over_tcp);
    }
}
