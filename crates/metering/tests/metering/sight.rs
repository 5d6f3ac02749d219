//! A channel that a payer closes while it is served on, or that cannot be seen.

use std::time::{Duration, Instant};

use sluice_metering::{
    Channel, Direction, Payee, Permit, REDEEM_MARGIN, Reason, Sight, StreamIndex,
};
use sluice_proto::Amount;

use crate::support::{WINDOW, price, purse, terms};

const PERIOD: Duration = Duration::from_secs(48 * 3600);
const PERIOD_S: u32 = 48 * 3600;
const MINUTE: Duration = Duration::from_secs(60);
const A: StreamIndex = StreamIndex(0);

#[test]
fn whatever_is_given_on_a_channel_is_given_a_day_before_its_payer_can_be_refunded() {
    let began = Instant::now();
    let mut sight = Sight::new(PERIOD_S, MINUTE, began);
    // The payer starts to close in the moment after the last look that saw it open.
    let (mut seen, mut now) = (began, began);
    for minute in 0..5 * 24 * 60 {
        now = began + MINUTE * minute;
        if sight.is_lost(now) {
            break;
        }
        assert!(now + REDEEM_MARGIN < seen + PERIOD, "served in minute {minute}");
        assert!(sight.is_due(u64::from(minute), false, now) || minute == 0);
        sight.handle_look(u64::from(minute), now);
        // The node answers for a day, and never again.
        if minute < 24 * 60 {
            sight.handle_open(now);
            seen = now;
        }
    }
    assert!(sight.is_lost(now), "it is served on for ever");
    assert!(now - seen >= Duration::from_secs(24 * 3600), "a day without a node is served on");
    sight.handle_open(now);
    assert!(!sight.is_lost(now), "it is served on once it is seen");
}

#[test]
fn a_channel_is_looked_at_again_also_when_nothing_moves() {
    let began = Instant::now();
    let sight = Sight::new(PERIOD_S, MINUTE, began);
    assert!(!sight.is_due(1, true, began + MINUTE / 2));
    assert!(sight.is_due(1, false, began + MINUTE), "bytes moved");
    assert!(sight.is_due(0, true, began + MINUTE), "a deposit becomes final");
    assert!(!sight.is_due(0, false, began + MINUTE * 9));
    assert!(sight.is_due(0, false, began + MINUTE * 10));
    let mut unseen = sight;
    unseen.handle_look(1, began + MINUTE);
    assert!(unseen.is_due(1, false, began + MINUTE * 2), "the last look saw nothing");
    unseen.handle_open(began + MINUTE);
    assert!(!unseen.is_due(1, false, began + MINUTE * 2));
    let hourly = Sight::new(PERIOD_S, MINUTE * 60, began);
    assert!(!hourly.is_due(1, true, began + MINUTE * 59));
    assert!(hourly.is_due(0, false, began + MINUTE * 60));
}

#[test]
fn on_a_channel_that_ends_nothing_more_is_given_until_it_is_open_again() {
    let (now, channel) = (Instant::now(), purse(1 << 40, 0).channel);
    let mut payee = Payee::new(terms(price()), Some(channel), 1, None);
    payee.handle_opened(A);
    let Permit::Granted(given) = payee.permit(A, Direction::Down, 10_000, now) else {
        panic!("the window is open")
    };
    payee.handle_channel_ends();
    for direction in [Direction::Down, Direction::Up] {
        let wait = payee.permit(A, direction, 1, now);
        assert_eq!(wait, Permit::Wait(Reason::Deposit, None));
    }
    // What was not used may be used.
    payee.refund(A, Direction::Down, 1_000);
    assert_eq!(payee.permit(A, Direction::Down, 1_000, now), Permit::Granted(1_000));
    assert_eq!(payee.unpaid(), given);
    payee.handle_channel(Channel { deposit: Amount(1 << 40), ..channel });
    let again = payee.permit(A, Direction::Down, WINDOW / 4, now);
    assert!(matches!(again, Permit::Granted(n) if n > 1), "{again:?}");
}
