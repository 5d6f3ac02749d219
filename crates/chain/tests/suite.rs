//! One suite for both kinds of chain: what the contract promises, seen through [`Chain`].

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::AsyncFnOnce;

use sluice_chain::anvil::Anvil;
use sluice_chain::{
    Chain, ChainError, ChannelEvent, ChannelState, Finality, INCLUSION_DEFAULT, PATIENCE_DEFAULT,
    Redemption, Refusal, RevertReason, RpcConfig, View,
};
use sluice_proto::{
    Amount, ChannelId, ChannelKey, Domain, EthAddress, Voucher, WalletKey, WalletSignature,
};

const HOUR_S: u64 = 60 * 60;
const PERIOD_S: u32 = 72 * 60 * 60;
const MINTED: Amount = Amount(1_000_000);

/// Runs a test on the embedded chain and on a real node.
macro_rules! on_both_chains {
    ($($name:ident)*) => {
        mod embedded {
            $(#[tokio::test] async fn $name() { super::on_embedded(super::$name).await; })*
        }
        mod rpc {
            $(#[tokio::test] async fn $name() { super::on_anvil(super::$name).await; })*
        }
    };
}

on_both_chains! {
    a_channel_lives_from_open_to_close_by_the_payee
    the_parties_see_their_channel_and_nothing_where_there_is_none
    many_vouchers_are_redeemed_at_once_and_a_spoilt_one_is_skipped
    anyone_may_submit_and_only_the_payout_receives
    a_payer_gets_its_rest_after_the_period_and_not_before
    a_payee_redeems_while_the_payer_is_closing
    a_voucher_of_another_key_chain_or_channel_pays_nothing
    a_voucher_over_the_deposit_backwards_or_replayed_pays_nothing
    a_closed_channel_stays_closed
    a_close_at_what_was_redeemed_needs_no_voucher
    only_the_right_wallets_open_and_close
    a_deposit_that_cannot_be_is_refused
    an_account_without_coins_is_told_so
    transactions_of_one_wallet_at_the_same_time_all_arrive
    channels_that_one_wallet_opens_at_the_same_time_all_open
    an_approval_that_was_left_over_is_replaced
    a_dry_run_costs_nothing_and_fails_as_the_real_one_would
    time_can_be_advanced
}

/// The people of a test and their channel; payer and payee have coins, the payer has tokens.
struct Cast {
    chain: Chain,
    payer: WalletKey,
    signer: WalletKey,
    payee: WalletKey,
    stranger: WalletKey,
    key: ChannelKey,
}

fn wallet(seed: u8) -> WalletKey {
    WalletKey::from_bytes([seed; 32]).expect("a valid key")
}

impl Cast {
    async fn new(chain: Chain) -> Self {
        let [payer, signer, payee, stranger] = [1, 2, 3, 4].map(wallet);
        chain.fund_dev(payer.address(), MINTED).await.unwrap();
        for account in [&payee, &stranger] {
            chain.fund_dev(account.address(), Amount(0)).await.unwrap();
        }
        let key = ChannelKey {
            payer: payer.address(),
            signer: signer.address(),
            payee: payee.address(),
            payout: EthAddress([0xaa; 20]),
            token: chain.token(),
            salt: [7; 32],
        };
        Self { chain, payer, signer, payee, stranger, key }
    }

    async fn open(chain: Chain, deposit: u128) -> Self {
        let cast = Self::new(chain).await;
        cast.open_key(cast.key, deposit).await;
        cast
    }

    async fn open_key(&self, key: ChannelKey, deposit: u128) {
        self.chain.open_channel(&self.payer, key, Amount(deposit), PERIOD_S).await.unwrap();
    }

    fn id(&self) -> ChannelId {
        self.key.id(&self.chain.domain())
    }

    fn voucher(&self, amount: u128) -> Redemption {
        self.voucher_of(self.key, amount)
    }

    fn voucher_of(&self, key: ChannelKey, amount: u128) -> Redemption {
        self.signed(key, amount, &self.signer, self.chain.domain())
    }

    fn signed(
        &self,
        key: ChannelKey,
        amount: u128,
        signer: &WalletKey,
        domain: Domain,
    ) -> Redemption {
        let channel = key.id(&self.chain.domain());
        let voucher = Voucher { channel, amount: Amount(amount), statement: [9; 32] };
        Redemption { key, voucher, signature: signer.sign(voucher.digest(&domain)) }
    }

    async fn redeem(&self, item: Redemption) -> Result<Amount, ChainError> {
        self.chain.redeem(&self.payee, &[item]).await.map(|receipt| receipt.paid())
    }

    async fn state(&self) -> ChannelState {
        self.chain.channel(&self.key, View::Latest).await.unwrap().expect("the channel was opened")
    }

    async fn tokens(&self, account: EthAddress) -> u128 {
        self.chain.token_balance(account).await.unwrap().0
    }

    /// Payer, payout and contract, which together hold all that was minted.
    async fn balances(&self) -> [u128; 3] {
        let contract = self.chain.domain().contract;
        let balances = [
            self.tokens(self.key.payer).await,
            self.tokens(self.key.payout).await,
            self.tokens(contract).await,
        ];
        assert_eq!(balances.iter().sum::<u128>(), MINTED.0, "tokens were made or lost");
        balances
    }
}

fn reason(error: &ChainError) -> &RevertReason {
    let ChainError::Reverted { reason, .. } = error else {
        panic!("not refused by a contract: {error}")
    };
    reason
}

async fn on_embedded(test: impl AsyncFnOnce(Chain)) {
    let dir = tempfile::tempdir().unwrap();
    test(Chain::open_embedded(dir.path()).unwrap()).await;
}

async fn on_anvil(test: impl AsyncFnOnce(Chain)) {
    let Some(anvil) = Anvil::start() else { return };
    let cfg = RpcConfig {
        url: anvil.url().to_owned(),
        contract: None,
        token: None,
        finality: Finality::Confirmations(1),
        chain_id: Some(31_337),
        patience: PATIENCE_DEFAULT,
        inclusion: INCLUSION_DEFAULT,
        other_urls: Vec::new(),
    };
    test(Chain::connect_rpc(cfg).await.unwrap().deploy_dev().await.unwrap()).await;
}

async fn a_channel_lives_from_open_to_close_by_the_payee(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    assert_eq!(cast.balances().await, [MINTED.0 - 1_000, 0, 1_000]);

    let receipt = cast.chain.top_up(&cast.payer, &cast.key, Amount(500)).await.unwrap();
    let topped_up = ChannelEvent::ToppedUp { channel: cast.id(), deposit: Amount(1_500) };
    assert_eq!(receipt.events, [topped_up]);

    assert_eq!(cast.redeem(cast.voucher(300)).await.unwrap(), Amount(300));
    assert_eq!(cast.redeem(cast.voucher(450)).await.unwrap(), Amount(150));
    assert_eq!(cast.balances().await, [MINTED.0 - 1_500, 450, 1_050]);

    let last = cast.voucher(700);
    let close = cast
        .chain
        .close_by_payee(&cast.payee, &cast.key, Some((last.voucher, last.signature)), &cast.payee)
        .await
        .unwrap();
    assert_eq!((close.paid(), close.refunded()), (Amount(250), Amount(800)));
    assert!(close.gas > 21_000 && close.fee_wei > 0);
    assert_eq!(cast.balances().await, [MINTED.0 - 700, 700, 0]);
    assert!(cast.state().await.closed);
}

async fn the_parties_see_their_channel_and_nothing_where_there_is_none(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    let state = ChannelState {
        key: cast.key,
        deposit: Amount(1_000),
        redeemed: Amount(0),
        period_s: PERIOD_S,
        closing_at_unix_s: None,
        closed: false,
    };
    assert_eq!(cast.state().await, state);
    assert_eq!(cast.chain.channel(&cast.key, View::Final).await.unwrap(), Some(state));
    let other = ChannelKey { salt: [8; 32], ..cast.key };
    assert_eq!(cast.chain.channel(&other, View::Latest).await.unwrap(), None);
    let token = cast.chain.token_info().await.unwrap();
    assert_eq!((token.symbol.as_str(), token.decimals), ("TEST", 6));
}

async fn many_vouchers_are_redeemed_at_once_and_a_spoilt_one_is_skipped(chain: Chain) {
    let cast = Cast::new(chain).await;
    let keys: Vec<_> = (0..6).map(|salt| ChannelKey { salt: [salt; 32], ..cast.key }).collect();
    for key in &keys[..5] {
        cast.open_key(*key, 100).await;
    }
    cast.redeem(cast.voucher_of(keys[1], 40)).await.unwrap();
    let items = [
        cast.voucher_of(keys[0], 10),
        cast.voucher_of(keys[1], 40),
        cast.voucher_of(keys[2], 101),
        cast.signed(keys[3], 10, &cast.stranger, cast.chain.domain()),
        cast.voucher_of(keys[4], 30),
        cast.voucher_of(keys[5], 10),
    ];
    let receipt = cast.chain.redeem(&cast.payee, &items).await.unwrap();
    assert_eq!(receipt.paid(), Amount(40));
    let refused: Vec<_> = receipt.refused().collect();
    let id = |index: usize| keys[index].id(&cast.chain.domain());
    let expected = [
        (id(1), Refusal::NotHigher),
        (id(2), Refusal::OverDeposit),
        (id(3), Refusal::BadSignature),
        (id(5), Refusal::NotOpen),
    ];
    assert_eq!(refused, expected);
    assert_eq!(cast.balances().await, [MINTED.0 - 500, 80, 420]);

    let error = cast.chain.redeem(&cast.payee, &items).await.unwrap_err();
    assert_eq!(reason(&error), &RevertReason::NothingRedeemed);
    let error = cast.chain.redeem(&cast.payee, &[]).await.unwrap_err();
    assert!(matches!(error, ChainError::BatchSize { count: 0, .. }), "{error}");
}

async fn anyone_may_submit_and_only_the_payout_receives(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    let receipt = cast.chain.redeem(&cast.stranger, &[cast.voucher(200)]).await.unwrap();
    assert_eq!(receipt.paid(), Amount(200));
    let last = cast.voucher(300);
    let voucher = Some((last.voucher, last.signature));
    cast.chain.close_by_payee(&cast.stranger, &cast.key, voucher, &cast.payee).await.unwrap();
    assert_eq!(cast.balances().await, [MINTED.0 - 300, 300, 0]);
    assert_eq!(cast.tokens(cast.stranger.address()).await, 0);
    assert_eq!(cast.tokens(cast.payee.address()).await, 0);
}

async fn a_payer_gets_its_rest_after_the_period_and_not_before(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    cast.redeem(cast.voucher(100)).await.unwrap();
    let error = cast.chain.finish_close(&cast.payer, &cast.key).await.unwrap_err();
    assert_eq!(reason(&error), &RevertReason::NotClosing);

    cast.chain.start_close(&cast.payer, &cast.key).await.unwrap();
    let closing_at = cast.state().await.closing_at_unix_s.expect("a close was started");
    assert!(closing_at >= cast.chain.now_unix_s().await.unwrap() + u64::from(PERIOD_S) - HOUR_S);
    let error = cast.chain.start_close(&cast.payer, &cast.key).await.unwrap_err();
    assert_eq!(reason(&error), &RevertReason::ChannelClosing);
    let error = cast.chain.top_up(&cast.payer, &cast.key, Amount(1)).await.unwrap_err();
    assert_eq!(reason(&error), &RevertReason::ChannelClosing);

    cast.chain.advance_dev(u64::from(PERIOD_S) - HOUR_S).await.unwrap();
    let error = cast.chain.finish_close(&cast.payer, &cast.key).await.unwrap_err();
    assert!(matches!(reason(&error), RevertReason::TooEarly(_)), "{error}");

    cast.chain.advance_dev(HOUR_S).await.unwrap();
    let receipt = cast.chain.finish_close(&cast.stranger, &cast.key).await.unwrap();
    assert_eq!(receipt.refunded(), Amount(900));
    assert_eq!(cast.balances().await, [MINTED.0 - 100, 100, 0]);
    let state = cast.state().await;
    assert_eq!((state.closed, state.closing_at_unix_s), (true, None));
}

async fn a_payee_redeems_while_the_payer_is_closing(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    cast.chain.start_close(&cast.payer, &cast.key).await.unwrap();
    assert_eq!(cast.redeem(cast.voucher(600)).await.unwrap(), Amount(600));
    cast.chain.advance_dev(u64::from(PERIOD_S)).await.unwrap();
    cast.chain.finish_close(&cast.payer, &cast.key).await.unwrap();
    assert_eq!(cast.balances().await, [MINTED.0 - 600, 600, 0]);
    let error = cast.redeem(cast.voucher(700)).await.unwrap_err();
    assert_eq!(reason(&error), &RevertReason::ChannelNotOpen);
}

async fn a_voucher_of_another_key_chain_or_channel_pays_nothing(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    let domain = cast.chain.domain();
    let payee_signs = cast.signed(cast.key, 100, &cast.payee, domain);
    let payer_signs = cast.signed(cast.key, 100, &cast.payer, domain);
    let other_chain = Domain { chain_id: domain.chain_id + 1, ..domain };
    let other_contract = Domain { contract: cast.chain.token(), ..domain };
    let mut upper_s = cast.voucher(100);
    upper_s.signature = with_upper_s(&upper_s.signature);
    let mut other_amount = cast.voucher(100);
    other_amount.voucher.amount = Amount(101);
    for spoilt in [
        payee_signs,
        payer_signs,
        cast.signed(cast.key, 100, &cast.signer, other_chain),
        cast.signed(cast.key, 100, &cast.signer, other_contract),
        upper_s,
        other_amount,
    ] {
        let error = cast.redeem(spoilt).await.unwrap_err();
        assert_eq!(reason(&error), &RevertReason::BadVoucherSignature);
    }
    let other_key = ChannelKey { payout: cast.stranger.address(), ..cast.key };
    let error = cast.redeem(Redemption { key: other_key, ..cast.voucher(100) }).await.unwrap_err();
    assert!(matches!(error, ChainError::WrongChannel { .. }), "{error}");
    assert_eq!(cast.balances().await, [MINTED.0 - 1_000, 0, 1_000]);
    cast.redeem(cast.voucher(100)).await.expect("the control: the right voucher pays");
}

/// The other signature of the same key and message that plain ECDSA accepts.
fn with_upper_s(signature: &WalletSignature) -> WalletSignature {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xfe, 0xba, 0xae, 0xdc, 0xe6, 0xaf, 0x48, 0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36,
        0x41, 0x41,
    ];
    let mut out = *signature;
    let mut borrow = 0;
    for index in (0..32).rev() {
        let difference = i16::from(ORDER[index]) - i16::from(signature.0[32 + index]) - borrow;
        borrow = i16::from(difference < 0);
        out.0[32 + index] = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    out.0[64] = 27 + 28 - signature.0[64];
    out
}

async fn a_voucher_over_the_deposit_backwards_or_replayed_pays_nothing(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    let error = cast.redeem(cast.voucher(1_001)).await.unwrap_err();
    assert!(matches!(reason(&error), RevertReason::AmountOverDeposit { .. }), "{error}");
    let huge = cast.redeem(cast.voucher(u128::MAX)).await.unwrap_err();
    assert!(matches!(reason(&huge), RevertReason::AmountOverDeposit { .. }), "{huge}");
    cast.redeem(cast.voucher(500)).await.unwrap();
    for amount in [500, 499, 0] {
        let error = cast.redeem(cast.voucher(amount)).await.unwrap_err();
        assert!(matches!(reason(&error), RevertReason::AmountNotHigher { .. }), "{error}");
    }
    let old = cast.voucher(499);
    let close = (old.voucher, old.signature);
    let error = cast
        .chain
        .close_by_payee(&cast.payee, &cast.key, Some(close), &cast.payee)
        .await
        .unwrap_err();
    assert!(matches!(reason(&error), RevertReason::AmountBelowRedeemed { .. }), "{error}");
    assert_eq!(cast.redeem(cast.voucher(1_000)).await.unwrap(), Amount(500));
    assert_eq!(cast.balances().await, [MINTED.0 - 1_000, 1_000, 0]);
}

async fn a_closed_channel_stays_closed(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    let error =
        cast.chain.open_channel(&cast.payer, cast.key, Amount(1), PERIOD_S).await.unwrap_err();
    assert_eq!(reason(&error), &RevertReason::ChannelExists);
    cast.chain.close_by_payee(&cast.payee, &cast.key, None, &cast.payee).await.unwrap();
    let error =
        cast.chain.open_channel(&cast.payer, cast.key, Amount(1), PERIOD_S).await.unwrap_err();
    assert_eq!(reason(&error), &RevertReason::ChannelExists);
    let errors = [
        cast.chain.top_up(&cast.payer, &cast.key, Amount(1)).await.unwrap_err(),
        cast.chain.start_close(&cast.payer, &cast.key).await.unwrap_err(),
        cast.chain.finish_close(&cast.payer, &cast.key).await.unwrap_err(),
        cast.redeem(cast.voucher(1)).await.unwrap_err(),
        cast.chain.close_by_payee(&cast.payee, &cast.key, None, &cast.payee).await.unwrap_err(),
    ];
    for error in &errors {
        assert_eq!(reason(error), &RevertReason::ChannelNotOpen);
    }
    assert_eq!(cast.balances().await, [MINTED.0, 0, 0]);
}

async fn a_close_at_what_was_redeemed_needs_no_voucher(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    cast.redeem(cast.voucher(400)).await.unwrap();
    let receipt =
        cast.chain.close_by_payee(&cast.stranger, &cast.key, None, &cast.payee).await.unwrap();
    assert_eq!((receipt.paid(), receipt.refunded()), (Amount(0), Amount(600)));
    let never = ChannelKey { salt: [8; 32], ..cast.key };
    let error =
        cast.chain.close_by_payee(&cast.payee, &never, None, &cast.payee).await.unwrap_err();
    assert!(matches!(error, ChainError::NoSuchChannel { .. }), "{error}");
}

async fn only_the_right_wallets_open_and_close(chain: Chain) {
    let cast = Cast::new(chain).await;
    let opened = cast.chain.open_channel(&cast.stranger, cast.key, Amount(1), PERIOD_S).await;
    let error = opened.unwrap_err();
    assert!(matches!(error, ChainError::WrongWallet { role: "payer", .. }), "{error}");
    cast.open_key(cast.key, 10).await;
    let error = cast.chain.start_close(&cast.payee, &cast.key).await.unwrap_err();
    assert!(matches!(error, ChainError::WrongWallet { role: "payer", .. }), "{error}");
    let closed = cast.chain.close_by_payee(&cast.payer, &cast.key, None, &cast.payer).await;
    let error = closed.unwrap_err();
    assert!(matches!(error, ChainError::WrongWallet { role: "payee", .. }), "{error}");
    let other_token = ChannelKey { token: EthAddress([1; 20]), ..cast.key };
    let opened = cast.chain.open_channel(&cast.payer, other_token, Amount(1), PERIOD_S).await;
    assert!(matches!(opened.unwrap_err(), ChainError::WrongToken { .. }));
}

async fn a_deposit_that_cannot_be_is_refused(chain: Chain) {
    let cast = Cast::new(chain).await;
    let open = async |key: ChannelKey, deposit: u128, period_s: u32| {
        let error = cast.chain.open_channel(&cast.payer, key, Amount(deposit), period_s).await;
        reason(&error.unwrap_err()).clone()
    };
    let short = open(cast.key, 10, 48 * 60 * 60 - 1).await;
    assert!(matches!(short, RevertReason::PeriodOutOfRange(_)), "{short}");
    let long = open(cast.key, 10, u32::MAX).await;
    assert!(matches!(long, RevertReason::PeriodOutOfRange(_)), "{long}");
    assert_eq!(open(cast.key, 0, PERIOD_S).await, RevertReason::ZeroAmount);
    let large = open(cast.key, 1 << 96, PERIOD_S).await;
    assert!(matches!(large, RevertReason::DepositTooLarge(_)), "{large}");
    let poor = open(cast.key, MINTED.0 + 1, PERIOD_S).await;
    assert!(matches!(poor, RevertReason::TokenBalance { .. }), "{poor}");
    for key in [
        ChannelKey { signer: EthAddress([0; 20]), ..cast.key },
        ChannelKey { payee: EthAddress([0; 20]), ..cast.key },
        ChannelKey { payout: EthAddress([0; 20]), ..cast.key },
        ChannelKey { payout: cast.chain.domain().contract, ..cast.key },
    ] {
        assert_eq!(open(key, 10, PERIOD_S).await, RevertReason::ZeroAddress);
    }
    assert_eq!(cast.balances().await, [MINTED.0, 0, 0]);
}

async fn an_account_without_coins_is_told_so(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    let pauper = wallet(99);
    let error = cast.chain.redeem(&pauper, &[cast.voucher(1)]).await.unwrap_err();
    let told = matches!(error, ChainError::InsufficientFunds { account, .. } if account == pauper.address());
    assert!(told, "{error}");
    assert!(error.to_string().contains("send it some of the network's own coin"), "{error}");
}

async fn transactions_of_one_wallet_at_the_same_time_all_arrive(chain: Chain) {
    let cast = Cast::new(chain).await;
    let keys: Vec<_> = (0..8).map(|salt| ChannelKey { salt: [salt; 32], ..cast.key }).collect();
    for key in &keys {
        cast.open_key(*key, 100).await;
    }
    let tasks: Vec<_> = keys
        .iter()
        .map(|key| {
            let (chain, wallet) = (cast.chain.clone(), cast.payee.clone());
            let item = cast.voucher_of(*key, 10);
            tokio::spawn(async move { chain.redeem(&wallet, &[item]).await })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap().paid(), Amount(10));
    }
    assert_eq!(cast.balances().await, [MINTED.0 - 800, 80, 720]);
}

async fn channels_that_one_wallet_opens_at_the_same_time_all_open(chain: Chain) {
    let cast = Cast::new(chain).await;
    let tasks: Vec<_> = (0..6)
        .map(|salt| {
            let (chain, payer) = (cast.chain.clone(), cast.payer.clone());
            let key = ChannelKey { salt: [salt; 32], ..cast.key };
            let deposit = Amount(100 + u128::from(salt));
            tokio::spawn(async move { chain.open_channel(&payer, key, deposit, PERIOD_S).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(cast.balances().await, [MINTED.0 - 615, 0, 615]);
}

async fn an_approval_that_was_left_over_is_replaced(chain: Chain) {
    let cast = Cast::open(chain, 100).await;
    let again = cast.chain.open_channel(&cast.payer, cast.key, Amount(50), PERIOD_S).await;
    assert_eq!(reason(&again.unwrap_err()), &RevertReason::ChannelExists);
    let receipt = cast.chain.top_up(&cast.payer, &cast.key, Amount(50)).await.unwrap();
    assert_eq!(receipt.gas_approval, 0, "what was approved before is enough");
    let again = cast.chain.open_channel(&cast.payer, cast.key, Amount(50), PERIOD_S).await;
    assert_eq!(reason(&again.unwrap_err()), &RevertReason::ChannelExists);
    let receipt = cast.chain.top_up(&cast.payer, &cast.key, Amount(60)).await.unwrap();
    assert!(receipt.gas_approval > 0);
    assert_eq!(cast.balances().await, [MINTED.0 - 210, 0, 210]);
}

async fn a_dry_run_costs_nothing_and_fails_as_the_real_one_would(chain: Chain) {
    let cast = Cast::open(chain, 1_000).await;
    let payee = cast.payee.address();
    let coins = cast.chain.coin_balance_wei(payee).await.unwrap();
    let estimate = cast.chain.estimate_redeem(payee, &[cast.voucher(100)]).await.unwrap();
    assert_eq!(cast.chain.coin_balance_wei(payee).await.unwrap(), coins);
    assert_eq!(cast.state().await.redeemed, Amount(0));
    let error = cast.chain.estimate_redeem(payee, &[cast.voucher(1_001)]).await.unwrap_err();
    assert!(matches!(reason(&error), RevertReason::AmountOverDeposit { .. }), "{error}");

    let receipt = cast.chain.redeem(&cast.payee, &[cast.voucher(100)]).await.unwrap();
    assert!(estimate.gas >= receipt.gas, "{} < {}", estimate.gas, receipt.gas);
    let left = cast.chain.coin_balance_wei(payee).await.unwrap();
    assert_eq!(left, coins - receipt.fee_wei);
}

async fn time_can_be_advanced(chain: Chain) {
    let before = chain.now_unix_s().await.unwrap();
    chain.advance_dev(10 * HOUR_S).await.unwrap();
    assert!(chain.now_unix_s().await.unwrap() >= before + 10 * HOUR_S);
}
