//! The terms that tenant and provider both sign.

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use prost::Message;

use super::fields::{Reader, wide};
use super::{
    BIDDER_RELAYS_MAX, DURATION_MAX_S, DURATION_MIN_S, DirectPolicy, MarketError, Money, OrderId,
    ServiceOffer,
};
use crate::eth::{keccak256, u128_word};
use crate::wire::market;
use crate::{
    Amount, EthAddress, Invite, LeaseId, Price, RelayAddr, Ticket, Topic, VERSION, WalletKey,
    WalletSignature, decode_relays, encode_relays, sign, verify,
};

const LEASE: Reader = Reader("lease");
const AWARD: Reader = Reader("award");

/// Shortest failure that may be called a breach, seconds.
const BREACH_AFTER_MIN_S: u64 = 5;
/// Longest, seconds: a day.
const BREACH_AFTER_MAX_S: u64 = 86_400;

/// The terms that both sign, and all that is needed to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub lease: LeaseId,
    /// The order that it answers.
    pub order: OrderId,
    /// Who pays.
    pub tenant: PeerId,
    /// Who is paid.
    pub provider: PeerId,
    /// The signer of the tenant's channel.
    pub tenant_wallet: EthAddress,
    /// May redeem and close.
    pub provider_wallet: EthAddress,
    /// Receives the money.
    pub payout: EthAddress,
    /// Flat, the relay included.
    pub price: Price,
    /// The most bytes sent and not yet paid, in flight included.
    pub window: u64,
    /// Bits per second that the window was computed from.
    pub rate_max: u64,
    /// The least rate to the provider, bits per second.
    pub rate_up_min: u64,
    /// The least rate from the provider, bits per second.
    pub rate_down_min: u64,
    /// The most that is paid.
    pub budget: Amount,
    /// When it begins.
    pub made_unix_s: u64,
    /// How long it lasts.
    pub duration_s: u32,
    /// What may be reached.
    pub services: Vec<ServiceOffer>,
    /// Absent at price 0.
    pub money: Option<Money>,
    /// Close period of the channel, seconds.
    pub period_s: u32,
    /// Silence after which a session ends, seconds.
    pub idle_timeout_s: u32,
    /// Whether and when a direct path may be used.
    pub direct: DirectPolicy,
    /// Rates below the least ones, no service or no voucher for so long is a breach: the other may end the
    /// lease at once, and only what is stated by then is owed.
    pub breach_after_s: u32,
    /// Bytes that the provider gives before the first voucher is due.
    pub starter_bytes: u64,
    /// The provider's X25519 key, for the rendezvous.
    pub noise_key: [u8; 32],
    /// Where the provider has reservations.
    pub relays: Vec<RelayAddr>,
    /// The right to connect.
    pub invite: Invite,
}

