//! The simulator's commands.

#![expect(clippy::disallowed_methods, reason = "people want to know how long a command took")]

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use netsim::figures::{self, Figure};
use netsim::matrix::{self, Help};
use netsim::{cost, echoes, failover, liars, market, metering, pool, rates, sim};

/// Runs real nodes and relays on a simulated network.
#[derive(Debug, Parser)]
#[command(name = "netsim")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A random network with random faults, from a seed.
    Sim(Sim),
    /// Every pair of NATs with every allocator: who meets, how fast, at what cost.
    Matrix(Many),
    /// What can be lost in the middle of a download: how long nothing arrives.
    Failover(Many),
    /// Who lies, alone or with another, and what the others lose.
    Liars(Liars),
    /// The metering core alone, over schedules of bad luck: is a byte billed twice, or lost?
    Metering(Schedules),
    /// The market alone: what is paid above the cheapest, what a node does and keeps, what sybils get.
    Market(market::Options),
    /// Lines of all rates and delays: does a window slow down whoever pays?
    Rates(Lines),
    /// An hour at a keyboard through a paid relay: does it meet the grant?
    Echoes(Echoes),
    /// What vouchers cost: bytes, and time of a core with ledgers on a real disk.
    Cost(Cost),
    /// Real swarms in real time: are records found while nodes come and go?
    Mesh(netsim::mesh::Options),
    /// The ledger, killed and failed at every call, and after power cuts.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Crash(netsim::crash::Options),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[command(hide = true)]
    CrashVictim(netsim::crash::VictimOptions),
    /// A fleet's ledger on a PostgreSQL server that is killed again and again.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Fleet(netsim::fleet::Options),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[command(hide = true)]
    FleetMember(netsim::fleet::MemberOptions),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false, id = "which")]
struct Which {
    /// This seed.
    #[arg(long)]
    seed: Option<u64>,
    /// These seeds, such as 0..100.
    #[arg(long, value_parser = parse_range)]
    seeds: Option<Range<u64>>,
}

