//! The metering core alone, over schedules of bad luck: who is billed for what.
//!
//! A tenant, a provider and two relays are the real accounts (`Payer`, `Gate`, `HolderMeter`,
//! `RelayMeter`) on a model of everything else: streams whose segments are repeated until they arrive,
//! relays that forward within window and grant, ledgers that take their time, a network that loses,
//! doubles and reorders. A seed decides the lot, and what befalls it: the session goes on over other
//! paths, processes are killed and come back with what their ledgers hold, connections break, streams
//! are given up, clocks go forward a day. Books are kept by somebody who sees every byte
//! arrive and every voucher become durable; at the end all must be settled, and every byte paid once
//! or lost in a window of its own.

mod accounts;
mod befall;
mod books;
mod carriage;
mod deal;
mod network;
mod plan;
mod relay;
mod streams;
mod world;

use std::fmt::{self, Write as _};

use anyhow::{Context, Result};
use sluice_metering::Counts;

use crate::figures::{Figure, Target};
use crate::rng::Rng;
use plan::Plan;
use world::World;

pub use plan::{Event, Party, Path};

/// A load without bad luck, whose pay messages are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The window of both edges.
    pub window: u64,
    /// Streams at a time.
    pub streams: u64,
    /// From the tenant to the provider.
    pub is_up: bool,
    /// Through a relay, which is paid for too.
    pub is_relayed: bool,
}

/// Something wrong with a party that is to be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// None.
    None,
    /// The tenant counts what comes twice twice.
    CountsCopies,
    /// The relay counts what comes twice twice.
    RelayCountsCopies,
    /// The provider's window leaves out what is in flight.
    IgnoresFlight,
    /// The tenant's voucher is not kept, nor taken from the provider: it goes on from nothing.
    ForgetsSigned,
    /// Neither keeps a voucher, nor what it lost: a new session begins from nothing.
    BeginsAnew,
}

/// Nothing was billed twice, and nothing lost; but it does not come to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck;

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it does not come to an end")
    }
}

impl std::error::Error for Stuck {}

/// What came of a schedule.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tally {
    /// Bytes that reached tenant and provider.
    pub given: Counts,
    /// Of these, lost with processes and sessions.
    pub lost: Counts,
    /// Frame bytes that relays forwarded, both ways, and lost.
    pub forwarded: u64,
    /// Of these, lost with processes and connections.
    pub forwarded_lost: u64,
    /// The most that was unpaid on an edge, and the most that was lost at once, in windows.
    pub exposed_max: f64,
    /// The most that was lost at once.
    pub lost_max: f64,
    /// Vouchers that became durable.
    pub vouchers: u64,
    /// Pay messages that were sent.
    pub messages: u64,
    /// Their bytes, headers included, of the session and of its relays.
    pub message_bytes: [u64; 2],
    /// Packets that the network lost, doubled, and brought late.
    pub packets: [u64; 3],
    /// Packets that met the end of a grant, and of a relay's window.
    pub held: [u64; 2],
    /// What befell the parties.
    pub events: Vec<Event>,
}

impl Tally {
    fn of(world: &World) -> Self {
        let windows = |bytes: u64| bytes as f64 / world.plan.window as f64;
        let mut tally = Self {
            given: world.books.given(),
            lost: world.books.lost(),
            exposed_max: windows(world.books.exposed_max),
            lost_max: windows(world.books.lost_max),
            vouchers: world.books.vouchers,
            messages: world.messages,
            message_bytes: world.message_bytes,
            packets: [world.net.lost, world.net.doubled, world.net.late],
            events: world.plan.events.iter().map(|(_, event)| *event).collect(),
            ..Self::default()
        };
        for relay in &world.relays {
            tally.forwarded += relay.books.given().total();
            tally.forwarded_lost += relay.books.lost().total();
            tally.exposed_max = tally.exposed_max.max(windows(relay.books.exposed_max));
            tally.lost_max = tally.lost_max.max(windows(relay.books.lost_max));
            tally.vouchers += relay.books.vouchers;
            tally.held[0] += relay.over_grant;
            tally.held[1] += relay.over_window;
        }
        tally
    }
}

/// Plays the schedule of a seed.
///
/// # Errors
/// When a byte is billed twice or lost beyond a window, honest parties accuse each other, more than a
/// window is unpaid, or the accounts do not come to an end.
pub fn run(seed: u64) -> Result<Tally> {
    run_with(seed, Sabotage::None)
}

