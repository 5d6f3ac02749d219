//! A running relay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use sluice_proto::PeerId;
use sluice_proto::wire::code;
use sluice_relay_core::{
    Admission, Dropped, Event, FlowStats, Forwarder, RelayPort, ReservationStats,
};
use sluice_transport::Network;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::{RelayConfig, RelayError};
use crate::control::accept_all;
use crate::data::{DataThread, Forwarding, ThreadCounts};
use crate::desk::Desk;
use crate::endpoint::{self, QuicQueue};
use crate::meters::MeterStats;
use crate::shared::{Shared, close_code};
use crate::sockets;
use crate::tcp::{Listener, StreamTable};

/// Events of the forwarding threads that wait for the control plane.
const EVENTS_MAX: usize = 1024;
/// While draining, the flows are counted this often.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// What a relay did so far.
#[derive(Debug, Clone)]
pub struct RelayStats {
    /// Frame bytes that each thread sent on, headers included.
    pub forwarded_by_thread: Vec<u64>,
    /// Batches that each thread received.
    pub batches_by_thread: Vec<u64>,
    /// Every flow that stands.
    pub flows: Vec<FlowStats>,
    /// Every reservation that stands.
    pub reservations: Vec<ReservationStats>,
    /// The money of every reservation that is paid for.
    pub meters: Vec<MeterStats>,
    /// Clients that are here.
    pub legs: usize,
    /// TCP connections that stand.
    pub streams: usize,
    /// Frame bytes sent on that had come over TCP, headers included.
    pub forwarded_from_streams: u64,
    /// What was dropped, by kind.
    pub drops: Vec<(Dropped, u64)>,
}

impl RelayStats {
    /// Frame bytes sent on in all, headers included.
    #[must_use]
    pub fn forwarded(&self) -> u64 {
        self.forwarded_by_thread.iter().sum::<u64>() + self.forwarded_from_streams
    }

    /// Drops of one kind.
    #[must_use]
    pub fn dropped(&self, kind: Dropped) -> u64 {
        self.drops.iter().find(|(k, _)| *k == kind).map_or(0, |(_, n)| *n)
    }
}