#[derive(Debug, Args)]
struct Sim {
    #[command(flatten)]
    which: Which,
    /// Run each twice and compare the digests of what was delivered.
    #[arg(long)]
    twice: bool,
    /// The session is paid for, and so are the relays; the books are compared after the faults.
    #[arg(long)]
    paid: bool,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Liars {
    /// Seeds for each set of liars.
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Only cases whose name contains this, such as Floods or NeverPays-None-Drops-0.
    #[arg(long)]
    only: Option<String>,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Schedules {
    /// These seeds, such as 0..100000.
    #[arg(value_parser = parse_range, default_value = "0..10000")]
    seeds: Range<u64>,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Lines {
    /// Sign terms for the line's own rate: the smallest windows.
    #[arg(long)]
    tight: bool,
    /// Only lines whose name contains this, such as 56k, 800ms or 1000k-20ms-relayed.
    #[arg(long)]
    only: Option<String>,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Echoes {
    /// How long each types, in virtual time.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Cost {
    /// Where the ledgers are written.
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// What the tunnel itself takes of a core for a gigabyte, as its benchmark prints it.
    #[arg(long, default_value_t = 2.1)]
    tunnel_s_per_gb: f64,
    /// End with one line of JSON.
    #[arg(long)]
    json: bool,
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

/// Of the matrix' seeds, the part that is also run with IPv6, and with a public address.
const HELPED_PART: u64 = 10;

fn main() -> Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match Cli::parse().command {
        Command::Sim(options) => run_sim(&options),
        Command::Matrix(options) => run_matrix(&options),
        Command::Failover(options) => run_failover(&options),
        Command::Liars(options) => run_liars(&options),
        Command::Metering(options) => run_metering(&options),
        Command::Market(options) => run_market(&options),
        Command::Rates(options) => run_rates(&options),
        Command::Cost(options) => run_cost(&options),
        Command::Echoes(options) => run_echoes(&options),
        Command::Mesh(options) => run_mesh(&options),
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Command::Crash(options) => run_crash(&options),
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Command::CrashVictim(options) => options.run(),
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Command::Fleet(options) => run_fleet(&options),
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Command::FleetMember(options) => options.run(),
    }
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let parts = text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (from, to) = parts.ok_or_else(|| format!("{text:?} is not a range such as 0..100"))?;
    if from < to { Ok(from..to) } else { Err(format!("{text:?} holds no seed")) }
}

fn run_sim(options: &Sim) -> Result<ExitCode> {
    let one = options.which.seed.map(|seed| seed..seed + 1);
    let range = one.or_else(|| options.which.seeds.clone()).unwrap_or(0..1);
    let seeds: Vec<u64> = range.collect();
    let run = if options.paid { sim::run_paid } else { sim::run };
    let paid = if options.paid { " --paid" } else { "" };
    let work = |seed: &u64| {
        let summary = run(*seed)?;
        if options.twice {
            let again = run(*seed)?;
            let (first, second) =
                ((summary.digest, summary.packets), (again.digest, again.packets));
            anyhow::ensure!(first == second, "seed {seed}: two runs differ: {first:?}, {second:?}");
        }
        Ok(summary)
    };
    let outcomes = pool::run(&seeds, work, |seed, outcome| match outcome {
        Ok(summary) => say(&format!("seed {seed:4}  {:016x}  {summary}", summary.digest.value())),
        Err(error) => say(&format!("FAILED: sim --seed {seed}{paid}: {error:#}")),
    });
    let failed = outcomes.iter().filter(|o| o.is_err()).count();
    let figures = [
        Figure::new("seeds that passed", (seeds.len() - failed) as f64, "", figures::Target::None),
        Figure::new("seeds that failed", failed as f64, "", figures::Target::AtMost(0.0)),
    ];
    conclude(&figures, options.json);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_matrix(options: &Many) -> Result<ExitCode> {
    let began = std::time::Instant::now();
    let mut cases = matrix::cases(options.seeds, Help::None);
    for help in [Help::Public, Help::Ipv6] {
        cases.extend(matrix::cases(options.seeds.div_ceil(HELPED_PART), help));
    }
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

fn run_liars(options: &Liars) -> Result<ExitCode> {
    let mut cases = liars::cases(options.seeds);
    if let Some(only) = &options.only {
        cases.retain(|case| case.to_string().contains(only));
    }
    anyhow::ensure!(!cases.is_empty(), "no case has that name");
    let outcomes = pool::run(&cases, liars::Case::run, |case, outcome| {
        if let Err(error) = outcome {
            say(&format!("failed: liars --only {case}: {error:#}"));
        }
    });
    let mut report = liars::Report::default();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        report.add(case, outcome);
    }
    say(&report.table());
    conclude(&report.figures(), options.json);
    Ok(ExitCode::SUCCESS)
}

fn run_echoes(options: &Echoes) -> Result<ExitCode> {
    let cases = echoes::cases(Duration::from_secs(options.seconds));
    let outcomes = pool::run(&cases, echoes::Case::run, |_, outcome| {
        if let Err(error) = outcome {
            say(&format!("failed: {error:#}"));
        }
    });
    let mut report = echoes::Report::default();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        report.add(case, outcome);
    }
    say(&report.table());
    conclude(&report.figures(), options.json);
    Ok(ExitCode::SUCCESS)
}

fn run_cost(options: &Cost) -> Result<ExitCode> {
    let (table, mut figures) = cost::bytes()?;
    say(&table);
    let (table, more) = cost::time(&options.folder, options.tunnel_s_per_gb)?;
    say(&table);
    figures.extend(more);
    conclude(&figures, options.json);
    Ok(ExitCode::SUCCESS)
}

fn run_rates(options: &Lines) -> Result<ExitCode> {
    let mut cases = rates::cases(options.tight);
    if let Some(only) = &options.only {
        cases.retain(|case| case.to_string().contains(only));
    }
    anyhow::ensure!(!cases.is_empty(), "no line has that name");
    let outcomes = pool::run(&cases, rates::Case::run, |case, outcome| {
        if let Err(error) = outcome {
            say(&format!("failed: rates --only {case}: {error:#}"));
        }
    });
    let mut report = rates::Report::default();
    for (case, outcome) in cases.iter().zip(&outcomes) {
        report.add(case, outcome);
    }
    say(&report.table());
    conclude(&report.figures(), options.json);
    Ok(ExitCode::SUCCESS)
}

fn run_metering(options: &Schedules) -> Result<ExitCode> {
    let seeds: Vec<u64> = options.seeds.clone().collect();
    let outcomes = pool::run(
        &seeds,
        |seed| metering::run(*seed),
        |seed, outcome| {
            if let Err(error) = outcome {
                say(&format!("FAILED: metering {seed}..{}: {error:#}", seed + 1));
            }
        },
    );
    let mut report = metering::Report::default();
    outcomes.iter().for_each(|outcome| report.add(outcome));
    say(&report.table());
    let figures = report.figures();
    conclude(&figures, options.json);
    let met = figures.iter().all(Figure::is_met);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_mesh(options: &netsim::mesh::Options) -> Result<ExitCode> {
    conclude(&netsim::mesh::run(options, say)?, options.json);
    Ok(ExitCode::SUCCESS)
}

fn run_market(options: &market::Options) -> Result<ExitCode> {
    let began = std::time::Instant::now();
    let report = market::run(options, say)?;
    let mut figures = report.figures();
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    figures.push(Figure::new("minutes that this took", minutes, "min", figures::Target::None));
    conclude(&figures, options.json);
    Ok(if report.controls_failed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn run_crash(options: &netsim::crash::Options) -> Result<ExitCode> {
    let program = std::env::current_exe()?;
    let figures = netsim::crash::run(&program, options.plan(), say)?;
    conclude(&figures, options.json);
    // A figure that was missed is a voucher that was lost, or a control that did not fail.
    let met = figures.iter().all(Figure::is_met);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn run_fleet(options: &netsim::fleet::Options) -> Result<ExitCode> {
    let program = std::env::current_exe()?;
    let Some(figures) = netsim::fleet::run(&program, options, say)? else {
        return Ok(ExitCode::SUCCESS);
    };
    conclude(&figures, options.json);
    // A figure that was missed is an anomaly, or a control that found none.
    let met = figures.iter().all(Figure::is_met);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
