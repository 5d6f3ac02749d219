//! Addresses, keys, vouchers and channels as the contract sees them.
//!
//! Hashes are Keccak-256; signatures are secp256k1 over an EIP-712 digest, 65 bytes `r || s || v`
//! with `v` 27 or 28 and `s` in the lower half of the order (EIP-2).

use std::fmt;

use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, SecretKey};
use sha3::{Digest, Keccak256};

use crate::Amount;
use crate::ids::{IdError, fixed};

/// Keccak-256 of `bytes`.
#[must_use]
pub fn keccak256(bytes: &[u8]) -> [u8; 32] {
    Keccak256::digest(bytes).into()
}

/// A 20-byte account or contract address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EthAddress(pub [u8; 20]);

impl EthAddress {
    /// Parses the field of a message; `field` is its name for the error.
    ///
    /// # Errors
    /// When it is not 20 bytes long.
    pub fn parse(field: &'static str, bytes: &[u8]) -> Result<Self, IdError> {
        fixed(field, bytes).map(Self)
    }
}

impl fmt::Display for EthAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for EthAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for EthAddress {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let mut bytes = [0; 20];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| IdError::Length {
            field: "address",
            expected: 20,
            found: digits.len() / 2,
        })?;
        Ok(Self(bytes))
    }
}

/// A channel's id: [`ChannelKey::id`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub [u8; 32]);

impl ChannelId {
    /// Parses the field of a message.
    ///
    /// # Errors
    /// When it is not 32 bytes long.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdError> {
        fixed("channel", bytes).map(Self)
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for ChannelId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| IdError::Length {
            field: "channel",
            expected: 32,
            found: digits.len() / 2,
        })?;
        Ok(Self(bytes))
    }
}

/// What a channel binds; its hash is the channel's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelKey {
    /// Deposits, and is refunded.
    pub payer: EthAddress,
    /// Signs vouchers for the payer: a hot key.
    pub signer: EthAddress,
    /// May redeem and close.
    pub payee: EthAddress,
    /// Receives what is redeemed: a cold address.
    pub payout: EthAddress,
    /// The ERC-20 token.
    pub token: EthAddress,
    /// Tells channels of the same parties apart.
    pub salt: [u8; 32],
}

impl ChannelKey {
    /// `keccak256(abi.encode(payer, signer, payee, payout, token, salt, chain, contract))`.
    #[must_use]
    pub fn id(&self, domain: &Domain) -> ChannelId {
        let mut words = Vec::with_capacity(8 * 32);
        for address in [self.payer, self.signer, self.payee, self.payout, self.token] {
            words.extend_from_slice(&address_word(address));
        }
        words.extend_from_slice(&self.salt);
        words.extend_from_slice(&u128_word(u128::from(domain.chain_id)));
        words.extend_from_slice(&address_word(domain.contract));
        ChannelId(keccak256(&words))
    }
}

/// Label of the TLS exporter (RFC 8446, section 7.5), with an empty context, that a channel's signer
/// signs to bind the channel to one connection: [`Domain::bind_digest`].
pub const BIND_EXPORTER_LABEL: &[u8] = b"sluice channel binding v1";

/// EIP-712 domain `{name: "Sluice Channels", version: "1", chainId, verifyingContract}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Domain {
    /// The chain's id (EIP-155).
    pub chain_id: u64,
    /// Address of `Channels`.
    pub contract: EthAddress,
}

