//! Which vouchers are redeemed together, and when a deposit grows.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use sluice_proto::{Amount, ChannelId, EthAddress};
use sluice_settlement::{
    CAP_YIELDS_S, ChannelSlot, Claim, Decision, Moment, REDEEM_GAS_BASE, REDEEM_GAS_EACH,
    REDEEM_MAX, RedemptionPolicy, RedemptionRule, TopUpRule, WhyRedeem, WhyWait, is_refund_due,
};

const GWEI: u128 = 1_000_000_000;
const NOW: Moment = Moment { now_unix_s: 1_000_000, gas_price_wei: GWEI };
/// With it one unit of gas at one gwei costs one base unit.
const COIN_PRICE: u128 = GWEI;
const ONE: u128 = (REDEEM_GAS_BASE + REDEEM_GAS_EACH) as u128;

fn policy() -> RedemptionPolicy {
    RedemptionPolicy { coin_price: Some(COIN_PRICE), ..RedemptionPolicy::default() }
}

fn slot(deposit: u128) -> ChannelSlot {
    ChannelSlot {
        deposit: Amount(deposit),
        redeemed: Amount(0),
        period_s: 48 * 3600,
        closing_at_unix_s: None,
        closed: false,
    }
}

fn claim(n: u8, earned: u128) -> Claim {
    Claim {
        channel: ChannelId([n; 32]),
        token: EthAddress([1; 20]),
        payout: EthAddress([2; 20]),
        earned: Amount(earned),
        latest: Some(slot(earned)),
        settled: Some(slot(earned)),
        demanded: false,
    }
}

fn closing(claim: Claim, within_s: u64) -> Claim {
    let at = Some(NOW.now_unix_s + within_s);
    Claim { latest: claim.latest.map(|s| ChannelSlot { closing_at_unix_s: at, ..s }), ..claim }
}

/// Why the only claim waits.
fn waits(policy: &RedemptionPolicy, claim: Claim, moment: &Moment) -> WhyWait {
    let proposal = policy.propose(&[claim], moment);
    assert_eq!(proposal.batches, [], "{proposal:?}");
    proposal.waits[0].1
}

/// Why the only claim is redeemed.
fn redeems(policy: &RedemptionPolicy, claim: Claim, moment: &Moment) -> WhyRedeem {
    let proposal = policy.propose(&[claim], moment);
    assert_eq!(proposal.waits, [], "{proposal:?}");
    proposal.batches[0].items[0].why
}

#[test]
fn one_channel_pays_the_whole_fee() {
    assert_eq!(redeems(&policy(), claim(1, ONE * 100 + 1), &NOW), WhyRedeem::FeeSmall);
    assert_eq!(waits(&policy(), claim(1, ONE * 100), &NOW), WhyWait::FeeTooHigh);
}

#[test]
fn channels_that_are_not_worth_it_alone_are_together() {
    // Ten of these: 60,000 + 180,000 gas is 240,000, below 1 % of 10 x 2,500,000.
    let each = 2_500_000;
    assert_eq!(waits(&policy(), claim(1, each), &NOW), WhyWait::FeeTooHigh);
    let ten: Vec<_> = (1..=10).map(|n| claim(n, each)).collect();
    let proposal = policy().propose(&ten, &NOW);
    assert_eq!(proposal.batches.len(), 1);
    assert_eq!(proposal.batches[0].items.len(), 10);
}

#[test]
fn a_channel_that_is_not_worth_its_own_gas_does_not_ride_along() {
    let dust = claim(2, u128::from(REDEEM_GAS_EACH) * 100);
    let proposal = policy().propose(&[claim(1, ONE * 1_000), dust], &NOW);
    assert_eq!(proposal.batches[0].items.len(), 1);
    assert_eq!(proposal.waits, [(dust.channel, WhyWait::FeeTooHigh)]);
}

#[test]
fn what_cannot_wait_goes_first_and_takes_others_along() {
    let many = (0..150_u8).map(|n| claim(n, ONE * 1_000));
    let mut claims: Vec<_> = many.collect();
    claims[149] = closing(claims[149], 60);
    let proposal = policy().propose(&claims, &NOW);
    let sizes: Vec<_> = proposal.batches.iter().map(|b| b.items.len()).collect();
    assert_eq!(sizes, [REDEEM_MAX, 50]);
    assert_eq!(proposal.batches[0].items[0].why, WhyRedeem::Closing);
    assert_eq!(proposal.batches[0].items[0].channel, ChannelId([149; 32]));
}

