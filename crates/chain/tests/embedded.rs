//! The embedded chain's folder: shared, kept, and refused when damaged.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use sluice_chain::{Chain, ChainError};
use sluice_proto::{Amount, EthAddress};

const ALICE: EthAddress = EthAddress([1; 20]);
const BOB: EthAddress = EthAddress([2; 20]);

fn open(dir: &Path) -> Chain {
    Chain::open_embedded(dir).unwrap()
}

#[tokio::test]
async fn state_and_time_are_there_again_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let chain = open(dir.path());
    chain.fund_dev(ALICE, Amount(77)).await.unwrap();
    chain.advance_dev(1_000_000).await.unwrap();
    let time = chain.now_unix_s().await.unwrap();
    drop(chain);
    let chain = open(dir.path());
    assert_eq!(chain.token_balance(ALICE).await.unwrap(), Amount(77));
    assert!(chain.now_unix_s().await.unwrap() >= time);
    let (embedded, again) = (chain.domain(), chain.deploy_dev().await.unwrap().domain());
    assert_eq!(embedded, again);
}

#[tokio::test]
async fn two_handles_on_one_folder_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (open(dir.path()), open(dir.path()));
    one.fund_dev(ALICE, Amount(1)).await.unwrap();
    two.fund_dev(ALICE, Amount(10)).await.unwrap();
    two.fund_dev(BOB, Amount(100)).await.unwrap();
    for chain in [&one, &two] {
        assert_eq!(chain.token_balance(ALICE).await.unwrap(), Amount(11));
        assert_eq!(chain.token_balance(BOB).await.unwrap(), Amount(100));
    }
}

#[tokio::test]
async fn handles_that_write_at_the_same_time_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let chain = open(dir.path());
            tokio::spawn(async move {
                for _ in 0..10 {
                    chain.fund_dev(ALICE, Amount(1)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(open(dir.path()).token_balance(ALICE).await.unwrap(), Amount(40));
}

/// Set for [`the_process_that_is_killed`] by its parent: the folder to use.
const CHILD_DIR: &str = "SLUICE_TEST_CHAIN_DIR";

#[tokio::test]
async fn the_process_that_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let chain = open(Path::new(&dir));
    loop {
        chain.fund_dev(ALICE, Amount(1)).await.unwrap();
        eprintln!("funded");
    }
}

#[tokio::test]
async fn a_process_killed_while_it_writes_loses_nothing_that_it_reported() {
    let dir = tempfile::tempdir().unwrap();
    let chain = open(dir.path());
    let mut reported = 0;
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_process_that_is_killed", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        for _ in 0..20 {
            assert_eq!(lines.next().unwrap().unwrap(), "funded");
            chain.fund_dev(BOB, Amount(1)).await.unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        reported += 20 + u128::try_from(lines.count()).unwrap();
        let alice = chain.token_balance(ALICE).await.unwrap().0;
        assert!(alice == reported || alice == reported + 1, "{alice} of {reported}");
        reported = alice;
        assert_eq!(chain.token_balance(BOB).await.unwrap(), Amount(20 * round));
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name_wherever_the_damage_is() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).fund_dev(ALICE, Amount(1)).await.unwrap();
    let file = dir.path().join("chain.state");
    let good = std::fs::read(&file).unwrap();
    let flips = (0..good.len()).step_by(97).chain([8, good.len() - 1]);
    for position in flips {
        let mut bad = good.clone();
        bad[position] ^= 0x40;
        std::fs::write(&file, &bad).unwrap();
        let error = Chain::open_embedded(dir.path()).unwrap_err();
        let refused = matches!(
            &error,
            ChainError::Corrupt { path, .. } | ChainError::Newer { path, .. } if *path == file
        );
        assert!(refused, "byte {position}: {error}");
    }
    for length in [0, 1, 19, 20, 51, 52, good.len() / 2, good.len() - 1] {
        std::fs::write(&file, &good[..length]).unwrap();
        let error = Chain::open_embedded(dir.path()).unwrap_err();
        assert!(matches!(&error, ChainError::Corrupt { .. }), "cut to {length}: {error}");
        assert!(error.to_string().contains("chain.state"), "{error}");
    }
    std::fs::write(&file, &good).unwrap();
    assert_eq!(open(dir.path()).token_balance(ALICE).await.unwrap(), Amount(1));
}

#[tokio::test]
async fn a_newer_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path());
    let file = dir.path().join("chain.state");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[11] = 2;
    std::fs::write(&file, &bytes).unwrap();
    let error = Chain::open_embedded(dir.path()).unwrap_err();
    assert!(matches!(error, ChainError::Newer { found: 2, known: 1, .. }), "{error}");
}

#[tokio::test]
async fn a_file_damaged_while_in_use_is_refused_and_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let chain = open(dir.path());
    let file = dir.path().join("chain.state");
    std::fs::write(&file, b"nonsense").unwrap();
    let error = chain.fund_dev(ALICE, Amount(1)).await.unwrap_err();
    assert!(matches!(error, ChainError::Corrupt { .. }), "{error}");
    assert_eq!(std::fs::read(&file).unwrap(), b"nonsense");
}

#[tokio::test]
async fn a_half_written_draft_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).fund_dev(ALICE, Amount(5)).await.unwrap();
    std::fs::write(dir.path().join("chain.state.new"), b"half").unwrap();
    assert_eq!(open(dir.path()).token_balance(ALICE).await.unwrap(), Amount(5));
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = Chain::open_embedded(&file.join("chain")).unwrap_err();
    assert!(error.to_string().contains("file/chain"), "{error}");
}
