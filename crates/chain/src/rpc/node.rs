//! JSON-RPC requests, and errors in our words.

use std::error::Error;
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_rpc_client::RpcClient;
use alloy_transport::{RpcError, TransportError, TransportErrorKind};
use alloy_transport_http::reqwest::{Client, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_settlement::RevertReason;

use super::http::Http;
use super::value::{Data, Quantity};
use crate::ChainError;

/// Longest wait for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest part of a node's words that is repeated.
const WORDS_MAX: usize = 300;

/// A connection to a node.
#[derive(Debug)]
pub(super) struct Node {
    client: RpcClient,
    full_url: String,
    /// Scheme, host and port: paths and queries of RPC URLs often hold an API key.
    pub(super) url: String,
}

/// Of `eth_getTransactionReceipt`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Receipt {
    pub(super) transaction_hash: B256,
    /// None while it waits, as some nodes tell of it.
    pub(super) block_number: Option<Quantity<u64>>,
    /// EIP-658: 1 when it went well, 0 when it failed.
    pub(super) status: Quantity<u64>,
    pub(super) gas_used: Quantity<u64>,
    pub(super) effective_gas_price: Quantity<u128>,
    /// What a rollup charges for its parent chain.
    #[serde(default)]
    pub(super) l1_fee: Option<Quantity<U256>>,
    pub(super) contract_address: Option<Address>,
    pub(super) logs: Vec<Log>,
}

/// Of a receipt.
#[derive(Debug, Deserialize)]
pub(super) struct Log {
    pub(super) address: Address,
    pub(super) topics: Vec<B256>,
    pub(super) data: Data,
}

/// Of `eth_getBlockByNumber`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Block {
    pub(super) number: Quantity<u64>,
    pub(super) timestamp: Quantity<u64>,
    /// EIP-1559, as all transactions here.
    pub(super) base_fee_per_gas: Quantity<u128>,
}

/// Of `eth_call`, `eth_estimateGas` and `eth_sendTransaction`.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Call {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) to: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) value: Option<U256>,
    pub(super) data: Bytes,
}

/// What a request came to.
#[derive(Debug)]
pub(super) enum Fault {
    /// A contract refused.
    Reverted(RevertReason),
    /// The node refused, with its words.
    Refused(String),
    /// The request may or may not have arrived.
    Lost(ChainError),
    /// It was turned away, or the answer is not what was asked for.
    Bad(ChainError),
}

impl Node {
    pub(super) fn new(url: &str) -> Result<Self, ChainError> {
        let bad = |reason: String| ChainError::BadUrl { reason };
        let parsed: Url = url.parse().map_err(|e| bad(format!("{e}")))?;
        match parsed.scheme() {
            "http" => {}
            "https" if cfg!(feature = "tls") => {}
            "https" => return Err(bad("this program was built without TLS".to_owned())),
            other => return Err(bad(format!("the scheme {other:?} is not http or https"))),
        }
        let shown = parsed.origin().ascii_serialization();
        let client = Client::builder()
            .timeout(ANSWER_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|e| bad(chain_of_reasons(&e)))?;
        let local = matches!(parsed.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let full_url = parsed.to_string();
        let client = RpcClient::new(Http::new(client, parsed), local);
        Ok(Self { client, full_url, url: shown })
    }

    /// Asks, telling apart whose fault a failure is.
    pub(super) async fn try_ask<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: impl Serialize,
    ) -> Result<T, Fault> {
        let params = serde_json::to_value(params).expect("our own requests are valid JSON");
        let answer: Value = self
            .client
            .request::<Value, Value>(method, params)
            .await
            .map_err(|error| self.fault(method, error))?;
        serde_json::from_value(answer)
            .map_err(|error| Fault::Bad(self.bad_answer(method, cut(&error.to_string()))))
    }

    /// An error for what a caller does not treat by itself.
    pub(super) fn explain(&self, method: &str, fault: Fault) -> ChainError {
        let refused = |reason| ChainError::Refused {
            url: self.url.clone(),
            method: method.to_owned(),
            reason,
        };
        match fault {
            Fault::Reverted(reason) => refused(reason.to_string()),
            Fault::Refused(words) => refused(words),
            Fault::Lost(error) | Fault::Bad(error) => error,
        }
    }

    pub(super) fn bad_answer(&self, method: &str, reason: String) -> ChainError {
        ChainError::BadAnswer { url: self.url.clone(), method: method.to_owned(), reason }
    }

    fn fault(&self, method: &'static str, error: TransportError) -> Fault {
        match error {
            RpcError::ErrorResp(payload) => match payload.as_revert_data() {
                Some(data) => Fault::Reverted(RevertReason::decode(&data)),
                None if is_revert(&payload.message) => {
                    Fault::Reverted(RevertReason::Unknown(Vec::new()))
                }
                None => Fault::Refused(cut(&payload.message)),
            },
            RpcError::NullResp => Fault::Bad(self.bad_answer(method, "null".to_owned())),
            RpcError::DeserError { err, .. } => {
                Fault::Bad(self.bad_answer(method, cut(&err.to_string())))
            }
            RpcError::Transport(kind) if is_final(&kind) => Fault::Bad(self.unreachable(&kind)),
            RpcError::Transport(kind) => Fault::Lost(self.unreachable(&kind)),
            other @ (RpcError::UnsupportedFeature(_)
            | RpcError::LocalUsageError(_)
            | RpcError::SerError(_)) => {
                Fault::Bad(self.bad_answer(method, cut(&other.to_string())))
            }
        }
    }

    fn unreachable(&self, kind: &TransportErrorKind) -> ChainError {
        use TransportErrorKind as Kind;
        let reason = if let Kind::HttpError(error) = kind {
            format!("HTTP status {} {}", error.status, cut(error.body.trim()))
        } else if let Kind::HttpErrorWithRetryAfter { error, .. } = kind {
            format!("HTTP status {}: it asks for fewer requests", error.status)
        } else if let Kind::Custom(error) | Kind::NonRetryable(error) = kind {
            chain_of_reasons(error.as_ref())
        } else {
            cut(&kind.to_string())
        };
        let reason = reason.replace(&self.full_url, &self.url);
        ChainError::Unreachable { url: self.url.clone(), reason }
    }
}

/// Whether the request was turned away for good: by its HTTP status, but for "too many requests".
fn is_final(kind: &TransportErrorKind) -> bool {
    const TOO_MANY_REQUESTS: u16 = 429;
    matches!(kind, TransportErrorKind::HttpError(error)
        if (400..500).contains(&error.status) && error.status != TOO_MANY_REQUESTS)
}

/// The innermost reasons: the outermost only repeats the URL.
fn chain_of_reasons(error: &(dyn Error + 'static)) -> String {
    let mut reasons = Vec::new();
    let mut next = error.source();
    while let Some(reason) = next {
        reasons.push(reason.to_string());
        next = reason.source();
    }
    if reasons.is_empty() { cut(&error.to_string()) } else { cut(&reasons.join(": ")) }
}

fn is_revert(message: &str) -> bool {
    message.to_ascii_lowercase().contains("revert")
}

fn cut(words: &str) -> String {
    words.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}