#[test]
fn neighbours_of_one_payout_stand_together() {
    let other = EthAddress([9; 20]);
    let claims: Vec<_> = (0..6_u8)
        .map(|n| match n % 2 {
            0 => claim(n, ONE * 1_000),
            _ => Claim { payout: other, ..claim(n, ONE * 1_000) },
        })
        .collect();
    let proposal = policy().propose(&claims, &NOW);
    let odd: Vec<_> = proposal.batches[0].items.iter().map(|i| i.channel.0[0] % 2).collect();
    assert_eq!(odd, [0, 0, 0, 1, 1, 1]);
}

#[test]
fn what_is_not_final_waits_unless_it_is_asked_for_or_closing() {
    let unfinal = Claim { settled: None, ..claim(1, ONE * 1_000) };
    assert_eq!(waits(&policy(), unfinal, &NOW), WhyWait::NotFinal);
    let topped_up = Claim { settled: Some(slot(ONE)), ..unfinal };
    assert_eq!(waits(&policy(), topped_up, &NOW), WhyWait::NotFinal);
    assert_eq!(redeems(&policy(), closing(unfinal, 60), &NOW), WhyRedeem::Closing);
    let asked = Claim { demanded: true, ..unfinal };
    assert_eq!(redeems(&policy(), asked, &NOW), WhyRedeem::Demanded);
}

#[test]
fn what_the_contract_would_refuse_is_not_sent() {
    let asked = Claim { demanded: true, ..claim(1, ONE * 1_000) };
    let with = |latest| Claim { latest, ..asked };
    assert_eq!(waits(&policy(), with(None), &NOW), WhyWait::NotOpen);
    let closed = ChannelSlot { closed: true, ..slot(ONE * 1_000) };
    assert_eq!(waits(&policy(), with(Some(closed)), &NOW), WhyWait::Closed);
    assert_eq!(waits(&policy(), with(Some(slot(ONE))), &NOW), WhyWait::OverDeposit);
    let redeemed = ChannelSlot { redeemed: asked.earned, ..slot(ONE * 1_000) };
    assert_eq!(waits(&policy(), with(Some(redeemed)), &NOW), WhyWait::NothingNew);
}

#[test]
fn a_redemption_that_a_reorganisation_undid_is_proposed_again() {
    let one = claim(1, ONE * 1_000);
    let done = ChannelSlot { redeemed: one.earned, ..slot(ONE * 1_000) };
    assert_eq!(waits(&policy(), Claim { latest: Some(done), ..one }, &NOW), WhyWait::NothingNew);
    assert_eq!(redeems(&policy(), one, &NOW), WhyRedeem::FeeSmall);
}

#[test]
fn the_cap_on_the_gas_price_holds_until_a_close_is_near() {
    let capped = RedemptionPolicy { gas_price_wei_max: Some(GWEI - 1), ..policy() };
    let one = claim(1, ONE * 1_000);
    assert_eq!(waits(&capped, one, &NOW), WhyWait::GasTooDear);
    assert_eq!(waits(&capped, Claim { demanded: true, ..one }, &NOW), WhyWait::GasTooDear);
    assert_eq!(waits(&capped, closing(one, CAP_YIELDS_S + 1), &NOW), WhyWait::GasTooDear);
    assert_eq!(redeems(&capped, closing(one, CAP_YIELDS_S), &NOW), WhyRedeem::Closing);
    let at_the_cap = RedemptionPolicy { gas_price_wei_max: Some(GWEI), ..policy() };
    assert_eq!(redeems(&at_the_cap, one, &NOW), WhyRedeem::FeeSmall);
}

#[test]
fn without_a_coin_price_only_what_is_urgent_or_asked_for_is_redeemed() {
    let unknown = RedemptionPolicy::default();
    let one = claim(1, ONE * 1_000);
    assert_eq!(waits(&unknown, one, &NOW), WhyWait::FeeUnknown);
    assert_eq!(redeems(&unknown, closing(one, 60), &NOW), WhyRedeem::Closing);
    assert_eq!(redeems(&unknown, Claim { demanded: true, ..one }, &NOW), WhyRedeem::Demanded);
}

