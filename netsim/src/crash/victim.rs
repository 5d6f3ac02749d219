//! The process that is killed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bytes::Bytes;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use prost::Message;
use sluice_ledger::{Edge, LeaseRow, Ledger, LedgerError, Role, StoredVoucher};
use sluice_proto::wire::pay;
use sluice_proto::{Amount, Keypair, LeaseId};

use super::FILE;

/// The lease that all vouchers are about.
pub(super) const LEASE: LeaseId = LeaseId([1; 32]);
/// Said when the ledger is open: what follows is the write path.
pub(super) const BEGIN: &str = "begin";
/// Said with a voucher's number once it may be acknowledged or sent.
pub(super) const TOLD: &str = "told ";
/// The exit code of a victim whose ledger refused to write.
const REFUSED: u8 = 3;

/// A process that records vouchers.
#[derive(Debug, Clone)]
pub struct Victim {
    /// Where its ledger is.
    pub folder: PathBuf,
    /// Which side of the edge it is.
    pub role: Role,
    /// How many vouchers it records.
    pub vouchers: u64,
    /// It tells of a voucher before the ledger has it: what must be found out.
    pub hasty: bool,
}

/// Waits for its tracer, then records vouchers and says each that the ledger accepted, in one system
/// call.
///
/// # Errors
/// When it is not traced, or the ledger cannot be opened.
pub fn run(victim: &Victim) -> Result<ExitCode> {
    ptrace::traceme().context("nobody traces this process")?;
    raise(Signal::SIGSTOP)?;
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build()?;
    runtime.block_on(async {
        let ledger = open(&victim.folder, victim.role).await?;
        let held = newest(&ledger, victim.role).await?;
        say(BEGIN)?;
        for next in held + 1..=held + victim.vouchers {
            if victim.hasty {
                say(&format!("{TOLD}{next}"))?;
            }
            if record(&ledger, victim.role, next).await.is_err() {
                return Ok(ExitCode::from(REFUSED));
            }
            if !victim.hasty {
                say(&format!("{TOLD}{next}"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

/// Opens the ledger of a folder, with its lease.
pub(super) async fn open(folder: &Path, role: Role) -> Result<Ledger> {
    let ledger = Ledger::open(&folder.join(FILE))?;
    let terms = pay::Terms { version: 1, expires_unix_s: 1_000, ..pay::Terms::default() };
    let lease = LeaseRow {
        id: LEASE,
        edge: Edge::Tenant,
        role,
        peer: Keypair::ed25519_from_bytes([7; 32])?.public().to_peer_id(),
        terms: terms.encode_to_vec().into(),
        terms_signature: Bytes::from_static(&[8; 64]),
        channel: None,
        base: Amount(0),
        sessions: 1,
        closed: false,
    };
    ledger.put_lease(lease).await?;
    Ok(ledger)
}

/// Records voucher number `n`, whose counts and amount are `n` too.
pub(super) async fn record(ledger: &Ledger, role: Role, n: u64) -> Result<(), LedgerError> {
    let statement = pay::Statement {
        version: 1,
        lease: Bytes::copy_from_slice(&LEASE.0),
        up: n,
        down: n,
        session: 1,
        streams: Vec::new(),
    };
    let amount = Amount(n.into());
    let voucher = StoredVoucher {
        lease: LEASE,
        up: n,
        down: n,
        amount,
        voucher: pay::Voucher {
            statement: statement.encode_to_vec().into(),
            channel: Bytes::new(),
            amount: Bytes::copy_from_slice(&amount.to_bytes()),
            signature: Bytes::from_static(&[3; 65]),
        },
        session: 1,
    };
    match role {
        Role::Payee => ledger.record_earned(voucher).await,
        Role::Payer => ledger.record_signed(voucher).await,
    }
}

/// The number of the newest voucher; 0 if there is none.
pub(super) async fn newest(ledger: &Ledger, role: Role) -> Result<u64, LedgerError> {
    let newest = match role {
        Role::Payee => ledger.newest_earned(LEASE).await?,
        Role::Payer => ledger.newest_signed(LEASE).await?,
    };
    Ok(newest.map_or(0, |voucher| voucher.up))
}
