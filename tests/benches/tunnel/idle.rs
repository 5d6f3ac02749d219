//! What an idle reservation costs a relay in memory.

use std::any::Any;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cpu;
use crate::load;
use crate::netns::{Lab, Place};
use crate::peers::{self, Programs};
use crate::results::Results;

/// Reservations held at once.
pub(crate) const RESERVATIONS: usize = 5_000;

/// How long all of them may take to be made: each is a handshake of some 0.5 ms at both ends.
const MAKING: Duration = Duration::from_secs(120);

/// Makes `count` reservations, each of a node of its own, at the relay with this address (as
/// `sluice relay` prints it), and holds them until what it returns is dropped.
pub(crate) type Reserve = fn(relay: &str, count: usize) -> Result<Box<dyn Any>>;

/// How the reservations are made.
pub(crate) const RESERVE: Option<Reserve> = Some(crate::reserve::reserve);

/// Resident bytes of the relay for each idle reservation; `None`, with a note, if that can't be
/// measured here.
///
/// # Errors
///
/// If it can be, but fails.
pub(crate) fn measure(
    lab: &Lab,
    programs: &Programs,
    results: &mut Results,
) -> Result<Option<f64>> {
    if RESERVE.is_none() {
        results.note("Memory per idle reservation: not measured, nothing makes reservations yet");
        return Ok(None);
    }
    let (tunnel, address) = peers::idle_relay(lab, programs)?;
    let resident = || tunnel.roles.iter().map(|(_, relay)| cpu::resident_bytes(relay.pid())).sum();
    let before: Result<u64> = resident();
    let args = ["reserve", &address, &RESERVATIONS.to_string()];
    let mut holder = load::spawn(lab, Place::Tenant, &args)?;
    holder.wait_for(MAKING, |line| (line == "ready").then_some(()))?;
    let more = resident()?.saturating_sub(before?);
    Ok(Some(more as f64 / RESERVATIONS as f64))
}

/// Is the child that holds the reservations: prints `ready` once all are made.
///
/// # Errors
///
/// If they can't be made.
pub(crate) fn hold(relay: &str, count: usize) -> Result<()> {
    let reserve = RESERVE.context("nothing makes reservations yet")?;
    let _held = reserve(relay, count)?;
    println!("ready");
    load::wait_for_end();
    Ok(())
}
