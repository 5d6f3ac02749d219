//! A node, and a network, on a bad day: transactions that are priced out, dropped or held back,
//! reorganisations of 64 blocks at each step of a channel's life, a day without a node.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/scene.rs"]
mod scene;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use scene::{PERIOD_S, Scene};
use serde_json::{Value, json};
use sluice_chain::anvil::{Anvil, Mood};
use sluice_chain::{Chain, ChainError, RpcConfig, TxReceipt, View};
use sluice_proto::Amount;
use tokio::task::JoinHandle;

const DEPTH: u64 = 64;
/// What stays out of a block is soon sent again.
const PATIENCE: Duration = Duration::from_millis(300);
const GWEI: u64 = 1_000_000_000;
/// Looks at a node before a test gives up; each waits for a few milliseconds.
const LOOKS: usize = 2_000;

/// Asks the node itself, without any of our code.
fn ask(url: &str, method: &str, params: &Value) -> Value {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let answer = ask_any(url, &request);
    assert!(answer["error"].is_null(), "{method}: {answer}");
    answer["result"].clone()
}

fn ask_any(url: &str, request: &Value) -> Value {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let body = request.to_string();
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
}

impl Scene {
    async fn final_after(confirmations: u64) -> Option<Self> {
        Self::new(1_000, confirmations, PATIENCE).await
    }

    fn ask(&self, method: &str, params: &Value) -> Value {
        ask(self.anvil.url(), method, params)
    }

    fn mine(&self, blocks: u64) {
        self.ask("anvil_mine", &json!([format!("{blocks:#x}")]));
    }

    /// Undoes the newest blocks, and what was in them is forgotten.
    fn reorganise(&self) {
        self.mine(DEPTH - 1);
        self.ask("anvil_reorg", &json!([DEPTH, []]));
        self.ask("anvil_dropAllTransactions", &json!([]));
        self.mine(1);
    }

    async fn open(&self) {
        self.chain.open_channel(&self.payer, self.key, Amount(600), PERIOD_S).await.unwrap();
    }

    /// What payer, payout and contract have.
    async fn tokens(&self) -> [u128; 3] {
        let mut found = [0; 3];
        let accounts = [self.payer.address(), self.key.payout, self.chain.domain().contract];
        for (found, account) in found.iter_mut().zip(accounts) {
            *found = self.chain.token_balance(account).await.unwrap().0;
        }
        found
    }

    /// Hands in a redemption that no block will take yet.
    async fn pending(&self, amount: u128) -> JoinHandle<Result<TxReceipt, ChainError>> {
        let before = self.waiting();
        let (chain, payee, item) = (self.chain.clone(), self.payee.clone(), self.voucher(amount));
        let sent = tokio::spawn(async move { chain.redeem(&payee, &[item]).await });
        self.until(|| self.waiting() > before).await;
        sent
    }

    /// How many transactions the node holds for later.
    fn waiting(&self) -> u64 {
        let status = self.ask("txpool_status", &json!([]));
        ["pending", "queued"].map(|kind| number(&status[kind])).iter().sum()
    }

