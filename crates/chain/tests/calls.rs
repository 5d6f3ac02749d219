//! Every argument of every function of `Channels`, on a real node, in turn missing, malformed, out of
//! its range or somebody else's: the contract refuses, and nothing has changed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};
use sluice_chain::anvil::Anvil;
use sluice_chain::{
    Chain, Finality, INCLUSION_DEFAULT, PATIENCE_DEFAULT, RevertReason, RpcConfig, View,
};
use sluice_proto::{Amount, ChannelKey, EthAddress, Voucher, WalletKey, WalletSignature};
use sluice_settlement::call;

const PERIOD_S: u32 = 72 * 60 * 60;
const WORD: usize = 32;

/// Functions that change nothing, and answer whatever they are asked.
const VIEWS: [&str; 4] = ["channels", "channelId", "voucherDigest", "closeDigest"];

/// What else a payer may well choose when it opens a channel.
const FREE_TO_CHOOSE: [(&str, &[&str]); 4] = [
    ("open key.signer", &["somebody else", "the contract"]),
    ("open key.payee", &["somebody else", "the contract"]),
    ("open key.payout", &["somebody else"]),
    ("open key.salt", &["zero", "all ones", "another"]),
];

fn abi() -> Vec<Value> {
    let artifact = include_str!("../../settlement/contracts/artifacts/Channels.json");
    let artifact: Value = serde_json::from_str(artifact).unwrap();
    let mut functions = artifact["abi"].as_array().unwrap().clone();
    functions.retain(|entry| {
        entry["type"] == "function" && !entry["inputs"].as_array().unwrap().is_empty()
    });
    functions
}

/// Where a part of an argument stands in call data.
struct Place {
    name: String,
    kind: String,
    at: usize,
}

fn number(data: &[u8], at: usize) -> usize {
    usize::from_str_radix(&hex::encode(&data[at..at + WORD]), 16).unwrap()
}

fn is_dynamic(input: &Value) -> bool {
    let parts = || input["components"].as_array().unwrap().iter().any(is_dynamic);
    match input["type"].as_str().unwrap() {
        "bytes" | "string" => true,
        kind if kind.ends_with("[]") => true,
        "tuple" => parts(),
        _ => false,
    }
}

/// All parts of a tuple whose head begins at `base`; returns where the head ends.
fn places(inputs: &Value, data: &[u8], base: usize, within: &str, out: &mut Vec<Place>) -> usize {
    let mut at = base;
    for input in inputs.as_array().unwrap() {
        let name = format!("{within}{}", input["name"].as_str().filter(|n| !n.is_empty()).unwrap());
        let kind = input["type"].as_str().unwrap();
        let within = format!("{name}.");
        if !is_dynamic(input) {
            at = if kind == "tuple" {
                places(&input["components"], data, at, &within, out)
            } else {
                out.push(Place { name, kind: kind.to_owned(), at });
                at + WORD
            };
            continue;
        }
        let place = |what: &str, kind: &str, at| {
            let name = format!("{name}{what}");
            Place { name, kind: kind.to_owned(), at }
        };
        out.push(place("'s place", "offset", at));
        let start = base + number(data, at);
        at += WORD;
        match kind {
            "bytes" => out.push(place("", "bytes", start)),
            "tuple[]" => {
                out.push(place("'s count", "count", start));
                let elements = start + WORD;
                for index in 0..number(data, start) {
                    let element = elements + WORD * index;
                    out.push(place(&format!("[{index}]'s place"), "offset", element));
                    let begin = elements + number(data, element);
                    places(&input["components"], data, begin, &within, out);
                }
            }
            other => panic!("no cases for {other}"),
        }
    }
    at
}