impl Lease {
    /// Parses an encoded lease.
    ///
    /// # Errors
    /// When a field is missing, malformed, out of bounds, or contradicts another.
    pub fn parse(bytes: &Bytes) -> Result<Self, MarketError> {
        let wire: market::Lease = LEASE.decode(bytes)?;
        LEASE.version(wire.version)?;
        let price = LEASE.price(("price_up", &wire.price_up), ("price_down", &wire.price_down))?;
        let relays = decode_relays(&wire.relays);
        let count = wire.relays.len() as u64;
        LEASE.within("relays", count, 1, BIDDER_RELAYS_MAX as u64)?;
        LEASE.check(relays.len() as u64 == count, "a relay's peer id or address is malformed")?;
        let (shortest, longest) = (DURATION_MIN_S.into(), DURATION_MAX_S.into());
        LEASE.within("duration_s", wire.duration_s.into(), shortest, longest)?;
        let breach = wire.breach_after_s.into();
        LEASE.within("breach_after_s", breach, BREACH_AFTER_MIN_S, BREACH_AFTER_MAX_S)?;
        LEASE.within("made_unix_s", wire.made_unix_s, 0, u64::MAX - longest)?;
        Ok(Self {
            lease: LEASE.field(LeaseId::parse(&wire.lease))?,
            order: OrderId(LEASE.bytes("order", &wire.order)?),
            tenant: LEASE.peer("tenant", &wire.tenant)?,
            provider: LEASE.peer("provider", &wire.provider)?,
            tenant_wallet: LEASE.address("tenant_wallet", &wire.tenant_wallet)?,
            provider_wallet: LEASE.address("provider_wallet", &wire.provider_wallet)?,
            payout: LEASE.address("payout", &wire.payout)?,
            price,
            window: LEASE.window("window", wire.window)?,
            rate_max: LEASE.rate("rate_max", wire.rate_max)?,
            rate_up_min: LEASE.rate("rate_up_min", wire.rate_up_min)?,
            rate_down_min: LEASE.rate("rate_down_min", wire.rate_down_min)?,
            budget: LEASE.amount("budget", &wire.budget)?,
            made_unix_s: wire.made_unix_s,
            duration_s: wire.duration_s,
            services: LEASE.services(&wire.services)?,
            money: LEASE.money(wire.money.as_ref(), price)?,
            period_s: wire.period_s,
            idle_timeout_s: LEASE.idle_timeout(wire.idle_timeout_s)?,
            direct: LEASE.direct(wire.direct)?,
            breach_after_s: wire.breach_after_s,
            starter_bytes: wire.starter_bytes,
            noise_key: LEASE.bytes("noise_key", &wire.noise_key)?,
            relays,
            invite: Invite(LEASE.bytes("invite", &wire.invite)?),
        })
    }

    /// When it ends.
    #[must_use]
    pub fn ends_unix_s(&self) -> u64 {
        self.made_unix_s.saturating_add(self.duration_s.into())
    }

    /// What a session needs of it.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        Ticket {
            peer: self.provider,
            noise_key: self.noise_key,
            relays: self.relays.clone(),
            invite: self.invite,
            expires_unix_s: self.ends_unix_s(),
            services: self.services.iter().map(|s| s.name.clone()).collect(),
        }
    }

    /// Its form on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let address = |a: EthAddress| Bytes::copy_from_slice(&a.0);
        let wire = market::Lease {
            version: VERSION,
            lease: Bytes::copy_from_slice(&self.lease.0),
            order: Bytes::copy_from_slice(&self.order.0),
            tenant: self.tenant.to_bytes().into(),
            provider: self.provider.to_bytes().into(),
            tenant_wallet: address(self.tenant_wallet),
            provider_wallet: address(self.provider_wallet),
            payout: address(self.payout),
            price_up: wide(self.price.up),
            price_down: wide(self.price.down),
            window: self.window,
            rate_max: self.rate_max,
            rate_up_min: self.rate_up_min,
            rate_down_min: self.rate_down_min,
            budget: wide(self.budget.0),
            made_unix_s: self.made_unix_s,
            duration_s: self.duration_s,
            services: self.services.iter().map(ServiceOffer::to_wire).collect(),
            money: self.money.map(Money::to_wire),
            period_s: self.period_s,
            idle_timeout_s: self.idle_timeout_s,
            direct: self.direct.code(),
            breach_after_s: self.breach_after_s,
            starter_bytes: self.starter_bytes,
            noise_key: Bytes::copy_from_slice(&self.noise_key),
            relays: encode_relays(&self.relays),
            invite: Bytes::copy_from_slice(&self.invite.0),
        };
        wire.encode_to_vec().into()
    }

    /// What both wallets sign of the lease that stands in `encoded`.
    #[must_use]
    pub fn digest(&self, encoded: &[u8]) -> [u8; 32] {
        let words = [
            keccak256(
                b"Lease(bytes32 lease,uint128 priceUp,uint128 priceDown,uint128 budget,uint64 ends,bytes32 terms)",
            ),
            self.lease.0,
            u128_word(self.price.up),
            u128_word(self.price.down),
            u128_word(self.budget.0),
            u128_word(self.ends_unix_s().into()),
            keccak256(encoded),
        ];
        Money::domain_of(self.money.as_ref()).digest(keccak256(&words.concat()))
    }
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signer {
    /// Who pays.
    Tenant,
    /// Who is paid.
    Provider,
}

