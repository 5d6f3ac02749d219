//! Every field of every answer that a node gives, in turn missing, of another type, too long, below
//! zero, beyond its range, or about something else: what is wrong is named, and nothing has changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/scene.rs"]
mod scene;

use std::collections::BTreeSet;
use std::time::Duration;

use scene::{PERIOD_S, Scene};
use serde_json::{Value, json};
use sluice_chain::anvil::Mood;
use sluice_chain::{Chain, ChainError, PATIENCE_DEFAULT, RpcConfig, View};
use sluice_proto::Amount;

/// A transaction whose receipt cannot be is waited for no longer.
const SOON: Duration = Duration::from_millis(150);
const REDEEMED: &str = "0";

/// Where the requests and the types of their answers are.
const SOURCES: [&str; 4] = [
    include_str!("../src/rpc.rs"),
    include_str!("../src/rpc/node.rs"),
    include_str!("../src/rpc/nodes.rs"),
    include_str!("../src/rpc/send.rs"),
];

/// What is asked of a node only where its keys and its clock are a test's.
const OF_DEVELOPMENT: [&str; 4] =
    ["eth_accounts", "eth_sendTransaction", "evm_increaseTime", "evm_mine"];

/// Fields of the types of answers, each with its method and where it stands there.
const FIELDS: [(&str, &str, &str, &str); 13] = [
    ("Receipt", "transaction_hash", RECEIPT, "transactionHash"),
    ("Receipt", "block_number", RECEIPT, "blockNumber"),
    ("Receipt", "status", RECEIPT, "status"),
    ("Receipt", "gas_used", RECEIPT, "gasUsed"),
    ("Receipt", "effective_gas_price", RECEIPT, "effectiveGasPrice"),
    ("Receipt", "l1_fee", RECEIPT, "l1Fee"),
    ("Receipt", "contract_address", RECEIPT, "contractAddress"),
    ("Receipt", "logs", RECEIPT, "logs"),
    ("Log", "address", RECEIPT, "logs.CHANNELS.address"),
    ("Log", "topics", RECEIPT, "logs.CHANNELS.topics"),
    ("Log", "data", RECEIPT, "logs.CHANNELS.data"),
    ("Block", "number", BLOCK, "number"),
    ("Block", "timestamp", BLOCK, "timestamp"),
];
const BASE_FEE: (&str, &str, &str, &str) = ("Block", "base_fee_per_gas", BLOCK, "baseFeePerGas");
const RECEIPT: &str = "eth_getTransactionReceipt";
const BLOCK: &str = "eth_getBlockByNumber";
/// Fields that may be missing or null, as on some chains and before a block has it.
const MAY_BE_NOTHING: [&str; 3] = ["l1_fee", "contract_address", "block_number"];

/// What no field can be, whatever it should be.
fn nonsense() -> Vec<Option<Value>> {
    let long = format!("0x1{}", "0".repeat(64));
    let longer = format!("0x{}", "f".repeat((1 << 20) + 1));
    let texts = ["", "0xzz", "zz", "-0x1", "0x-1", "0x1.5", long.as_str(), longer.as_str()];
    let mut all: Vec<_> = texts.iter().map(|text| Some(json!(text))).collect();
    all.extend([json!(-1), json!(1.5), json!(true), json!({}), json!([1]), Value::Null].map(Some));
    all.push(None);
    all
}

impl Scene {
    /// With a channel that is open.
    async fn opened() -> Option<Self> {
        let scene = Self::new(1_000_000, 2, PATIENCE_DEFAULT).await?;
        let (payer, key) = (&scene.payer, scene.key);
        scene.chain.open_channel(payer, key, Amount(900_000), PERIOD_S).await.unwrap();
        Some(scene)
    }

    fn soon(&self) -> RpcConfig {
        RpcConfig { inclusion: SOON, ..self.config() }
    }

    /// Asks through the way, which is honest at first.
    async fn ours(&self) -> Chain {
        self.way.set(Mood::Honest);
        Chain::connect_rpc(self.soon()).await.unwrap()
    }

    /// Redeems ten more, while the way lies from its beginning on.
    async fn redeem(&self, redeemed: &mut u128, lie: Mood) -> Result<Amount, ChainError> {
        let ours = self.ours().await;
        self.way.set(lie);
        *redeemed += 10;
        let paid = ours.redeem(&self.payee, &[self.voucher(*redeemed)]).await;
        self.way.set(Mood::Honest);
        paid.map(|receipt| receipt.paid())
    }

    async fn on_chain(&self) -> u128 {
        let state = self.chain.channel(&self.key, View::Latest).await.unwrap();
        state.unwrap().redeemed.0
    }
}

/// Names of methods in the source: texts that begin as theirs do.
fn methods() -> BTreeSet<&'static str> {
    let texts = SOURCES.iter().flat_map(|source| {
        let code = source.split("#[cfg(test)]").next().unwrap();
        code.split('"').skip(1).step_by(2)
    });
    let starts = ["eth_", "evm_", "net_", "web3_", "debug_", "txpool_"];
    texts.filter(|text| starts.iter().any(|start| text.starts_with(start))).collect()
}

