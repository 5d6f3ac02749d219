//! When redeeming is worth its fee.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use sluice_proto::Amount;
use sluice_settlement::{Decision, RedemptionRule, Standing, WhyRedeem, WhyWait, fee_in_token};

const RULES: [RedemptionRule; 4] = [
    RedemptionRule::FeeBelow { ppm: 10_000 },
    RedemptionRule::BeforeClose,
    RedemptionRule::OnDemand,
    RedemptionRule::Never,
];

fn standing(unredeemed: u128, fee: u128) -> Standing {
    Standing { unredeemed: Amount(unredeemed), fee: Amount(fee), closing: false, demanded: false }
}

#[test]
fn the_default_redeems_when_the_fee_is_below_one_percent() {
    let rule = RedemptionRule::default();
    assert_eq!(rule.decide(&standing(1_000, 9)), Decision::Redeem(WhyRedeem::FeeSmall));
    assert_eq!(rule.decide(&standing(1_000, 10)), Decision::Wait(WhyWait::FeeTooHigh));
    assert_eq!(rule.decide(&standing(u128::MAX, 0)), Decision::Redeem(WhyRedeem::FeeSmall));
    assert_eq!(rule.decide(&standing(1, u128::MAX)), Decision::Wait(WhyWait::FeeTooHigh));
}

#[test]
fn nothing_new_is_never_redeemed() {
    for rule in RULES {
        let nothing = Standing { closing: true, demanded: true, ..standing(0, 0) };
        assert_eq!(rule.decide(&nothing), Decision::Wait(WhyWait::NothingNew));
    }
}

#[test]
fn a_closing_channel_is_redeemed_if_that_brings_anything() {
    let closing = |fee| Standing { closing: true, ..standing(1_000, fee) };
    for rule in [RedemptionRule::default(), RedemptionRule::BeforeClose] {
        assert_eq!(rule.decide(&closing(999)), Decision::Redeem(WhyRedeem::Closing));
        assert_eq!(rule.decide(&closing(1_000)), Decision::Wait(WhyWait::NotWorthTheFee));
    }
    let open = RedemptionRule::BeforeClose.decide(&standing(1_000, 0));
    assert_eq!(open, Decision::Wait(WhyWait::RuleWaitsForClose));
    let demand = RedemptionRule::OnDemand.decide(&closing(0));
    assert_eq!(demand, Decision::Wait(WhyWait::RuleWaitsForDemand));
}

#[test]
fn the_user_may_always_ask_unless_the_rule_is_never() {
    let demanded = Standing { demanded: true, ..standing(1, 1_000) };
    for rule in &RULES[..3] {
        assert_eq!(rule.decide(&demanded), Decision::Redeem(WhyRedeem::Demanded));
    }
    let never = RedemptionRule::Never.decide(&demanded);
    assert_eq!(never, Decision::Wait(WhyWait::RuleSaysNever));
}

#[test]
fn a_fee_is_rounded_up_into_the_token() {
    // 60,000 gas at 1 gwei, the coin worth 3,000 tokens of 6 decimals.
    let fee = fee_in_token(60_000 * 1_000_000_000, 3_000_000_000);
    assert_eq!(fee, Some(Amount(180_000)));
    assert_eq!(fee_in_token(1, 1), Some(Amount(1)));
    assert_eq!(fee_in_token(0, 1), Some(Amount(0)));
    assert_eq!(fee_in_token(u128::MAX, 2), None);
}

proptest! {
    #[test]
    fn more_earned_or_a_lower_fee_never_turns_a_yes_into_a_no(
        unredeemed in 1..u128::MAX / 2,
        fee: u128,
        more in 0..u128::MAX / 2,
        less: u128,
        ppm: u32,
        closing: bool,
    ) {
        for rule in [RedemptionRule::FeeBelow { ppm }, RedemptionRule::BeforeClose] {
            let now = Standing { closing, ..standing(unredeemed, fee) };
            let better =
                Standing { closing, ..standing(unredeemed + more, fee.saturating_sub(less)) };
            if let Decision::Redeem(_) = rule.decide(&now) {
                prop_assert!(matches!(rule.decide(&better), Decision::Redeem(_)));
            }
        }
    }
}
