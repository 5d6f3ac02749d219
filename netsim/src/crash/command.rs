//! The commands' arguments.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use sluice_ledger::Role;

use super::{Plan, Victim, run_victim};

/// How much is tried.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// System calls at which a process that writes is killed.
    #[arg(long, default_value_t = 2000)]
    pub kills: usize,
    /// Disk calls that fail: EIO, ENOSPC, short writes.
    #[arg(long, default_value_t = 500)]
    pub faults: usize,
    /// Images of a disk whose power was cut.
    #[arg(long, default_value_t = 1000)]
    pub cuts: usize,
    /// Processes that are killed again while they recover.
    #[arg(long, default_value_t = 200)]
    pub doubles: usize,
    /// End with one line of JSON.
    #[arg(long)]
    pub json: bool,
}

impl Options {
    /// What is asked for.
    #[must_use]
    pub const fn plan(&self) -> Plan {
        Plan { kills: self.kills, faults: self.faults, cuts: self.cuts, doubles: self.doubles }
    }
}

/// The process that is killed; the tracer starts it.
#[derive(Debug, Clone, Args)]
pub struct VictimOptions {
    /// Where its ledger is.
    #[arg(long)]
    folder: PathBuf,
    /// Which side of the edge it is.
    #[arg(long)]
    role: Side,
    /// How many vouchers it records.
    #[arg(long)]
    vouchers: u64,
    /// It tells of a voucher before the ledger has it.
    #[arg(long)]
    hasty: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Side {
    Payee,
    Payer,
}

impl VictimOptions {
    /// Is the victim.
    ///
    /// # Errors
    /// When it is not traced, or the ledger cannot be opened.
    pub fn run(self) -> Result<ExitCode> {
        let role = match self.role {
            Side::Payee => Role::Payee,
            Side::Payer => Role::Payer,
        };
        let Self { folder, vouchers, hasty, .. } = self;
        run_victim(&Victim { folder, role, vouchers, hasty })
    }
}
