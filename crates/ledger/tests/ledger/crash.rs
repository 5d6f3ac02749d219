//! Processes that really die, and disks that really fill.
//!
//! A test starts this test binary anew as a child that records vouchers and prints each one that was
//! acknowledged to it; a checker then compares what was printed with what the ledger holds.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sluice_ledger::{Health, Ledger, LedgerError, Role};
use sluice_proto::LeaseId;

use crate::common::{LEASE, lease, voucher};

/// In the child's environment: the ledger's folder.
const FOLDER: &str = "SLUICE_TEST_LEDGER_FOLDER";
/// In the child's environment: print vouchers that were never recorded.
const CHEAT: &str = "SLUICE_TEST_LEDGER_CHEAT";
/// Leases that the child writes at once.
const LEASES: u8 = 4;
/// Far beyond what a child records before it is killed.
const NEVER: u64 = 1 << 40;

type Printed = HashMap<u8, u64>;

fn place(folder: &Path) -> PathBuf {
    folder.join("ledger.db")
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).and_then(|()| out.flush()).expect("prints");
}

fn child(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("knows itself"));
    command.args(arguments(name)).env(FOLDER, folder);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

fn arguments(name: &str) -> [&str; 4] {
    [name, "--exact", "--nocapture", "--test-threads=1"]
}

/// Records rising vouchers on `LEASES` leases, as both roles, until it is killed or refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_records_until_it_dies() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let ledger = Ledger::open(&place(folder.as_ref())).expect("opens");
    let mut writers = Vec::new();
    for n in 0..LEASES {
        let (ledger, id) = (ledger.clone(), LeaseId([n; 32]));
        ledger.put_lease(lease(id, Role::Payee)).await.expect("puts the lease");
        writers.push(tokio::spawn(async move {
            let first = ledger.newest_earned(id).await.expect("reads").map_or(1, |v| v.up + 1);
            for i in first.. {
                if std::env::var_os(CHEAT).is_some() {
                    say(&format!("ack {n} {}", i + NEVER));
                }
                let earned = ledger.record_earned(voucher(id, i)).await;
                let signed = ledger.record_signed(voucher(id, i)).await;
                if let Err(error) = earned.and(signed) {
                    return error;
                }
                say(&format!("ack {n} {i}"));
            }
            unreachable!("the numbers do not end")
        }));
    }
    for writer in writers {
        say(&format!("error {:?}", writer.await.expect("runs")));
    }
    say(&format!("health {:?}", ledger.health()));
}

/// Kills a child after it printed `lines`; gives the newest that it printed for each lease.
fn kill_after(lines: usize, folder: &Path, cheat: bool) -> Printed {
    let mut command = child("crash::child_that_records_until_it_dies", folder);
    if cheat {
        command.env(CHEAT, "1");
    }
    let mut process = command.spawn().expect("starts");
    let out = BufReader::new(process.stdout.take().expect("is piped"));
    let mut printed = Printed::new();
    let mut seen = 0;
    for line in out.lines() {
        if note(&line.expect("reads"), &mut printed) {
            seen += 1;
        }
        if seen == lines {
            process.kill().expect("kills");
        }
    }
    process.wait().expect("ends");
    assert!(seen >= lines, "the child died by itself");
    printed
}

fn note(line: &str, printed: &mut Printed) -> bool {
    let mut words = line.split(' ');
    let (Some("ack"), Some(lease), Some(n)) = (words.next(), words.next(), words.next()) else {
        return false;
    };
    printed.insert(lease.parse().expect("a lease"), n.parse().expect("a number"));
    true
}

