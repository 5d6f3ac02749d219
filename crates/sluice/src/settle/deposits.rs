//! Deposits that grow while they are in use.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_proto::{Amount, ChannelId};
use tokio::sync::{Notify, broadcast};

/// Growths that wait for a slow listener; one that misses some hears of the newest.
const WAITING_MAX: usize = 64;

/// Between the accounts that use up deposits and the task that tops them up. Clones share it.
#[derive(Debug, Clone)]
pub struct Deposits {
    grown: broadcast::Sender<(ChannelId, Amount)>,
    wanted: Arc<Mutex<HashMap<ChannelId, Amount>>>,
    wake: Arc<Notify>,
    opening: Arc<tokio::sync::Mutex<()>>,
}

impl Default for Deposits {
    fn default() -> Self {
        let (grown, _) = broadcast::channel(WAITING_MAX);
        Self { grown, wanted: Arc::default(), wake: Arc::default(), opening: Arc::default() }
    }
}

impl Deposits {
    /// Held from seeing that a channel is not on the chain until it was opened, so that no two open
    /// the same one.
    pub(crate) async fn opening(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.opening.lock().await
    }

    /// An account that pays from `channel` owes `due`, which its deposit does not cover.
    pub fn want(&self, channel: ChannelId, due: Amount) {
        self.wanted.lock().insert(channel, due);
        self.wake.notify_one();
    }

    /// Puts back what could not be had, unless more is wanted by now.
    pub(super) fn want_later(&self, channel: ChannelId, due: Amount) {
        let mut wanted = self.wanted.lock();
        let held = wanted.entry(channel).or_default();
        *held = due.max(*held);
    }

    /// Takes what is wanted.
    pub(super) fn take_wanted(&self) -> HashMap<ChannelId, Amount> {
        std::mem::take(&mut *self.wanted.lock())
    }

    /// Waits until something is wanted.
    pub(super) async fn wanted(&self) {
        self.wake.notified().await;
    }

    /// A deposit grew to `deposit`.
    pub(super) fn grew(&self, channel: ChannelId, deposit: Amount) {
        // Nobody may be listening: the channel is not in use.
        let _ = self.grown.send((channel, deposit));
    }

    /// Hears of deposits that grow from now on.
    #[must_use]
    pub fn listen(&self) -> Growth {
        Growth(self.grown.subscribe())
    }
}

/// Hears of deposits that grow.
#[derive(Debug)]
pub struct Growth(broadcast::Receiver<(ChannelId, Amount)>);

impl Growth {
    /// The next channel whose deposit grew, and to how much. Waits for ever once nobody is left who
    /// could tell.
    pub async fn next(&mut self) -> (ChannelId, Amount) {
        loop {
            match self.0.recv().await {
                Ok(grown) => return grown,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}
