//! Tokens that are not OpenZeppelin's.

use alloy_sol_types::{SolCall, sol};
use sluice_proto::{Amount, ChannelKey, EthAddress};
use sluice_settlement::{RevertReason, call};

use crate::evm::{Done, Evm};
use crate::{PAYER, PAYOUT, PERIOD_S, STRANGER, key, payee, voucher};

sol! {
    function set(uint8 mode, address target, bytes data);
    function callsBack() returns (uint128);
    function callsBackOk() returns (uint128);
}

const FEE_ON_TRANSFER: u8 = 1;
const NO_RETURN_VALUE: u8 = 2;
const RETURNS_FALSE: u8 = 3;
const CALLS_BACK: u8 = 4;

fn code() -> Vec<u8> {
    let artifact = include_str!("../../contracts/artifacts/HostileToken.json");
    let artifact: serde_json::Value = serde_json::from_str(artifact).unwrap();
    hex::decode(artifact["bytecode"].as_str().unwrap().trim_start_matches("0x")).unwrap()
}

struct Scene {
    evm: Evm,
    token: EthAddress,
    key: ChannelKey,
}

impl Scene {
    fn new() -> Self {
        let mut evm = Evm::new();
        let token = evm.deploy(code());
        evm.send(PAYER, token, call::mint(PAYER, Amount(1_000))).unwrap();
        let key = ChannelKey { token, ..key(&evm, 1) };
        Self { evm, token, key }
    }

    fn behave(&mut self, mode: u8, target: EthAddress, data: Vec<u8>) {
        let set = setCall { mode, target: target.0.into(), data: data.into() };
        self.evm.send(STRANGER, self.token, set.abi_encode()).unwrap();
    }

    fn open(&mut self) -> Result<Done, RevertReason> {
        self.evm.channels(PAYER, call::open(&self.key, Amount(500), PERIOD_S))
    }

    fn redeem(&mut self, amount: u128) -> Result<Done, RevertReason> {
        let (voucher, signature) = voucher(&self.evm, &self.key, amount);
        self.evm.channels(STRANGER, call::redeem(&self.key, &voucher, &signature))
    }

    fn balances(&mut self) -> [u128; 3] {
        let contract = self.evm.channels;
        [PAYER, PAYOUT, contract].map(|account| self.evm.balance_in(self.token, account))
    }

    fn counted(&mut self, data: Vec<u8>) -> u8 {
        *self.evm.send(STRANGER, self.token, data).unwrap().output.last().unwrap()
    }
}

#[test]
fn a_fee_on_transfer_is_refused_at_deposit() {
    let mut scene = Scene::new();
    scene.behave(FEE_ON_TRANSFER, STRANGER, Vec::new());
    let refused = scene.open().unwrap_err();
    assert!(matches!(refused, RevertReason::DepositMismatch { .. }), "{refused}");
    assert_eq!(scene.evm.slot(&scene.key), None);

    scene.behave(0, STRANGER, Vec::new());
    scene.open().unwrap();
    scene.behave(FEE_ON_TRANSFER, STRANGER, Vec::new());
    let refused = scene.evm.channels(PAYER, call::top_up(&scene.key, Amount(500))).unwrap_err();
    assert!(matches!(refused, RevertReason::DepositMismatch { .. }), "{refused}");
    assert_eq!(scene.evm.slot(&scene.key).unwrap().deposit, Amount(500));
}

#[test]
fn a_token_without_return_value_works() {
    let mut scene = Scene::new();
    scene.behave(NO_RETURN_VALUE, STRANGER, Vec::new());
    scene.open().unwrap();
    scene.redeem(200).unwrap();
    let close = call::close_by_payee(&scene.key, Amount(200), None, None);
    scene.evm.channels(payee().address(), close).unwrap();
    assert_eq!(scene.balances(), [800, 200, 0]);
}

#[test]
fn a_token_that_returns_false_moves_nothing_and_loses_no_voucher() {
    let mut scene = Scene::new();
    scene.behave(RETURNS_FALSE, STRANGER, Vec::new());
    assert_eq!(scene.open().unwrap_err(), RevertReason::Token(scene.token));
    scene.behave(0, STRANGER, Vec::new());
    scene.open().unwrap();
    scene.behave(RETURNS_FALSE, STRANGER, Vec::new());
    assert_eq!(scene.redeem(200).unwrap_err(), RevertReason::Token(scene.token));
    assert_eq!(scene.evm.slot(&scene.key).unwrap().redeemed, Amount(0));
    scene.behave(0, STRANGER, Vec::new());
    scene.redeem(200).unwrap();
    assert_eq!(scene.balances(), [500, 200, 300]);
}

#[test]
fn a_token_that_calls_back_gets_nothing_done() {
    let mut scene = Scene::new();
    scene.open().unwrap();
    let (higher, signature) = voucher(&scene.evm, &scene.key, 300);
    let channels = scene.evm.channels;
    let item = (&scene.key, &higher, &signature);
    let calls = [
        call::redeem(&scene.key, &higher, &signature),
        call::redeem_many([item]),
        call::finish_close(&scene.key),
        call::top_up(&scene.key, Amount(1)),
        call::close_by_payee(&scene.key, Amount(100), None, None),
    ];
    for (round, back) in (1..).zip(calls) {
        scene.behave(CALLS_BACK, channels, back);
        scene.redeem(10 * round).unwrap();
    }
    assert_eq!(scene.counted(callsBackCall {}.abi_encode()), 5);
    assert_eq!(scene.counted(callsBackOkCall {}.abi_encode()), 0);
    assert_eq!(scene.balances(), [500, 50, 450]);

    let harmless = call::channel(higher.channel);
    scene.behave(CALLS_BACK, channels, harmless);
    scene.redeem(60).unwrap();
    assert_eq!(scene.counted(callsBackOkCall {}.abi_encode()), 1, "the control: reads get through");
}

#[test]
fn a_hostile_token_cannot_touch_another_tokens_channels() {
    let mut scene = Scene::new();
    scene.evm.provide(PAYER, 1_000);
    let honest = key(&scene.evm, 2);
    scene.evm.channels(PAYER, call::open(&honest, Amount(1_000), PERIOD_S)).unwrap();
    scene.open().unwrap();
    let (last, signature) = voucher(&scene.evm, &honest, 700);
    let back = call::redeem(&honest, &last, &signature);
    scene.behave(CALLS_BACK, scene.evm.channels, back);
    scene.redeem(500).unwrap();
    assert_eq!(scene.evm.balance(scene.evm.channels), 1_000);
}
