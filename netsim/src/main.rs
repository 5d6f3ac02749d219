//! The simulator's commands.

#![expect(clippy::disallowed_methods, reason = "people want to know how long a command took")]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use netsim::figures::{self, Figure};
use netsim::matrix::{self, Help};
use netsim::{failover, pool};

/// Runs real nodes and relays on a simulated network.
#[derive(Debug, Parser)]
#[command(name = "netsim")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Every pair of NATs with every allocator: who meets, how fast, at what cost.
    Matrix(Many),
    /// What can be lost in the middle of a download: how long nothing arrives.
    Failover(Many),
}

#[derive(Debug, Args)]
struct Many {
    /// Seeds for each case.
    #[arg(long, default_value_t = 30)]
    seeds: u64,
    /// Only cases whose name contains this, such as EIM/APDF-APDM/APDF-random-3 or relay-killed.
    #[arg(long)]
    only: Option<String>,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Matrix(options) => run_matrix(&options),
        Command::Failover(options) => run_failover(&options),
    }
}

fn run_matrix(options: &Many) -> Result<ExitCode> {
    let began = std::time::Instant::now();
    let mut cases = matrix::cases(options.seeds, Help::None);
    if let Some(only) = &options.only {
        cases.retain(|case| case.to_string().contains(only));
    }
    anyhow::ensure!(!cases.is_empty(), "no case has that name");
    let outcomes = pool::run(&cases, matrix::Case::run, |case, outcome| {
        if let Err(error) = outcome {
            say(&format!("failed: --only {case}: {error:#}"));
        }
    });
    let mut report = matrix::Report::default();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        report.add(case, outcome);
    }
    say(&report.table());
    let mut figures = report.figures();
    figures.push(Figure::new(
        "minutes that this took",
        began.elapsed().as_secs_f64() / 60.0,
        "min",
        figures::Target::AtMost(15.0),
    ));
    conclude(&figures, options.json);
    Ok(ExitCode::SUCCESS)
}

fn run_failover(options: &Many) -> Result<ExitCode> {
    let mut cases = failover::cases(options.seeds);
    if let Some(only) = &options.only {
        cases.retain(|case| case.to_string().contains(only));
    }
    anyhow::ensure!(!cases.is_empty(), "no case has that name");
    let outcomes = pool::run(&cases, failover::Case::run, |case, outcome| {
        if let Err(error) = outcome {
            say(&format!("failed: --only {case}: {error:#}"));
        }
    });
    let mut report = failover::Report::default();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        report.add(case, outcome);
    }
    say(&report.table());
    conclude(&report.figures(), options.json);
    Ok(ExitCode::SUCCESS)
}

fn conclude(figures: &[Figure], json: bool) {
    say(&figures::table(figures));
    if json {
        say(&figures::line(figures));
    }
}

#[expect(clippy::print_stdout, reason = "this is what the commands are for")]
fn say(text: &str) {
    println!("{text}");
}
