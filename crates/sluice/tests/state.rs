//! The state directory: keys that last, and whom it refuses.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sluice::state::{State, StateError};
use sluice::wallet::{self, WalletError};
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
    assert_eq!(fs::read_dir(&dir).expect("lists").count(), KEYS.len() + 1, "and the lock");
    drop(state);
    let again = State::open(&dir, "provide").expect("opens");
    assert_eq!(told(&again), first);
    assert_ne!(again.incarnation(), incarnation, "a start is told from the last");
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
