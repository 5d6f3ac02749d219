//! The state directory: one per running node, locked, with its keys.
//!
//! Keys are made at first start with mode 0600 and synced before they are used. A key that others
//! can read or that another user owns is refused: who else may have read it is unknown. In memory
//! they are wiped when dropped.

#![expect(clippy::disallowed_methods, reason = "keys are drawn here, and starts numbered")]

mod files;
mod mesh;
mod origin;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sluice_ledger::{Found, Recovery};
use sluice_proto::{Keypair, PeerId, WalletKey};
use zeroize::Zeroizing;

pub use files::StateError;

use files::{Holds, Secret, key};

use crate::wallet::Keystore;

/// Where the server of a fleet's ledger stood when it was looked at last.
const SERVER: &str = "server";

/// The node's identity.
const NODE_KEY: &str = "node.key";

/// What a wallet's file holds.
#[derive(Debug)]
pub enum SecretFile {
    /// The key itself.
    Plain(WalletKey),
    /// The key under a passphrase.
    Keystore(Keystore),
}

/// An open state directory. Its lock is held until it is dropped.
pub struct State {
    dir: PathBuf,
    node: Keypair,
    noise: Secret<32>,
    reset: Secret<64>,
    invite: Secret<16>,
    wallet: WalletKey,
    incarnation: u64,
    recovery: Recovery,
    _lock: File,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("dir", &self.dir)
            .field("peer", &self.peer())
            .finish_non_exhaustive()
    }
}

impl State {
    /// Opens the directory of a role ("relay", "provide", "connect"), making it and its keys if they
    /// are not there. If it was copied here or restored from a backup since its node ran last, as far
    /// as the file system tells, then a [`Recovery`] begins.
    ///
    /// # Errors
    /// When another process uses it, another user owns it or others can read a key, a key is
    /// damaged, or the disk fails; each names the path and what to do.
    pub fn open(dir: &Path, role: &str) -> Result<Self, StateError> {
        files::make_dir(dir)?;
        let lock = files::lock(dir, role)?;
        let (incarnation, recovery) = arrive(dir)?;
        let state = Self {
            dir: dir.to_owned(),
            node: key(dir, NODE_KEY, node_draw, node_parse)?,
            noise: key(dir, "noise.key", draw::<32>, exact)?,
            reset: key(dir, "reset.key", draw::<64>, exact)?,
            invite: key(dir, "invite.key", draw::<16>, exact)?,
            wallet: key(dir, "wallet.key", wallet_draw, wallet_parse)?,
            incarnation,
            recovery,
            _lock: lock,
        };
        Ok(state)
    }

    /// Where a role's state is unless it is told: `$SLUICE_STATE`, else `$XDG_STATE_HOME/sluice`,
    /// else `~/.local/state/sluice`, and the role's name below it.
    ///
    /// # Errors
    /// When none of these is set.
    pub fn default_dir(role: &str) -> Result<PathBuf, StateError> {
        default_dir(role, |name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// Opens the directory of a role that was started before: nothing is made but the lock.
    ///
    /// # Errors
    /// As for [`open`](Self::open), and when there is no ledger in it.
    pub fn open_existing(dir: &Path, who: &str) -> Result<Self, StateError> {
        if !Self::ledger_in(dir).exists() {
            return Err(StateError::NoLedger { dir: dir.to_owned() });
        }
        Self::open(dir, who)
    }

    /// Who holds a directory's lock, if anybody does.
    ///
    /// # Errors
    /// When the lock cannot be looked at.
    pub fn holder_of(dir: &Path) -> Result<Option<String>, StateError> {
        files::holder_of(dir)
    }

    /// Reads a file of mode 0600 with a wallet's key: 64 hexadecimal digits, or a keystore.
    ///
    /// # Errors
    /// As for the state's own keys; a file that is missing is not made.
    pub fn wallet_file(path: &Path) -> Result<SecretFile, StateError> {
        files::read(path, Holds::Wallet, |text| match text.trim_ascii_start().first() {
            Some(b'{') => {
                Keystore::parse(text).map(SecretFile::Keystore).map_err(|e| e.to_string())
            }
            Some(_) | None => wallet_parse(text).map(SecretFile::Plain),
        })
    }

    /// The first line of a file of mode 0600.
    ///
    /// # Errors
    /// As for keys; when it is not UTF-8.
    pub fn first_line(path: &Path) -> Result<Zeroizing<String>, StateError> {
        files::read(path, Holds::Password, |text| {
            let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?;
            Ok(Zeroizing::new(line.to_owned()))
        })
    }

    /// Writes a new file of mode 0600, whole or not at all.
    ///
    /// # Errors
    /// When it exists, or the disk fails.
    pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
        files::write_new(path, bytes)
    }

    /// The name of the node whose directory this is, if it has its key; nothing is made.
    ///
    /// # Errors
    /// When the key is damaged or others can read it.
    pub fn peer_of(dir: &Path) -> Result<Option<PeerId>, StateError> {
        let path = dir.join(NODE_KEY);
        if !path.exists() {
            return Ok(None);
        }
        let node = files::read(&path, Holds::Own, node_parse)?;
        Ok(Some(node.public().to_peer_id()))
    }

    /// Reads a text of at most 8 MiB that the node keeps; `None` if there is none.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn read_text(path: &Path) -> Result<Option<String>, StateError> {
        mesh::read(path)
    }

