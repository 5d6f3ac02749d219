//! The one writer: a bounded queue, and transactions that take all that waits.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::Fault;
use crate::lock::Lock;
use crate::{LedgerError, schema};

/// Most writes that wait; who asks for more waits outside. Ten transactions' worth.
pub const QUEUE_MAX: usize = 10 * BATCH_MAX;
/// Most writes in one transaction, so that the first of them does not wait long for the last.
const BATCH_MAX: usize = 512;

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
}

impl Health {
    fn after(error: &rusqlite::Error) -> Self {
        let detail = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Full(detail)
            }
            Some(_) | None => Self::Broken(detail),
        }
    }

    fn refusal(&self) -> Result<(), LedgerError> {
        match self {
            Self::Good => Ok(()),
            Self::Full(detail) => Err(LedgerError::Write { detail: detail.clone(), retry: true }),
            Self::Broken(detail) => {
                Err(LedgerError::Write { detail: detail.clone(), retry: false })
            }
        }
    }
}

type Operation = Box<dyn FnOnce(&Connection) -> Result<(), Fault> + Send>;
type Outcome = Result<(), LedgerError>;

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

/// What all handles share. Dropping it closes the file, then the lock.
pub(crate) struct Shared {
    path: PathBuf,
    queue: Mutex<Queue>,
    room: Arc<Semaphore>,
    health: Mutex<Health>,
    reader: Mutex<Connection>,
    /// Absent when the ledger was opened to be read alone; then nobody is kept out.
    writer: Option<(Mutex<Connection>, Lock)>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn open(path: PathBuf) -> Result<Arc<Self>, LedgerError> {
        let lock = Lock::take(&path)?;
        let writer = schema::open_writer(&path)?;
        let reader = schema::open_reader(&path)?;
        Ok(Arc::new(Self {
            path,
            queue: Mutex::default(),
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            health: Mutex::new(Health::Good),
            reader: Mutex::new(reader),
            writer: Some((Mutex::new(writer), lock)),
        }))
    }

    pub(crate) fn open_read_only(path: PathBuf) -> Result<Arc<Self>, LedgerError> {
        let reader = schema::open_foreign_reader(&path)?;
        Ok(Arc::new(Self {
            path,
            queue: Mutex::default(),
            room: Arc::new(Semaphore::new(QUEUE_MAX)),
            health: Mutex::new(Health::Good),
            reader: Mutex::new(reader),
            writer: None,
        }))
    }

    pub(crate) fn health(&self) -> Health {
        self.health.lock().clone()
    }

    /// Runs `read` on the reader's connection, off the async threads.
    pub(crate) async fn read<T: Send + 'static>(
        self: Arc<Self>,
        read: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let done = tokio::task::spawn_blocking(move || {
            let result = read(&self.reader.lock());
            // Before the answer, so that who drops the last handle afterwards finds it released.
            drop(self);
            result
        });
        done.await.map_err(|_| LedgerError::Closed)?.map_err(|fault| match fault {
            Fault::Refused(error) => error,
            Fault::Sqlite(error) => LedgerError::Read { detail: error.to_string() },
        })
    }

    /// Queues `write` and waits until the transaction that holds it is durable. The write happens
    /// even if the caller stops waiting.
    pub(crate) async fn write(
        self: Arc<Self>,
        write: impl FnOnce(&Connection) -> Result<(), Fault> + Send + 'static,
    ) -> Outcome {
        if self.writer.is_none() {
            return Err(LedgerError::ReadOnly { path: self.path.clone() });
        }
        let room = self.room.clone().acquire_owned().await.map_err(|_| LedgerError::Closed)?;
        let (answer, outcome) = oneshot::channel();
        self.enqueue(Request { operation: Box::new(write), answer, _room: room });
        drop(self);
        outcome.await.unwrap_or(Err(LedgerError::Closed))
    }

    pub(crate) fn set_pages_max(&self, pages: u32) -> Result<(), LedgerError> {
        let Some((writer, _)) = &self.writer else {
            return Err(LedgerError::ReadOnly { path: self.path.clone() });
        };
        writer
            .lock()
            .query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            .map_err(|error| LedgerError::Read { detail: error.to_string() })
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
    fn commit(&self, batch: Vec<Operation>) -> Vec<Outcome> {
        let size = batch.len();
        let Some((writer, _)) = &self.writer else {
            return vec![Err(LedgerError::ReadOnly { path: self.path.clone() }); size];
        };
        let mut health = self.health.lock();
        if let Health::Broken(_) = *health {
            return vec![health.refusal(); size];
        }
        match apply(&mut writer.lock(), batch) {
            Ok(outcomes) => {
                *health = Health::Good;
                outcomes
            }
            Err(error) => {
                *health = Health::after(&error);
                vec![health.refusal(); size]
            }
        }
    }
}

fn apply(connection: &mut Connection, batch: Vec<Operation>) -> rusqlite::Result<Vec<Outcome>> {
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for operation in batch {
        outcomes.push(match operation(&tx) {
            Ok(()) => Ok(()),
            Err(Fault::Refused(error)) => Err(error),
            Err(Fault::Sqlite(error)) => return Err(error),
        });
    }
    tx.commit()?;
    Ok(outcomes)
}

/// The writer at work. However it ends, the queue is left so that the next write starts another.
struct Run {
    shared: Option<Arc<Shared>>,
}

impl Run {
    fn until_idle(mut self) {
        while let Some(shared) = self.shared.clone() {
            let (batch, answers) = take(&shared);
            let outcomes = shared.commit(batch);
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

fn take(shared: &Shared) -> (Vec<Operation>, Vec<oneshot::Sender<Outcome>>) {
    let mut queue = shared.queue.lock();
    let size = queue.waiting.len().min(BATCH_MAX);
    queue.waiting.drain(..size).map(|request| (request.operation, request.answer)).unzip()
}

fn idle(shared: &Shared) -> bool {
    let mut queue = shared.queue.lock();
    queue.running = !queue.waiting.is_empty();
    !queue.running
}
