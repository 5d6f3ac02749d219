//! What befalls a network: drawn at random, or written down.

use std::fmt;
use std::time::Duration;

use anyhow::Result;

use super::Topology;
use crate::net::{LinkSpec, PlaceId, Taken};
use crate::rng::Rng;
use crate::scene::{Scene, Site};

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A relay's process dies and comes back.
    RelayKilled(usize),
    /// A relay drops everything: what comes to it, what it sends, or both.
    RelaySilent {
        /// Which relay.
        relay: usize,
        /// It hears nothing.
        deaf: bool,
        /// It says nothing.
        mute: bool,
    },
    /// A relay forwards nothing; its control connections go on.
    RelayHalfDead(usize),
    /// A relay's line holds everything back for this long.
    Stall(usize, Duration),
    /// A relay's line passes only packets of 1,280 bytes.
    SmallMtu(usize),
    /// A home's line is down.
    LineDown(Side),
    /// A home's outermost gateway restarts with another address.
    AddressChanged(Side),
    /// It restarts with the same.
    Rebooted(Side),
    /// It gives other ports to what goes on.
    Rebound(Side),
    /// A home's machine sets its wall clock so many seconds forward, or back.
    ClockSet(Side, i64),
    /// A relay does.
    RelayClockSet(usize, i64),
}

/// One of the two homes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The tenant's.
    Tenant,
    /// The provider's.
    Provider,
}

/// A fault, when it begins after the traffic did, and how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timed {
    /// What.
    pub fault: Fault,
    /// When.
    pub at: Duration,
    /// For how long, if it passes.
    pub lasts: Duration,
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{:?} at {at:.1} s for {lasts:.1} s", self.fault)
    }
}

/// Most faults of a run.
const FAULTS_MAX: u64 = 4;
/// The longest that one lasts.
const LASTS_MAX: Duration = Duration::from_secs(12);

/// Draws some.
pub(super) fn draw(rng: &mut Rng, topology: &Topology) -> Vec<Timed> {
    let count = rng.below(FAULTS_MAX + 1);
    let mut at = Duration::ZERO;
    (0..count)
        .map(|_| {
            at += rng.span(Duration::from_secs(1), Duration::from_secs(8));
            let lasts = rng.span(Duration::from_millis(300), LASTS_MAX);
            Timed { fault: one(rng, topology), at, lasts }
        })
        .collect()
}

fn one(rng: &mut Rng, topology: &Topology) -> Fault {
    let relay = rng.below(topology.relays.len() as u64) as usize;
    let side = rng.pick(&[Side::Tenant, Side::Provider]);
    let has_gateway = match side {
        Side::Tenant => !topology.tenant.nats.is_empty(),
        Side::Provider => !topology.provider.nats.is_empty(),
    };
    match rng.below(9) {
        0 => Fault::RelayKilled(relay),
        1 => {
            let (deaf, mute) = rng.pick(&[(true, true), (true, false), (false, true)]);
            Fault::RelaySilent { relay, deaf, mute }
        }
        2 => Fault::RelayHalfDead(relay),
        3 => Fault::Stall(relay, rng.span(Duration::from_millis(50), Duration::from_millis(800))),
        4 => Fault::SmallMtu(relay),
        5 if has_gateway => Fault::AddressChanged(side),
        6 if has_gateway => Fault::Rebooted(side),
        7 if has_gateway => Fault::Rebound(side),
        _ => Fault::LineDown(side),
    }
}

fn home_of(scene: &Scene, side: Side) -> &Site {
    match side {
        Side::Provider => &scene.sites[0],
        Side::Tenant => &scene.sites[1],
    }
}

/// The place on whose link a home hangs.
fn line_of(scene: &Scene, side: Side) -> PlaceId {
    let home = home_of(scene, side);
    home.gateways.first().copied().unwrap_or(home.host)
}

/// Lets them happen, each at its time, and mends what passes. Returns when all is mended.
pub(super) async fn befall(scene: &mut Scene, faults: &[Timed]) -> Result<()> {
    let mut todo: Vec<(Duration, bool, Fault)> = Vec::new();
    for timed in faults {
        todo.push((timed.at, true, timed.fault));
        todo.push((timed.at + timed.lasts, false, timed.fault));
    }
    todo.sort_by_key(|(at, ..)| *at);
    let began = scene.net.elapsed();
    for (at, begins, fault) in todo {
        let now = scene.net.elapsed() - began;
        scene.sleep(at.saturating_sub(now)).await;
        tracing::info!(?fault, begins, at_s = at.as_secs_f64());
        match begins {
            true => begin(scene, fault),
            false => mend(scene, fault).await?,
        }
    }
    Ok(())
}

fn begin(scene: &mut Scene, fault: Fault) {
    let net = scene.net.clone();
    let taken = |yes| if yes { Taken::Everything } else { Taken::Nothing };
    match fault {
        Fault::RelayKilled(relay) => scene.relays[relay].kill(&net),
        Fault::RelaySilent { relay, deaf, mute } => {
            net.take(scene.relays[relay].place, taken(mute), taken(deaf));
        }
        Fault::RelayHalfDead(relay) => {
            net.take(scene.relays[relay].place, Taken::Frames, Taken::Frames);
        }
        Fault::Stall(relay, span) => net.stall(scene.relays[relay].place, span),
        Fault::SmallMtu(relay) => {
            let small = LinkSpec { mtu: Some(1280), ..scene.relays[relay].line };
            net.relink(scene.relays[relay].place, small, small);
        }
        Fault::LineDown(side) => {
            net.take(line_of(scene, side), Taken::Everything, Taken::Everything);
        }
        Fault::AddressChanged(side) => {
            scene.renumbered += 1;
            let outside = Scene::renumbered(scene.renumbered);
            net.reboot(line_of(scene, side), outside);
        }
        Fault::Rebooted(side) => {
            let gateway = line_of(scene, side);
            net.reboot(gateway, net.with_nat(gateway, |nat| nat.outside()));
        }
        Fault::Rebound(side) => net.rebind(line_of(scene, side)),
        Fault::ClockSet(side, seconds) => home_of(scene, side).clock.set_wall(seconds),
        Fault::RelayClockSet(relay, seconds) => scene.relays[relay].clock().set_wall(seconds),
    }
}

async fn mend(scene: &mut Scene, fault: Fault) -> Result<()> {
    let net = scene.net.clone();
    match fault {
        Fault::RelayKilled(relay) => {
            if scene.relays[relay].process().is_none() {
                scene.relays[relay].restart().await?;
            }
        }
        Fault::RelaySilent { relay, .. } | Fault::RelayHalfDead(relay) => {
            net.take(scene.relays[relay].place, Taken::Nothing, Taken::Nothing);
        }
        Fault::LineDown(side) => net.take(line_of(scene, side), Taken::Nothing, Taken::Nothing),
        Fault::Stall(..)
        | Fault::SmallMtu(_)
        | Fault::AddressChanged(_)
        | Fault::Rebooted(_)
        | Fault::Rebound(_)
        | Fault::ClockSet(..)
        | Fault::RelayClockSet(..) => {}
    }
    Ok(())
}
