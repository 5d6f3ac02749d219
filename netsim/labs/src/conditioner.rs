//! Delay, jitter and loss for the packets that a router forwards.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::PipeWriter;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::queue::{Queue, Verdict, Waiting};
use crate::{Link, Namespace};

/// The number of its queue, in a namespace that has no other.
const QUEUE: u16 = 1;

/// What a conditioner did so far, in packets or batches of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Let go on, after their delay.
    pub passed: u64,
    /// Lost because a link asked for it.
    pub lost: u64,
    /// Times that notices of packets did not fit: their packets are lost, though nobody asked.
    pub overruns: u64,
}

#[derive(Debug, Default)]
struct Shared {
    links: Mutex<BTreeMap<u32, Link>>,
    passed: AtomicU64,
    lost: AtomicU64,
    overruns: AtomicU64,
}

/// Holds back, and loses, packets in the FORWARD chain of a router. A packet from one interface to
/// another suffers the links of both. Packets of one direction never overtake one another.
#[derive(Debug)]
pub struct Conditioner {
    shared: Arc<Shared>,
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Conditioner {
    /// Starts it in `router`. `seed` decides jitter and loss. If a link will lose packets, `splits`
    /// must be true, so that batches are not lost as one.
    ///
    /// # Errors
    /// When the kernel has no NFQUEUE, or root is missing.
    pub fn start(router: &Namespace, seed: u64, splits: bool) -> Result<Self> {
        router.run(&format!("iptables-nft -t mangle -A FORWARD -j NFQUEUE --queue-num {QUEUE}"))?;
        let (stopped, stop) = std::io::pipe()?;
        let shared = Arc::new(Shared::default());
        let run = Running {
            shared: shared.clone(),
            held: BinaryHeap::new(),
            last: BTreeMap::new(),
            count: 0,
            random: seed | 1,
        };
        let thread = router.call(move || -> Result<_> {
            let queue = Queue::open(QUEUE, splits)?;
            Ok(std::thread::spawn(move || run.until(&stopped, queue)))
        })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Conditions what passes this interface, from its number on.
    pub fn set(&self, interface: u32, link: Link) {
        let mut links = self.shared.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.insert(interface, link);
    }

    /// What it did so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally {
            passed: self.shared.passed.load(Relaxed),
            lost: self.shared.lost.load(Relaxed),
            overruns: self.shared.overruns.load(Relaxed),
        }
    }
}

impl Drop for Conditioner {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until when a packet is held, its place among those of the same moment, its number.
type Held = (Instant, u64, u32);

struct Running {
    shared: Arc<Shared>,
    held: BinaryHeap<Reverse<Held>>,
    last: BTreeMap<(u32, u32), Instant>,
    count: u64,
    random: u64,
}

impl Running {
    fn until(mut self, stopped: &std::io::PipeReader, mut queue: Queue) {
        loop {
            let wait = self.next().map(|d| d.saturating_duration_since(Instant::now()));
            let wait = wait.and_then(|w| Timespec::try_from(w).ok());
            let mut events =
                [PollFd::new(stopped, PollFlags::IN), PollFd::new(&queue, PollFlags::IN)];
            let polled = poll(&mut events, wait.as_ref());
            if polled.is_err_and(|e| e != rustix::io::Errno::INTR)
                || !events[0].revents().is_empty()
            {
                return;
            }
            if self.turn(&mut queue).is_err() {
                // The namespace is gone, or the queue: a lab without it does not measure as asked.
                return;
            }
        }
    }

    fn next(&self) -> Option<Instant> {
        self.held.peek().map(|Reverse((due, ..))| *due)
    }

    fn turn(&mut self, queue: &mut Queue) -> Result<()> {
        let (mut came, now) = (Vec::new(), Instant::now());
        if queue.take(|packet| came.push(packet))?.is_none() {
            self.shared.overruns.fetch_add(1, Relaxed);
        }
        for packet in came {
            self.hold(packet, now, queue);
        }
        while let Some(Reverse((due, _, id))) = self.held.peek().copied() {
            if due > Instant::now() {
                break;
            }
            self.held.pop();
            self.shared.passed.fetch_add(1, Relaxed);
            queue.decide(id, Verdict::Accept);
        }
        queue.flush()
    }

    fn hold(&mut self, packet: Waiting, now: Instant, queue: &mut Queue) {
        let mut delay = Duration::ZERO;
        for interface in [packet.from, packet.to] {
            let Some(link) = self.link(interface) else { continue };
            if self.random() < link.loss {
                self.shared.lost.fetch_add(1, Relaxed);
                queue.decide(packet.id, Verdict::Drop);
                return;
            }
            delay += link.delay + link.jitter.mul_f64(self.random());
        }
        let last = self.last.entry((packet.from, packet.to)).or_insert(now);
        *last = (now + delay).max(*last);
        self.count += 1;
        self.held.push(Reverse((*last, self.count, packet.id)));
    }

    fn link(&self, interface: u32) -> Option<Link> {
        let links = self.shared.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(&interface).copied()
    }

    /// The next number of a sequence, in [0, 1): xorshift64* (Vigna, 2016).
    fn random(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let mixed = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D);
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}
