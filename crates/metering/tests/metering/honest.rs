//! Honest parties over a bad network, at random.

use std::panic::{AssertUnwindSafe, catch_unwind};

use proptest::prelude::*;
use sluice_metering::StreamIndex;
use sluice_proto::Price;

use crate::support::WINDOW;
use crate::world::{Plan, Setup, World};

fn setup() -> impl Strategy<Value = Setup> {
    let price = prop_oneof![
        6 => (0u128..1 << 40, 1u128..1 << 40).prop_map(|(up, down)| Price { up, down }),
        1 => Just(Price { up: 0, down: 1 }),
        1 => Just(Price { up: 1 << 35, down: 0 }),
        1 => Just(Price { up: 0, down: 0 }),
    ];
    let window = prop_oneof![Just(WINDOW / 8), Just(WINDOW / 2), Just(8 * WINDOW)];
    (any::<u64>(), price, 0u64..40, 1u64..60, 0u64..30, 2_000u64..400_000, window).prop_map(
        |(seed, price, loss_percent, delay_ms, ledger_ms, read_max, stream_window)| Setup {
            seed,
            price,
            loss_percent,
            delay_ms,
            ledger_ms,
            read_max,
            stream_window,
        },
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    let down = prop_oneof![0u64..2_000, 0u64..3 * WINDOW];
    let up = prop_oneof![3 => Just(0u64), 1 => 0u64..2_000, 1 => 0u64..2 * WINDOW];
    (down, up, 0u64..WINDOW, 0u8..10, 0u32..400).prop_map(|(down, up, at, fate, opens_at_ms)| {
        let (pauses_at, resets_at) = match fate {
            0 => (0, u64::MAX),
            1 | 2 => (u64::MAX, at / 4),
            _ => (u64::MAX, u64::MAX),
        };
        Plan { down, up, pauses_at, resets_at, opens_at_ms }
    })
}

/// Crashes lose enough: with resets beside them an honest payer may meet the bound on losses.
fn plan_without_resets() -> impl Strategy<Value = Plan> {
    plan().prop_map(|plan| Plan { resets_at: u64::MAX, ..plan })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn accounts_agree_and_bytes_flow_whatever_the_network_does(
        setup in setup(),
        plans in prop::collection::vec(plan(), 1..12),
    ) {
        let mut world = World::new(setup, &plans);
        world.run(200_000);
        world.finish();
    }

    #[test]
    fn accounts_go_on_after_either_side_crashes(
        setup in setup(),
        plans in prop::collection::vec(plan_without_resets(), 1..5),
        crashes in prop::collection::vec((1u32..600, any::<bool>(), any::<bool>()), 1..4),
    ) {
        let mut world = World::new(setup, &plans);
        for (ticks, payer, payee) in crashes {
            for _ in 0..ticks {
                world.tick();
            }
            world.restart(payer, payee, &plans);
        }
        world.run(200_000);
        world.finish();
    }
}

#[test]
fn two_hundred_streams_share_a_window_and_all_finish() {
    let setup = Setup {
        seed: 5,
        price: Price { up: 1 << 30, down: 1 << 30 },
        loss_percent: 10,
        delay_ms: 20,
        ledger_ms: 5,
        read_max: 100_000,
        stream_window: WINDOW,
    };
    let plan =
        Plan { down: 40_000, up: 500, pauses_at: u64::MAX, resets_at: u64::MAX, opens_at_ms: 0 };
    let mut world = World::new(setup, &[plan; 200]);
    world.run(400_000);
    world.finish();
}

#[test]
fn newcomers_are_served_beside_readers_that_pause_one_after_another() {
    let setup = Setup {
        seed: 6,
        price: Price { up: 1 << 30, down: 1 << 30 },
        loss_percent: 0,
        delay_ms: 10,
        ledger_ms: 2,
        read_max: 100_000,
        stream_window: 4 * WINDOW,
    };
    let flows =
        Plan { down: 4 * WINDOW, up: 0, pauses_at: u64::MAX, resets_at: u64::MAX, opens_at_ms: 0 };
    let mut plans = vec![flows];
    // These read a good deal first, and so may hold much when they pause.
    plans.extend((0..12).map(|n| Plan { pauses_at: 300_000, opens_at_ms: n * 500, ..flows }));
    plans.push(Plan { down: WINDOW, opens_at_ms: 8_000, ..flows });
    let mut world = World::new(setup, &plans);
    world.run(400_000);
    world.finish();
}

/// The control: the world's checks do find a payer that counts one byte that was never sent.
#[test]
fn a_wrong_count_is_found_out() {
    let setup = Setup {
        seed: 7,
        price: Price { up: 1 << 30, down: 1 << 30 },
        loss_percent: 0,
        delay_ms: 1,
        ledger_ms: 0,
        read_max: 100_000,
        stream_window: WINDOW,
    };
    let plan =
        Plan { down: 400_000, up: 0, pauses_at: u64::MAX, resets_at: u64::MAX, opens_at_ms: 0 };
    for invented in [0, 1] {
        let mut world = World::new(setup, &[plan]);
        world.run(10_000);
        world.payer.handle_read(StreamIndex(0), invented, world.now);
        let finished = catch_unwind(AssertUnwindSafe(|| world.finish()));
        assert_eq!(finished.is_ok(), invented == 0);
    }
}
