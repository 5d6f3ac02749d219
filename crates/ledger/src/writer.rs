//! The one writer: a bounded queue, and transactions that take all that waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::LedgerError;
use crate::db::Db;
use crate::error::Fault;
use crate::store::Store;

/// Most writes that wait; who asks for more waits outside. Ten transactions' worth.
pub const QUEUE_MAX: usize = 10 * BATCH_MAX;
/// Most writes in one transaction, so that the first of them does not wait long for the last.
const BATCH_MAX: usize = 512;

/// Promises of one process that are told apart.
const PROMISES: i64 = 1 << 24;

/// Whether the ledger can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// The last write succeeded.
    Good,
    /// The last write failed for want of room, or since another program held the file. The next
    /// one that succeeds heals it.
    Full(String),
    /// A write failed in a way that leaves it unknown what is on the disk. Nothing is accepted until
    /// the ledger is opened anew.
    Broken(String),
    /// The server did not take the last write, or has said nothing for seconds while one waits for it.
    /// The next one that succeeds heals it.
    Away {
        /// Which server.
        server: String,
        /// What it or the system says.
        detail: String,
    },
}

impl Health {
    fn refusal(&self) -> Result<(), LedgerError> {
        match self {
            Self::Good => Ok(()),
            Self::Full(detail) => Err(LedgerError::Write { detail: detail.clone(), retry: true }),
            Self::Broken(detail) => {
                Err(LedgerError::Write { detail: detail.clone(), retry: false })
            }
            Self::Away { server, detail } => {
                Err(LedgerError::Server { server: server.clone(), detail: detail.clone() })
            }
        }
    }
}

/// A write. It may be run again when the transaction that held it was undone.
pub(crate) type Operation = Box<dyn Fn(&Db<'_>) -> Result<(), Fault> + Send>;
pub(crate) type Outcome = Result<(), LedgerError>;

struct Request {
    operation: Operation,
    answer: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Whether a [`Run`] exists that will look at `waiting` again.
    running: bool,
}

/// What all handles share. Dropping it closes the store.
pub(crate) struct Shared {
    store: Store,
    queue: Mutex<Queue>,
    room: Arc<Semaphore>,
    health: Mutex<Health>,
    /// Promises that were made.
    promises: AtomicI64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("place", &self.store.place()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(store: Store) -> Arc<Self> {
        Arc::new(Self {
            store,
            queue: Mutex::default(),
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            health: Mutex::new(Health::Good),
            promises: AtomicI64::new(0),
        })
    }

    pub(crate) fn health(&self) -> Health {
        let told = self.health.lock().clone();
        match told {
            Health::Good => self.store.silence().unwrap_or(told),
            Health::Full(_) | Health::Broken(_) | Health::Away { .. } => told,
        }
    }

    pub(crate) const fn is_shared(&self) -> bool {
        matches!(self.store, Store::Postgres(_))
    }

    /// Runs `read` on the reader's connection, off the async threads.
    pub(crate) async fn read<T: Send + 'static>(
        self: Arc<Self>,
        read: impl Fn(&Db<'_>) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let done = tokio::task::spawn_blocking(move || {
            let result = self.store.read(read);
            // Before the answer, so that who drops the last handle afterwards finds it released.
            drop(self);
            result
        });
        done.await.map_err(|_| LedgerError::Closed)?
    }

    /// Queues `write` and waits until the transaction that holds it is durable. The write happens
    /// even if the caller stops waiting.
    pub(crate) async fn write(
        self: Arc<Self>,
        write: impl Fn(&Db<'_>) -> Result<(), Fault> + Send + 'static,
    ) -> Outcome {
        if self.store.is_read_only() {
            return Err(LedgerError::ReadOnly { path: self.store.place().to_owned() });
        }
        let room = self.room.clone().acquire_owned().await.map_err(|_| LedgerError::Closed)?;
        let (answer, outcome) = oneshot::channel();
        self.enqueue(Request { operation: Box::new(write), answer, _room: room });
        drop(self);
        outcome.await.unwrap_or(Err(LedgerError::Closed))
    }

    /// The first and the last row that promises of this process may have: below 0, and no other's.
    pub(crate) fn promise_rows(&self) -> (i64, i64) {
        let last = i64::from(self.store.number()).saturating_mul(-PROMISES).saturating_sub(1);
        (last.saturating_sub(PROMISES - 1), last)
    }

    /// A row for a promise, which none that stands has.
    pub(crate) fn promise_row(&self) -> i64 {
        let made = self.promises.fetch_add(1, Relaxed);
        self.promise_rows().1.saturating_sub(made.rem_euclid(PROMISES))
    }

    pub(crate) fn renew(&self) -> bool {
        self.store.renew()
    }

    pub(crate) fn set_pages_max(&self, pages: u32) -> Result<(), LedgerError> {
        self.store.set_pages_max(pages)
    }

    fn enqueue(self: &Arc<Self>, request: Request) {
        let mut queue = self.queue.lock();
        queue.waiting.push_back(request);
        if !std::mem::replace(&mut queue.running, true) {
            drop(queue);
            let run = Run { shared: Some(self.clone()) };
            tokio::task::spawn_blocking(move || run.until_idle());
        }
    }

    /// Applies `batch` in one transaction; one outcome each, in order.
    fn commit(&self, batch: &[Operation]) -> Vec<Outcome> {
        let before = self.health();
        if let Health::Broken(_) = before {
            return vec![before.refusal(); batch.len()];
        }
        let (outcomes, after) = match self.store.apply(batch) {
            Ok(outcomes) => (outcomes, Health::Good),
            Err(health) => (vec![health.refusal(); batch.len()], health),
        };
        *self.health.lock() = after;
        outcomes
    }
}

/// The writer at work. However it ends, the queue is left so that the next write starts another.
struct Run {
    shared: Option<Arc<Shared>>,
}

impl Run {
    fn until_idle(mut self) {
        while let Some(shared) = self.shared.clone() {
            let (batch, mut answers) = take(&shared, BATCH_MAX);
            let mut outcomes = shared.commit(&batch);
            if let away @ Health::Away { .. } = shared.health() {
                // Who has waited for a server that is away need not wait for another attempt.
                let (_, waited) = take(&shared, QUEUE_MAX);
                outcomes.extend(vec![away.refusal(); waited.len()]);
                answers.extend(waited);
            }
            if idle(&shared) {
                // Before the last answers, so that who drops the last handle afterwards finds the
                // file closed and the lock released.
                self.shared = None;
            }
            drop(shared);
            for (answer, outcome) in answers.into_iter().zip(outcomes) {
                // Who stopped waiting does not mind.
                let _ = answer.send(outcome);
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.take() {
            // A runtime that shuts down never ran it: those who wait are told `Closed`.
            let mut queue = shared.queue.lock();
            queue.running = false;
            queue.waiting.clear();
        }
    }
}

fn take(shared: &Shared, most: usize) -> (Vec<Operation>, Vec<oneshot::Sender<Outcome>>) {
    let mut queue = shared.queue.lock();
    let size = queue.waiting.len().min(most);
    queue.waiting.drain(..size).map(|request| (request.operation, request.answer)).unzip()
}

fn idle(shared: &Shared) -> bool {
    let mut queue = shared.queue.lock();
    queue.running = !queue.waiting.is_empty();
    !queue.running
}
