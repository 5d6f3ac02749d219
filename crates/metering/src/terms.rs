//! The terms of one edge.

use bytes::Bytes;
use prost::Message;
use sluice_proto::eth::keccak256;
use sluice_proto::market::Lease;
use sluice_proto::wire::pay;
use sluice_proto::{
    Amount, Domain, EthAddress, IdError, Keypair, LeaseId, PeerId, Price, SignatureError, Topic,
    VERSION, WINDOW_MAX, WINDOW_MIN, amount_due, wire,
};

/// Where the money of an edge lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payment {
    /// Chain and contract.
    pub domain: Domain,
    /// The ERC-20 token.
    pub token: EthAddress,
    /// May redeem and close.
    pub payee: EthAddress,
    /// Receives the money.
    pub payout: EthAddress,
    /// Least close period that the payee accepts, in seconds.
    pub period_s: u32,
}

/// The terms of one edge as its payee offers them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The lease, or the reservation on a relay's edge.
    pub lease: LeaseId,
    /// Who pays.
    pub payer: PeerId,
    /// Who is paid.
    pub payee: PeerId,
    /// Token base units per GiB.
    pub price: Price,
    /// The most bytes sent and not yet paid, in flight included:
    /// [`WINDOW_MIN`] to [`WINDOW_MAX`].
    pub window: u64,
    /// Absent at price 0, and only then.
    pub payment: Option<Payment>,
    /// Bytes that the payee gives before the first voucher is due.
    pub starter_bytes: u64,
    /// Silence after which a session ends, in seconds.
    pub idle_timeout_s: u32,
    /// When the lease ends.
    pub expires_unix_s: u64,
    /// Bits per second that the window was computed from.
    pub rate_max: u64,
}

/// Why bytes are not terms, or an acceptance not one of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// Not decodable.
    #[error("terms: {0}")]
    Wire(#[from] wire::WireError),
    /// A field has the wrong form.
    #[error("terms: {0}")]
    Field(#[from] IdError),
    /// Another version.
    #[error("terms of version {0}, but only {VERSION} is known")]
    Version(u32),
    /// A window out of bounds.
    #[error("terms: window of {0} bytes is not within {WINDOW_MIN} to {WINDOW_MAX}")]
    Window(u64),
    /// A price without the chain that it is paid on, or the other way round.
    #[error("terms: payment must be present exactly when something is charged")]
    Payment,
    /// Not signed by the one who must.
    #[error("terms: {0}")]
    Signature(#[from] SignatureError),
    /// An acceptance of other terms.
    #[error("the acceptance is of other terms")]
    OtherTerms,
}

impl Terms {
    /// Parses encoded terms.
    ///
    /// # Errors
    /// When a field is missing, malformed or out of bounds.
    pub fn parse(bytes: &Bytes) -> Result<Self, TermsError> {
        let wire: pay::Terms = wire::decode(bytes.clone(), wire::MESSAGE_MAX)?;
        if wire.version != VERSION {
            return Err(TermsError::Version(wire.version));
        }
        if !(WINDOW_MIN..=WINDOW_MAX).contains(&wire.window) {
            return Err(TermsError::Window(wire.window));
        }
        let price = Price {
            up: Amount::parse(&wire.price_up)?.0,
            down: Amount::parse(&wire.price_down)?.0,
        };
        let payment = wire.payment.as_ref().map(Payment::parse).transpose()?;
        if payment.is_some() == price.is_zero() {
            return Err(TermsError::Payment);
        }
        Ok(Self {
            lease: LeaseId::parse(&wire.lease)?,
            payer: peer("payer_peer", &wire.payer_peer)?,
            payee: peer("payee_peer", &wire.payee_peer)?,
            price,
            window: wire.window,
            payment,
            starter_bytes: wire.starter_bytes,
            idle_timeout_s: wire.idle_timeout_s,
            expires_unix_s: wire.expires_unix_s,
            rate_max: wire.rate_max,
        })
    }

    /// Those of a lease that both signed: what a session under it is metered by.
    #[must_use]
    pub fn of_lease(lease: &Lease) -> Self {
        let payment = lease.money.map(|money| Payment {
            domain: money.domain,
            token: money.token,
            payee: lease.provider_wallet,
            payout: lease.payout,
            period_s: lease.period_s,
        });
        Self {
            lease: lease.lease,
            payer: lease.tenant,
            payee: lease.provider,
            price: lease.price,
            window: lease.window,
            payment,
            starter_bytes: lease.starter_bytes,
            idle_timeout_s: lease.idle_timeout_s,
            expires_unix_s: lease.ends_unix_s(),
            rate_max: lease.rate_max,
        }
    }

    /// How much of a channel's deposit may be earned by now, cumulative: what of it is final, and
    /// what `windows` windows of the dearer direction come to on credit. So many are lost at most
    /// when the chain undoes the rest.
    #[must_use]
    pub fn usable(&self, deposit: Amount, settled: Amount, windows: u64) -> Amount {
        let dearest = self.price.up.max(self.price.down);
        let price = Price { up: dearest, down: dearest };
        let most = amount_due(settled, self.window.saturating_mul(windows), 0, price);
        most.map_or(deposit, |most| most.min(deposit))
    }

    /// Their form on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = pay::Terms {
            version: VERSION,
            lease: Bytes::copy_from_slice(&self.lease.0),
            payer_peer: self.payer.to_bytes().into(),
            payee_peer: self.payee.to_bytes().into(),
            price_up: Bytes::copy_from_slice(&Amount(self.price.up).to_bytes()),
            price_down: Bytes::copy_from_slice(&Amount(self.price.down).to_bytes()),
            window: self.window,
            payment: self.payment.map(Payment::to_wire),
            starter_bytes: self.starter_bytes,
            idle_timeout_s: self.idle_timeout_s,
            expires_unix_s: self.expires_unix_s,
            rate_max: self.rate_max,
        };
        wire.encode_to_vec().into()
    }

    /// Encodes and signs them with the payee's node key.
    #[must_use]
    pub fn sign(&self, payee: &Keypair) -> pay::SignedTerms {
        let terms = self.encode();
        let signature = sluice_proto::sign(payee, Topic::Terms, &terms).into();
        pay::SignedTerms { terms, signature }
    }

    /// Parses signed terms and checks that their payee signed them.
    ///
    /// # Errors
    /// When they are malformed, or another signed.
    pub fn open(signed: &pay::SignedTerms) -> Result<Self, TermsError> {
        let terms = Self::parse(&signed.terms)?;
        sluice_proto::verify(&terms.payee, Topic::Terms, &signed.terms, &signed.signature)?;
        Ok(terms)
    }
}

