//! One node, or several of the same chain that need not agree.
//!
//! One is asked; when it does not answer, or with rubbish, the next is, and stays the one that is
//! asked. A transaction is handed to all. A node is used only after it named the right chain, and is
//! asked again for it after it was away; one that is away is left alone for [`AGAIN`] while others
//! answer, so that one that hangs does not hold up what has a deadline.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use tokio::time::Instant;

use super::node::{Fault, Node};
use super::value::Quantity;
use crate::ChainError;

/// How long a node that gave no answer, or rubbish, is left alone.
const AGAIN: Duration = Duration::from_secs(20);

/// All nodes of one chain.
#[derive(Debug)]
pub(super) struct Nodes {
    /// At least one.
    all: Vec<Checked>,
    /// Which is asked first.
    first: AtomicUsize,
    pub(super) chain_id: u64,
}

#[derive(Debug)]
struct Checked {
    node: Node,
    /// Whether it named the right chain since it was away.
    is_right: AtomicBool,
    /// Since when it is away.
    away_since: Mutex<Option<Instant>>,
}

impl Nodes {
    /// Connects to those that answer; one must.
    ///
    /// # Errors
    /// `BadUrl`, `WrongChain` of any of them, or what is wrong with the first when none answers.
    pub(super) async fn connect(urls: &[&str], expected: Option<u64>) -> Result<Self, ChainError> {
        let (mut all, mut chain_id, mut silent) = (Vec::new(), expected, None);
        let mut first = None;
        for url in urls {
            let node = Node::new(url)?;
            let found = node.try_ask::<Quantity<u64>>("eth_chainId", json!([])).await;
            let found = found.map(|Quantity(id)| id);
            let is_right = found.is_ok();
            match found {
                Ok(found) => {
                    let expected = *chain_id.get_or_insert(found);
                    if found != expected {
                        return Err(ChainError::WrongChain { url: node.url, expected, found });
                    }
                    first.get_or_insert(all.len());
                }
                Err(fault) => {
                    silent.get_or_insert(node.explain("eth_chainId", fault));
                }
            }
            let away_since = Mutex::new((!is_right).then(Instant::now));
            all.push(Checked { node, is_right: AtomicBool::new(is_right), away_since });
        }
        match (first, chain_id, silent) {
            (Some(first), Some(chain_id), _) => Ok(Self { all, first: first.into(), chain_id }),
            (_, _, Some(error)) => Err(error),
            (..) => Err(ChainError::BadUrl { reason: "none is given".to_owned() }),
        }
    }

    /// The one that is asked first.
    pub(super) fn current(&self) -> &Node {
        &self.all[self.first.load(Relaxed)].node
    }

    /// Asks, with every failure as an error of the chain.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: impl Serialize,
    ) -> Result<T, ChainError> {
        self.try_ask(method, params).await.map_err(|fault| self.explain(method, fault))
    }

    /// As [`Node::try_ask`], of the first that answers.
    pub(super) async fn try_ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: impl Serialize,
    ) -> Result<T, Fault> {
        let params = to_value(params);
        let begin = self.first.load(Relaxed);
        let mut worst = None;
        let mut order: Vec<usize> = (begin..self.all.len()).chain(0..begin).collect();
        order.sort_by_key(|index| self.all[*index].is_away());
        for index in order {
            match self.all[index].ask(self.chain_id, method, &params).await {
                Err(fault @ (Fault::Lost(_) | Fault::Bad(_))) => {
                    worst.get_or_insert(fault);
                }
                answered => {
                    self.first.store(index, Relaxed);
                    return answered;
                }
            }
        }
        Err(worst.expect("at least one node was asked"))
    }

    /// Tells all of them; gives the best that any of them said.
    pub(super) async fn tell<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: impl Serialize,
    ) -> Result<T, Fault> {
        let answers = self.ask_each(method, params).await;
        // Taken by one it is under way; what one refuses for a reason says more than silence.
        let rank = |answer: &Result<T, Fault>| match answer {
            Ok(_) => 0,
            Err(Fault::Reverted(_) | Fault::Refused(_)) => 1,
            Err(Fault::Lost(_)) => 2,
            Err(Fault::Bad(_)) => 3,
        };
        answers.into_iter().min_by_key(rank).expect("at least one node was told")
    }

    /// What each of them says that is not away; all are asked when all are away.
    pub(super) async fn ask_each<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: impl Serialize,
    ) -> Vec<Result<T, Fault>> {
        let params = to_value(params);
        let is_any_there = self.all.iter().any(|node| !node.is_away());
        let asked = self.all.iter().filter(|node| !(is_any_there && node.is_away()));
        join_all(asked.map(|node| node.ask(self.chain_id, method, &params))).await
    }

    /// As [`Node::explain`].
    pub(super) fn explain(&self, method: &str, fault: Fault) -> ChainError {
        self.current().explain(method, fault)
    }

    /// As [`Node::bad_answer`].
    pub(super) fn bad_answer(&self, method: &str, reason: String) -> ChainError {
        self.current().bad_answer(method, reason)
    }
}

impl Checked {
    fn is_away(&self) -> bool {
        self.away_since.lock().is_some_and(|since| since.elapsed() < AGAIN)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        chain_id: u64,
        method: &'static str,
        params: &Value,
    ) -> Result<T, Fault> {
        let answer = match self.is_right.load(Relaxed) {
            true => self.node.try_ask(method, params).await,
            false => match self.check(chain_id).await {
                Ok(()) => self.node.try_ask(method, params).await,
                Err(fault) => Err(fault),
            },
        };
        let is_there = !matches!(answer, Err(Fault::Lost(_) | Fault::Bad(_)));
        self.is_right.store(is_there, Relaxed);
        *self.away_since.lock() = (!is_there).then(Instant::now);
        answer
    }

    async fn check(&self, expected: u64) -> Result<(), Fault> {
        let Quantity(found) = self.node.try_ask::<Quantity<u64>>("eth_chainId", json!([])).await?;
        if found != expected {
            let url = self.node.url.clone();
            return Err(Fault::Bad(ChainError::WrongChain { url, expected, found }));
        }
        Ok(())
    }
}

fn to_value(params: impl Serialize) -> Value {
    serde_json::to_value(params).expect("our own requests are valid JSON")
}
