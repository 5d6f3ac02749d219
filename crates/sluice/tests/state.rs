//! The state directory: keys that last, and whom it refuses.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sluice::state::{State, StateError};
use sluice::wallet::{self, WalletError};
use sluice_ledger::Recovery;
use tempfile::TempDir;

const KEYS: [&str; 5] = ["node.key", "noise.key", "reset.key", "invite.key", "wallet.key"];

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("changes the mode");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("is there").permissions().mode() & 0o777
}

#[test]
fn keys_are_made_once_and_only_their_owner_can_read_them() {
    let folder = folder();
    let dir = folder.path().join("a/b");
    let state = State::open(&dir, "provide").expect("opens");
    let told = |s: &State| {
        (s.peer(), *s.noise_secret(), *s.reset_key(), *s.invite_secret(), s.wallet().address())
    };
    let (first, incarnation) = (told(&state), state.incarnation());
    assert_eq!(mode(&dir), 0o700);
    for name in KEYS {
        assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
    }
    let others = ["lock", "instance", "seal"];
    assert_eq!(fs::read_dir(&dir).expect("lists").count(), KEYS.len() + others.len());
    drop(state);
    let again = State::open(&dir, "provide").expect("opens");
    assert_eq!(told(&again), first);
    assert!(again.incarnation() > incarnation, "a start is above those before");
    let other = State::open(&folder.path().join("c"), "provide").expect("opens");
    assert_ne!(told(&other), first);
}

#[test]
fn secrets_are_not_printed() {
    let folder = folder();
    let state = State::open(folder.path(), "relay").expect("opens");
    let printed = format!("{state:?} {:?}", state.wallet());
    assert!(!printed.contains(&hex::encode(state.wallet().secret_bytes())));
    assert!(!printed.contains(&format!("{:?}", state.noise_secret())));
}

#[test]
fn two_cannot_use_one_directory_and_the_error_says_who_does() {
    let folder = folder();
    let state = State::open(folder.path(), "relay").expect("opens");
    let error = State::open(folder.path(), "provide").expect_err("is locked").to_string();
    let holder = format!("in use by sluice relay, process {}", std::process::id());
    assert!(error.contains(&holder), "{error}");
    drop(state);
    State::open(folder.path(), "provide").expect("is free again");
}

#[test]
fn a_key_that_others_can_read_is_refused_until_they_cannot() {
    let folder = folder();
    drop(State::open(folder.path(), "relay").expect("opens"));
    for name in KEYS {
        for open in [0o640, 0o604, 0o620] {
            let key = folder.path().join(name);
            chmod(&key, open);
            let error = State::open(folder.path(), "relay").expect_err("is exposed").to_string();
            assert!(error.contains(&format!("`chmod 600 {}`", key.display())), "{error}");
            chmod(&key, 0o600);
        }
    }
    chmod(folder.path(), 0o777);
    let error = State::open(folder.path(), "relay").expect_err("others could swap keys");
    assert!(matches!(error, StateError::Exposed { mode: 0o777, .. }), "{error}");
    chmod(folder.path(), 0o700);
    State::open(folder.path(), "relay").expect("opens");
}

#[test]
fn advice_is_about_what_a_file_holds() {
    let folder = folder();
    let path = folder.path().join("password");
    fs::write(&path, "open sesame\n").expect("writes");
    chmod(&path, 0o644);
    let error = State::first_line(&path).expect_err("is exposed").to_string();
    assert!(error.contains("change the password") && !error.contains("keys"), "{error}");
    let error = State::wallet_file(&path).map(drop).expect_err("is exposed").to_string();
    assert!(error.contains("its account") && !error.contains("make new keys"), "{error}");
    chmod(&path, 0o600);
    assert_eq!(*State::first_line(&path).expect("reads"), "open sesame");
    fs::write(&path, [0xFF, b'\n']).expect("writes");
    let error = State::first_line(&path).expect_err("is no text").to_string();
    assert!(error.contains("password file") && !error.contains("identity"), "{error}");
}

#[test]
fn a_key_that_is_damaged_is_named_and_kept() {
    let folder = folder();
    drop(State::open(folder.path(), "relay").expect("opens"));
    for name in KEYS {
        let key = folder.path().join(name);
        let whole = fs::read(&key).expect("reads");
        let longer = [&whole[..], &whole[..]].concat();
        for damaged in [&whole[..whole.len() / 2], &[], &longer[..], &[0xFF; 32][..31]] {
            fs::write(&key, damaged).expect("writes");
            let error = State::open(folder.path(), "relay").expect_err(name);
            assert!(matches!(error, StateError::Damaged { .. }), "{name}: {error}");
            assert!(error.to_string().contains(name), "{error}");
            assert_eq!(fs::read(&key).expect("reads"), damaged, "it is left for a person to see");
        }
        fs::write(&key, &whole).expect("writes");
    }
    State::open(folder.path(), "relay").expect("opens");
}