/// Plays the schedule of a seed, with something wrong on purpose.
///
/// # Errors
/// As [`run`].
pub fn run_with(seed: u64, sabotage: Sabotage) -> Result<Tally> {
    let mut rng = Rng::new(seed);
    let plan = Plan::draw(&mut rng);
    World::of(plan, rng, sabotage).play().with_context(|| format!("schedule {seed}"))
}

/// Bytes of pay messages over bytes of payload, on the session's edge and on a relay's: each message
/// as if in a packet of its own, with headers of IP, UDP, QUIC and the relay's frame.
///
/// # Errors
/// As [`run`].
pub fn cost(load: &Load) -> Result<[f64; 2]> {
    let world = World::of(Plan::steady(load), Rng::new(1), Sabotage::None);
    let tally = world.play().with_context(|| format!("{load:?}"))?;
    Ok(tally.message_bytes.map(|bytes| bytes as f64 / tally.given.total() as f64))
}

/// What came of many schedules.
#[derive(Debug, Default)]
pub struct Report {
    played: u64,
    failed: u64,
    stuck: u64,
    total: Tally,
}

impl Report {
    /// Takes in what came of one.
    pub fn add(&mut self, outcome: &Result<Tally>) {
        self.played += 1;
        let tally = match outcome {
            Ok(tally) => tally,
            Err(error) if error.is::<Stuck>() => return self.stuck += 1,
            Err(_) => return self.failed += 1,
        };
        let total = &mut self.total;
        for (sum, more) in [
            (&mut total.given.up, tally.given.up),
            (&mut total.given.down, tally.given.down),
            (&mut total.lost.up, tally.lost.up),
            (&mut total.lost.down, tally.lost.down),
            (&mut total.forwarded, tally.forwarded),
            (&mut total.forwarded_lost, tally.forwarded_lost),
            (&mut total.vouchers, tally.vouchers),
            (&mut total.messages, tally.messages),
        ] {
            *sum += more;
        }
        total.packets.iter_mut().zip(tally.packets).for_each(|(sum, more)| *sum += more);
        total.held.iter_mut().zip(tally.held).for_each(|(sum, more)| *sum += more);
        total.exposed_max = total.exposed_max.max(tally.exposed_max);
        total.lost_max = total.lost_max.max(tally.lost_max);
        total.events.extend(&tally.events);
    }

    /// What was played, for people.
    #[must_use]
    pub fn table(&self) -> String {
        let total = &self.total;
        let count = |of: fn(&Event) -> bool| total.events.iter().filter(|e| of(e)).count();
        let mut out = String::new();
        for (what, count) in [
            ("packets lost", total.packets[0]),
            ("packets doubled", total.packets[1]),
            ("packets late", total.packets[2]),
            ("switches of path", count(|e| matches!(e, Event::Switches(_))) as u64),
            ("processes killed", count(|e| matches!(e, Event::Dies(_))) as u64),
            ("sessions broken", count(|e| matches!(e, Event::SessionBreaks)) as u64),
            ("links to relays broken", count(|e| matches!(e, Event::LinkBreaks(_))) as u64),
            ("clocks a day forward", count(|e| matches!(e, Event::ClockSteps(_))) as u64),
            ("payload bytes that arrived", total.given.total()),
            ("of these lost in deaths and breaks", total.lost.total()),
            ("frame bytes forwarded", total.forwarded),
            ("of these lost in deaths and breaks", total.forwarded_lost),
            ("packets beyond a grant", total.held[0]),
            ("packets beyond a relay's window", total.held[1]),
            ("vouchers", total.vouchers),
            ("pay messages", total.messages),
        ] {
            let _ = writeln!(out, "{what:<36} {count:>16}");
        }
        out
    }

    /// What is to be reached.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let windows = |name: &str, value| Figure::new(name, value, "windows", Target::AtMost(1.0));
        vec![
            Figure::new("schedules", self.played as f64, "", Target::None),
            Figure::new(
                "with a byte billed twice or lost beyond a window, or a false accusation",
                self.failed as f64,
                "",
                Target::AtMost(0.0),
            ),
            Figure::new("that came to no end", self.stuck as f64, "", Target::AtMost(0.0)),
            windows("most that was unpaid on an edge, in flight included", self.total.exposed_max),
            windows("most that was lost in one death or break", self.total.lost_max),
        ]
    }
}