/// What may stand in a place of this kind: its name, the word, and whether it is no such value at all.
fn hostile(
    kind: &str,
    was: [u8; WORD],
    contract: EthAddress,
) -> Vec<(&'static str, [u8; WORD], bool)> {
    let small = |n: u128| {
        let mut word = [0; WORD];
        word[16..].copy_from_slice(&n.to_be_bytes());
        word
    };
    let with = |index: usize, byte: u8| {
        let mut word = was;
        word[index] ^= byte;
        word
    };
    let mut itself = [0; WORD];
    itself[12..].copy_from_slice(&contract.0);
    let (none, all) = ([0; WORD], [0xFF; WORD]);
    match kind {
        "address" => vec![
            ("zero", none, false),
            ("somebody else", with(31, 1), false),
            ("the contract", itself, false),
            ("more than 160 bits", with(11, 1), true),
        ],
        "bytes32" => {
            vec![("zero", none, false), ("all ones", all, false), ("another", with(31, 1), false)]
        }
        "uint128" => vec![
            ("zero", none, false),
            ("the largest", small(u128::MAX), false),
            ("more than 128 bits", with(15, 1), true),
            ("less than nothing", all, true),
        ],
        "uint32" => vec![
            ("zero", none, false),
            ("too short", small(48 * 3600 - 1), false),
            ("too long", small(180 * 86_400 + 1), false),
            ("the largest", small(u128::from(u32::MAX)), false),
            ("more than 32 bits", with(27, 1), true),
        ],
        // Of signatures: the word is the length.
        "bytes" => vec![
            ("empty", none, false),
            ("a byte short", small(64), false),
            ("a byte long", small(66), false),
            ("longer than the call", small(1 << 40), true),
            ("longer than any memory", all, true),
        ],
        "offset" => vec![
            ("at the beginning", none, true),
            ("beyond the call", small(1 << 40), true),
            ("beyond any memory", all, true),
        ],
        "count" => vec![
            ("none", none, false),
            ("more than there are", small(2), true),
            ("more than any memory holds", all, true),
        ],
        other => panic!("no cases for arguments of type {other}"),
    }
}

struct Scene {
    anvil: Anvil,
    chain: Chain,
    payer: WalletKey,
    payee: WalletKey,
    open: ChannelKey,
    ending: ChannelKey,
}

impl Scene {
    async fn new() -> Option<Self> {
        let anvil = Anvil::start()?;
        let cfg = RpcConfig {
            url: anvil.url().to_owned(),
            other_urls: Vec::new(),
            contract: None,
            token: None,
            finality: Finality::Confirmations(1),
            chain_id: None,
            patience: PATIENCE_DEFAULT,
            inclusion: INCLUSION_DEFAULT,
        };
        let chain = Chain::connect_rpc(cfg).await.unwrap().deploy_dev().await.unwrap();
        let [payer, payee] = [1, 2].map(|seed| WalletKey::from_bytes([seed; 32]).unwrap());
        chain.fund_dev(payer.address(), Amount(10_000)).await.unwrap();
        let key = |salt| ChannelKey {
            payer: payer.address(),
            signer: payer.address(),
            payee: payee.address(),
            payout: EthAddress([0xaa; 20]),
            token: chain.token(),
            salt: [salt; 32],
        };
        let (open, ending) = (key(1), key(2));
        for key in [open, ending] {
            chain.open_channel(&payer, key, Amount(600), PERIOD_S).await.unwrap();
        }
        chain.start_close(&payer, &ending).await.unwrap();
        chain.advance_dev(PERIOD_S.into()).await.unwrap();
        let scene = Self { anvil, chain, payer, payee, open, ending };
        // What is left to approve is approved, so that nothing fails for want of it.
        let approve = call::approve(scene.chain.domain().contract, Amount(5_000));
        scene.ask("anvil_impersonateAccount", &json!([address(scene.payer.address())])).unwrap();
        let transaction = json!({
            "from": address(scene.payer.address()),
            "to": address(scene.chain.token()),
            "data": format!("0x{}", hex::encode(approve)),
        });
        scene.ask("eth_sendTransaction", &json!([transaction])).unwrap();
        Some(scene)
    }

    /// Asks the node itself, without any of our code.
    fn ask(&self, method: &str, params: &Value) -> Result<Value, Value> {
        let host = self.anvil.url().strip_prefix("http://").unwrap();
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let (mut stream, body) = (TcpStream::connect(host).unwrap(), request.to_string());
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let answer: Value = serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap();
        if answer["error"].is_null() {
            Ok(answer["result"].clone())
        } else {
            Err(answer["error"].clone())
        }
    }

    /// Tries a call; why the contract refused it.
    fn call(&self, from: EthAddress, data: &[u8]) -> Result<(), RevertReason> {
        let contract = address(self.chain.domain().contract);
        let data = format!("0x{}", hex::encode(data));
        let call = json!({"from": address(from), "to": contract, "data": data});
        self.ask("eth_call", &json!([call, "latest"])).map(drop).map_err(|error| {
            let reason = error["data"].as_str().unwrap_or("0x");
            RevertReason::decode(&hex::decode(&reason[2..]).unwrap())
        })
    }

    fn voucher(&self, amount: u128) -> (Voucher, WalletSignature) {
        let domain = self.chain.domain();
        let channel = self.open.id(&domain);
        let voucher = Voucher { channel, amount: Amount(amount), statement: [7; 32] };
        (voucher, self.payer.sign(voucher.digest(&domain)))
    }