    /// Writes a file of mode 0600 in a directory that only its user can change, made at need: whole or
    /// not at all, and synced. One that is there is replaced. The caller holds the state's lock.
    pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
        let dir = path.parent().expect("a file in a directory");
        let is_new = !dir.exists();
        files::make_dir(dir)?;
        if let Some(above) = dir.parent().filter(|_| is_new) {
            files::sync_dir(above).map_err(files::failed("sync", above))?;
        }
        files::make(dir, path, bytes)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node's identity: an Ed25519 key.
    #[must_use]
    pub fn node(&self) -> &Keypair {
        &self.node
    }

    /// The node's name.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.node.public().to_peer_id()
    }

    /// The static secret of the rendezvous' Noise handshake: X25519.
    #[must_use]
    pub fn noise_secret(&self) -> &[u8; 32] {
        &self.noise
    }

    /// The key of QUIC's stateless resets, kept so that peers notice a restart at once.
    #[must_use]
    pub fn reset_key(&self) -> &[u8; 64] {
        &self.reset
    }

    /// What invites are issued and checked with.
    #[must_use]
    pub fn invite_secret(&self) -> &[u8; 16] {
        &self.invite
    }

    /// The node's own account.
    #[must_use]
    pub fn wallet(&self) -> &WalletKey {
        &self.wallet
    }

    /// The number of this start: above those of all starts before that this directory knows of, and
    /// of those of its copies that started earlier, as far as their clocks agree. Others tell a
    /// restart by it, and which of two processes with the same keys stands.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// What is in doubt, if the directory was found copied or restored.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Begins a recovery, for a reason that was found elsewhere than in the directory.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn doubt(&mut self, why: &str) -> Result<(), StateError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let found = Found { at_unix_s: since.as_secs(), why: why.to_owned() };
        self.recovery = Recovery::begin(&Self::recovery_in(&self.dir), &found)?;
        Ok(())
    }

    /// What [`remember_server`](Self::remember_server) wrote, if anything.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn server(&self) -> Result<Option<String>, StateError> {
        origin::read(&self.dir.join(SERVER))
    }

    /// Writes down where the server of the ledger stands.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remember_server(dir: &Path, stand: &str) -> Result<(), StateError> {
        files::make(dir, &dir.join(SERVER), stand.as_bytes())
    }

    /// Where a directory's recovery is written down, while one lasts.
    #[must_use]
    pub fn recovery_in(dir: &Path) -> PathBuf {
        dir.join("recovery")
    }

    /// Why a directory is not the one that its node left, as far as the file system tells. Nothing is
    /// made or changed.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn moved(dir: &Path) -> Result<Option<&'static str>, StateError> {
        Ok(origin::look(dir)?.moved)
    }

    /// Where the ledger is.
    #[must_use]
    pub fn ledger_path(&self) -> PathBuf {
        Self::ledger_in(&self.dir)
    }

    /// Where a directory's ledger is.
    #[must_use]
    pub fn ledger_in(dir: &Path) -> PathBuf {
        dir.join("ledger.db")
    }

    /// Where the embedded chain is unless it is shared.
    #[must_use]
    pub fn chain_dir(&self) -> PathBuf {
        Self::chain_in(&self.dir)
    }

    /// Where a directory's embedded chain is unless it is shared.
    #[must_use]
    pub fn chain_in(dir: &Path) -> PathBuf {
        dir.join("chain")
    }

    /// Where a directory's own wallet is.
    #[must_use]
    pub fn wallet_in(dir: &Path) -> PathBuf {
        dir.join("wallet.key")
    }
}

fn default_dir(
    role: &str,
    var: impl Fn(&str) -> Option<std::ffi::OsString>,
) -> Result<PathBuf, StateError> {
    let base = match (var("SLUICE_STATE"), var("XDG_STATE_HOME"), var("HOME")) {
        (Some(dir), _, _) => PathBuf::from(dir),
        (None, Some(state), _) => Path::new(&state).join("sluice"),
        (None, None, Some(home)) => Path::new(&home).join(".local/state/sluice"),
        (None, None, None) => return Err(StateError::NoHome),
    };
    Ok(base.join(role))
}