    async fn until(&self, what: impl Fn() -> bool) {
        for _ in 0..LOOKS {
            if what() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it did not come to that");
    }

    /// Mines at a base fee until the transaction is in.
    async fn mine_at(
        &self,
        base_fee_wei: u64,
        sent: JoinHandle<Result<TxReceipt, ChainError>>,
    ) -> TxReceipt {
        for _ in 0..LOOKS {
            if sent.is_finished() {
                return sent.await.unwrap().unwrap();
            }
            let fee = format!("{base_fee_wei:#x}");
            self.ask("anvil_setNextBlockBaseFeePerGas", &json!([fee]));
            self.mine(1);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never got in");
    }
}

fn number(hex: &Value) -> u64 {
    u64::from_str_radix(hex.as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

#[tokio::test]
async fn a_transaction_that_is_priced_out_is_replaced_by_one_that_pays_more() {
    let Some(scene) = Scene::final_after(1).await else { return };
    scene.open().await;
    scene.ask("evm_setAutomine", &json!([false]));
    let sent = scene.pending(100).await;
    // Dearer than what was offered: twice the base fee of the time, and a tip.
    let receipt = scene.mine_at(50 * GWEI, sent).await;
    let price = receipt.fee_wei / u128::from(receipt.gas);
    assert!(price > u128::from(50 * GWEI), "{price}");
    assert_eq!(scene.tokens().await, [400, 100, 500]);
    assert_eq!(scene.waiting(), 0, "two of them were left");
}

#[tokio::test]
async fn a_transaction_that_is_dropped_is_sent_again() {
    let Some(scene) = Scene::final_after(1).await else { return };
    scene.open().await;
    scene.ask("evm_setAutomine", &json!([false]));
    let sent = scene.pending(100).await;
    scene.ask("anvil_dropAllTransactions", &json!([]));
    assert_eq!(scene.waiting(), 0);
    scene.until(|| scene.waiting() == 1).await;
    scene.mine_at(GWEI, sent).await;
    assert_eq!(scene.tokens().await, [400, 100, 500]);
}

/// A node that counted a transaction of ours which it forgot since: what comes next waits for ever.
#[tokio::test]
async fn a_nonce_that_was_left_open_is_filled() {
    let Some(scene) = Scene::final_after(1).await else { return };
    scene.open().await;
    let ours = connect(&scene).await;
    scene.way.set(Mood::Ahead);
    let (payee, item) = (scene.payee.clone(), scene.voucher(250));
    let sent = tokio::spawn(async move { ours.redeem(&payee, &[item]).await });
    scene.until(|| scene.waiting() == 1).await;
    assert_eq!(scene.tokens().await, [400, 0, 600], "the scene is not as told");
    assert_eq!(sent.await.unwrap().unwrap().paid(), Amount(250));
    assert_eq!(scene.tokens().await, [400, 250, 350]);
}

#[tokio::test]
async fn a_reorganisation_of_64_blocks_at_each_step_undoes_it_and_it_is_done_again() {
    let Some(scene) = Scene::final_after(DEPTH + 1).await else { return };
    let Scene { chain, payer, payee, key, .. } = &scene;
    // Each step: done, undone, never final, done again.
    scene.open().await;
    scene.reorganise();
    assert_eq!(chain.channel(key, View::Latest).await.unwrap(), None);
    scene.open().await;
    scene.mine(DEPTH);
    let opened = chain.channel(key, View::Final).await.unwrap().unwrap();
    assert_eq!(opened.deposit, Amount(600));

    for _ in 0..2 {
        chain.top_up(payer, key, Amount(50)).await.unwrap();
        let settled = chain.channel(key, View::Final).await.unwrap();
        assert_eq!(settled, Some(opened), "final before its time");
        scene.reorganise();
        assert_eq!(chain.channel(key, View::Latest).await.unwrap(), Some(opened));
    }
    chain.top_up(payer, key, Amount(50)).await.unwrap();

    assert_eq!(chain.redeem(payee, &[scene.voucher(100)]).await.unwrap().paid(), Amount(100));
    scene.reorganise();
    assert_eq!(scene.tokens().await[1], 0);
    assert_eq!(chain.redeem(payee, &[scene.voucher(150)]).await.unwrap().paid(), Amount(150));

    let before = chain.channel(key, View::Latest).await.unwrap();
    chain.start_close(payer, key).await.unwrap();
    scene.reorganise();
    // The redemption stood 64 blocks deep or less, so it may be undone with it.
    let after = chain.channel(key, View::Latest).await.unwrap().unwrap();
    assert_eq!(after.closing_at_unix_s, None);
    if Some(after) != before {
        chain.redeem(payee, &[scene.voucher(150)]).await.unwrap();
    }
    chain.start_close(payer, key).await.unwrap();
    chain.advance_dev(u64::from(PERIOD_S)).await.unwrap();

    chain.finish_close(payer, key).await.unwrap();
    scene.reorganise();
    assert!(!chain.channel(key, View::Latest).await.unwrap().unwrap().closed);
    let last = scene.voucher(300);
    chain.close_by_payee(payee, key, Some((last.voucher, last.signature)), payee).await.unwrap();
    scene.reorganise();
    assert!(!chain.channel(key, View::Latest).await.unwrap().unwrap().closed);
    chain.close_by_payee(payee, key, Some((last.voucher, last.signature)), payee).await.unwrap();
    scene.mine(DEPTH);
    assert!(chain.channel(key, View::Final).await.unwrap().unwrap().closed);
    assert_eq!(scene.tokens().await, [700, 300, 0]);
}

/// Asks through the way.
async fn connect(scene: &Scene) -> Chain {
    Chain::connect_rpc(scene.config()).await.unwrap()
}

#[tokio::test]
async fn a_day_without_a_node_while_the_payer_closes_loses_nothing() {
    let Some(scene) = Scene::final_after(1).await else { return };
    scene.open().await;
    let ours = connect(&scene).await;
    scene.way.set(Mood::Refuses);
    scene.chain.start_close(&scene.payer, &scene.key).await.unwrap();
    let error = ours.redeem(&scene.payee, &[scene.voucher(400)]).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    scene.chain.advance_dev(24 * 60 * 60).await.unwrap();
    let error = ours.channel(&scene.key, View::Latest).await.unwrap_err();
    assert!(matches!(error, ChainError::Unreachable { .. }), "{error}");

    scene.way.set(Mood::Honest);
    let state = ours.channel(&scene.key, View::Latest).await.unwrap().unwrap();
    let left_s = state.closing_at_unix_s.unwrap() - ours.now_unix_s().await.unwrap();
    assert!((47 * 3600..=48 * 3600).contains(&left_s), "{left_s}");
    assert_eq!(ours.redeem(&scene.payee, &[scene.voucher(400)]).await.unwrap().paid(), Amount(400));
    scene.chain.advance_dev(48 * 60 * 60).await.unwrap();
    scene.chain.finish_close(&scene.payer, &scene.key).await.unwrap();
    assert_eq!(scene.tokens().await, [600, 400, 0]);
}

#[tokio::test]
async fn a_second_node_is_asked_when_the_first_is_away_and_one_of_another_chain_is_refused() {
    let Some(scene) = Scene::final_after(1).await else { return };
    scene.open().await;
    let cfg = scene.config();
    let both = RpcConfig { other_urls: vec![scene.anvil.url().to_owned()], ..cfg.clone() };
    let ours = Chain::connect_rpc(both.clone()).await.unwrap();
    scene.way.set(Mood::Refuses);
    assert_eq!(ours.redeem(&scene.payee, &[scene.voucher(70)]).await.unwrap().paid(), Amount(70));
    // Nor does it matter who is away when it begins.
    let ours = Chain::connect_rpc(both).await.unwrap();
    assert_eq!(ours.redeem(&scene.payee, &[scene.voucher(80)]).await.unwrap().paid(), Amount(10));

    let Some(other) = Anvil::start_with(&["--chain-id", "5"]) else { return };
    let mixed = RpcConfig { url: other.url().to_owned(), chain_id: None, ..cfg };
    let mixed = RpcConfig { other_urls: vec![scene.anvil.url().to_owned()], ..mixed };
    let error = Chain::connect_rpc(mixed).await.unwrap_err();
    assert!(matches!(error, ChainError::WrongChain { expected: 5, found: 31_337, .. }), "{error}");
}

#[tokio::test]
async fn a_node_that_comes_back_as_one_of_another_chain_is_not_asked() {
    let Some(scene) = Scene::final_after(1).await else { return };
    scene.open().await;
    let ours = connect(&scene).await;
    scene.way.set(Mood::Refuses);
    ours.channel(&scene.key, View::Latest).await.unwrap_err();
    scene.way.set(Mood::OtherChain);
    let error = ours.channel(&scene.key, View::Latest).await.unwrap_err();
    assert!(matches!(error, ChainError::WrongChain { found: 1, .. }), "{error}");
}

#[tokio::test]
async fn of_two_nodes_that_disagree_the_liar_changes_nothing() {
    let Some(scene) = Scene::final_after(1).await else { return };
    scene.open().await;
    for liar_is_first in [true, false] {
        let mut urls = [scene.way.url().to_owned(), scene.anvil.url().to_owned()];
        if !liar_is_first {
            urls.reverse();
        }
        let [url, other] = urls;
        let cfg = RpcConfig { url, other_urls: vec![other], ..scene.config() };
        let ours = Chain::connect_rpc(cfg).await.unwrap();
        // It says that the channel is closed, then that more was deposited.
        let honest = ours.channel(&scene.key, View::Final).await.unwrap();
        assert_eq!(honest.unwrap().deposit, Amount(600));
        scene.way.set(Mood::Slot([600, 0, (1 << 40) - 1, u64::from(PERIOD_S)]));
        assert_eq!(ours.channel(&scene.key, View::Latest).await.unwrap(), honest);
        assert_eq!(ours.channel(&scene.key, View::Final).await.unwrap(), None);
        scene.way.set(Mood::Slot([9_000, 0, 0, u64::from(PERIOD_S)]));
        assert_eq!(ours.channel(&scene.key, View::Final).await.unwrap(), honest);
        scene.way.set(Mood::Slot([0; 4]));
        assert_eq!(ours.channel(&scene.key, View::Latest).await.unwrap(), honest);
        assert_eq!(ours.channel(&scene.key, View::Final).await.unwrap(), None);
        scene.way.set(Mood::Honest);
    }
}