    /// A good call of each function, and who makes it.
    fn calls(&self) -> BTreeMap<&'static str, (EthAddress, Vec<u8>)> {
        let [payer, anyone] = [self.payer.address(), EthAddress([0x77; 20])];
        let (voucher, signature) = self.voucher(400);
        let id = voucher.channel;
        let consent = self.payee.sign(self.chain.domain().close_digest(id, Amount(400)));
        let new = ChannelKey { salt: [3; 32], ..self.open };
        let close = call::close_by_payee(
            &self.open,
            Amount(400),
            Some((&voucher, &signature)),
            Some(&consent),
        );
        BTreeMap::from([
            ("open", (payer, call::open(&new, Amount(600), PERIOD_S))),
            ("topUp", (payer, call::top_up(&self.open, Amount(10)))),
            ("startClose", (payer, call::start_close(&self.open))),
            ("finishClose", (anyone, call::finish_close(&self.ending))),
            ("redeem", (anyone, call::redeem(&self.open, &voucher, &signature))),
            ("redeemMany", (anyone, call::redeem_many([(&self.open, &voucher, &signature)]))),
            ("closeByPayee", (anyone, close)),
            ("channels", (anyone, call::channel(id))),
            ("channelId", (anyone, call::channel_id(&self.open))),
            ("voucherDigest", (anyone, call::voucher_digest(&voucher))),
            ("closeDigest", (anyone, call::close_digest(id, Amount(400)))),
        ])
    }

    async fn standing(&self) -> Vec<Option<sluice_chain::ChannelState>> {
        let mut found = Vec::new();
        for key in [&self.open, &self.ending] {
            found.push(self.chain.channel(key, View::Latest).await.unwrap());
        }
        found
    }
}

fn address(of: EthAddress) -> String {
    format!("0x{}", hex::encode(of.0))
}

#[tokio::test]
async fn every_argument_of_every_function_refuses_what_it_cannot_be() {
    let Some(scene) = Scene::new().await else { return };
    let (calls, contract) = (scene.calls(), scene.chain.domain().contract);
    let functions = abi();
    let named: BTreeSet<_> = functions.iter().map(|f| f["name"].as_str().unwrap()).collect();
    let called: BTreeSet<_> = calls.keys().copied().collect();
    assert_eq!(named, called, "a function of the contract has no case, or a case no function");
    let before = scene.standing().await;
    let (mut tried, mut chosen) = (0, BTreeSet::new());
    for function in &functions {
        let name = function["name"].as_str().unwrap();
        let (from, data) = &calls[name];
        assert_eq!(scene.call(*from, data), Ok(()), "{name} as it should be");
        for short in [data.len() - WORD, 4 + WORD - 1, 4, 3] {
            assert!(scene.call(*from, &data[..short]).is_err(), "{name} cut to {short} bytes");
        }
        let mut found = Vec::new();
        // Offsets count from behind the function's selector.
        places(&function["inputs"], &data[4..], 0, "", &mut found);
        assert!(!found.is_empty(), "{name} has arguments");
        for Place { name: argument, kind, at } in found {
            let at = 4 + at;
            let was = data[at..at + WORD].try_into().unwrap();
            for (what, word, is_malformed) in hostile(&kind, was, contract) {
                let case = format!("{name} {argument}");
                if word == was || (VIEWS.contains(&name) && !is_malformed) {
                    continue;
                }
                let mut spoilt = data.clone();
                spoilt[at..at + WORD].copy_from_slice(&word);
                let answer = scene.call(*from, &spoilt);
                let may = FREE_TO_CHOOSE.iter().find(|(free, _)| *free == case);
                if may.is_some_and(|(_, values)| values.contains(&what)) {
                    assert_eq!(answer, Ok(()), "{case}: {what}");
                    chosen.insert((case, what));
                    continue;
                }
                tried += 1;
                let reason = answer.expect_err(&format!("{case}: {what} was taken"));
                // What is no token, or no value of its type, fails before the contract can name it.
                let is_named = !matches!(reason, RevertReason::Unknown(_));
                assert!(is_named || is_malformed || argument.ends_with("token"), "{case}: {what}");
            }
        }
    }
    assert_eq!(chosen.len(), FREE_TO_CHOOSE.iter().map(|(_, values)| values.len()).sum::<usize>());
    assert!(tried > 200, "{tried}");
    assert_eq!(scene.standing().await, before);
    assert!(scene.call(EthAddress([1; 20]), &[0xde, 0xad, 0xbe, 0xef]).is_err());
}