/// Whether the ledger holds all that was printed, and rises.
async fn check(folder: &Path, printed: &Printed) -> Result<(), String> {
    let ledger = Ledger::open(&place(folder)).map_err(|e| e.to_string())?;
    for (&n, &newest) in printed {
        let id = LeaseId([n; 32]);
        for (role, held) in [
            (Role::Payee, ledger.newest_earned(id).await),
            (Role::Payer, ledger.newest_signed(id).await),
        ] {
            let held = held.expect("reads").map_or(0, |v| v.up);
            if held < newest {
                return Err(format!("lease {n} {role:?}: {newest} was printed, {held} is held"));
            }
            let links = ledger.vouchers(id, role).await.expect("reads");
            if !links.is_sorted_by(|a, b| a.seq < b.seq && a.amount < b.amount && a.up < b.up) {
                return Err(format!("lease {n} {role:?}: the chain does not rise"));
            }
            if links.last().map(|l| l.up) != Some(held) {
                return Err(format!("lease {n} {role:?}: the chain does not end at {held}"));
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn whatever_was_acknowledged_survives_a_kill_at_any_instant() {
    let folder = tempfile::tempdir().expect("a folder");
    for round in 0..30_usize {
        // Between 1 and 60 lines, in no order that the batches could fall in step with.
        let printed = kill_after(1 + round * 37 % 60, folder.path(), false);
        check(folder.path(), &printed).await.unwrap_or_else(|e| panic!("round {round}: {e}"));
    }
}

#[tokio::test]
async fn control_a_voucher_that_is_printed_before_it_is_recorded_is_found_missing() {
    let folder = tempfile::tempdir().expect("a folder");
    let printed = kill_after(1, folder.path(), true);
    let verdict = check(folder.path(), &printed).await;
    assert!(verdict.is_err_and(|e| e.contains("was printed")));
}

#[cfg(unix)]
#[tokio::test]
async fn a_write_that_fails_strangely_ends_the_selling_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shell = Command::new("sh");
    // A bound on the size of files, met with an error instead of a signal.
    shell.args(["-c", "trap '' XFSZ; ulimit -f 1000; exec \"$0\" \"$@\""]);
    shell.arg(std::env::current_exe().expect("knows itself"));
    shell.args(arguments("crash::child_that_records_until_it_dies")).env(FOLDER, folder.path());
    let output = shell.output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("retry: false"), "{text}");
    assert!(text.contains("health Broken"), "{text}");
    let mut printed = Printed::new();
    assert!(text.lines().filter(|line| note(line, &mut printed)).count() > 0, "{text}");
    check(folder.path(), &printed).await.expect("all is there");
}

/// Fills the file system that its folder is, makes room again, and checks what is held.
#[tokio::test]
async fn child_on_a_small_disk() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let ledger = Ledger::open(&place(folder)).expect("opens");
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts the lease");
    let ballast = folder.join("ballast");
    std::fs::write(&ballast, vec![0; 256 * 1024]).expect("fits");
    let mut kept = 0;
    let error = loop {
        match ledger.record_earned(voucher(LEASE, kept + 1)).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LedgerError::Write { retry: true, .. }), "{error:?}");
    assert!(matches!(ledger.health(), Health::Full(_)));
    assert_eq!(ledger.newest_earned(LEASE).await, Ok(Some(voucher(LEASE, kept))));
    std::fs::remove_file(ballast).expect("makes room");
    ledger.record_earned(voucher(LEASE, kept + 1)).await.expect("goes on");
    drop(ledger);
    let ledger = Ledger::open(&place(folder)).expect("opens");
    assert_eq!(ledger.newest_earned(LEASE).await, Ok(Some(voucher(LEASE, kept + 1))));
    say("done");
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_stops_the_selling_until_there_is_room() {
    let folder = tempfile::tempdir().expect("a folder");
    let enter = |rest: &[&OsStr]| {
        let mut command = Command::new("unshare");
        // A mount of its own, that goes when it ends.
        command.args(["--map-root-user", "--mount", "sh", "-c"]);
        command.arg("mount -t tmpfs -o size=1M none \"$0\" && \"$@\"").arg(folder.path());
        command.args(rest).env(FOLDER, folder.path());
        command.output()
    };
    if !enter(&["true".as_ref()]).is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this machine lets nobody mount a small disk (unshare, tmpfs)");
        return;
    }
    let exe = std::env::current_exe().expect("knows itself");
    let mut rest = vec![exe.as_os_str()];
    rest.extend(arguments("crash::child_on_a_small_disk").map(OsStr::new));
    let output = enter(&rest).expect("starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("\ndone\n"), "{text}");
}
