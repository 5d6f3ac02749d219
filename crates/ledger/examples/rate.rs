//! Prints how many vouchers a second this disk makes durable, for 1, 10 and 100 tenants at once.
//!
//! `cargo run --release -p sluice-ledger --example rate -- [folder]`

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "it measures, and prints")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sluice_ledger::{Edge, LeaseRow, Ledger, LedgerError, Role, StoredVoucher};
use sluice_proto::wire::pay;
use sluice_proto::{Amount, Keypair, LeaseId, PeerId};

/// How long each figure is measured.
const SPAN: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() -> Result<(), LedgerError> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    println!("tenants  vouchers/s");
    for tenants in [1, 10, 100] {
        let path = folder.join(format!("rate-{}-{tenants}.db", std::process::id()));
        let rate = measure(&path, tenants).await?;
        println!("{tenants:>7}  {rate:>10}");
        for suffix in ["", ".lock"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }
    Ok(())
}

/// Vouchers a second, all tenants together.
async fn measure(path: &Path, tenants: u8) -> Result<u64, LedgerError> {
    let ledger = Ledger::open(path)?;
    let key = Keypair::ed25519_from_bytes([1; 32]).expect("a key");
    let end = Instant::now() + SPAN;
    let mut tasks = Vec::new();
    for n in 0..tenants {
        let id = LeaseId([n; 32]);
        ledger.put_lease(lease(id, key.public().to_peer_id())).await?;
        let ledger = ledger.clone();
        tasks.push(tokio::spawn(async move {
            let mut count = 0;
            while Instant::now() < end {
                count += 1;
                ledger.record_earned(voucher(id, count)).await?;
            }
            Ok::<_, LedgerError>(count)
        }));
    }
    let mut total = 0;
    for task in tasks {
        total += task.await.expect("does not panic")?;
    }
    Ok(total / SPAN.as_secs())
}

fn lease(id: LeaseId, peer: PeerId) -> LeaseRow {
    LeaseRow {
        id,
        edge: Edge::Tenant,
        role: Role::Payee,
        peer,
        terms: Bytes::new(),
        terms_signature: Bytes::new(),
        channel: None,
        base: Amount(0),
        sessions: 1,
        closed: false,
    }
}

/// As large as one with all the positions that a statement may carry.
fn voucher(lease: LeaseId, n: u64) -> StoredVoucher {
    StoredVoucher {
        lease,
        up: n,
        down: n,
        amount: Amount(n.into()),
        voucher: pay::Voucher {
            statement: Bytes::from_static(&[1; 800]),
            channel: Bytes::new(),
            amount: Bytes::copy_from_slice(&Amount(n.into()).to_bytes()),
            signature: Bytes::from_static(&[1; 65]),
        },
        session: 1,
    }
}
