//! `kill -9` at seeded instants: a relay, a provider and a tenant run as real processes, paid on both
//! edges, and one of them is killed again and again: in the middle of transfers, while channels are
//! opened, on resumption, at the end and at rest.
//!
//! Whoever is to die is frozen first (SIGSTOP), so that the kernel's queues can be read; then it is
//! killed, and what each party lost is the difference between the bytes at the sockets and the
//! ledgers on the disk. Nothing that a process says of itself counts, but for one thing: a payer's
//! word for what was acknowledged to it. Then it is started again, and the transfer must complete.

#![expect(clippy::disallowed_methods, reason = "real processes are killed in real time")]

mod chain;
mod judge;
mod queues;
mod report;
mod rng;
mod show;
mod stage;
mod store;
mod tap;
mod transfer;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use tests::figures;

use crate::report::Report;
use crate::show::Show;
use crate::stage::Role;

/// Kills relay, provider and tenant at seeded instants, and says what each lost.
#[derive(Debug, Parser)]
#[command(name = "kills")]
struct Options {
    /// Kills of each of the three.
    #[arg(long, default_value_t = 200)]
    kills: usize,
    /// What all instants follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let (begin, mut report) = (Instant::now(), Report::default());
    let mut show = None;
    for number in 0..options.kills {
        for role in Role::ALL {
            let outcome = kill(&mut show, &options, number, role, &mut report);
            if let Err(error) = outcome {
                say(&format!("FAILED: the {}, kill {number}: {error:#}", role.name()));
                match show.take() {
                    Some(show) if show.is_stalled() => report.stall(),
                    Some(_) | None => report.fail(),
                }
            }
        }
    }
    if let Some(Err(error)) = show.map(Show::end) {
        say(&format!("FAILED: at the end: {error:#}"));
        report.fail();
    }
    let figures = report.figures(options.kills, begin.elapsed().as_secs_f64());
    say(&report.table());
    say(&figures::told(&figures, options.json));
    // Too few kills follow from a transfer that stalled; all else says that money was lost.
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One kill; on a new stage after something failed.
fn kill(
    show: &mut Option<Show>,
    options: &Options,
    number: usize,
    role: Role,
    report: &mut Report,
) -> Result<()> {
    if show.is_none() {
        let seed = options.seed.wrapping_add((number as u64) << 32);
        *show = Some(Show::start(seed).context("failed to start")?);
    }
    let show = show.as_mut().context("it was started")?;
    show.kill(role, number, report)
}

#[expect(clippy::print_stdout, reason = "this is what the command is for")]
fn say(text: &str) {
    println!("{text}");
}
