//! A node of an Ethereum-like network over JSON-RPC.

mod http;
mod node;
mod nodes;
mod send;
mod tx;
mod value;

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U256};
use serde_json::json;
use sluice_proto::{Amount, ChannelId, Domain, EthAddress, Voucher};
use sluice_settlement::{ChannelEvent, RevertReason, answer, call, channels_code, test_token_code};
use tokio::sync::Mutex;

use self::node::{Block, Call, Fault, Log, Receipt};
use self::nodes::Nodes;
use self::send::InFlight;
use self::tx::Transaction;
use self::value::{Data, Quantity};
use crate::{ChainError, FeeEstimate, Finality, RpcConfig, TxReceipt, View};

/// Chain id of development nodes such as anvil and hardhat, whose accounts are unlocked.
pub const DEV_CHAIN_ID: u64 = 31_337;

/// Tip that is offered when the node suggests none: 1 gwei.
const TIP_WEI_DEFAULT: u128 = 1_000_000_000;
/// What [`Rpc::fund_dev`] tops an account's coins up to: 10.
const GAS_MONEY_WEI: u128 = 10_000_000_000_000_000_000;

/// A connection to a node, and the contracts' addresses there.
#[derive(Debug, Clone)]
pub struct Rpc {
    shared: Arc<Shared>,
    contract: Option<EthAddress>,
    token: Option<EthAddress>,
}

#[derive(Debug)]
struct Shared {
    nodes: Nodes,
    chain_id: u64,
    finality: Finality,
    patience: Duration,
    inclusion: Duration,
    /// Held from reading a nonce until its transaction was handed in.
    nonce: Mutex<()>,
    /// What this process has sent and waits for.
    in_flight: InFlight,
    /// Held from approving a deposit until it was taken.
    spending: Mutex<()>,
}

impl Rpc {
    pub(crate) async fn connect(cfg: RpcConfig) -> Result<Self, ChainError> {
        let urls = std::iter::once(&cfg.url).chain(&cfg.other_urls).map(String::as_str);
        let nodes = Nodes::connect(&urls.collect::<Vec<_>>(), cfg.chain_id).await?;
        let shared = Shared {
            chain_id: nodes.chain_id,
            nodes,
            finality: cfg.finality,
            patience: cfg.patience,
            inclusion: cfg.inclusion,
            nonce: Mutex::default(),
            in_flight: InFlight::default(),
            spending: Mutex::default(),
        };
        let rpc = Self { shared: Arc::new(shared), contract: cfg.contract, token: cfg.token };
        rpc.check_contracts().await?;
        Ok(rpc)
    }

    pub(crate) fn domain(&self) -> Domain {
        Domain { chain_id: self.shared.chain_id, contract: self.contract.unwrap_or_default() }
    }

    pub(crate) const fn contract(&self) -> Option<EthAddress> {
        self.contract
    }

    pub(crate) const fn token(&self) -> Option<EthAddress> {
        self.token
    }

    pub(crate) fn spending(&self) -> &Mutex<()> {
        &self.shared.spending
    }

    pub(crate) fn is_development(&self) -> bool {
        self.shared.chain_id == DEV_CHAIN_ID
    }

    /// Both addresses hold what they should; `Channels` computes the same digests as we do.
    async fn check_contracts(&self) -> Result<(), ChainError> {
        let chain_id = self.shared.chain_id;
        for (what, address) in [("Channels", self.contract), ("token", self.token)] {
            let Some(address) = address else { continue };
            let Data(code) =
                self.node().ask("eth_getCode", json!([hex_address(address), "latest"])).await?;
            if code.is_empty() {
                return Err(ChainError::NoContract { what, address, chain_id });
            }
        }
        let Some(address) = self.contract else { return Ok(()) };
        let probe = Voucher { channel: ChannelId([1; 32]), amount: Amount(2), statement: [3; 32] };
        let digest = self.try_call(address, call::voucher_digest(&probe), "latest").await;
        let digest = match digest {
            Err(Fault::Lost(error)) => return Err(error),
            Err(Fault::Reverted(_) | Fault::Refused(_) | Fault::Bad(_)) => None,
            Ok(bytes) => answer::word(&bytes),
        };
        if digest == Some(probe.digest(&self.domain())) {
            Ok(())
        } else {
            Err(ChainError::OtherContract { what: "Channels", address, chain_id })
        }
    }

