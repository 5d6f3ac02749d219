//! Web3 Secret Storage, version 3
//! (<https://ethereum.org/developers/docs/data-structures-and-encoding/web3-secret-storage/>).
//!
//! A key derived from the passphrase by scrypt or PBKDF2 has 32 bytes: the first half encrypts the
//! secret with AES-128 in counter mode, the second goes with the ciphertext into a Keccak-256 that
//! tells a wrong passphrase.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_128, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::pbkdf2;
use serde::{Deserialize, Serialize};
use sluice_proto::eth::keccak256;
use sluice_proto::{EthAddress, WalletKey};
use zeroize::Zeroizing;

/// The only version that is known.
const VERSION: u32 = 3;
/// The only cipher.
const CIPHER: &str = "aes-128-ctr";
/// Bytes that both derivations give.
const DERIVED: usize = 32;
/// Cost of keystores made here: 2^17 rounds of 1 KiB, 128 MiB and half a second on a small machine,
/// as OWASP's cheat sheet on passwords asks for scrypt.
const LOG_N: u8 = 17;
const R: u32 = 8;
const P: u32 = 1;
/// Most memory that a keystore may ask for, bytes: four times what the heaviest wallets write.
const MEMORY_MAX: u64 = 1 << 30;
/// Most passes over that memory, and most rounds of PBKDF2: a minute on a small machine.
const P_MAX: u32 = 16;
const ROUNDS_MAX: u32 = 20_000_000;

/// Why a keystore cannot be read or unlocked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeystoreError {
    /// Not JSON of the right form.
    #[error("it is no keystore of version 3: {0}")]
    Form(String),
    /// Another version.
    #[error("it is of version {0}, but only version {VERSION} is known")]
    Version(u32),
    /// A field that is not as it must be.
    #[error("{field}: {what}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The check does not come out.
    #[error("the passphrase is wrong, or the file is damaged")]
    Passphrase,
    /// What came out is no key.
    #[error("what it holds is no secp256k1 secret key")]
    NoKey,
    /// The key's address is not the one that stands beside it.
    #[error("it holds the key of {found}, but says that it is {stated}'s")]
    OtherKey {
        /// As the file says.
        stated: String,
        /// The key's.
        found: EthAddress,
    },
}

