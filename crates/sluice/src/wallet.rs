//! Keys that hold money, in files: encrypted keystores, or plain digits as in the state directory.
//!
//! A keystore is Ethereum's, Web3 Secret Storage version 3: other wallets read those made here, and
//! the other way round. Its passphrase comes from a file, from `SLUICE_PASSPHRASE` or from a prompt,
//! never from the command line, which every user of the machine can read.

#![expect(clippy::disallowed_methods, reason = "keys and salts are drawn here")]

mod keystore;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use sluice_proto::WalletKey;
use zeroize::Zeroizing;

pub use keystore::{Keystore, KeystoreError};

use crate::state::{SecretFile, State, StateError};

/// The variable that may hold the passphrase.
pub const PASSPHRASE_VAR: &str = "SLUICE_PASSPHRASE";

/// Why a wallet cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum WalletError {
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] StateError),
    /// The keystore cannot be used.
    #[error("the keystore {}: {source}", path.display())]
    Keystore {
        /// Which.
        path: PathBuf,
        /// Why.
        source: KeystoreError,
    },
    /// Nobody can be asked.
    #[error(
        "no passphrase for the keystore {}: set passphrase_file in [wallet] or {PASSPHRASE_VAR}, or \
         run this at a terminal", .0.display()
    )]
    NoPassphrase(PathBuf),
    /// The passphrase is empty.
    #[error("the passphrase is empty: a keystore without one protects nothing")]
    Empty,
    /// The two passphrases that were typed differ.
    #[error("the two passphrases differ: nothing was written")]
    Differ,
    /// The terminal failed.
    #[error("the passphrase could not be read from the terminal: {0}")]
    Terminal(std::io::Error),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(String),
}

/// A passphrase; wiped when dropped.
pub type Passphrase = Zeroizing<String>;

/// Opens a key file: plain digits, or a keystore, whose passphrase is then looked for.
///
/// # Errors
/// When the file cannot be used, or the passphrase is not known or wrong.
pub fn open(path: &Path, passphrase_file: Option<&Path>) -> Result<WalletKey, WalletError> {
    match State::wallet_file(path)? {
        SecretFile::Plain(key) => Ok(key),
        SecretFile::Keystore(keystore) => {
            let ask = || {
                let prompt = format!("Passphrase of {}: ", path.display());
                rpassword::prompt_password(prompt).map(Passphrase::new)
            };
            let passphrase = passphrase(path, passphrase_file, ask)?;
            keystore
                .unlock(passphrase.as_bytes())
                .map_err(|source| WalletError::Keystore { path: path.to_owned(), source })
        }
    }
}

/// The passphrase for a keystore that is to be made: typed twice when it comes from a terminal.
///
/// # Errors
/// When there is none, or it is empty.
pub fn new_passphrase(
    path: &Path,
    passphrase_file: Option<&Path>,
) -> Result<Passphrase, WalletError> {
    let mut differ = false;
    let passphrase = passphrase(path, passphrase_file, || {
        let first = rpassword::prompt_password("New passphrase: ").map(Passphrase::new)?;
        let again = rpassword::prompt_password("Again: ").map(Passphrase::new)?;
        differ = first != again;
        Ok(first)
    })?;
    match (differ, passphrase.is_empty()) {
        (true, _) => Err(WalletError::Differ),
        (false, true) => Err(WalletError::Empty),
        (false, false) => Ok(passphrase),
    }
}

fn passphrase(
    path: &Path,
    file: Option<&Path>,
    ask: impl FnOnce() -> std::io::Result<Passphrase>,
) -> Result<Passphrase, WalletError> {
    if let Some(file) = file {
        return Ok(State::first_line(file)?);
    }
    if let Ok(value) = std::env::var(PASSPHRASE_VAR) {
        return Ok(Zeroizing::new(value));
    }
    if !std::io::stdin().is_terminal() {
        return Err(WalletError::NoPassphrase(path.to_owned()));
    }
    ask().map_err(WalletError::Terminal)
}

/// Draws a key.
///
/// # Errors
/// When the system gives no random bytes.
pub fn draw() -> Result<WalletKey, WalletError> {
    loop {
        // One draw in 2^128 is not below the curve's order.
        if let Some(key) = WalletKey::from_bytes(*random::<32>()?) {
            return Ok(key);
        }
    }
}

/// Writes a key to a new keystore of mode 0600.
///
/// # Errors
/// When the file exists or the disk fails.
pub fn write_keystore(
    path: &Path,
    key: &WalletKey,
    passphrase: &Passphrase,
) -> Result<(), WalletError> {
    let seed = random::<64>()?;
    let keystore = Keystore::lock(key, passphrase.as_bytes(), &seed);
    Ok(State::write_secret(path, keystore.to_json().as_bytes())?)
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, WalletError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut bytes[..]).map_err(|e| WalletError::Random(e.to_string()))?;
    Ok(bytes)
}
