//! A slice of the metering core's schedules, and controls for those who keep the books.

use netsim::metering::{self, Event, Report, Sabotage};
use netsim::pool;

/// Seeds that are played here; the command plays as many as one likes.
const SEEDS: u64 = 1000;
/// Within so many seeds whatever is wrong must be noticed.
const CONTROL_SEEDS: u64 = 60;

#[test]
fn no_byte_is_billed_twice_or_lost_beyond_a_window_whatever_befalls() {
    let seeds: Vec<u64> = (0..SEEDS).collect();
    let outcomes = pool::run(&seeds, |seed| metering::run(*seed), |_, _| {});
    let mut report = Report::default();
    for (seed, outcome) in seeds.iter().zip(&outcomes) {
        if let Err(error) = outcome {
            let next = seed + 1;
            panic!(
                "replay with `cargo run --release -p netsim -- metering {seed}..{next}`: {error:#}"
            );
        }
        report.add(outcome);
    }
    let tallies: Vec<_> = outcomes.iter().flatten().collect();
    let befell = |of: fn(&Event) -> bool| tallies.iter().any(|t| t.events.iter().any(of));
    assert!(befell(|e| matches!(e, Event::Switches(_))) && befell(|e| matches!(e, Event::Dies(_))));
    assert!(befell(|e| matches!(e, Event::ClockSteps(_))));
    let all = |of: fn(&metering::Tally) -> u64| tallies.iter().map(|t| of(t)).sum::<u64>();
    assert!(all(|t| t.packets[0]) > 0 && all(|t| t.packets[1]) > 0 && all(|t| t.packets[2]) > 0);
    assert!(all(|t| t.lost.total()) > 0, "deaths do cost something");
    assert!(report.figures().iter().all(netsim::figures::Figure::is_met));
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    for seed in [3, 14] {
        assert_eq!(
            metering::run(seed).expect("it passes"),
            metering::run(seed).expect("it passes")
        );
    }
}

#[test]
fn whatever_is_wrong_on_purpose_is_noticed() {
    for sabotage in [
        Sabotage::CountsCopies,
        Sabotage::RelayCountsCopies,
        Sabotage::IgnoresFlight,
        Sabotage::ForgetsSigned,
        Sabotage::BeginsAnew,
    ] {
        let seeds: Vec<u64> = (0..CONTROL_SEEDS).collect();
        let run = |seed: &u64| metering::run_with(*seed, sabotage);
        let noticed = pool::run(&seeds, run, |_, _| {}).iter().filter(|o| o.is_err()).count();
        assert!(noticed > 0, "{sabotage:?} passed {CONTROL_SEEDS} schedules");
    }
}