/// A keystore as it stands in its file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keystore {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(alias = "Crypto")]
    crypto: Crypto,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Crypto {
    cipher: String,
    cipherparams: CipherParams,
    ciphertext: String,
    #[serde(flatten)]
    derivation: Derivation,
    mac: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CipherParams {
    iv: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kdf", content = "kdfparams", rename_all = "lowercase")]
enum Derivation {
    Scrypt { dklen: usize, n: u64, r: u32, p: u32, salt: String },
    Pbkdf2 { dklen: usize, c: u32, prf: String, salt: String },
}

impl Keystore {
    /// Parses the text of a file. Its address may be absent; then it is known once it is unlocked.
    ///
    /// # Errors
    /// When it is not a keystore of version 3.
    pub fn parse(text: &[u8]) -> Result<Self, KeystoreError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let form = |e: serde_json::Error| KeystoreError::Form(e.to_string());
        let Versioned { version } = serde_json::from_slice(text).map_err(form)?;
        if version != VERSION {
            return Err(KeystoreError::Version(version));
        }
        serde_json::from_slice(text).map_err(form)
    }

    /// Its text.
    ///
    /// # Panics
    /// Never: strings and numbers can always be written.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("strings and numbers");
        text.push('\n');
        text
    }

    /// Encrypts a key. `seed` is random: salt, initial counter and id are taken from it.
    ///
    /// # Panics
    /// Never: the cost is a constant that scrypt accepts.
    #[must_use]
    pub fn lock(key: &WalletKey, passphrase: &[u8], seed: &[u8; 64]) -> Self {
        let (salt, rest) = seed.split_at(32);
        let (iv, id) = rest.split_at(16);
        let derivation = Derivation::Scrypt {
            dklen: DERIVED,
            n: 1 << LOG_N,
            r: R,
            p: P,
            salt: hex::encode(salt),
        };
        let derived = derivation.derive(passphrase).expect("a cost that scrypt accepts");
        let mut secret = Zeroizing::new(key.secret_bytes().to_vec());
        let iv: [u8; 16] = iv.try_into().expect("half of 32 bytes");
        apply(&derived, iv, &mut secret);
        Self {
            version: VERSION,
            id: Some(uuid(id.try_into().expect("half of 32 bytes"))),
            address: Some(hex::encode(key.address().0)),
            crypto: Crypto {
                cipher: CIPHER.to_owned(),
                cipherparams: CipherParams { iv: hex::encode(iv) },
                mac: hex::encode(mac(&derived, &secret)),
                ciphertext: hex::encode(&secret[..]),
                derivation,
            },
        }
    }

    /// Decrypts the key. Takes a second and 128 MiB, or what its maker chose.
    ///
    /// # Errors
    /// When the passphrase is wrong, or a field is malformed or out of bounds.
    pub fn unlock(&self, passphrase: &[u8]) -> Result<WalletKey, KeystoreError> {
        let crypto = &self.crypto;
        if crypto.cipher != CIPHER {
            let what = format!("{:?} is not known, only {CIPHER}", crypto.cipher);
            return Err(KeystoreError::Field { field: "cipher", what });
        }
        let iv = fixed::<16>("iv", &crypto.cipherparams.iv)?;
        let stated = fixed::<32>("mac", &crypto.mac)?;
        let mut secret = Zeroizing::new(fixed::<32>("ciphertext", &crypto.ciphertext)?);
        let derived = crypto.derivation.derive(passphrase)?;
        verify_slices_are_equal(&mac(&derived, &secret[..]), &stated)
            .map_err(|_| KeystoreError::Passphrase)?;
        apply(&derived, iv, &mut secret[..]);
        let key = WalletKey::from_bytes(*secret).ok_or(KeystoreError::NoKey)?;
        self.check_address(&key)?;
        Ok(key)
    }

    /// The address that the file says it is for, if it does.
    ///
    /// # Errors
    /// When it is not an address.
    pub fn address(&self) -> Result<Option<EthAddress>, KeystoreError> {
        let Some(text) = &self.address else { return Ok(None) };
        fixed::<20>("address", text).map(|bytes| Some(EthAddress(bytes)))
    }

    fn check_address(&self, key: &WalletKey) -> Result<(), KeystoreError> {
        let found = key.address();
        match self.address()? {
            Some(stated) if stated != found => {
                Err(KeystoreError::OtherKey { stated: stated.to_string(), found })
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Derivation {
    fn derive(&self, passphrase: &[u8]) -> Result<Zeroizing<[u8; DERIVED]>, KeystoreError> {
        let mut derived = Zeroizing::new([0; DERIVED]);
        match self {
            Self::Scrypt { dklen, n, r, p, salt } => {
                check_length(*dklen)?;
                let params = scrypt_params(*n, *r, *p)?;
                scrypt::scrypt(passphrase, &bytes("salt", salt)?, &params, &mut derived[..])
                    .map_err(|e| field("dklen", e.to_string()))?;
            }
            Self::Pbkdf2 { dklen, c, prf, salt } => {
                check_length(*dklen)?;
                if prf != "hmac-sha256" {
                    return Err(field("prf", format!("{prf:?} is not known, only hmac-sha256")));
                }
                let rounds = NonZeroU32::new(*c).filter(|c| c.get() <= ROUNDS_MAX);
                let rounds = rounds
                    .ok_or_else(|| field("c", format!("{c} is not within 1 to {ROUNDS_MAX}")))?;
                let salt = bytes("salt", salt)?;
                pbkdf2::derive(
                    pbkdf2::PBKDF2_HMAC_SHA256,
                    rounds,
                    &salt,
                    passphrase,
                    &mut derived[..],
                );
            }
        }
        Ok(derived)
    }
}

fn scrypt_params(n: u64, r: u32, p: u32) -> Result<scrypt::Params, KeystoreError> {
    if !n.is_power_of_two() || n < 2 {
        return Err(field("n", format!("{n} is not a power of two above 1")));
    }
    let memory = n.checked_mul(u64::from(r)).and_then(|blocks| blocks.checked_mul(128));
    if r == 0 || memory.is_none_or(|memory| memory > MEMORY_MAX) {
        let what = format!("n = {n} and r = {r} ask for more than {} MiB", MEMORY_MAX >> 20);
        return Err(field("n", what));
    }
    if !(1..=P_MAX).contains(&p) {
        return Err(field("p", format!("{p} is not within 1 to {P_MAX}")));
    }
    let log_n = u8::try_from(n.trailing_zeros()).expect("at most 63");
    scrypt::Params::new(log_n, r, p).map_err(|e| field("n", e.to_string()))
}

fn check_length(dklen: usize) -> Result<(), KeystoreError> {
    match dklen {
        DERIVED => Ok(()),
        other => Err(field("dklen", format!("{other} is not {DERIVED}"))),
    }
}

fn field(field: &'static str, what: String) -> KeystoreError {
    KeystoreError::Field { field, what }
}

/// Encrypts or decrypts, which is the same in counter mode.
fn apply(derived: &[u8; DERIVED], iv: [u8; 16], in_out: &mut [u8]) {
    let key = UnboundCipherKey::new(&AES_128, &derived[..16]).expect("16 bytes are a key");
    let key = EncryptingKey::ctr(key).expect("AES-128 has a counter mode");
    key.less_safe_encrypt(in_out, EncryptionContext::Iv128(iv.into()))
        .expect("any length can be encrypted");
}

fn mac(derived: &[u8; DERIVED], ciphertext: &[u8]) -> [u8; 32] {
    keccak256(&[&derived[16..], ciphertext].concat())
}

fn bytes(name: &'static str, text: &str) -> Result<Vec<u8>, KeystoreError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    hex::decode(digits).map_err(|e| field(name, format!("is not hexadecimal: {e}")))
}

fn fixed<const N: usize>(name: &'static str, text: &str) -> Result<[u8; N], KeystoreError> {
    let found = bytes(name, text)?;
    let length = found.len();
    found.try_into().map_err(|_| field(name, format!("has {length} bytes instead of {N}")))
}

/// A random UUID, version 4 (RFC 9562).
fn uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let digits = hex::encode(bytes);
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    parts.join("-")
}
