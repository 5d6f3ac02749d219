//! Rust and Solidity hash alike.

use std::cell::RefCell;

use proptest::prelude::*;
use sluice_proto::{Amount, ChannelId, ChannelKey, EthAddress, Voucher, WalletKey};
use sluice_settlement::{answer, call};

use crate::STRANGER;
use crate::evm::Evm;

fn ask(evm: &RefCell<Evm>, data: Vec<u8>) -> [u8; 32] {
    let done = evm.borrow_mut().channels(STRANGER, data).unwrap();
    answer::word(&done.output).unwrap()
}

fn any_address() -> impl Strategy<Value = EthAddress> {
    any::<[u8; 20]>().prop_map(EthAddress)
}

fn any_key() -> impl Strategy<Value = ChannelKey> {
    let addresses = (any_address(), any_address(), any_address(), any_address(), any_address());
    (addresses, any::<[u8; 32]>()).prop_map(|((payer, signer, payee, payout, token), salt)| {
        ChannelKey { payer, signer, payee, payout, token, salt }
    })
}

fn any_voucher() -> impl Strategy<Value = Voucher> {
    (any::<[u8; 32]>(), any::<u128>(), any::<[u8; 32]>()).prop_map(
        |(channel, amount, statement)| Voucher {
            channel: ChannelId(channel),
            amount: Amount(amount),
            statement,
        },
    )
}

#[test]
fn vouchers_closes_and_channels_have_one_hash_in_rust_and_in_solidity() {
    let evm = RefCell::new(Evm::new());
    let domain = evm.borrow().domain();
    let cases = ProptestConfig { cases: 1_500, failure_persistence: None, ..Default::default() };
    proptest!(cases, |(voucher in any_voucher(), key in any_key(), secret in 1..=254_u8)| {
        prop_assert_eq!(ask(&evm, call::voucher_digest(&voucher)), voucher.digest(&domain));
        let close = domain.close_digest(voucher.channel, voucher.amount);
        prop_assert_eq!(ask(&evm, call::close_digest(voucher.channel, voucher.amount)), close);
        prop_assert_eq!(ask(&evm, call::channel_id(&key)), key.id(&domain).0);

        let wallet = WalletKey::from_bytes([secret; 32]).unwrap();
        let signature = wallet.sign(voucher.digest(&domain));
        prop_assert_eq!(signature.recover(voucher.digest(&domain)), Some(wallet.address()));
    });
}

#[test]
fn a_changed_field_changes_the_hash() {
    let evm = RefCell::new(Evm::new());
    let voucher = Voucher { channel: ChannelId([1; 32]), amount: Amount(1), statement: [1; 32] };
    let hash = ask(&evm, call::voucher_digest(&voucher));
    for changed in [
        Voucher { channel: ChannelId([2; 32]), ..voucher },
        Voucher { amount: Amount(2), ..voucher },
        Voucher { statement: [2; 32], ..voucher },
    ] {
        assert_ne!(ask(&evm, call::voucher_digest(&changed)), hash);
    }
    assert_ne!(ask(&evm, call::close_digest(voucher.channel, voucher.amount)), hash);
}
