//! A development node, anvil, with the contracts on it: for roles that are paid on a real chain.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice::state::State;
use sluice_chain::anvil::Anvil;
use sluice_chain::{
    Chain, ChannelState, Finality, INCLUSION_DEFAULT, PATIENCE_DEFAULT, RpcConfig, View,
};
use sluice_ledger::ChannelRow;
use sluice_proto::Amount;
use tokio::runtime::Runtime;

use crate::Lab;

/// Blocks that are undone at once.
pub const DEPTH: u64 = 64;
/// What each role has in the beginning.
const TOKENS: Amount = Amount(1 << 42);

/// A running node.
#[derive(Debug)]
pub struct Devnet {
    anvil: Anvil,
    chain: Chain,
    confirmations: u64,
    runtime: Runtime,
}

impl Devnet {
    /// Starts one with a block per transaction, on which so many confirmations are final. `None`,
    /// with a loud line, where there is no anvil.
    ///
    /// # Errors
    /// When the contracts cannot be deployed.
    pub fn start(confirmations: u64) -> Result<Option<Self>> {
        let Some(anvil) = Anvil::start() else { return Ok(None) };
        let runtime = Runtime::new()?;
        let config = RpcConfig {
            url: anvil.url().to_owned(),
            contract: None,
            token: None,
            finality: Finality::Confirmations(confirmations),
            chain_id: None,
            patience: PATIENCE_DEFAULT,
            inclusion: INCLUSION_DEFAULT,
            other_urls: Vec::new(),
        };
        let deployed = async { Chain::connect_rpc(config).await?.deploy_dev().await };
        let chain = runtime.block_on(deployed)?;
        Ok(Some(Self { anvil, chain, confirmations, runtime }))
    }

    /// The chain.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The node's URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.anvil.url()
    }

    /// A channel of a ledger, as the chain has it.
    ///
    /// # Errors
    /// When the chain cannot be read.
    pub fn on_chain(&self, row: &ChannelRow, view: View) -> Result<Option<ChannelState>> {
        Ok(self.block_on(self.chain.channel(&row.key, view))?)
    }

    /// Runs something to its end.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// A lab whose roles `relay`, `provide`, `connect` and `watch` are paid here and have money, with
    /// texts of its configuration replaced by others. What was done by then is final.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn lab(&self, changes: &[(&str, &str)]) -> Result<Lab> {
        self.lab_through(self.anvil.url(), changes)
    }

    /// The same, whose roles reach the node by another URL.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn lab_through(&self, url: &str, changes: &[(&str, &str)]) -> Result<Lab> {
        let contract = self.chain.domain().contract;
        let (token, finality) = (self.chain.token(), self.confirmations);
        let rpc = format!(
            "kind = \"rpc\"\nurl = \"{url}\"\ncontract = \"{contract}\"\ntoken = \"{token}\"\n\
             finality = {finality}\n"
        );
        let to_rpc = [("kind = \"embedded\"\n", rpc.as_str()), ("dir = ", "#dir = ")];
        let lab = Lab::paid_with(&[changes, &to_rpc].concat())?;
        for state in ["relay", "provide", "connect", "watch"] {
            // A role's wallet is made at its first start, and must have coins before it can pay.
            let account = State::open(&lab.state(state), state)?.wallet().address();
            self.block_on(self.chain.fund_dev(account, TOKENS))?;
        }
        self.mine(self.confirmations)?;
        Ok(lab)
    }

    /// Asks the node itself, without any of our code.
    ///
    /// # Errors
    /// With the node's own error.
    pub fn ask(&self, method: &str, params: &Value) -> Result<Value> {
        let host = self.anvil.url().strip_prefix("http://").context("no plain HTTP")?;
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (mut stream, body) = (TcpStream::connect(host)?, request.to_string());
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").context("no answer")?;
        let answer: Value = serde_json::from_str(body)?;
        ensure!(answer["error"].is_null(), "{method}: {answer}");
        Ok(answer["result"].clone())
    }

    /// Makes empty blocks.
    ///
    /// # Errors
    /// When the node refuses.
    pub fn mine(&self, blocks: u64) -> Result<()> {
        self.ask("anvil_mine", &json!([format!("{blocks:#x}")])).map(drop)
    }

    /// The number of the newest block.
    ///
    /// # Errors
    /// When the node refuses.
    pub fn block(&self) -> Result<u64> {
        let block = self.ask("eth_blockNumber", &json!([]))?;
        let digits = block.as_str().and_then(|hex| hex.strip_prefix("0x")).context("no number")?;
        Ok(u64::from_str_radix(digits, 16)?)
    }

    /// Undoes all blocks after number `mark`, exactly [`DEPTH`] of them; what was in them is
    /// forgotten.
    ///
    /// # Errors
    /// When there are more.
    pub fn undo(&self, mark: u64) -> Result<()> {
        let since = self.block()?.saturating_sub(mark);
        ensure!(since <= DEPTH, "{since} blocks came since");
        self.mine(DEPTH - since)?;
        self.ask("anvil_reorg", &json!([DEPTH, []]))?;
        self.ask("anvil_dropAllTransactions", &json!([]))?;
        self.mine(1)
    }
}