#[test]
fn what_a_crash_left_half_written_is_written_anew() {
    let folder = folder();
    fs::write(folder.path().join("node.new"), b"half").expect("writes");
    State::open(folder.path(), "relay").expect("opens");
    assert!(!folder.path().join("node.new").exists());
}

#[test]
fn another_users_directory_is_refused() {
    let folder = folder();
    drop(State::open(folder.path(), "relay").expect("opens"));
    let key = folder.path().join("wallet.key");
    if let Err(error) = std::os::unix::fs::chown(&key, Some(12_345), None) {
        eprintln!("SKIPPED: this user cannot give files away ({error})");
        return;
    }
    let error = State::open(folder.path(), "relay").expect_err("is another's");
    assert!(matches!(error, StateError::Owner { owner: 12_345, .. }), "{error}");
}

#[test]
fn a_wallet_elsewhere_is_read_under_the_same_rules_and_never_made() {
    let folder = folder();
    let path = folder.path().join("payer.key");
    assert!(matches!(wallet::open(&path, None), Err(WalletError::File(StateError::Io { .. }))));
    fs::write(&path, "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80\n")
        .expect("writes");
    chmod(&path, 0o644);
    assert!(matches!(
        wallet::open(&path, None),
        Err(WalletError::File(StateError::Exposed { .. }))
    ));
    chmod(&path, 0o600);
    let key = wallet::open(&path, None).expect("reads");
    assert_eq!(key.address().to_string(), "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266");
    for (text, part) in [("12", "64 hexadecimal"), (&*"0".repeat(64), "secp256k1")] {
        fs::write(&path, text).expect("writes");
        let error = wallet::open(&path, None).expect_err("is no key").to_string();
        assert!(error.contains(part) && error.contains("payer.key"), "{error}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes");
    chmod(to, 0o700);
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
    }
}

fn why(state: &State) -> Option<&str> {
    state.recovery().found().map(|found| found.why.as_str())
}

#[test]
fn a_directory_that_stays_or_moves_as_a_whole_is_sure_of_itself() {
    let folder = folder();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    drop(State::open(&here, "relay").expect("opens"));
    fs::write(State::ledger_in(&here), b"").expect("writes");
    for _ in 0..3 {
        assert_eq!(why(&State::open(&here, "relay").expect("opens")), None);
    }
    fs::rename(&here, &there).expect("moves");
    assert_eq!(State::moved(&there).expect("looks"), None);
    assert_eq!(why(&State::open(&there, "relay").expect("opens")), None);
}

#[test]
fn a_copy_and_a_restored_backup_are_found_and_stay_in_doubt() {
    let folder = folder();
    let [here, copied, backup] = ["here", "copied", "backup"].map(|name| folder.path().join(name));
    drop(State::open(&here, "relay").expect("opens"));
    fs::write(State::ledger_in(&here), b"").expect("writes");
    copy(&here, &copied);
    copy(&here, &backup);
    assert!(State::moved(&copied).expect("looks").is_some_and(|why| why.contains("a copy")));
    for _ in 0..2 {
        let state = State::open(&copied, "relay").expect("opens");
        assert!(why(&state).is_some_and(|why| why.contains("a copy")), "until it is settled");
    }
    assert_eq!(State::moved(&copied).expect("looks"), None, "it is another node's now");
    // The same directory, the same files, written over.
    copy(&backup, &here);
    let state = State::open(&here, "relay").expect("opens");
    assert!(why(&state).is_some_and(|why| why.contains("replaced")));
    drop(state);
    // A ledger that came alone.
    for name in ["instance", "seal"] {
        drop(Recovery::end(&State::recovery_in(&here)));
        fs::remove_file(here.join(name)).expect("removes");
        let state = State::open(&here, "relay").expect("opens");
        assert!(why(&state).is_some_and(|why| why.contains("nothing tells")), "{name}");
    }
}

#[test]
fn nothing_is_in_doubt_where_there_is_no_ledger() {
    let folder = folder();
    let (here, copied) = (folder.path().join("here"), folder.path().join("copied"));
    drop(State::open(&here, "relay").expect("opens"));
    copy(&here, &copied);
    assert_eq!(why(&State::open(&copied, "relay").expect("opens")), None);
}

#[test]
fn the_number_of_a_start_is_above_the_last_also_when_the_clock_went_back() {
    let folder = folder();
    drop(State::open(folder.path(), "relay").expect("opens"));
    let late = u64::MAX / 2;
    fs::write(folder.path().join("instance"), format!("sluice instance 1\nstart {late}\n"))
        .expect("writes");
    assert_eq!(State::open(folder.path(), "relay").expect("opens").incarnation(), late + 1);
}