/// Keccak-256 of encoded terms, as an acceptance names them.
#[must_use]
pub fn terms_hash(encoded: &[u8]) -> [u8; 32] {
    keccak256(encoded)
}

/// Signs the acceptance of `encoded` terms with the payer's node key. The caller adds its channel
/// and newest voucher.
#[must_use]
pub fn accept_terms(payer: &Keypair, encoded: &[u8]) -> pay::Accept {
    let hash = terms_hash(encoded);
    pay::Accept {
        terms_hash: Bytes::copy_from_slice(&hash),
        signature: sluice_proto::sign(payer, Topic::Accept, &hash).into(),
        channel: None,
        newest: None,
    }
}

/// Checks that `accept` is `payer`'s acceptance of `encoded` terms.
///
/// # Errors
/// When it is of other terms, or another signed.
pub fn check_accept(
    payer: &PeerId,
    encoded: &[u8],
    accept: &pay::Accept,
) -> Result<(), TermsError> {
    let hash = terms_hash(encoded);
    if accept.terms_hash != hash.as_slice() {
        return Err(TermsError::OtherTerms);
    }
    Ok(sluice_proto::verify(payer, Topic::Accept, &hash, &accept.signature)?)
}

impl Payment {
    fn parse(wire: &pay::Payment) -> Result<Self, IdError> {
        Ok(Self {
            domain: Domain {
                chain_id: wire.chain_id,
                contract: EthAddress::parse("contract", &wire.contract)?,
            },
            token: EthAddress::parse("token", &wire.token)?,
            payee: EthAddress::parse("payee", &wire.payee)?,
            payout: EthAddress::parse("payout", &wire.payout)?,
            period_s: wire.period_s,
        })
    }

    fn to_wire(self) -> pay::Payment {
        let address = |a: EthAddress| Bytes::copy_from_slice(&a.0);
        pay::Payment {
            chain_id: self.domain.chain_id,
            contract: address(self.domain.contract),
            token: address(self.token),
            payee: address(self.payee),
            payout: address(self.payout),
            period_s: self.period_s,
        }
    }
}

fn peer(field: &'static str, bytes: &[u8]) -> Result<PeerId, IdError> {
    PeerId::from_bytes(bytes).map_err(|_| IdError::PeerId(field))
}