impl Domain {
    /// The EIP-712 domain separator.
    #[must_use]
    pub fn separator(&self) -> [u8; 32] {
        let mut words = Vec::with_capacity(5 * 32);
        words.extend_from_slice(&keccak256(
            b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)",
        ));
        words.extend_from_slice(&keccak256(b"Sluice Channels"));
        words.extend_from_slice(&keccak256(b"1"));
        words.extend_from_slice(&u128_word(u128::from(self.chain_id)));
        words.extend_from_slice(&address_word(self.contract));
        keccak256(&words)
    }

    pub(crate) fn digest(&self, struct_hash: [u8; 32]) -> [u8; 32] {
        let mut bytes = Vec::with_capacity(66);
        bytes.extend_from_slice(&[0x19, 0x01]);
        bytes.extend_from_slice(&self.separator());
        bytes.extend_from_slice(&struct_hash);
        keccak256(&bytes)
    }

    /// Digest of the payee's consent that anyone may close `channel` at `amount`:
    /// `Close(bytes32 channel,uint128 amount)`.
    #[must_use]
    pub fn close_digest(&self, channel: ChannelId, amount: Amount) -> [u8; 32] {
        let mut words = Vec::with_capacity(3 * 32);
        words.extend_from_slice(&keccak256(b"Close(bytes32 channel,uint128 amount)"));
        words.extend_from_slice(&channel.0);
        words.extend_from_slice(&u128_word(amount.0));
        self.digest(keccak256(&words))
    }

    /// Digest by which a channel's signer binds it to a session:
    /// `Bind(bytes32 channel,bytes peer,bytes32 exporter)`. Never accepted by the contract.
    #[must_use]
    pub fn bind_digest(&self, channel: ChannelId, peer: &[u8], exporter: &[u8; 32]) -> [u8; 32] {
        let mut words = Vec::with_capacity(4 * 32);
        words.extend_from_slice(&keccak256(b"Bind(bytes32 channel,bytes peer,bytes32 exporter)"));
        words.extend_from_slice(&channel.0);
        words.extend_from_slice(&keccak256(peer));
        words.extend_from_slice(exporter);
        self.digest(keccak256(&words))
    }
}

/// EIP-712 `Voucher(bytes32 channel,uint128 amount,bytes32 statement)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voucher {
    /// The channel that pays.
    pub channel: ChannelId,
    /// Cumulative.
    pub amount: Amount,
    /// Keccak-256 of the encoded statement.
    pub statement: [u8; 32],
}

impl Voucher {
    /// What the channel's signer signs.
    #[must_use]
    pub fn digest(&self, domain: &Domain) -> [u8; 32] {
        let mut words = Vec::with_capacity(4 * 32);
        words.extend_from_slice(&keccak256(
            b"Voucher(bytes32 channel,uint128 amount,bytes32 statement)",
        ));
        words.extend_from_slice(&self.channel.0);
        words.extend_from_slice(&u128_word(self.amount.0));
        words.extend_from_slice(&self.statement);
        domain.digest(keccak256(&words))
    }
}

/// 65 bytes `r || s || v`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WalletSignature(pub [u8; 65]);

impl fmt::Debug for WalletSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WalletSignature(..)")
    }
}

impl WalletSignature {
    /// Parses the field of a message.
    ///
    /// # Errors
    /// When it is not 65 bytes long.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdError> {
        fixed("signature", bytes).map(Self)
    }

    /// The address whose key signed `digest`; `None` when the signature is no such thing, is
    /// malleable (`s` in the upper half) or has a `v` other than 27 and 28.
    #[must_use]
    pub fn recover(&self, digest: [u8; 32]) -> Option<EthAddress> {
        let (compact, v) = self.0.split_at(64);
        let id = match v[0] {
            27 => RecoveryId::Zero,
            28 => RecoveryId::One,
            _ => return None,
        };
        let signature = RecoverableSignature::from_compact(compact, id).ok()?;
        let mut normal = signature.to_standard();
        normal.normalize_s();
        if normal != signature.to_standard() {
            return None;
        }
        let key = signature.recover_ecdsa(Message::from_digest(digest)).ok()?;
        Some(address_of(&key))
    }
}

/// A secp256k1 secret key. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct WalletKey(zeroize::Zeroizing<[u8; 32]>);

impl fmt::Debug for WalletKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WalletKey({})", self.address())
    }
}

