//! The file: who may open it, which versions, what damage; and what a failed write does.

use std::path::PathBuf;

use rusqlite::Connection;
use sluice_ledger::{Health, Ledger, LedgerError, Role, SCHEMA_VERSION};
use sluice_proto::LeaseId;
use tempfile::TempDir;

use crate::common::{LEASE, holds_what_schema_1_held, lease, voucher};

/// Where a ledger is made for a test that is the same on a server.
pub(crate) struct Place(TempDir);

impl Place {
    #[expect(clippy::unused_async, reason = "a server starts")]
    pub(crate) async fn new() -> Option<Self> {
        Some(Self(tempfile::tempdir().expect("a folder")))
    }

    #[expect(clippy::unused_async, reason = "a server is connected to")]
    pub(crate) async fn open(&self) -> Ledger {
        Ledger::open(&self.0.path().join("ledger.db")).expect("opens")
    }
}

fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    (dir, path)
}

/// A ledger that was made and closed.
async fn made() -> (TempDir, PathBuf) {
    let (dir, path) = place();
    let ledger = Ledger::open(&path).expect("opens");
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts the lease");
    ledger.record_earned(voucher(LEASE, 5)).await.expect("records");
    drop(ledger);
    (dir, path)
}

#[tokio::test]
async fn two_cannot_open_one_ledger_and_the_error_says_who_has_it() {
    let (_dir, path) = place();
    let ledger = Ledger::open(&path).expect("opens");
    let second = Ledger::open(&path).expect_err("is refused");
    let me = format!("process {}", std::process::id());
    assert_eq!(second, LedgerError::Locked { path: path.clone(), holder: me });
    drop(ledger);
    Ledger::open(&path).expect("is free again");
}

#[cfg(unix)]
#[tokio::test]
async fn only_its_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, path) = place();
    let ledger = Ledger::open(&path).expect("opens");
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("writes");
    for entry in std::fs::read_dir(dir.path()).expect("lists") {
        let entry = entry.expect("reads");
        let mode = entry.metadata().expect("reads").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{entry:?}");
    }
}

