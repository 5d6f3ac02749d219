//! What no assignment can cost less than.

/// A lease to be placed: a rate for a span of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demand {
    /// Mbit/s.
    pub rate: u64,
    /// What one Mbit/s of it costs at price 1: its bytes in GiB.
    pub weight: f64,
}

/// A home that serves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Supply {
    /// Mbit/s that it sells.
    pub rate: u64,
    /// Per GiB.
    pub price: f64,
}

/// A bound below the cost of every assignment of `demands` to `supplies` in which no home carries more
/// than its rate: each Mbit/s may be placed by itself, the heaviest on the cheapest. That is the least
/// sum of products of any pairing of the two (the rearrangement inequality), and the pairing of every
/// assignment of whole leases is one of them.
#[must_use]
pub fn cheapest(demands: &[Demand], supplies: &[Supply]) -> f64 {
    let mut demands = demands.to_vec();
    demands.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    let mut supplies = by_price(supplies).into_iter();
    let mut left = Supply { rate: 0, price: 0.0 };
    let mut cost = 0.0;
    for demand in demands {
        let mut rate = demand.rate;
        while rate > 0 {
            if left.rate == 0 {
                let Some(next) = supplies.next() else { return cost };
                left = next;
                continue;
            }
            let taken = rate.min(left.rate);
            cost += taken as f64 * demand.weight * left.price;
            rate -= taken;
            left.rate -= taken;
        }
    }
    cost
}

/// The cost of a good assignment of whole leases, made in hindsight: the heaviest first, each to the
/// cheapest home that has room. The true optimum is between the bound and this.
#[must_use]
pub fn in_hindsight(demands: &[Demand], supplies: &[Supply]) -> f64 {
    let mut demands = demands.to_vec();
    demands.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    let mut supplies = by_price(supplies);
    let mut cost = 0.0;
    for demand in demands {
        if let Some(home) = supplies.iter_mut().find(|home| home.rate >= demand.rate) {
            home.rate -= demand.rate;
            cost += demand.rate as f64 * demand.weight * home.price;
        }
    }
    cost
}

fn by_price(supplies: &[Supply]) -> Vec<Supply> {
    let mut supplies = supplies.to_vec();
    supplies.sort_by(|a, b| a.price.total_cmp(&b.price));
    supplies
}