/// Fields of the types that answers are read into: type and name.
fn fields() -> BTreeSet<(&'static str, &'static str)> {
    let mut found = BTreeSet::new();
    for part in SOURCES.iter().flat_map(|source| source.split("Deserialize)]").skip(1)) {
        let Some((_, part)) = part.split_once(" struct ") else { continue };
        let Some((name, body)) = part.split_once(" {") else { continue };
        let body = body.split("\n}").next().unwrap();
        let lines = body.lines().filter_map(|line| line.trim().strip_prefix("pub(super) "));
        found.extend(lines.map(|line| (name, line.split(':').next().unwrap())));
    }
    found
}

/// Each thing that is asked, and by which of our calls.
const ASKED: [&str; 10] = [
    "eth_chainId",
    "eth_getCode",
    "eth_call",
    "eth_getBalance",
    "eth_estimateGas",
    "eth_getTransactionCount",
    "eth_maxPriorityFeePerGas",
    "eth_sendRawTransaction",
    BLOCK,
    RECEIPT,
];

#[test]
fn every_method_and_every_field_has_its_cases() {
    let asked: BTreeSet<_> = ASKED.into_iter().chain(OF_DEVELOPMENT).collect();
    assert_eq!(methods(), asked, "a method that is asked has no case, or a case no method");
    let cases = FIELDS.iter().chain([&BASE_FEE]).map(|(of, name, ..)| (*of, *name));
    assert_eq!(fields(), cases.collect(), "a field that is read has no case, or a case no field");
}

/// The whole answer is nonsense.
#[tokio::test]
async fn an_answer_that_cannot_be_is_named_by_its_method() {
    let Some(scene) = Scene::opened().await else { return };
    let mut redeemed = 0;
    for method in ASKED {
        for value in nonsense() {
            let case = format!("{method}: {:.60}", format!("{value:?}"));
            let lie = Mood::Field(method, Vec::new(), value.clone());
            let ours = scene.ours().await;
            let before = scene.on_chain().await;
            scene.way.set(lie.clone());
            let account = scene.payee.address();
            let outcome = match method {
                "eth_chainId" | "eth_getCode" => Chain::connect_rpc(scene.soon()).await.map(drop),
                "eth_call" => ours.channel(&scene.key, View::Latest).await.map(drop),
                "eth_getBalance" => ours.coin_balance_wei(account).await.map(drop),
                BLOCK => ours.now_unix_s().await.map(drop),
                _ => scene.redeem(&mut redeemed, lie).await.map(drop),
            };
            scene.way.set(Mood::Honest);
            match method {
                // Some nodes do not know it: a common tip is offered.
                "eth_maxPriorityFeePerGas" => outcome.expect(&case),
                // It may have been taken all the same: the receipt says so.
                "eth_sendRawTransaction" => outcome.expect(&case),
                // It was sent: null means that it waits.
                RECEIPT => {
                    let error = outcome.expect_err(&case);
                    assert!(matches!(error, ChainError::Timeout { .. }), "{case}: {error}");
                    let waits = matches!(value, None | Some(Value::Null));
                    assert_eq!(error.to_string().contains(method), !waits, "{case}: {error}");
                    assert_eq!(scene.on_chain().await, redeemed, "{case}: it is included");
                    continue;
                }
                _ => {
                    let error = outcome.expect_err(&case);
                    let is_named =
                        matches!(&error, ChainError::BadAnswer { method: of, .. } if of == method);
                    // Well-formed, but no code, and no channel.
                    let is_none = matches!(error, ChainError::NoContract { .. } if method == "eth_getCode")
                        || matches!(error, ChainError::OtherContract { .. } if method == "eth_call");
                    assert!(is_named || is_none, "{case}: {error}");
                    assert_eq!(scene.on_chain().await, before, "{case}");
                    redeemed = before;
                }
            }
        }
    }
}

/// One field of it is nonsense.
#[tokio::test]
async fn a_field_that_cannot_be_is_an_error_and_an_unseen_receipt_is_waited_for() {
    let Some(scene) = Scene::opened().await else { return };
    let mut redeemed = 0;
    for (_, field, method, path) in FIELDS.into_iter().chain([BASE_FEE]) {
        let path = path.replace("CHANNELS", REDEEMED);
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        for value in nonsense() {
            let case = format!("{method} {}: {:.60}", path.join("."), format!("{value:?}"));
            let is_nothing = matches!(value, None | Some(Value::Null));
            let lie = Mood::Field(method, path.clone(), value);
            if method == BLOCK {
                let ours = scene.ours().await;
                scene.way.set(lie);
                let error = ours.now_unix_s().await.expect_err(&case);
                assert!(matches!(error, ChainError::BadAnswer { .. }), "{case}: {error}");
                continue;
            }
            let paid = scene.redeem(&mut redeemed, lie).await;
            assert_eq!(scene.on_chain().await, redeemed, "{case}: it is included");
            if is_nothing && MAY_BE_NOTHING.contains(&field) && field != "block_number" {
                assert_eq!(paid.expect(&case), Amount(10), "{case}");
                continue;
            }
            let error = paid.expect_err(&case);
            assert!(matches!(error, ChainError::Timeout { .. }), "{case}: {error}");
            let waits = is_nothing && field == "block_number";
            assert_eq!(error.to_string().contains(method), !waits, "{case}: {error}");
        }
    }
    // What was redeemed is what the vouchers said, once each.
    let payout = scene.chain.token_balance(scene.key.payout).await.unwrap();
    assert_eq!(payout, Amount(redeemed));
}