#[tokio::test]
async fn a_ledger_of_schema_1_opens_with_all_that_it_holds() {
    let (_dir, path) = place();
    let old = Connection::open(&path).expect("opens");
    old.execute_batch(include_str!("../fixtures/v1.sql")).expect("loads");
    drop(old);
    let ledger = Ledger::open(&path).expect("opens");
    holds_what_schema_1_held(&ledger).await;
    ledger.record_earned(voucher(LEASE, 6)).await.expect("goes on");
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_as_it_was() {
    let (_dir, path) = made().await;
    let newer = Connection::open(&path).expect("opens");
    newer.pragma_update(None, "user_version", SCHEMA_VERSION + 1).expect("updates");
    drop(newer);
    let before = std::fs::read(&path).expect("reads");
    let error = Ledger::open(&path).expect_err("is refused");
    assert_eq!(
        error,
        LedgerError::Newer { path: path.clone(), found: SCHEMA_VERSION + 1, known: SCHEMA_VERSION }
    );
    assert!(error.to_string().contains("made by a newer Sluice (schema 3, this one knows 2)"));
    assert_eq!(std::fs::read(&path).expect("reads"), before);
}

#[tokio::test]
async fn another_programs_database_is_refused() {
    let (_dir, path) = place();
    let other = Connection::open(&path).expect("opens");
    other.execute_batch("CREATE TABLE photos (name TEXT)").expect("makes a table");
    drop(other);
    assert_eq!(Ledger::open(&path).expect_err("is refused"), LedgerError::Foreign { path });
}

#[tokio::test]
async fn a_start_that_was_cut_short_is_made_good() {
    let (_dir, path) = place();
    let half = Connection::open(&path).expect("opens");
    half.execute_batch("PRAGMA journal_mode = WAL").expect("sets");
    drop(half);
    Ledger::open(&path).expect("opens");
}

#[tokio::test]
async fn a_damaged_file_is_named_with_what_to_do() {
    let (_dir, path) = made().await;
    let whole = std::fs::read(&path).expect("reads");
    let mut torn = whole.clone();
    torn.truncate(whole.len() / 2);
    let mut overwritten = whole.clone();
    overwritten[4096..].fill(0xA5);
    for (what, bytes) in
        [("nonsense", vec![b'x'; 8192]), ("torn", torn), ("overwritten", overwritten)]
    {
        std::fs::write(&path, &bytes).expect("writes");
        let error = Ledger::open(&path).expect_err(what);
        assert!(matches!(error, LedgerError::Corrupt { .. }), "{what}: {error}");
        let text = error.to_string();
        assert!(
            text.contains("ledger.db") && text.contains("restore both from a backup"),
            "{text}"
        );
    }
    std::fs::write(&path, &whole).expect("writes");
    Ledger::open(&path).expect("the whole file is not damaged");
}

#[test]
fn a_folder_that_is_missing_is_named() {
    let (dir, _) = place();
    let error = Ledger::open(&dir.path().join("absent/ledger.db")).expect_err("is refused");
    assert!(matches!(error, LedgerError::Open { .. }));
    assert!(error.to_string().contains("absent"), "{error}");
}

#[tokio::test]
async fn without_room_all_that_waited_are_told_and_with_room_it_goes_on() {
    let (_dir, path) = made().await;
    let ledger = Ledger::open(&path).expect("opens");
    ledger.set_pages_max(1).await.expect("bounds the file to what it has");
    let mut kept = 0;
    let refused = loop {
        let id = LeaseId([u8::try_from(kept + 10).expect("fills up soon"); 32]);
        match ledger.put_lease(lease(id, Role::Payee)).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, LedgerError::Write { retry: true, .. }), "{refused}");
    assert!(refused.is_fault());
    assert!(refused.to_string().contains("make room on the disk"));
    assert!(matches!(ledger.health(), Health::Full(_)));
    assert_eq!(ledger.leases().await.expect("reads").len(), kept + 1, "what was told Ok is there");

    ledger.set_pages_max(u32::MAX - 1).await.expect("lifts the bound");
    ledger.probe().await.expect("can be written");
    assert_eq!(ledger.health(), Health::Good);
    ledger.record_earned(voucher(LEASE, 6)).await.expect("goes on");
    drop(ledger);
    let ledger = Ledger::open(&path).expect("opens");
    assert_eq!(ledger.newest_earned(LEASE).await, Ok(Some(voucher(LEASE, 6))));
}

#[test]
fn a_runtime_that_ends_early_leaves_the_ledger_usable() {
    let (_dir, path) = place();
    let ledger = Ledger::open(&path).expect("opens outside a runtime");
    for n in 1..20 {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
        let (put, kept) = (ledger.clone(), ledger.clone());
        runtime.spawn(async move { put.put_lease(lease(LEASE, Role::Payee)).await });
        runtime.spawn(async move { kept.record_earned(voucher(LEASE, n)).await });
        runtime.block_on(tokio::task::yield_now());
        drop(runtime);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("builds");
    runtime.block_on(async {
        ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts the lease");
        ledger.record_earned(voucher(LEASE, 20)).await.expect("records");
    });
}

#[tokio::test]
async fn a_reader_sees_what_a_running_role_wrote_and_changes_nothing() {
    let (_dir, path) = place();
    let ledger = Ledger::open(&path).expect("opens");
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts the lease");
    let reader = Ledger::open_read_only(&path).expect("opens beside the other");
    ledger.record_earned(voucher(LEASE, 5)).await.expect("records");
    let read = reader.newest_earned(LEASE).await.expect("reads");
    assert_eq!(read.map(|v| v.up), Some(5));
    let refused = reader.record_earned(voucher(LEASE, 6)).await.expect_err("is refused");
    assert_eq!(refused, LedgerError::ReadOnly { path: path.clone() });
    assert!(!refused.is_fault());
    drop((reader, ledger));
    Ledger::open(&path).expect("nobody is kept out");
}

#[tokio::test]
async fn a_reader_makes_no_ledger_and_wants_the_schema_that_it_knows() {
    let (_dir, path) = place();
    let missing = Ledger::open_read_only(&path).expect_err("is not there");
    assert!(matches!(missing, LedgerError::Open { .. }), "{missing}");
    assert!(!path.exists());
    std::fs::write(&path, b"").expect("writes");
    let empty = Ledger::open_read_only(&path).expect_err("is none");
    assert_eq!(empty, LedgerError::Foreign { path });
}