impl WalletKey {
    /// From 32 secret bytes; `None` for zero or a number not below the curve's order.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Option<Self> {
        SecretKey::from_secret_bytes(bytes).ok()?;
        Some(Self(zeroize::Zeroizing::new(bytes)))
    }

    /// The secret bytes, to be written to a file of mode 0600 or an encrypted keystore.
    #[must_use]
    pub fn secret_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn secret(&self) -> SecretKey {
        SecretKey::from_secret_bytes(*self.0).expect("checked when made")
    }

    /// The account of this key.
    #[must_use]
    pub fn address(&self) -> EthAddress {
        address_of(&secp256k1::PublicKey::from_secret_key(&self.secret()))
    }

    /// Signs a 32-byte digest deterministically (RFC 6979).
    #[must_use]
    pub fn sign(&self, digest: [u8; 32]) -> WalletSignature {
        let signature = RecoverableSignature::sign_ecdsa_recoverable(
            Message::from_digest(digest),
            &self.secret(),
        );
        let (id, compact) = signature.serialize_compact();
        let mut bytes = [0; 65];
        bytes[..64].copy_from_slice(&compact);
        bytes[64] = 27 + id.to_u8();
        WalletSignature(bytes)
    }
}

fn address_of(key: &secp256k1::PublicKey) -> EthAddress {
    let hash = keccak256(&key.serialize_uncompressed()[1..]);
    EthAddress(hash[12..].try_into().expect("32 - 12 = 20"))
}

fn address_word(address: EthAddress) -> [u8; 32] {
    let mut word = [0; 32];
    word[12..].copy_from_slice(&address.0);
    word
}

pub(crate) fn u128_word(value: u128) -> [u8; 32] {
    let mut word = [0; 32];
    word[16..].copy_from_slice(&value.to_be_bytes());
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voucher_is_recovered_to_its_signer_and_to_nobody_else() {
        let key = WalletKey::from_bytes([7; 32]).expect("a valid key");
        let domain = Domain { chain_id: 31_337, contract: EthAddress([1; 20]) };
        let voucher =
            Voucher { channel: ChannelId([2; 32]), amount: Amount(5), statement: [3; 32] };
        let signature = key.sign(voucher.digest(&domain));
        assert_eq!(signature.recover(voucher.digest(&domain)), Some(key.address()));
        let other = Domain { chain_id: 1, ..domain };
        assert_ne!(signature.recover(voucher.digest(&other)), Some(key.address()));
        let mut wrong = signature;
        wrong.0[64] = 29;
        assert_eq!(wrong.recover(voucher.digest(&domain)), None);
    }

    /// The example of web3.js for `accounts.sign`: deterministic (RFC 6979), with the lower `s`.
    #[test]
    fn a_digest_is_signed_as_everybody_else_signs_it() {
        let bytes = |text: &str| hex::decode(text).expect("hex");
        let secret = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318";
        let digest = "1da44b586eb0729ff70a73c326926f6ed5a25f5b056e7f47fbc6e58d86871655";
        let key = WalletKey::from_bytes(bytes(secret).try_into().expect("32 bytes"));
        let signature = key.expect("a valid key").sign(bytes(digest).try_into().expect("32 bytes"));
        let expected = "b91467e570a6466aa9e9876cbcd013baba02900b8979d43fe208a4a4f339f5fd\
                        6007e74cd82e037b800186422fc2da167c747ef045e5d18a5f5d4300f8e1a0291c";
        assert_eq!(hex::encode(signature.0), expected);
    }

    #[test]
    fn the_well_known_key_has_its_well_known_address() {
        // First account of the mnemonic that development nodes ship with.
        let mut bytes = [0; 32];
        hex::decode_to_slice(
            "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
            &mut bytes,
        )
        .expect("hex");
        let key = WalletKey::from_bytes(bytes).expect("a valid key");
        assert_eq!(key.address().to_string(), "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266");
    }
}
