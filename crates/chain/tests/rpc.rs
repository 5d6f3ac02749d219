//! What only a node can get wrong, and the difference between included and final.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use sluice_chain::anvil::Anvil;
use sluice_chain::{
    Chain, ChainError, Finality, INCLUSION_DEFAULT, PATIENCE_DEFAULT, RpcConfig, View,
};
use sluice_proto::{Amount, ChannelKey, EthAddress, WalletKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn config(url: &str) -> RpcConfig {
    RpcConfig {
        url: url.to_owned(),
        contract: None,
        token: None,
        finality: Finality::Confirmations(1),
        chain_id: None,
        patience: PATIENCE_DEFAULT,
        inclusion: INCLUSION_DEFAULT,
        other_urls: Vec::new(),
    }
}

async fn refused(cfg: RpcConfig) -> ChainError {
    Chain::connect_rpc(cfg).await.expect_err("must be refused")
}

#[tokio::test]
async fn a_node_that_is_not_there_is_named_without_its_secrets() {
    let error = refused(config("http://127.0.0.1:1/v3/secret?key=secret")).await;
    assert!(matches!(error, ChainError::Unreachable { .. }), "{error}");
    assert!(error.is_transient());
    let text = format!("{error} {error:?}");
    assert!(text.contains("http://127.0.0.1:1"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn an_unusable_url_is_refused() {
    for url in ["", "127.0.0.1:8545", "ftp://localhost", "http://"] {
        let error = refused(config(url)).await;
        assert!(matches!(error, ChainError::BadUrl { .. }), "{url}: {error}");
    }
}

#[tokio::test]
async fn another_chain_or_contract_than_configured_is_refused() {
    let Some(anvil) = Anvil::start() else { return };
    let cfg = config(anvil.url());
    let error = refused(RpcConfig { chain_id: Some(1), ..cfg.clone() }).await;
    assert!(matches!(error, ChainError::WrongChain { expected: 1, found: 31_337, .. }), "{error}");

    let nobody = EthAddress([5; 20]);
    let error = refused(RpcConfig { contract: Some(nobody), ..cfg.clone() }).await;
    assert!(matches!(error, ChainError::NoContract { what: "Channels", .. }), "{error}");
    let error = refused(RpcConfig { token: Some(nobody), ..cfg.clone() }).await;
    assert!(matches!(error, ChainError::NoContract { what: "token", .. }), "{error}");

    let bare = Chain::connect_rpc(cfg.clone()).await.unwrap();
    let error = bare.token_balance(nobody).await.unwrap_err();
    assert!(matches!(error, ChainError::NoAddress { what: "token", .. }), "{error}");
    let chain = bare.deploy_dev().await.unwrap();
    let error = refused(RpcConfig { contract: Some(chain.token()), ..cfg.clone() }).await;
    assert!(matches!(error, ChainError::OtherContract { what: "Channels", .. }), "{error}");

    let contract = Some(chain.domain().contract);
    let again = RpcConfig { contract, token: Some(chain.token()), ..cfg };
    let again = Chain::connect_rpc(again).await.unwrap().deploy_dev().await.unwrap();
    assert_eq!(again.domain(), chain.domain());
}

#[tokio::test]
async fn test_money_is_refused_on_a_chain_that_is_not_for_development() {
    let Some(anvil) = Anvil::start_with(&["--chain-id", "12345"]) else { return };
    let chain = Chain::connect_rpc(config(anvil.url())).await.unwrap();
    assert!(!chain.is_development());
    let errors = [
        chain.deploy_dev().await.unwrap_err(),
        chain.fund_dev(EthAddress([1; 20]), Amount(1)).await.unwrap_err(),
        chain.advance_dev(1).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, ChainError::NotDevelopment { chain_id: 12_345 }), "{error}");
    }
}

/// A channel key of `payer` in everything, with money for it.
async fn funded(chain: &Chain, payer: &WalletKey) -> ChannelKey {
    chain.fund_dev(payer.address(), Amount(100)).await.unwrap();
    ChannelKey {
        payer: payer.address(),
        signer: payer.address(),
        payee: EthAddress([2; 20]),
        payout: EthAddress([3; 20]),
        token: chain.token(),
        salt: [0; 32],
    }
}

fn payer() -> WalletKey {
    WalletKey::from_bytes([1; 32]).unwrap()
}

#[tokio::test]
async fn a_node_with_slow_blocks_is_waited_for() {
    let Some(anvil) = Anvil::start_with(&["--block-time", "0.2"]) else { return };
    let chain = Chain::connect_rpc(config(anvil.url())).await.unwrap().deploy_dev().await.unwrap();
    let payer = payer();
    let key = funded(&chain, &payer).await;
    chain.open_channel(&payer, key, Amount(90), 72 * 60 * 60).await.unwrap();
    let top_ups = [1, 2, 3].map(|more| {
        let (chain, payer) = (chain.clone(), payer.clone());
        tokio::spawn(async move { chain.top_up(&payer, &key, Amount(more)).await })
    });
    for top_up in top_ups {
        top_up.await.unwrap().unwrap();
    }
    let state = chain.channel(&key, View::Latest).await.unwrap().unwrap();
    assert_eq!(state.deposit, Amount(96));
}

#[tokio::test]
async fn finalized_is_what_the_node_says_is_final() {
    let Some(anvil) = Anvil::start_with(&["--slots-in-an-epoch", "1"]) else { return };
    let cfg = RpcConfig { finality: Finality::Finalized, ..config(anvil.url()) };
    let chain = Chain::connect_rpc(cfg).await.unwrap().deploy_dev().await.unwrap();
    let payer = payer();
    let key = funded(&chain, &payer).await;
    chain.open_channel(&payer, key, Amount(90), 72 * 60 * 60).await.unwrap();
    assert!(chain.channel(&key, View::Latest).await.unwrap().is_some());
    assert!(chain.channel(&key, View::Final).await.unwrap().is_none());
    for _ in 0..3 {
        chain.advance_dev(12).await.unwrap();
    }
    assert!(chain.channel(&key, View::Final).await.unwrap().is_some());
}

/// Answers every request with the same bytes.
async fn parrot(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn whatever_answers_instead_of_a_node_is_an_error_and_no_panic() {
    let close = "Connection: close\r\n\r\n";
    for (answer, expected) in [
        ("HTTP/1.1 401 Unauthorized\r\n", "401"),
        ("HTTP/1.1 429 Too Many Requests\r\n", "429"),
        ("HTTP/1.1 503 Service Unavailable\r\n", "503"),
        ("SSH-2.0-server\r\n", "cannot reach the chain"),
        ("HTTP/1.1 200 OK\r\n", "is it an Ethereum node?"),
    ] {
        let url = parrot(Box::leak(format!("{answer}{close}").into_boxed_str())).await;
        let error = refused(config(&url)).await.to_string();
        assert!(error.contains(expected) && error.contains(&url), "{answer}: {error}");
    }
    for (json, expected) in [
        ("nonsense", "is it an Ethereum node?"),
        ("{}", "is it an Ethereum node?"),
        (r#"{"jsonrpc":"2.0","id":0,"result":null}"#, "is it an Ethereum node?"),
        (r#"{"jsonrpc":"2.0","id":0,"result":"0x10000000000000000"}"#, "is it an Ethereum node?"),
        (r#"{"jsonrpc":"2.0","id":0,"result":"zz"}"#, "is it an Ethereum node?"),
        (r#"{"jsonrpc":"2.0","id":0,"error":{"code":-32601,"message":"no such"}}"#, "no such"),
        (r#"{"jsonrpc":"2.0","id":0,"result":"0x5"}"#, "wrong chain"),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{close}{json}", json.len());
        let url = parrot(Box::leak(answer.into_boxed_str())).await;
        let cfg = RpcConfig { chain_id: Some(1), ..config(&url) };
        let error = refused(cfg).await.to_string();
        assert!(error.contains(expected) && error.contains(&url), "{json}: {error}");
    }
}

#[tokio::test]
async fn what_is_included_is_not_final_until_the_confirmations_are_there() {
    let Some(anvil) = Anvil::start() else { return };
    let cfg = RpcConfig { finality: Finality::Confirmations(3), ..config(anvil.url()) };
    let chain = Chain::connect_rpc(cfg).await.unwrap().deploy_dev().await.unwrap();
    let payer = payer();
    let key = funded(&chain, &payer).await;
    chain.open_channel(&payer, key, Amount(100), 72 * 60 * 60).await.unwrap();
    for _ in 0..2 {
        assert!(chain.channel(&key, View::Latest).await.unwrap().is_some());
        assert!(chain.channel(&key, View::Final).await.unwrap().is_none());
        chain.advance_dev(1).await.unwrap();
    }
    assert!(chain.channel(&key, View::Final).await.unwrap().is_some());
}

#[tokio::test]
async fn a_node_that_dies_is_unreachable_and_the_error_says_to_try_again() {
    let Some(anvil) = Anvil::start() else { return };
    let chain = Chain::connect_rpc(config(anvil.url())).await.unwrap();
    drop(anvil);
    let error = chain.now_unix_s().await.unwrap_err();
    assert!(matches!(error, ChainError::Unreachable { .. }) && error.is_transient(), "{error}");
}

/// Genuine answers, of which spoilt copies are told.
const ANSWERS: [&str; 5] = [
    r#""0x0000000000000000000000000000000000000000000000000000000000000009""#,
    r#"{"number":"0x5","timestamp":"0x10","baseFeePerGas":"0x7"}"#,
    r#"{"transactionHash":"0x0000000000000000000000000000000000000000000000000000000000000009","blockNumber":"0x5","status":"0x1","gasUsed":"0x5208","effectiveGasPrice":"0x9","contractAddress":null,"logs":[{"address":"0x0000000000000000000000000000000000000009","topics":["0x0000000000000000000000000000000000000000000000000000000000000009"],"data":"0x"}]}"#,
    r#"{"code":3,"message":"execution reverted","data":"0x08c379a0"}"#,
    "null",
];

/// A node that says to each request what it is told to say, whatever was asked.
fn liar() -> (String, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let says = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = std::sync::Arc::clone(&says);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let body = told.lock().unwrap().clone();
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
            let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&body);
        }
    });
    (url, says)
}

/// A block of which each field in turn is missing or cannot be.
#[tokio::test]
async fn a_block_with_a_field_that_is_missing_or_cannot_be_is_an_error() {
    let block = serde_json::json!({"number": "0x5", "timestamp": "0x10", "baseFeePerGas": "0x7"});
    let bad = [
        "null",
        r#""zz""#,
        r#""0xzz""#,
        r#""-0x1""#,
        r#""0x10000000000000000""#,
        "1.5",
        "{}",
        "[]",
        "true",
    ];
    let (url, says) = liar();
    let answer = |result: &serde_json::Value| {
        let answer = serde_json::json!({"jsonrpc": "2.0", "id": 0, "result": result});
        *says.lock().unwrap() = answer.to_string().into_bytes();
    };
    answer(&"0x1".into());
    let chain = Chain::connect_rpc(config(&url)).await.unwrap();
    answer(&block);
    assert_eq!(chain.now_unix_s().await.unwrap(), 16);
    for field in ["number", "timestamp"] {
        let mut without = block.clone();
        without.as_object_mut().unwrap().remove(field);
        let values = bad.iter().map(|text| serde_json::from_str(text).unwrap());
        let spoilt = values.map(|value: serde_json::Value| {
            let mut spoilt = block.clone();
            spoilt[field] = value;
            spoilt
        });
        for wrong in std::iter::once(without).chain(spoilt) {
            // The liar must name the chain again after each wrong answer, so it is asked anew.
            answer(&"0x1".into());
            let chain = Chain::connect_rpc(config(&url)).await.unwrap();
            answer(&wrong);
            let error = chain.now_unix_s().await.unwrap_err();
            assert!(matches!(error, ChainError::BadAnswer { .. }), "{wrong}: {error}");
        }
    }
}

#[test]
fn a_nodes_answers() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (url, says) = liar();
    *says.lock().unwrap() = br#"{"jsonrpc":"2.0","id":0,"result":"0x1"}"#.to_vec();
    let cfg = RpcConfig { token: None, contract: None, ..config(&url) };
    let chain = runtime.block_on(Chain::connect_rpc(cfg)).unwrap();
    let fed = std::panic::AssertUnwindSafe((runtime, chain, says));
    let seconds = std::env::var("SLUICE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let target = bolero::check!();
    let target = match seconds.map(Duration::from_secs) {
        Some(time) => target.with_test_time(time).with_iterations(usize::MAX),
        None => target.with_iterations(100),
    };
    target.with_type::<(u8, Vec<u8>, u16, bool)>().for_each(|(pick, noise, place, whole)| {
        let (runtime, chain, says) = &*fed;
        let pick = usize::from(*pick) % ANSWERS.len();
        let kind = if pick == 3 { "error" } else { "result" };
        let text = format!(r#"{{"jsonrpc":"2.0","id":0,"{kind}":{}}}"#, ANSWERS[pick]);
        let mut bytes = text.into_bytes();
        if !whole {
            let at = usize::from(*place) % bytes.len();
            bytes.splice(at..(at + noise.len() % 4).min(bytes.len()), noise.iter().copied());
        }
        *says.lock().unwrap() = bytes;
        let account = payer().address();
        // Each answers or says what is wrong.
        runtime.block_on(async {
            let _ = chain.coin_balance_wei(account).await;
            let _ = chain.now_unix_s().await;
            let _ = chain.gas_price_wei().await;
        });
    });
}