#[test]
fn a_close_that_costs_more_than_it_saves_is_let_go() {
    let one = closing(claim(1, ONE), 60);
    assert_eq!(waits(&policy(), one, &NOW), WhyWait::NotWorthTheFee);
    assert_eq!(redeems(&policy(), closing(claim(1, ONE + 1), 60), &NOW), WhyRedeem::Closing);
}

#[test]
fn the_real_fee_decides() {
    let batch = policy().propose(&[claim(1, ONE * 1_000)], &NOW).batches.remove(0);
    let (small, large) = (ONE * 10 * GWEI - GWEI, ONE * 10 * GWEI);
    assert_eq!(policy().weigh(&batch, small), Decision::Redeem(WhyRedeem::FeeSmall));
    assert_eq!(policy().weigh(&batch, large), Decision::Wait(WhyWait::FeeTooHigh));
}

#[test]
fn rules_read_as_they_are_written() {
    let told = |rule: RedemptionRule| rule.to_string();
    assert_eq!(told(RedemptionRule::default()), "1 %");
    assert_eq!(told(RedemptionRule::FeeBelow { ppm: 2_500 }), "0.25 %");
    assert_eq!(told(RedemptionRule::BeforeClose), "before_close");
}

#[test]
fn a_deposit_grows_by_steps_up_to_its_bound() {
    let rule = TopUpRule { step: Amount(100), deposit_max: Amount(250) };
    let decide = |deposit, signed, wanted| {
        rule.decide(Amount(deposit), Amount(signed), Amount(wanted)).map(|more| more.0)
    };
    assert_eq!(decide(100, 75, 0), None, "a quarter of a step is left");
    assert_eq!(decide(100, 76, 0), Some(100));
    assert_eq!(decide(200, 200, 0), Some(50), "up to the bound");
    assert_eq!(decide(250, 250, 0), None, "and no further");
    assert_eq!(decide(100, 10, 230), Some(130), "what is due, if that is more");
    assert_eq!(decide(100, 10, 251), None, "what is due does not fit: nothing would be gained");
}

#[test]
fn a_refund_is_due_from_the_second_on_that_the_contract_names() {
    let at = |at, closed| ChannelSlot { closing_at_unix_s: at, closed, ..slot(1) };
    assert!(!is_refund_due(&at(None, false), u64::MAX));
    assert!(!is_refund_due(&at(Some(10), false), 9));
    assert!(is_refund_due(&at(Some(10), false), 10));
    assert!(!is_refund_due(&at(Some(10), true), 10));
}

proptest! {
    #[test]
    fn each_claim_is_in_one_place_and_no_batch_is_a_loss(
        amounts in prop::collection::vec((any::<u64>(), any::<bool>(), any::<bool>()), 0..250),
        gas_price_wei in 0..1_000 * GWEI,
        rule in prop_oneof![
            (0..1_000_000_u32).prop_map(|ppm| RedemptionRule::FeeBelow { ppm }),
            Just(RedemptionRule::BeforeClose),
        ],
    ) {
        let claims: Vec<_> = amounts
            .iter()
            .zip(0_u64..)
            .map(|((earned, is_closing, is_final), n)| {
                let mut one = claim(0, u128::from(*earned));
                one.channel.0[..8].copy_from_slice(&n.to_be_bytes());
                one.settled = one.settled.filter(|_| *is_final);
                if *is_closing { closing(one, 60) } else { one }
            })
            .collect();
        let moment = Moment { gas_price_wei, ..NOW };
        let policy = RedemptionPolicy { rule, ..policy() };
        let proposal = policy.propose(&claims, &moment);
        let redeemed = proposal.batches.iter().flat_map(|b| b.items.iter().map(|i| i.channel));
        let mut all: Vec<_> = redeemed.chain(proposal.waits.iter().map(|(c, _)| *c)).collect();
        all.sort();
        prop_assert_eq!(all, claims.iter().map(|c| c.channel).collect::<Vec<_>>());
        for batch in &proposal.batches {
            prop_assert!((1..=REDEEM_MAX).contains(&batch.items.len()));
            let gas = REDEEM_GAS_BASE + REDEEM_GAS_EACH * batch.items.len() as u64;
            let fee = policy.fee(u128::from(gas) * gas_price_wei).unwrap();
            prop_assert!(fee < batch.sum());
            let shares = (0..batch.items.len()).map(|i| batch.share(fee, i).0).sum::<u128>();
            prop_assert_eq!(shares, fee.0);
        }
    }
}