    pub(crate) async fn call(
        &self,
        to: EthAddress,
        data: Vec<u8>,
        view: View,
    ) -> Result<Vec<u8>, ChainError> {
        let block = self.block_of(view).await?;
        self.try_call(to, data, &block).await.map_err(|fault| match fault {
            Fault::Reverted(reason) => ChainError::Reverted { what: "read the chain", reason },
            other @ (Fault::Refused(_) | Fault::Lost(_) | Fault::Bad(_)) => {
                self.node().explain("eth_call", other)
            }
        })
    }

    /// What each node that can be asked says; at least one does.
    pub(crate) async fn call_each(
        &self,
        to: EthAddress,
        data: Vec<u8>,
        view: View,
    ) -> Result<Vec<Vec<u8>>, ChainError> {
        let block = self.block_of(view).await?;
        let call = Call { to: Some(to.0.into()), data: data.into(), ..Call::default() };
        let answers = self.node().ask_each::<Data>("eth_call", json!([call, block])).await;
        let (mut said, mut failed) = (Vec::new(), None);
        for answer in answers {
            match answer {
                Ok(Data(bytes)) => said.push(bytes),
                Err(fault) => {
                    failed.get_or_insert(fault);
                }
            }
        }
        match failed {
            Some(fault) if said.is_empty() => Err(self.node().explain("eth_call", fault)),
            Some(_) | None => Ok(said),
        }
    }

    pub(crate) async fn estimate(
        &self,
        what: &'static str,
        caller: EthAddress,
        to: EthAddress,
        data: Vec<u8>,
    ) -> Result<FeeEstimate, ChainError> {
        let gas = self.estimate_gas(what, caller, to, &data).await?;
        let (base, tip) = self.prices().await?;
        let fee_wei = u128::from(gas).saturating_mul(base.saturating_add(tip));
        Ok(FeeEstimate { gas, fee_wei })
    }

    pub(crate) async fn gas_price_wei(&self) -> Result<u128, ChainError> {
        self.prices().await.map(|(base, tip)| base.saturating_add(tip))
    }

    /// Why an included transaction failed: asked by trying it again.
    async fn reason_of(&self, caller: EthAddress, transaction: &Transaction) -> RevertReason {
        let call = Call {
            from: Some(caller.0.into()),
            to: Some(transaction.to.0.into()),
            data: transaction.data.clone().into(),
            ..Call::default()
        };
        match self.node().try_ask::<Data>("eth_call", json!([call, "latest"])).await {
            Err(Fault::Reverted(reason)) => reason,
            Ok(_) | Err(_) => RevertReason::Unknown(Vec::new()),
        }
    }

    fn receipt(&self, hash: [u8; 32], receipt: &Receipt) -> Result<TxReceipt, ChainError> {
        let bad = |what| self.node().bad_answer("eth_getTransactionReceipt", what);
        let block = receipt.block_number.ok_or_else(|| bad("no block number".to_owned()))?;
        let events = self.events(receipt).map_err(bad)?;
        let price = receipt.effective_gas_price.0;
        let parent_fee = receipt.l1_fee.map_or(0, |fee| fee.0.saturating_to::<u128>());
        let gas = receipt.gas_used.0;
        Ok(TxReceipt {
            hash,
            gas,
            gas_approval: 0,
            fee_wei: u128::from(gas).saturating_mul(price).saturating_add(parent_fee),
            block: block.0,
            events,
        })
    }

