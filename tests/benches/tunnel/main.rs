//! What a tunnel costs: plain TCP, Sluice and its peers, measured side by side in one run.
//!
//! Each [`Subject`] carries one TCP service from a provider to a tenant. They stand in three network
//! namespaces, tenant - relay - provider, joined by veth pairs ([`Lab`]); without root or `ip` they
//! share loopback, and the output says so. In the relayed cases the relay's namespace forwards no
//! packet, so there is no direct path to find. A load ([`load`]) runs at both outer ends, as
//! children of this program, so that nothing but the peers need be installed
//! (`tests/peers/install`).
//!
//! Loads, tunnel and machine share the same cores, so a rate is roughly the number of cores over
//! the CPU time per byte: CPU seconds per GB (10^9 payload bytes, counted at the sink) is the figure
//! to trust. It is the run time of the threads of each role's process (`schedstat`) over a steady
//! window. Subjects take turns in rounds, so that a disturbance of the machine hits all of them;
//! cells are medians over the rounds, with the least and the greatest. Downloads are measured: the
//! provider sends.
//!
//! The exit code says whether the run was valid, not whether targets were met.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::print_stdout, reason = "a benchmark prints its tables")]

mod cleanup;
mod cpu;
mod figures;
mod idle;
mod load;
mod measure;
mod netns;
mod peers;
mod process;
mod reserve;
mod results;
mod subject;
mod table;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::measure::Plan;
use crate::netns::Lab;
use crate::peers::Programs;
use crate::results::Results;
use crate::subject::{Family, Subject};

/// Measures plain TCP, Sluice and its peers side by side.
#[derive(Debug, Parser)]
struct Args {
    /// Ends with one line of JSON: the figures and their targets.
    #[arg(long)]
    json: bool,
    /// One short run of each instead of three: to see that all works.
    #[arg(long)]
    quick: bool,
    /// Measures only these.
    #[arg(long, value_delimiter = ',', value_name = "NAME,..")]
    only: Vec<Family>,
    /// Uses loopback even where namespaces could be made.
    #[arg(long)]
    loopback: bool,
    /// What `cargo bench` passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    child: Option<load::Child>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.child {
        Some(child) => load::run(child).map(|()| true),
        None => bench(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, prints, and tells whether the run was valid.
fn bench(args: &Args) -> Result<bool> {
    cleanup::on_signals()?;
    let mut results = Results::default();
    results.note(cpu::machine());
    let lab = Lab::open(args.loopback, &mut results)?;
    let programs = Programs::find(&args.only, &mut results)?;
    let subjects = subject::all(&programs, &lab, &mut results);
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };

    for round in 1..=plan.rounds {
        for &subject in &subjects {
            say(&format!("round {round} of {}: {subject}", plan.rounds));
            results.add(subject, measure::tunnel(&lab, &programs, subject, &plan));
        }
        without_offloads(&lab, &programs, &subjects, &plan, &mut results)?;
    }
    if subjects.contains(&Subject::SLUICE_RELAYED) {
        let idle = idle::measure(&lab, &programs, &mut results);
        results.add_idle(idle);
    }
    drop(lab);

    let figures = figures::all(&results);
    print!("{}", table::report(&results, &plan, &figures));
    if args.json {
        println!("{}", serde_json::json!({ "figures": figures }));
    }
    Ok(results.valid())
}

/// Measures again, one stream only, with each packet segmented and coalesced by the kernel at each
/// veth end: the conservative bound, as veth hands on whole batches otherwise.
fn without_offloads(
    lab: &Lab,
    programs: &Programs,
    subjects: &[Subject],
    plan: &Plan,
    results: &mut Results,
) -> Result<()> {
    if !lab.can_switch_offloads() {
        return Ok(());
    }
    lab.set_offloads(false).context("failed to switch the offloads off")?;
    for &subject in subjects.iter().filter(|subject| subject.is_measured_without_offloads()) {
        say(&format!("without offloads: {subject}"));
        results.add_without_offloads(subject, measure::one_stream(lab, programs, subject, plan));
    }
    lab.set_offloads(true).context("failed to switch the offloads back on")
}

/// Tells the person who waits what is being done.
fn say(what: &str) {
    eprintln!("tunnel: {what}");
}

/// How long anything may take to start: generous, as a peer may look for a path first.
const START: Duration = Duration::from_secs(20);
