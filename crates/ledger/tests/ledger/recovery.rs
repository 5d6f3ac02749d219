//! What is in doubt after a state directory was found copied or restored.

use std::fs;

use sluice_ledger::{Found, Recovery, RecoveryError};
use sluice_proto::LeaseId;

const A: LeaseId = LeaseId([1; 32]);
const B: LeaseId = LeaseId([2; 32]);

fn found() -> Found {
    Found { at_unix_s: 1_700_000_000, why: "it is a copy".to_owned() }
}

#[test]
fn each_lease_is_in_doubt_until_its_other_side_was_heard_also_after_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    assert!(Recovery::open(&path).expect("nothing there").found().is_none());
    assert!(!Recovery::none().doubts(A));
    Recovery::none().settle(A).expect("nothing to do");

    let recovery = Recovery::begin(&path, &found()).expect("writes");
    let clone = recovery.clone();
    recovery.settle(A).expect("writes");
    recovery.settle(A).expect("is settled already");
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

#[test]
fn a_crash_while_a_lease_is_settled_leaves_it_in_doubt() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    let recovery = Recovery::begin(&path, &found()).expect("writes");
    recovery.settle(A).expect("writes");
    let before = fs::read(&path).expect("reads").len();
    recovery.settle(B).expect("writes");
    let whole = fs::read(&path).expect("reads");
    for end in before..whole.len() - 1 {
        fs::write(&path, &whole[..end]).expect("writes");
        let torn = Recovery::open(&path).expect("reads");
        assert!(!torn.doubts(A) && torn.doubts(B), "{end}");
        torn.settle(B).expect("writes");
        assert!(!Recovery::open(&path).expect("reads").doubts(B), "{end}");
    }
}

#[test]
fn a_file_that_holds_something_else_is_named_with_its_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    drop(Recovery::begin(&path, &found()).expect("writes").settle(A));
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

#[test]
fn what_cannot_be_written_stays_in_doubt() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("recovery");
    let recovery = Recovery::begin(&path, &found()).expect("writes");
    fs::remove_file(&path).expect("removes");
    assert!(matches!(recovery.settle(A), Err(RecoveryError::Io { .. })));
    assert!(recovery.doubts(A));
}
