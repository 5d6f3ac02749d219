//! Sending a transaction until it is in a block.
//!
//! A nonce is taken once; what stays out of the chain is signed again with the same nonce and a
//! higher fee, so that a transaction that was dropped, or priced out, gets in, and none counts twice.
//! What another process left behind with a lower nonce holds ours back: its place is filled with a
//! transaction that does nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use alloy_primitives::{B256, Bytes};
use parking_lot::Mutex;
use serde_json::json;
use sluice_proto::{EthAddress, WalletKey};
use tokio::time::{Instant, sleep};

use super::node::{Fault, Receipt};
use super::tx::Transaction;
use super::value::Quantity;
use super::{Rpc, hex_address, lacks_funds};
use crate::{ChainError, TxReceipt};

/// Hands in a transaction.
const SEND: &str = "eth_sendRawTransaction";
/// First and longest wait between two looks for a receipt.
const POLL_MIN: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_secs(2);
/// Times a transaction is signed anew when another process took its nonce.
const NONCE_ATTEMPTS: usize = 5;
/// What one offers more for a place that is taken, in percent: nodes ask for 10 at least.
const RAISE_PERCENT: u128 = 25;
/// Gas of a transaction that does nothing.
const GAS_OF_NOTHING: u64 = 21_000;
/// Raises in a row when a place that somebody else holds is filled: its price is not known.
const FILL_ATTEMPTS: usize = 12;

/// Nonces of this process whose transactions are not in a block yet.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<BTreeSet<(EthAddress, u64)>>);

/// One of them, until it is dropped.
struct Flight<'f> {
    all: &'f InFlight,
    own: (EthAddress, u64),
}

impl InFlight {
    fn begin(&self, account: EthAddress, nonce: u64) -> Flight<'_> {
        self.0.lock().insert((account, nonce));
        Flight { all: self, own: (account, nonce) }
    }

    fn has(&self, account: EthAddress, nonce: u64) -> bool {
        self.0.lock().contains(&(account, nonce))
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.all.0.lock().remove(&self.own);
    }
}

/// What handing in one signed transaction came to.
enum HandedIn {
    /// The node has it, or may have it.
    Sent([u8; 32]),
    /// Its nonce is used, or its place is held by one that pays more.
    Taken(String),
}

impl Rpc {
    pub(crate) async fn send(
        &self,
        what: &'static str,
        wallet: &WalletKey,
        to: EthAddress,
        data: Vec<u8>,
    ) -> Result<TxReceipt, ChainError> {
        let account = wallet.address();
        let gas = self.estimate_gas(what, account, to, &data).await?;
        let (base, tip) = self.prices().await?;
        let mut transaction = Transaction {
            chain_id: self.shared.chain_id,
            nonce: 0,
            tip_wei: tip,
            fee_wei_max: base.saturating_mul(2).saturating_add(tip),
            gas_limit: gas.saturating_add(gas / 4),
            to,
            data,
        };
        let (hash, _flight) = self.hand_in_next(what, wallet, &mut transaction).await?;
        let (hash, receipt) = self.insist(what, wallet, &mut transaction, hash).await?;
        if receipt.status.0 == 0 {
            let reason = self.reason_of(account, &transaction).await;
            return Err(ChainError::Reverted { what, reason });
        }
        self.receipt(hash, &receipt)
    }

    /// Signs with the next nonce and sends.
    async fn hand_in_next(
        &self,
        what: &'static str,
        wallet: &WalletKey,
        transaction: &mut Transaction,
    ) -> Result<([u8; 32], Flight<'_>), ChainError> {
        let account = wallet.address();
        let _one_at_a_time = self.shared.nonce.lock().await;
        let mut words = String::new();
        for _ in 0..NONCE_ATTEMPTS {
            transaction.nonce = self.nonce(account, "pending").await?;
            match self.hand_in(what, wallet, transaction).await? {
                HandedIn::Sent(hash) => {
                    return Ok((hash, self.shared.in_flight.begin(account, transaction.nonce)));
                }
                HandedIn::Taken(reason) => words = reason,
            }
        }
        Err(self.node().explain(SEND, Fault::Refused(words)))
    }

    /// Sends as it is. When the answer is lost the transaction may have arrived, so it is waited for
    /// like any other.
    async fn hand_in(
        &self,
        what: &'static str,
        wallet: &WalletKey,
        transaction: &Transaction,
    ) -> Result<HandedIn, ChainError> {
        let (raw, hash) = transaction.sign(wallet);
        let params = json!([Bytes::from(raw)]);
        match self.node().tell::<B256>(SEND, params).await {
            Ok(_) | Err(Fault::Lost(_)) => Ok(HandedIn::Sent(hash)),
            // Whoever answers this with rubbish may have taken it all the same.
            Err(Fault::Bad(ChainError::BadAnswer { method, .. })) if method == SEND => {
                Ok(HandedIn::Sent(hash))
            }
            Err(Fault::Refused(reason)) if is_known(&reason) => Ok(HandedIn::Sent(hash)),
            Err(Fault::Refused(reason)) if nonce_was_taken(&reason) => Ok(HandedIn::Taken(reason)),
            Err(Fault::Refused(reason)) if lacks_funds(&reason) => {
                let account = wallet.address();
                Err(ChainError::InsufficientFunds { account, what, reason })
            }
            Err(Fault::Reverted(reason)) => Err(ChainError::Reverted { what, reason }),
            Err(other) => Err(self.node().explain(SEND, other)),
        }
    }