/// One party's, by both of its keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signatures {
    wallet: WalletSignature,
    node: Bytes,
}

impl Signatures {
    /// Signs `encoded`, which is `lease`.
    #[must_use]
    pub fn make(lease: &Lease, encoded: &[u8], node: &Keypair, wallet: &WalletKey) -> Self {
        let wallet = wallet.sign(lease.digest(encoded));
        Self { wallet, node: sign(node, Topic::Lease, encoded).into() }
    }

    /// Checks that they are `signer`'s of `encoded`, which is `lease`.
    ///
    /// # Errors
    /// Says which of the two is not.
    pub fn verify(&self, lease: &Lease, encoded: &[u8], signer: Signer) -> Result<(), MarketError> {
        let (peer, wallet) = match signer {
            Signer::Tenant => (lease.tenant, lease.tenant_wallet),
            Signer::Provider => (lease.provider, lease.provider_wallet),
        };
        if self.wallet.recover(lease.digest(encoded)) != Some(wallet) {
            return Err(MarketError::Wallet { message: "lease", wallet });
        }
        verify(&peer, Topic::Lease, encoded, &self.node)
            .map_err(|error| MarketError::Signature { message: "lease", error })
    }

    fn parse(
        reader: Reader,
        field: &'static str,
        wire: Option<&market::Signatures>,
    ) -> Result<Self, MarketError> {
        let wire = wire.ok_or(MarketError::Missing { message: reader.0, field })?;
        let wallet = reader.field(WalletSignature::parse(&wire.wallet))?;
        Ok(Self { wallet, node: wire.node.clone() })
    }

    fn to_wire(&self) -> market::Signatures {
        let wallet = Bytes::copy_from_slice(&self.wallet.0);
        market::Signatures { wallet, node: self.node.clone() }
    }
}

/// The tenant's choice: a lease with its signatures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Award {
    /// What it signed.
    pub lease: Lease,
    /// As received.
    pub encoded: Bytes,
    /// The tenant's.
    pub tenant: Signatures,
    /// The provider does not sign later.
    pub answer_by_unix_ms: u64,
}

impl Award {
    /// Signs a lease as its tenant.
    #[must_use]
    pub fn make(lease: Lease, answer_by_unix_ms: u64, node: &Keypair, wallet: &WalletKey) -> Self {
        let encoded = lease.encode();
        let tenant = Signatures::make(&lease, &encoded, node, wallet);
        Self { lease, encoded, tenant, answer_by_unix_ms }
    }

    /// Parses an award and checks that its tenant signed it.
    ///
    /// # Errors
    /// When it is malformed, or another signed.
    pub fn open(bytes: &Bytes) -> Result<Self, MarketError> {
        let wire: market::Award = AWARD.decode(bytes)?;
        let lease = Lease::parse(&wire.lease)?;
        let tenant = Signatures::parse(AWARD, "tenant", wire.tenant.as_ref())?;
        tenant.verify(&lease, &wire.lease, Signer::Tenant)?;
        let answer_by_unix_ms = wire.answer_by_unix_ms;
        Ok(Self { lease, encoded: wire.lease, tenant, answer_by_unix_ms })
    }

    /// Its form on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = market::Award {
            lease: self.encoded.clone(),
            tenant: Some(self.tenant.to_wire()),
            answer_by_unix_ms: self.answer_by_unix_ms,
        };
        wire.encode_to_vec().into()
    }
}

/// Why a provider does not sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum AwardRefusal {
    /// It made no such bid, or has forgotten it.
    #[error("the provider knows of no such bid")]
    UnknownBid,
    /// The lease is not what it offered.
    #[error("the lease is not what the provider offered")]
    OtherTerms,
    /// Others came first.
    #[error("the provider has no room any more")]
    NoRoom,
    /// The bid or the award is over.
    #[error("the award came too late")]
    TooLate,
}

