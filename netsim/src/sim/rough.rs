//! Lines that lose, double and reorder, and clocks that are set, for a run that is paid for.

use std::time::Duration;

use super::{Fault, Timed, Topology};
use crate::net::LinkSpec;
use crate::rng::Rng;
use crate::scene::Scene;

use super::fault::Side;

/// Most that a relay's line loses, each way.
const LOSS_MAX: f64 = 0.2;
/// Most that a home's line loses: there is no way around it.
const HOME_LOSS_MAX: f64 = 0.05;
/// Most clocks that are set.
const CLOCKS_MAX: u64 = 3;
/// They are set within this.
const WITHIN: Duration = Duration::from_secs(20);
/// A day, in seconds.
const DAY_S: i64 = 24 * 3600;

/// What makes a run rough.
#[derive(Debug)]
pub(super) struct Rough {
    relays: LinkSpec,
    homes: LinkSpec,
    clocks: Vec<Timed>,
}

impl Rough {
    pub(super) fn draw(rng: &mut Rng, relays: usize) -> Self {
        let clocks = (0..rng.below(CLOCKS_MAX + 1)).map(|_| {
            let seconds = rng.pick(&[DAY_S, -DAY_S]);
            let fault = match rng.below(3) {
                0 => Fault::ClockSet(Side::Tenant, seconds),
                1 => Fault::ClockSet(Side::Provider, seconds),
                _ => Fault::RelayClockSet(rng.below(relays as u64) as usize, seconds),
            };
            Timed { fault, at: rng.span(Duration::ZERO, WITHIN), lasts: Duration::ZERO }
        });
        let clocks = clocks.collect();
        Self { relays: line(rng, LOSS_MAX), homes: line(rng, HOME_LOSS_MAX), clocks }
    }

    /// Spoils the relays' lines, once the session stands.
    pub(super) fn spoil_relays(&self, scene: &Scene) {
        for relay in &scene.relays {
            let mut line = relay.line;
            add(&mut line, &self.relays);
            scene.net.relink(relay.place, line, line);
        }
    }

    /// Spoils the homes' lines, and adds the clocks to the faults.
    pub(super) fn spoil(&self, topology: &mut Topology, faults: &mut Vec<Timed>) {
        let homes = [&mut topology.tenant, &mut topology.provider];
        for line in homes.into_iter().flat_map(|home| [&mut home.up, &mut home.down]) {
            add(line, &self.homes);
        }
        faults.extend(&self.clocks);
    }

    /// What is left of the amount of traffic, so that a run stays short: with a fifth of all packets
    /// lost, a connection crawls.
    pub(super) fn share(&self) -> f64 {
        let through = 1.0 - (self.relays.loss * 2.0 + self.homes.loss * 2.0);
        through.powi(6).max(0.05)
    }
}

fn line(rng: &mut Rng, loss_max: f64) -> LinkSpec {
    LinkSpec {
        loss: rng.pick(&[0.0, 0.3, 1.0]) * loss_max * rng.fraction(),
        duplicates: rng.pick(&[0.0, 0.05, 0.2]),
        reorders: rng.pick(&[0.0, 0.05, 0.2]),
        ..LinkSpec::default()
    }
}

fn add(line: &mut LinkSpec, more: &LinkSpec) {
    line.loss = line.loss.max(more.loss);
    line.duplicates = line.duplicates.max(more.duplicates);
    line.reorders = line.reorders.max(more.reorders);
}