    /// Waits until one of the transactions with this nonce is in a block, and offers more whenever
    /// patience ends. Whatever the node says meanwhile, something was sent: it is asked again until
    /// the time is over.
    async fn insist(
        &self,
        what: &'static str,
        wallet: &WalletKey,
        transaction: &mut Transaction,
        first: [u8; 32],
    ) -> Result<([u8; 32], Receipt), ChainError> {
        let mut hashes = vec![first];
        let (mut pause, mut last) = (POLL_MIN, None);
        let begin = Instant::now();
        let mut patience_ends = begin + self.shared.patience;
        while begin.elapsed() < self.shared.inclusion {
            for hash in &hashes {
                match self.try_receipt(*hash).await {
                    Ok(Some(receipt)) => return Ok((*hash, receipt)),
                    Ok(None) => {}
                    Err(error) => last = Some(error),
                }
            }
            if Instant::now() >= patience_ends {
                patience_ends = Instant::now() + self.shared.patience;
                self.free_the_way(wallet, transaction.nonce).await;
                hashes.extend(self.offer_more(what, wallet, transaction).await);
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
        }
        Err(self.not_seen(what, first, last))
    }

    /// The same with a higher fee. What fails is tried again when patience ends next.
    async fn offer_more(
        &self,
        what: &'static str,
        wallet: &WalletKey,
        transaction: &mut Transaction,
    ) -> Option<[u8; 32]> {
        let raised = self.raised(transaction).await?;
        match self.hand_in(what, wallet, &raised).await {
            Ok(HandedIn::Sent(hash)) => {
                *transaction = raised;
                Some(hash)
            }
            // Now included, or not raised enough: the next offer is higher.
            Ok(HandedIn::Taken(_)) => {
                *transaction = raised;
                None
            }
            Err(_) => None,
        }
    }

    /// Raised by [`RAISE_PERCENT`], or to what gas costs now if that is more.
    async fn raised(&self, transaction: &Transaction) -> Option<Transaction> {
        let (base, tip) = self.prices().await.ok()?;
        let more = |wei: u128| wei.saturating_add(wei.saturating_mul(RAISE_PERCENT) / 100) + 1;
        let tip_wei = more(transaction.tip_wei).max(tip);
        let now = base.saturating_mul(2).saturating_add(tip_wei);
        let fee_wei_max = more(transaction.fee_wei_max).max(now);
        Some(Transaction { tip_wei, fee_wei_max, ..transaction.clone() })
    }

    /// Fills the account's next place if nobody here waits for it and it is below `nonce`.
    async fn free_the_way(&self, wallet: &WalletKey, nonce: u64) {
        let account = wallet.address();
        let Ok(next) = self.nonce(account, "latest").await else { return };
        if next >= nonce || self.shared.in_flight.has(account, next) {
            return;
        }
        let mut nothing = Transaction {
            chain_id: self.shared.chain_id,
            nonce: next,
            tip_wei: 0,
            fee_wei_max: 0,
            gas_limit: GAS_OF_NOTHING,
            to: account,
            data: Vec::new(),
        };
        for _ in 0..FILL_ATTEMPTS {
            let Some(raised) = self.raised(&nothing).await else { return };
            nothing = raised;
            match self.hand_in("free a stuck nonce", wallet, &nothing).await {
                Ok(HandedIn::Taken(_)) => {}
                Ok(HandedIn::Sent(_)) | Err(_) => return,
            }
        }
    }

    /// Waits for one transaction as it is.
    pub(super) async fn included(
        &self,
        what: &'static str,
        hash: [u8; 32],
    ) -> Result<Receipt, ChainError> {
        let begin = Instant::now();
        let (mut pause, mut last) = (POLL_MIN, None);
        while begin.elapsed() < self.shared.inclusion {
            match self.try_receipt(hash).await {
                Ok(Some(receipt)) => return Ok(receipt),
                Ok(None) => {}
                Err(error) => last = Some(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
        }
        Err(self.not_seen(what, hash, last))
    }

    fn not_seen(&self, what: &'static str, hash: [u8; 32], last: Option<ChainError>) -> ChainError {
        let waited_s = self.shared.inclusion.as_secs();
        let last = last.map(|error| format!(": {error}")).unwrap_or_default();
        ChainError::Timeout { hash, what, waited_s, last }
    }

    /// The receipt, as soon as any node has one that can be.
    ///
    /// # Errors
    /// What is wrong with an answer, when none of the others has it.
    async fn try_receipt(&self, hash: [u8; 32]) -> Result<Option<Receipt>, ChainError> {
        const ASK: &str = "eth_getTransactionReceipt";
        let params = json!([B256::from(hash)]);
        let mut outcome = Ok(None);
        for answer in self.node().ask_each::<Option<Receipt>>(ASK, &params).await {
            match answer {
                Ok(Some(receipt)) if receipt.block_number.is_some() => {
                    match self.check_receipt(hash, &receipt) {
                        Ok(()) => return Ok(Some(receipt)),
                        Err(error) => outcome = Err(error),
                    }
                }
                Ok(_) => {}
                Err(fault) => outcome = Err(self.node().explain(ASK, fault)),
            }
        }
        outcome
    }

    async fn nonce(&self, account: EthAddress, at: &str) -> Result<u64, ChainError> {
        let params = json!([hex_address(account), at]);
        let Quantity(nonce) = self.node().ask("eth_getTransactionCount", params).await?;
        Ok(nonce)
    }
}

/// In the words of the nodes in use: it has this very transaction.
fn is_known(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    words.contains("already known") || words.contains("already imported")
}

/// In the words of the nodes in use: another transaction of the account was faster.
fn nonce_was_taken(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    words.contains("nonce too low") || words.contains("underpriced")
}