/// A running relay. Dropping it stops it at once; [`Relay::drain`] lets clients leave first.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    endpoint: quinn::Endpoint,
    quic: Arc<QuicQueue>,
    address: SocketAddr,
    tcp: Option<SocketAddr>,
    counts: Vec<Arc<ThreadCounts>>,
    stream_counts: Arc<ThreadCounts>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Relay {
    /// Binds the port and starts threads and tasks; must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the port is in use or cannot be bound, or the system refuses a socket or thread.
    pub async fn start(config: RelayConfig) -> Result<Self, RelayError> {
        if config.price.is_zero() == config.payment.is_some() {
            return Err(RelayError::Payment);
        }
        // Before anything is promised anew.
        if let Some(payment) = &config.payment
            && let Err(error) = payment.ledger.return_all_starter().await
        {
            tracing::warn!(%error, "starter bytes that were promised before stay so");
        }
        let lanes = match (&config.network, config.threads) {
            (Network::Other(_), _) => 1,
            (Network::Kernel, 0) => std::thread::available_parallelism().map_or(1, usize::from),
            (Network::Kernel, n) => n,
        };
        let port = sockets::bind(&config.network, config.bind, lanes)?;
        let address = port.address;
        let sockets: Vec<_> = port.sockets.into_iter().map(Arc::new).collect();
        let alternate = sockets::bind_alternate(&config.network, address);
        let listener = config.tcp.map(|at| Listener::bind(&config, at)).transpose()?;
        let (now, seed) = (config.clock.now(), config.random.bytes());
        let forwarder = Arc::new(Forwarder::new(seed, now));
        let streams = Arc::new(StreamTable::new(&config.limits, forwarder.clone(), now));
        let quic = Arc::new(QuicQueue::new(sockets[0].clone(), streams.clone(), address));
        let endpoint = endpoint::start(quic.clone(), &config)?;
        let lanes = u32::try_from(lanes).expect("as many as cores");
        let mut admission = Admission::new(forwarder.clone(), config.limits.clone(), lanes, now);
        admission.set_alternate_port(alternate.as_ref().map_or(0, |port| port.address.port()));
        let alternate = alternate.and_then(|port| port.sockets.into_iter().next()).map(Arc::new);
        let shared = Arc::new(Shared::new(forwarder, admission, Desk::new(&config), streams));
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let any_address = config.bind.ip().is_unspecified();

        let mut tasks = JoinSet::new();
        tasks.spawn(accept_all(endpoint.clone(), shared.clone(), any_address));
        tasks.spawn(keep_time(shared.clone()));
        tasks.spawn(hear(shared.clone(), heard));
        if config.payment.is_some() {
            tasks.spawn(shared.clone().keep_accounts());
        }
        let mut relay = Self {
            shared,
            endpoint,
            quic,
            address,
            tcp: listener.as_ref().map(Listener::local_addr),
            counts: Vec::new(),
            stream_counts: Arc::default(),
            threads: Vec::new(),
            stop: Arc::default(),
            tasks,
        };
        let forwarding = Forwarding {
            socket: sockets[0].clone(),
            alternate,
            forwarder: relay.shared.forwarder.clone(),
            quic: relay.quic.clone(),
            streams: relay.shared.streams.clone(),
            events,
            counts: relay.stream_counts.clone(),
            clock: config.clock.clone(),
        };
        if let Some(listener) = listener {
            relay.tasks.spawn(listener.accept_all(forwarding.clone(), any_address));
        }
        let mut threads = Vec::new();
        for socket in sockets {
            let counts = Arc::new(ThreadCounts::default());
            relay.counts.push(counts.clone());
            threads.push((RelayPort::Main, Forwarding { socket, counts, ..forwarding.clone() }));
        }
        if forwarding.alternate.is_some() {
            threads.push((RelayPort::Alternate, forwarding));
        }
        for (i, (port, forwarding)) in threads.into_iter().enumerate() {
            let thread = DataThread { forwarding, port, stop: relay.stop.clone(), any_address };
            if matches!(config.network, Network::Other(_)) {
                relay.tasks.spawn(thread.run_as_task());
                continue;
            }
            let handle = std::thread::Builder::new()
                .name(format!("relay-{i}"))
                .spawn(move || thread.run())
                .map_err(|e| RelayError::System("start a forwarding thread", e))?;
            relay.threads.push(handle);
        }
        let tcp = relay.tcp.map(|at| at.to_string()).unwrap_or_default();
        tracing::info!(%address, tcp, peer = %relay.peer(), threads = lanes, "the relay listens");
        Ok(relay)
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens on TCP, if it does.
    #[must_use]
    pub const fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// Who it is.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.shared.desk.peer()
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> RelayStats {
        let read = |pick: fn(&ThreadCounts) -> &std::sync::atomic::AtomicU64| {
            self.counts.iter().map(|c| pick(c).load(Ordering::Relaxed)).collect()
        };
        let meters = self.shared.meters.stats();
        self.shared.drive(|admission, _| RelayStats {
            forwarded_by_thread: read(|c| &c.forwarded),
            batches_by_thread: read(|c| &c.batches),
            flows: admission.flow_stats(),
            reservations: admission.reservation_stats(),
            meters,
            legs: admission.legs(),
            streams: self.shared.streams.len(),
            forwarded_from_streams: self.stream_counts.forwarded.load(Ordering::Relaxed),
            drops: self.shared.forwarder.drops().snapshot(),
        })
    }

    /// Asks every client to leave, goes on forwarding until no flow stands or the time is over,
    /// claims what is owed and waits up to 3 s for the vouchers, then stops.
    pub async fn drain(self, within: Duration) {
        let clock = self.shared.desk.clock();
        let deadline = clock.now() + within;
        self.shared.drive(|admission, _| admission.drain(within));
        while clock.now() < deadline && self.shared.drive(|admission, _| admission.flows()) > 0 {
            clock.sleep(DRAIN_POLL).await;
        }
        self.shared.settle_accounts().await;
        self.stop().await;
    }

    /// Stops at once, and returns when the port is free.
    pub async fn stop(mut self) {
        self.endpoint.close(close_code(code::SHUTDOWN), b"the relay is shutting down");
        // The close is sent once; who misses it hears a stateless reset or nothing.
        let clock = self.shared.desk.clock().clone();
        let _ = clock.timeout(DRAIN_POLL, self.endpoint.wait_idle()).await;
        self.tasks.shutdown().await;
        self.quic.close();
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a forwarding thread panicked");
                }
            }
        });
        let _ = joined.await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.endpoint.close(close_code(code::SHUTDOWN), b"the relay is shutting down");
        self.quic.close();
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Calls the control plane when it is time.
async fn keep_time(shared: Arc<Shared>) {
    loop {
        let due = shared.drive(|admission, _| admission.poll_timeout());
        match due {
            Some((at, _)) => {
                tokio::select! {
                    biased;
                    () = shared.desk.clock().sleep_until(at) => {
                        shared.drive(|admission, now| admission.handle_timeout(now));
                    }
                    () = shared.timer.notified() => {}
                }
            }
            None => shared.timer.notified().await,
        }
    }
}

/// Passes on what the threads noticed.
async fn hear(shared: Arc<Shared>, mut events: mpsc::Receiver<Event>) {
    while let Some(event) = events.recv().await {
        shared.drive(|admission, now| admission.handle_event(event, now));
    }
}
