//! Our `sol!` interface is the one that the compiler wrote down.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use serde_json::Value;
use sluice_settlement::{RevertReason, call};

fn abi() -> Vec<Value> {
    let artifact: Value =
        serde_json::from_str(include_str!("../contracts/artifacts/Channels.json")).unwrap();
    artifact["abi"].as_array().unwrap().clone()
}

/// `name(type,(type,..),..)` of one ABI entry.
fn signature(entry: &Value) -> String {
    let inputs = entry["inputs"].as_array().unwrap().iter().map(type_name);
    format!("{}({})", entry["name"].as_str().unwrap(), inputs.collect::<Vec<_>>().join(","))
}

fn type_name(input: &Value) -> String {
    let name = input["type"].as_str().unwrap();
    let Some(suffix) = name.strip_prefix("tuple") else { return name.to_owned() };
    let parts = input["components"].as_array().unwrap().iter().map(type_name);
    format!("({}){suffix}", parts.collect::<Vec<_>>().join(","))
}

fn selector(entry: &Value) -> [u8; 4] {
    sluice_proto::eth::keccak256(signature(entry).as_bytes())[..4].try_into().unwrap()
}

fn selectors(kind: &str) -> BTreeSet<[u8; 4]> {
    abi().iter().filter(|entry| entry["type"] == kind).map(selector).collect()
}

#[test]
fn every_call_that_we_encode_is_a_function_of_the_contract() {
    use sluice_proto::{Amount, ChannelId, ChannelKey, EthAddress, Voucher, WalletSignature};
    let address = EthAddress([1; 20]);
    let key = ChannelKey {
        payer: address,
        signer: address,
        payee: address,
        payout: address,
        token: address,
        salt: [1; 32],
    };
    let channel = ChannelId([1; 32]);
    let voucher = Voucher { channel, amount: Amount(1), statement: [1; 32] };
    let signature = WalletSignature([1; 65]);
    let functions = selectors("function");
    for data in [
        call::open(&key, Amount(1), 1),
        call::top_up(&key, Amount(1)),
        call::start_close(&key),
        call::finish_close(&key),
        call::redeem(&key, &voucher, &signature),
        call::redeem_many([(&key, &voucher, &signature)]),
        call::close_by_payee(&key, Amount(1), None, None),
        call::channel(channel),
        call::channel_id(&key),
        call::voucher_digest(&voucher),
        call::close_digest(channel, Amount(1)),
    ] {
        let selector: [u8; 4] = data[..4].try_into().unwrap();
        assert!(functions.contains(&selector), "0x{}", hex::encode(selector));
    }
}

#[test]
fn every_error_of_the_contract_has_a_name_of_ours() {
    // Of OpenZeppelin's EIP712, at deployment only.
    let foreign = ["StringTooLong", "InvalidShortString"];
    for entry in abi().iter().filter(|entry| entry["type"] == "error") {
        let name = entry["name"].as_str().unwrap();
        let arguments = entry["inputs"].as_array().unwrap().len();
        let mut data = selector(entry).to_vec();
        data.resize(4 + 32 * arguments, 0);
        let reason = RevertReason::decode(&data);
        let known = !matches!(reason, RevertReason::Unknown(_));
        assert_eq!(known, !foreign.contains(&name), "{name} is decoded as {reason:?}");
        assert!(!known || reason.to_string().starts_with(name), "{name}: {reason}");
    }
}

#[test]
fn reasons_of_other_contracts_are_shown_as_they_are() {
    let mut text = hex::decode("08c379a0").unwrap();
    text.extend_from_slice(&[0; 31]);
    text.push(32);
    text.extend_from_slice(&[0; 31]);
    text.push(3);
    text.extend_from_slice(b"why");
    text.resize(4 + 96, 0);
    assert_eq!(RevertReason::decode(&text), RevertReason::Text("why".to_owned()));
    for unknown in [&b""[..], b"ab", b"abcdefgh"] {
        assert_eq!(RevertReason::decode(unknown), RevertReason::Unknown(unknown.to_vec()));
    }
}
