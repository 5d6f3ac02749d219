//! The market alone, small, and what it is compared with.

use netsim::figures::Figure;
use netsim::market::bound::{Demand, Supply, cheapest, in_hindsight};
use netsim::market::{self, Options};
use netsim::rng::Rng;

#[test]
fn a_small_market_is_near_the_cheapest_and_its_controls_are_not() {
    let report = market::run(&Options::small(1), |_| {}).expect("it runs");
    assert!(report.controls_failed());
    let missed: Vec<Figure> = report.figures().into_iter().filter(|f| !f.is_met()).collect();
    assert!(missed.is_empty(), "{missed:?}");
}

/// All assignments of whole leases, tried one by one.
fn by_trial(demands: &[Demand], supplies: &[Supply]) -> Option<f64> {
    let Some((first, rest)) = demands.split_first() else { return Some(0.0) };
    let place = |at: usize| {
        let mut left = supplies.to_vec();
        left[at].rate = left[at].rate.checked_sub(first.rate)?;
        let cost = first.rate as f64 * first.weight * left[at].price;
        Some(cost + by_trial(rest, &left)?)
    };
    (0..supplies.len()).filter_map(place).min_by(f64::total_cmp)
}

#[test]
fn nothing_is_cheaper_than_the_bound_and_the_best_is_not_far_from_it() {
    let mut rng = Rng::new(7);
    let (mut tried, mut tight) = (0, 0);
    for _ in 0..300 {
        let demands: Vec<Demand> = (0..1 + rng.below(5))
            .map(|_| Demand { rate: rng.pick(&[5, 10, 20]), weight: 1.0 + rng.fraction() })
            .collect();
        let supplies: Vec<Supply> = (0..1 + rng.below(4))
            .map(|_| Supply { rate: 5 * rng.below(9), price: 1.0 + rng.fraction() })
            .collect();
        let Some(best) = by_trial(&demands, &supplies) else { continue };
        let bound = cheapest(&demands, &supplies);
        assert!(bound <= best * (1.0 + 1e-9), "{bound} is above {best}: {demands:?} {supplies:?}");
        if in_hindsight(&demands, &supplies) >= best * (1.0 - 1e-9) {
            tried += 1;
        }
        tight += usize::from(best <= bound * 1.05);
    }
    assert!(tried > 100 && tight > tried / 2, "{tight} of {tried} are within 5 %");
}