/// Each field is well-formed, and about something else.
#[tokio::test]
async fn a_receipt_of_another_transaction_contract_or_channel_pays_nothing() {
    let Some(scene) = Scene::opened().await else { return };
    let mut redeemed = 0;
    let word = |n: u128| format!("{n:064x}");
    let (own, many) = (word(10), "f".repeat(64));
    let log = |part: &str| format!("logs.{REDEEMED}.{part}");
    let somebody = json!(format!("0x{}", "77".repeat(32)));
    let contract = json!(format!("0x{}", "77".repeat(20)));
    // Where, what, and whether such a receipt can be.
    let cases = [
        ("transactionHash".to_owned(), somebody.clone(), false),
        ("status".to_owned(), json!("0x2"), false),
        ("status".to_owned(), json!("0xffffffffffffffff"), false),
        (log("topics.0"), somebody.clone(), false),
        (log("topics"), json!([]), false),
        (log("data"), json!("0x"), false),
        (log("data"), json!(format!("0x{own}")), false),
        (log("data"), json!(format!("0x{own}{own}{own}")), false),
        (log("data"), json!(format!("0x{many}{own}")), false),
        (log("data"), json!(format!("0x{own}{many}")), false),
        (log("address"), contract, true),
        (log("topics.1"), somebody, true),
        ("logs".to_owned(), json!([]), true),
    ];
    for (path, value, can_be) in cases {
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        let case = format!("{} {value}", path.join("."));
        let paid = scene.redeem(&mut redeemed, Mood::Field(RECEIPT, path, Some(value))).await;
        assert_eq!(scene.on_chain().await, redeemed, "{case}: it is included");
        if can_be {
            assert_eq!(paid.expect(&case), Amount(0), "{case}: nothing is said of our channel");
            continue;
        }
        let error = paid.expect_err(&case);
        assert!(matches!(error, ChainError::Timeout { .. }), "{case}: {error}");
        assert!(error.to_string().contains(RECEIPT), "{case}: {error}");
    }
    let refused = scene
        .redeem(&mut redeemed, Mood::Field(RECEIPT, vec!["status".into()], Some(json!("0x0"))))
        .await;
    assert!(matches!(refused, Err(ChainError::Reverted { .. })), "{refused:?}");
}

/// Words that the contract and the token answer with: too few, too many, beyond their types.
#[tokio::test]
async fn a_contracts_answer_that_cannot_be_is_another_contract() {
    let Some(scene) = Scene::opened().await else { return };
    let good = |n: u128| format!("{n:064x}");
    let slot = [good(600), good(0), good(0), good(PERIOD_S.into())];
    let mut bad = vec![String::new(), "00".into(), slot[..3].concat(), slot.concat() + "00"];
    bad.push(slot.concat() + &good(0));
    // Deposit and redeemed have 96 bits, the end 40, the period 24.
    for (index, bits) in [(0, 96), (1, 96), (2, 40), (3, 24)] {
        for value in [format!("{:064x}", 1_u128 << bits), "f".repeat(64)] {
            let mut words = slot.clone();
            words[index] = value;
            bad.push(words.concat());
        }
    }
    let lie = |words: &str| Mood::Field("eth_call", Vec::new(), Some(json!(format!("0x{words}"))));
    for words in &bad {
        for view in [View::Latest, View::Final] {
            let ours = scene.ours().await;
            scene.way.set(lie(words));
            let error = ours.channel(&scene.key, view).await.expect_err(words);
            assert!(matches!(error, ChainError::OtherContract { what: "Channels", .. }), "{error}");
        }
    }
    for words in ["", "00", &format!("{}00", good(1)), &"f".repeat(64)] {
        let ours = scene.ours().await;
        scene.way.set(lie(words));
        let error = ours.token_balance(scene.key.payout).await.expect_err(words);
        assert!(
            matches!(error, ChainError::OtherContract { what: "token", .. }),
            "{words}: {error}"
        );
        let error = ours.token_info().await.expect_err(words);
        assert!(
            matches!(error, ChainError::OtherContract { what: "token", .. }),
            "{words}: {error}"
        );
    }
}