    /// What the transaction did to channels: our contract tells of nothing else.
    fn events(&self, receipt: &Receipt) -> Result<Vec<ChannelEvent>, String> {
        let ours = |log: &&Log| self.contract.is_some_and(|c| c.0 == log.address.0.0);
        let read = |log: &Log| {
            let topics: Vec<[u8; 32]> = log.topics.iter().map(|topic| topic.0).collect();
            ChannelEvent::decode(&topics, &log.data.0)
                .ok_or_else(|| "a log of Channels that is none of its events".to_owned())
        };
        receipt.logs.iter().filter(ours).map(read).collect()
    }

    /// A receipt that can be: of this transaction, which went well or failed, with events of channels.
    fn check_receipt(&self, hash: [u8; 32], receipt: &Receipt) -> Result<(), ChainError> {
        let bad = |what| Err(self.node().bad_answer("eth_getTransactionReceipt", what));
        if receipt.transaction_hash.0 != hash {
            return bad(format!("the receipt of transaction {}", receipt.transaction_hash));
        }
        if receipt.status.0 > 1 {
            return bad(format!("status {}", receipt.status.0));
        }
        self.events(receipt).map(drop).or_else(bad)
    }

    pub(crate) async fn coin_balance(&self, account: EthAddress) -> Result<u128, ChainError> {
        let params = json!([hex_address(account), "latest"]);
        let Quantity(balance) = self.node().ask("eth_getBalance", params).await?;
        Ok(U256::saturating_to(&balance))
    }

    pub(crate) async fn now_unix_s(&self) -> Result<u64, ChainError> {
        self.latest().await.map(|block| block.timestamp.0)
    }

    // ------------------------------------------------------------ development chains

    pub(crate) async fn deploy_dev(&self) -> Result<Self, ChainError> {
        self.require_development()?;
        if self.contract.is_some() && self.token.is_some() {
            return Ok(self.clone());
        }
        let contract = match self.contract {
            Some(contract) => contract,
            None => self.deploy(channels_code()).await?,
        };
        let token = match self.token {
            Some(token) => token,
            None => self.deploy(test_token_code()).await?,
        };
        let deployed =
            Self { shared: Arc::clone(&self.shared), contract: Some(contract), token: Some(token) };
        deployed.check_contracts().await?;
        Ok(deployed)
    }

    pub(crate) async fn fund_dev(
        &self,
        account: EthAddress,
        tokens: Amount,
    ) -> Result<(), ChainError> {
        self.require_development()?;
        let missing = GAS_MONEY_WEI.saturating_sub(self.coin_balance(account).await?);
        if missing > 0 {
            let value = Some(U256::from(missing));
            let call = Call { to: Some(account.0.into()), value, ..Call::default() };
            self.send_unlocked("give test money", call).await?;
        }
        if tokens.0 > 0 {
            let token = self
                .token
                .ok_or(ChainError::NoAddress { what: "token", chain_id: self.shared.chain_id })?;
            let data = call::mint(account, tokens).into();
            let call = Call { to: Some(token.0.into()), data, ..Call::default() };
            self.send_unlocked("give test money", call).await?;
        }
        Ok(())
    }

    pub(crate) async fn advance_dev(&self, seconds: u64) -> Result<(), ChainError> {
        self.require_development()?;
        let _: serde_json::Value = self.node().ask("evm_increaseTime", json!([seconds])).await?;
        let _: serde_json::Value = self.node().ask("evm_mine", json!([])).await?;
        Ok(())
    }

    async fn deploy(&self, code: Vec<u8>) -> Result<EthAddress, ChainError> {
        let call = Call { data: code.into(), ..Call::default() };
        let receipt = self.send_unlocked("deploy a contract", call).await?;
        let address = receipt.contract_address.ok_or_else(|| {
            self.node().bad_answer("eth_getTransactionReceipt", "no contract".to_owned())
        })?;
        Ok(EthAddress(address.into()))
    }

