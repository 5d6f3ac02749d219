//! Calls that only an attacker makes.

use alloy_primitives::{Bytes, U256};
use sluice_proto::{Amount, ChannelKey, EthAddress, WalletSignature};
use sluice_settlement::{RevertReason, call};

use crate::evm::Evm;
use crate::{PAYER, PAYOUT, PERIOD_S, STRANGER, key, payee, signer, voucher, wallet};

fn opened() -> (Evm, ChannelKey) {
    let mut evm = Evm::new();
    evm.provide(PAYER, 1_000);
    let key = key(&evm, 1);
    evm.channels(PAYER, call::open(&key, Amount(1_000), PERIOD_S)).unwrap();
    (evm, key)
}

#[test]
fn nobody_opens_with_another_ones_approval() {
    let mut evm = Evm::new();
    evm.provide(PAYER, 1_000);
    let key = key(&evm, 1);
    let stolen = evm.channels(STRANGER, call::open(&key, Amount(1_000), PERIOD_S));
    assert_eq!(stolen.unwrap_err(), RevertReason::NotPayer);
}

#[test]
fn nobody_but_the_payer_starts_to_close() {
    let (mut evm, key) = opened();
    for caller in [STRANGER, payee().address(), signer().address(), PAYOUT] {
        let refused = evm.channels(caller, call::start_close(&key)).unwrap_err();
        assert_eq!(refused, RevertReason::NotPayer);
    }
}

#[test]
fn nobody_closes_for_the_payee_without_its_consent_to_that_very_amount() {
    let (mut evm, key) = opened();
    let domain = evm.domain();
    let (last, signature) = voucher(&evm, &key, 400);
    let id = last.channel;
    let other_id = ChannelKey { salt: [2; 32], ..key }.id(&domain);
    let consents = [
        None,
        Some(signature),
        Some(payee().sign(domain.close_digest(id, Amount(399)))),
        Some(payee().sign(domain.close_digest(other_id, Amount(400)))),
        Some(wallet(9).sign(domain.close_digest(id, Amount(400)))),
        Some(WalletSignature([0; 65])),
    ];
    for consent in consents {
        let close =
            call::close_by_payee(&key, last.amount, Some((&last, &signature)), consent.as_ref());
        for caller in [STRANGER, PAYER] {
            let refused = evm.channels(caller, close.clone()).unwrap_err();
            assert_eq!(refused, RevertReason::BadPayeeSignature);
        }
    }
    let consent = payee().sign(domain.close_digest(id, Amount(400)));
    let close = call::close_by_payee(&key, last.amount, Some((&last, &signature)), Some(&consent));
    evm.channels(STRANGER, close).expect("the control: with consent anyone may");
    assert_eq!((evm.balance(PAYOUT), evm.balance(PAYER)), (400, 600));
}

#[test]
fn a_payee_closes_at_no_amount_that_the_signer_did_not_sign() {
    let (mut evm, key) = opened();
    let (mut last, signature) = voucher(&evm, &key, 400);
    last.amount = Amount(401);
    let closes = [
        call::close_by_payee(&key, Amount(400), None, None),
        call::close_by_payee(&key, Amount(401), Some((&last, &signature)), None),
    ];
    for close in closes {
        let refused = evm.channels(payee().address(), close).unwrap_err();
        assert_eq!(refused, RevertReason::BadVoucherSignature);
    }
    let over = call::close_by_payee(&key, Amount(1_001), None, None);
    let refused = evm.channels(payee().address(), over).unwrap_err();
    assert!(matches!(refused, RevertReason::AmountOverDeposit { .. }));
}

/// The call data of `redeem` with the signature's bytes replaced by others.
fn redeem_with(evm: &Evm, key: &ChannelKey, signature: &[u8]) -> Vec<u8> {
    let (voucher, right) = voucher(evm, key, 100);
    let mut data = call::redeem(key, &voucher, &right);
    // The tail is the length and the 65 bytes padded to 96.
    data.truncate(data.len() - 128);
    data.extend_from_slice(&U256::from(signature.len()).to_be_bytes::<32>());
    data.extend_from_slice(signature);
    data.resize(data.len().next_multiple_of(32) + 4, 0);
    data
}

#[test]
fn signatures_of_other_shapes_are_refused() {
    let (mut evm, key) = opened();
    let right = voucher(&evm, &key, 100).1.0;
    let mut compact = right[..64].to_vec();
    compact[32] |= (right[64] - 27) << 7;
    let with_v = |v: u8| [&right[..64], &[v]].concat();
    let longer = [&right[..], &[0]].concat();
    let zero_key = vec![0; 65];
    let shapes = [
        Vec::new(),
        compact,
        longer,
        with_v(right[64] - 27),
        with_v(29),
        with_v(255),
        zero_key,
        right[..64].to_vec(),
    ];
    for shape in shapes {
        let data = redeem_with(&evm, &key, &shape);
        let refused = evm.channels(STRANGER, data).unwrap_err();
        assert_eq!(refused, RevertReason::BadVoucherSignature, "0x{}", Bytes::from(shape));
    }
    let data = redeem_with(&evm, &key, &right);
    evm.channels(STRANGER, data).expect("the control: the right bytes are accepted");
}

#[test]
fn a_batch_of_one_payout_is_paid_by_one_transfer() {
    let mut evm = Evm::new();
    evm.provide(PAYER, 1_000);
    let mut keys: Vec<_> = (0..4).map(|salt| key(&evm, salt)).collect();
    keys[3].payout = STRANGER;
    for key in &keys {
        evm.channels(PAYER, call::open(key, Amount(100), PERIOD_S)).unwrap();
    }
    let vouchers: Vec<_> = keys.iter().map(|key| voucher(&evm, key, 10)).collect();
    let items = keys.iter().zip(&vouchers).map(|(key, (voucher, s))| (key, voucher, s));
    let done = evm.channels(STRANGER, call::redeem_many(items)).unwrap();
    assert_eq!(done.events.len(), 4);
    assert_eq!(done.logs - done.events.len(), 2, "one Transfer for each payout");
    assert_eq!((evm.balance(PAYOUT), evm.balance(STRANGER)), (30, 10));
}

#[test]
fn one_voucher_twice_in_a_batch_is_paid_once() {
    let (mut evm, key) = opened();
    let (last, signature) = voucher(&evm, &key, 100);
    let item = (&key, &last, &signature);
    evm.channels(STRANGER, call::redeem_many([item, item, item])).unwrap();
    assert_eq!(evm.balance(PAYOUT), 100);
}

#[test]
fn coins_cannot_be_lost_to_the_contract() {
    let (mut evm, key) = opened();
    let refused = evm.channels(STRANGER, Vec::new()).unwrap_err();
    assert_eq!(refused, RevertReason::Unknown(Vec::new()));
    let refused = evm.channels(STRANGER, b"what".to_vec()).unwrap_err();
    assert_eq!(refused, RevertReason::Unknown(Vec::new()));
    let mut cut = call::top_up(&key, Amount(1));
    cut.pop();
    assert_eq!(evm.channels(PAYER, cut).unwrap_err(), RevertReason::Unknown(Vec::new()));
}

#[test]
fn a_token_that_is_no_contract_is_refused() {
    let mut evm = Evm::new();
    let key = ChannelKey { token: EthAddress([0xee; 20]), ..key(&evm, 1) };
    evm.channels(PAYER, call::open(&key, Amount(1), PERIOD_S)).unwrap_err();
    assert_eq!(evm.slot(&key), None);
}