/// Looks where this directory comes from, and marks it as this start's. Gives the start's number.
fn arrive(dir: &Path) -> Result<(u64, Recovery), StateError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let before = origin::look(dir)?;
    let path = State::recovery_in(dir);
    let recovery = match before.moved.filter(|_| State::ledger_in(dir).exists()) {
        Some(why) => {
            let found = Found { at_unix_s: since.as_secs(), why: why.to_owned() };
            Recovery::begin(&path, &found)?
        }
        None => Recovery::open(&path)?,
    };
    let now = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let start = before.start.saturating_add(1).max(now);
    origin::mark(dir, start)?;
    Ok((start, recovery))
}

fn draw<const N: usize>() -> Result<Zeroizing<Vec<u8>>, StateError> {
    let mut bytes = Zeroizing::new(vec![0; N]);
    getrandom::fill(&mut bytes).map_err(|e| StateError::Random(e.to_string()))?;
    Ok(bytes)
}

fn exact<const N: usize>(bytes: &[u8]) -> Result<Secret<N>, String> {
    let secret = bytes.try_into();
    secret.map(Zeroizing::new).map_err(|_| format!("it has {} bytes instead of {N}", bytes.len()))
}

fn node_draw() -> Result<Zeroizing<Vec<u8>>, StateError> {
    let keypair = Keypair::ed25519_from_bytes(&mut draw::<32>()?[..])
        .expect("any 32 bytes are an Ed25519 secret");
    Ok(Zeroizing::new(keypair.to_protobuf_encoding().expect("Ed25519 keys can be encoded")))
}

fn node_parse(bytes: &[u8]) -> Result<Keypair, String> {
    let keypair = Keypair::from_protobuf_encoding(bytes).map_err(|e| e.to_string())?;
    if keypair.clone().try_into_ed25519().is_err() {
        return Err("it is not an Ed25519 key".to_owned());
    }
    // Protobuf takes the last of two keys that stand one behind the other.
    let encoded = keypair.to_protobuf_encoding().map(Zeroizing::new).map_err(|e| e.to_string())?;
    match encoded[..] == *bytes {
        true => Ok(keypair),
        false => Err("more than a key stands in it".to_owned()),
    }
}

fn wallet_draw() -> Result<Zeroizing<Vec<u8>>, StateError> {
    loop {
        let secret = draw::<32>()?;
        // One draw in 2^128 is not below the curve's order.
        if wallet_key(&secret).is_some() {
            return Ok(Zeroizing::new(format!("{}\n", hex::encode(&secret[..])).into_bytes()));
        }
    }
}

fn wallet_parse(text: &[u8]) -> Result<WalletKey, String> {
    let digits = text.trim_ascii();
    let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
    let mut secret = Zeroizing::new([0; 32]);
    hex::decode_to_slice(digits, &mut secret[..])
        .map_err(|_| "it must be 64 hexadecimal digits".to_owned())?;
    wallet_key(&secret[..]).ok_or_else(|| "it is no secp256k1 secret key".to_owned())
}

fn wallet_key(secret: &[u8]) -> Option<WalletKey> {
    WalletKey::from_bytes(secret.try_into().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory_is_the_first_that_the_environment_names() {
        let among = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> =
                set.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            default_dir("relay", |name| {
                set.iter().find(|(key, _)| key == name).map(|(_, value)| value.into())
            })
        };
        let home = ("HOME", "/home/a");
        let xdg = ("XDG_STATE_HOME", "/xdg");
        assert_eq!(among(&[home]).ok(), Some("/home/a/.local/state/sluice/relay".into()));
        assert_eq!(among(&[home, xdg]).ok(), Some("/xdg/sluice/relay".into()));
        assert_eq!(among(&[home, xdg, ("SLUICE_STATE", "/s")]).ok(), Some("/s/relay".into()));
        assert!(matches!(among(&[]), Err(StateError::NoHome)));
    }

    #[test]
    fn keys() {
        let seconds = std::env::var("SLUICE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let genuine = node_draw().expect("random bytes");
        assert!(node_parse(&genuine).is_ok(), "the seed is not genuine");
        let target = bolero::check!();
        let target = match seconds.map(std::time::Duration::from_secs) {
            Some(time) => target.with_test_time(time).with_iterations(usize::MAX),
            None => target.with_iterations(300),
        };
        target.with_type::<(Vec<u8>, u16)>().for_each(|(noise, place)| {
            let mut bytes = genuine.to_vec();
            let at = usize::from(*place) % bytes.len();
            bytes.splice(at..(at + noise.len() % 4).min(bytes.len()), noise.iter().copied());
            if let Ok(key) = node_parse(&bytes) {
                assert_eq!(key.to_protobuf_encoding().expect("a key"), bytes);
            }
            let _ = (wallet_parse(noise), exact::<16>(noise));
        });
    }
}