    /// Sends from an account whose key the development node holds.
    async fn send_unlocked(
        &self,
        what: &'static str,
        mut call: Call,
    ) -> Result<Receipt, ChainError> {
        let accounts: Vec<Address> = self.node().ask("eth_accounts", json!([])).await?;
        call.from = Some(*accounts.first().ok_or_else(|| {
            self.node().bad_answer("eth_accounts", "no unlocked account".to_owned())
        })?);
        let hash: B256 = self.node().ask("eth_sendTransaction", json!([call])).await?;
        let receipt = self.included(what, hash.0).await?;
        if receipt.status.0 == 0 {
            let reason = RevertReason::Unknown(Vec::new());
            return Err(ChainError::Reverted { what, reason });
        }
        Ok(receipt)
    }

    fn require_development(&self) -> Result<(), ChainError> {
        if self.is_development() {
            Ok(())
        } else {
            Err(ChainError::NotDevelopment { chain_id: self.shared.chain_id })
        }
    }

    // ------------------------------------------------------------ requests

    fn node(&self) -> &Nodes {
        &self.shared.nodes
    }

    async fn try_call(&self, to: EthAddress, data: Vec<u8>, block: &str) -> Result<Vec<u8>, Fault> {
        let call = Call { to: Some(to.0.into()), data: data.into(), ..Call::default() };
        self.node().try_ask::<Data>("eth_call", json!([call, block])).await.map(|Data(bytes)| bytes)
    }

    async fn estimate_gas(
        &self,
        what: &'static str,
        caller: EthAddress,
        to: EthAddress,
        data: &[u8],
    ) -> Result<u64, ChainError> {
        let call = Call {
            from: Some(caller.0.into()),
            to: Some(to.0.into()),
            data: Bytes::copy_from_slice(data),
            ..Call::default()
        };
        match self.node().try_ask::<Quantity<u64>>("eth_estimateGas", json!([call])).await {
            Ok(Quantity(gas)) => Ok(gas),
            Err(Fault::Reverted(reason)) => Err(ChainError::Reverted { what, reason }),
            Err(Fault::Refused(reason)) if lacks_funds(&reason) => {
                Err(ChainError::InsufficientFunds { account: caller, what, reason })
            }
            Err(other) => Err(self.node().explain("eth_estimateGas", other)),
        }
    }

    /// Base fee of the newest block and a tip that the node suggests, in wei per gas.
    async fn prices(&self) -> Result<(u128, u128), ChainError> {
        let base = self.latest().await?.base_fee_per_gas.0;
        let tip = match self
            .node()
            .try_ask::<Quantity<u128>>("eth_maxPriorityFeePerGas", json!([]))
            .await
        {
            Ok(Quantity(tip)) => tip,
            Err(Fault::Lost(error)) => return Err(error),
            Err(Fault::Reverted(_) | Fault::Refused(_) | Fault::Bad(_)) => TIP_WEI_DEFAULT,
        };
        Ok((base, tip))
    }

    async fn latest(&self) -> Result<Block, ChainError> {
        self.node().ask("eth_getBlockByNumber", json!(["latest", false])).await
    }

    /// The block to read at: a name, or a number in hexadecimal.
    async fn block_of(&self, view: View) -> Result<String, ChainError> {
        Ok(match (view, self.shared.finality) {
            (View::Latest, _) | (View::Final, Finality::Confirmations(0 | 1)) => "latest".into(),
            (View::Final, Finality::Finalized) => "finalized".into(),
            (View::Final, Finality::Confirmations(count)) => {
                let latest = self.latest().await?.number.0;
                format!("{:#x}", latest.saturating_sub(count - 1))
            }
        })
    }
}

fn hex_address(address: EthAddress) -> Address {
    address.0.into()
}

/// In the words of the nodes in use: the account cannot pay for the gas.
fn lacks_funds(words: &str) -> bool {
    words.to_ascii_lowercase().contains("insufficient funds")
}