impl AwardRefusal {
    const fn code(self) -> u32 {
        match self {
            Self::UnknownBid => 1,
            Self::OtherTerms => 2,
            Self::NoRoom => 3,
            Self::TooLate => 4,
        }
    }
}

/// The provider's answer to an award.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwardAnswer {
    /// The lease's name.
    pub lease: LeaseId,
    /// The provider's signatures, or why there are none.
    pub answer: Result<Signatures, AwardRefusal>,
}

impl AwardAnswer {
    /// Parses an answer. Whether the signatures hold is for whoever knows the lease:
    /// [`SignedLease::seal`].
    ///
    /// # Errors
    /// When it is malformed.
    pub fn parse(bytes: &Bytes) -> Result<Self, MarketError> {
        const ANSWER: Reader = Reader("award's answer");
        let wire: market::AwardAnswer = ANSWER.decode(bytes)?;
        let answer = match &wire.kind {
            Some(market::award_answer::Kind::Provider(signatures)) => {
                Ok(Signatures::parse(ANSWER, "provider", Some(signatures))?)
            }
            Some(market::award_answer::Kind::Refused(refused)) => {
                ANSWER.within("code", refused.code.into(), 1, 4)?;
                Err(match refused.code {
                    1 => AwardRefusal::UnknownBid,
                    2 => AwardRefusal::OtherTerms,
                    3 => AwardRefusal::NoRoom,
                    _ => AwardRefusal::TooLate,
                })
            }
            None => return Err(MarketError::Missing { message: ANSWER.0, field: "answer" }),
        };
        Ok(Self { lease: ANSWER.field(LeaseId::parse(&wire.lease))?, answer })
    }

    /// Its form on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let kind = match &self.answer {
            Ok(signatures) => market::award_answer::Kind::Provider(signatures.to_wire()),
            Err(why) => {
                market::award_answer::Kind::Refused(market::AwardRefused { code: why.code() })
            }
        };
        let lease = Bytes::copy_from_slice(&self.lease.0);
        market::AwardAnswer { lease, kind: Some(kind) }.encode_to_vec().into()
    }
}

/// A lease that both signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedLease {
    lease: Lease,
    encoded: Bytes,
    tenant: Signatures,
    provider: Signatures,
}

impl SignedLease {
    /// An award with the provider's signatures.
    ///
    /// # Errors
    /// When they are not the provider's.
    pub fn seal(award: Award, provider: Signatures) -> Result<Self, MarketError> {
        provider.verify(&award.lease, &award.encoded, Signer::Provider)?;
        let Award { lease, encoded, tenant, .. } = award;
        Ok(Self { lease, encoded, tenant, provider })
    }

    /// Parses a lease and checks that both signed it.
    ///
    /// # Errors
    /// When it is malformed, or one of them did not.
    pub fn open(bytes: &Bytes) -> Result<Self, MarketError> {
        let wire: market::SignedLease = LEASE.decode(bytes)?;
        let lease = Lease::parse(&wire.lease)?;
        let tenant = Signatures::parse(LEASE, "tenant", wire.tenant.as_ref())?;
        let provider = Signatures::parse(LEASE, "provider", wire.provider.as_ref())?;
        tenant.verify(&lease, &wire.lease, Signer::Tenant)?;
        provider.verify(&lease, &wire.lease, Signer::Provider)?;
        Ok(Self { lease, encoded: wire.lease, tenant, provider })
    }

    /// The terms.
    #[must_use]
    pub const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The terms as both signed them.
    #[must_use]
    pub const fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// The provider's signatures.
    #[must_use]
    pub const fn provider(&self) -> &Signatures {
        &self.provider
    }

    /// Its form on the wire and on disk.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let wire = market::SignedLease {
            lease: self.encoded.clone(),
            tenant: Some(self.tenant.to_wire()),
            provider: Some(self.provider.to_wire()),
        };
        wire.encode_to_vec().into()
    }
}
