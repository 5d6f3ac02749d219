//! What is in doubt after a state directory was found copied or restored.

use std::fs;
use std::io::Read as _;

use sluice_ledger::{Found, Recovery, RecoveryError};
use sluice_proto::LeaseId;

const A: LeaseId = LeaseId([1; 32]);
const B: LeaseId = LeaseId([2; 32]);
const C: LeaseId = LeaseId([3; 32]);

fn found() -> Found {
    Found { at_unix_s: 1_700_000_000, why: "it is a copy".to_owned() }
}

#[tokio::test]
async fn each_lease_is_in_doubt_until_its_other_side_was_heard_also_after_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    assert!(Recovery::open(&path).expect("nothing there").found().is_none());
    assert!(!Recovery::none().doubts(A));
    Recovery::none().settle(A).await.expect("nothing to do");

    let recovery = Recovery::begin(&path, &found()).expect("writes");
    let clone = recovery.clone();
    recovery.settle(A).await.expect("writes");
    recovery.settle(A).await.expect("is settled already");
    assert!(!clone.doubts(A) && clone.doubts(B));
    drop((recovery, clone));

    let again = Recovery::open(&path).expect("reads");
    assert_eq!(again.found(), Some(&found()));
    assert!(!again.doubts(A) && again.doubts(B));

    // Found changed once more: what was settled is in doubt again.
    let again = Recovery::begin(&path, &found()).expect("writes");
    assert!(again.doubts(A));
    Recovery::end(&path).expect("removes");
    Recovery::end(&path).expect("is gone already");
    assert!(Recovery::open(&path).expect("nothing there").found().is_none());
}

#[tokio::test]
async fn a_crash_while_a_lease_is_settled_leaves_it_in_doubt() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    let recovery = Recovery::begin(&path, &found()).expect("writes");
    recovery.settle(A).await.expect("writes");
    let before = fs::read(&path).expect("reads").len();
    recovery.settle(B).await.expect("writes");
    let whole = fs::read(&path).expect("reads");
    for end in before..whole.len() - 1 {
        fs::write(&path, &whole[..end]).expect("writes");
        let torn = Recovery::open(&path).expect("reads");
        assert!(!torn.doubts(A) && torn.doubts(B), "{end}");
        torn.settle(B).await.expect("writes");
        assert!(!Recovery::open(&path).expect("reads").doubts(B), "{end}");
    }
}

#[tokio::test]
async fn a_file_that_holds_something_else_is_named_with_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    let recovery = Recovery::begin(&path, &found()).expect("writes");
    recovery.settle(A).await.expect("writes");
    let whole = fs::read_to_string(&path).expect("reads");
    let spoilt = [
        (whole.replace("recovery 1", "recovery 2"), 1),
        (whole.replace("found 1", "found x"), 2),
        (whole.replace("why", "what"), 3),
        (String::new(), 1),
    ];
    for (text, wrong) in spoilt {
        fs::write(&path, &text).expect("writes");
        let error = Recovery::open(&path).expect_err("is damaged");
        assert!(matches!(error, RecoveryError::Damaged { line, .. } if line == wrong), "{error}");
    }
}

#[tokio::test]
async fn what_cannot_be_written_stays_in_doubt() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    let recovery = Recovery::begin(&path, &found()).expect("writes");
    fs::remove_file(&path).expect("removes");
    assert!(matches!(recovery.settle(A).await, Err(RecoveryError::Io { .. })));
    assert!(recovery.doubts(A));
}

/// In the file's place: a pipe takes what is written only once somebody reads, and cannot be synced.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn while_the_disk_takes_its_time_others_go_on_and_all_that_wait_are_written_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    let recovery = Recovery::begin(&path, &found()).expect("writes");
    fs::remove_file(&path).expect("removes");
    let made = std::process::Command::new("mkfifo").arg(&path).status().expect("runs mkfifo");
    assert!(made.success());
    let settling = [A, B, C].map(|lease| {
        let recovery = recovery.clone();
        tokio::spawn(async move { recovery.settle(lease).await })
    });
    // The only thread of this test is free, although nobody reads.
    tokio::task::yield_now().await;
    let mut pipe = fs::OpenOptions::new().read(true).write(true).open(&path).expect("opens");
    for settled in settling {
        assert!(matches!(settled.await.expect("ends"), Err(RecoveryError::Io { .. })));
    }
    let mut written = [0; 4096];
    let len = pipe.read(&mut written).expect("reads");
    let text = String::from_utf8_lossy(&written[..len]);
    // A alone, B with C, which was not synced with it, and C again.
    assert_eq!(text.matches("settled").count(), 4, "{text}");
    assert!([A, B, C].into_iter().all(|lease| recovery.doubts(lease)));
}
