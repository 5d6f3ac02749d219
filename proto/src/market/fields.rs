//! What orders, bids and leases have in common.

use std::fmt;

use bytes::Bytes;
use libp2p_identity::PeerId;

use crate::wire::{self, market};
use crate::{
    Amount, Domain, EthAddress, IdError, Price, ServiceName, SignatureError, VERSION, WINDOW_MAX,
    WINDOW_MIN,
};

/// Most services of one order or lease: as many as a message of [`super::MARKET_MESSAGE_MAX`] holds
/// beside eight relays, with room to spare.
pub const ORDER_SERVICES_MAX: usize = 16;
/// Highest rate that is believed, bits per second: a terabit.
pub const RATE_MAX: u64 = 1_000_000_000_000;
/// Largest volume that is believed, bytes: a pebibyte.
pub const VOLUME_MAX: u64 = 1 << 50;
/// Highest price, per GiB: that of [`VOLUME_MAX`] both ways still fits 128 bits.
const PRICE_MAX: u128 = 1 << 96;
/// Shortest silence that may end a session, seconds.
const IDLE_TIMEOUT_MIN_S: u64 = 10;
/// Longest, seconds: a day.
const IDLE_TIMEOUT_MAX_S: u64 = 86_400;

/// Why bytes are not the market message they should be. `message` and `field` say where to look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarketError {
    /// Too large, or not decodable.
    #[error("{message}: {error}")]
    Wire {
        /// The message.
        message: &'static str,
        /// What is wrong.
        error: wire::WireError,
    },
    /// A field has the wrong form.
    #[error("{message}: {error}")]
    Field {
        /// The message.
        message: &'static str,
        /// Which field, and what is wrong.
        error: IdError,
    },
    /// Another version.
    #[error("{message}: version {found}, but only {VERSION} is known")]
    Version {
        /// The message.
        message: &'static str,
        /// Its version.
        found: u32,
    },
    /// A number out of its bounds.
    #[error("{message}: {field} is {found}, not within {min} to {max}")]
    Range {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// The least it may be.
        min: u128,
        /// The most.
        max: u128,
        /// What it is.
        found: u128,
    },
    /// A field that must be there is not.
    #[error("{message}: {field} is missing")]
    Missing {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
    },
    /// Two fields that cannot both be true.
    #[error("{message}: {why}")]
    Contradiction {
        /// The message.
        message: &'static str,
        /// Which, and why.
        why: &'static str,
    },
    /// Not signed by the node that it names.
    #[error("{message}: {error}")]
    Signature {
        /// The message.
        message: &'static str,
        /// Whose signature is wrong.
        error: SignatureError,
    },
    /// Not signed by the wallet that it names.
    #[error("{message}: the signature is not that of wallet {wallet}")]
    Wallet {
        /// The message.
        message: &'static str,
        /// The wallet.
        wallet: EthAddress,
    },
}

/// Reads the fields of one message, and names it in errors.
#[derive(Clone, Copy)]
pub(super) struct Reader(pub(super) &'static str);

impl Reader {
    pub(super) fn decode<M: prost::Message + Default>(
        self,
        bytes: &Bytes,
    ) -> Result<M, MarketError> {
        wire::decode(bytes.clone(), super::MARKET_MESSAGE_MAX)
            .map_err(|error| MarketError::Wire { message: self.0, error })
    }

    pub(super) fn version(self, found: u32) -> Result<(), MarketError> {
        if found == VERSION { Ok(()) } else { Err(MarketError::Version { message: self.0, found }) }
    }

    pub(super) fn field<T>(self, parsed: Result<T, IdError>) -> Result<T, MarketError> {
        parsed.map_err(|error| MarketError::Field { message: self.0, error })
    }

    pub(super) fn bytes<const N: usize>(
        self,
        field: &'static str,
        bytes: &[u8],
    ) -> Result<[u8; N], MarketError> {
        self.field(crate::ids::fixed(field, bytes))
    }

    pub(super) fn peer(self, field: &'static str, bytes: &[u8]) -> Result<PeerId, MarketError> {
        self.field(PeerId::from_bytes(bytes).map_err(|_| IdError::PeerId(field)))
    }

    pub(super) fn address(
        self,
        field: &'static str,
        bytes: &[u8],
    ) -> Result<EthAddress, MarketError> {
        self.field(EthAddress::parse(field, bytes))
    }

    pub(super) fn within(
        self,
        field: &'static str,
        found: u64,
        min: u64,
        max: u64,
    ) -> Result<u64, MarketError> {
        self.wide(field, found.into(), min.into(), max.into())?;
        Ok(found)
    }

    fn wide(
        self,
        field: &'static str,
        found: u128,
        min: u128,
        max: u128,
    ) -> Result<u128, MarketError> {
        if (min..=max).contains(&found) {
            Ok(found)
        } else {
            Err(MarketError::Range { message: self.0, field, min, max, found })
        }
    }

    pub(super) fn amount(self, field: &'static str, bytes: &[u8]) -> Result<Amount, MarketError> {
        self.bytes(field, bytes).map(|bytes| Amount(u128::from_be_bytes(bytes)))
    }

    pub(super) fn price(
        self,
        (up_field, up): (&'static str, &[u8]),
        (down_field, down): (&'static str, &[u8]),
    ) -> Result<Price, MarketError> {
        let read = |field, bytes| self.wide(field, self.amount(field, bytes)?.0, 0, PRICE_MAX);
        Ok(Price { up: read(up_field, up)?, down: read(down_field, down)? })
    }

    pub(super) fn window(self, field: &'static str, found: u64) -> Result<u64, MarketError> {
        self.within(field, found, WINDOW_MIN, WINDOW_MAX)
    }

    pub(super) fn rate(self, field: &'static str, found: u64) -> Result<u64, MarketError> {
        self.within(field, found, 0, RATE_MAX)
    }

    pub(super) fn idle_timeout(self, found: u32) -> Result<u32, MarketError> {
        self.within("idle_timeout_s", found.into(), IDLE_TIMEOUT_MIN_S, IDLE_TIMEOUT_MAX_S)?;
        Ok(found)
    }

    pub(super) fn check(self, holds: bool, why: &'static str) -> Result<(), MarketError> {
        if holds { Ok(()) } else { Err(MarketError::Contradiction { message: self.0, why }) }
    }

    /// The chain, which is there exactly when something is charged.
    pub(super) fn money(
        self,
        money: Option<&market::Money>,
        price: Price,
    ) -> Result<Option<Money>, MarketError> {
        match money {
            None if price.is_zero() => Ok(None),
            None => Err(MarketError::Missing { message: self.0, field: "money" }),
            Some(money) => {
                self.check(!price.is_zero(), "money is named, but nothing is charged")?;
                let contract = self.address("contract", &money.contract)?;
                let domain = Domain { chain_id: money.chain_id, contract };
                Ok(Some(Money { domain, token: self.address("token", &money.token)? }))
            }
        }
    }

    pub(super) fn services(
        self,
        services: &[market::Service],
    ) -> Result<Vec<ServiceOffer>, MarketError> {
        self.within("services", services.len() as u64, 1, ORDER_SERVICES_MAX as u64)?;
        let parsed: Vec<ServiceOffer> =
            services.iter().map(|s| self.service(s)).collect::<Result<_, _>>()?;
        let twice = |(i, s): (usize, &ServiceOffer)| parsed[..i].iter().any(|o| o.name == s.name);
        self.check(!parsed.iter().enumerate().any(twice), "a service is named twice")?;
        Ok(parsed)
    }

    fn service(self, service: &market::Service) -> Result<ServiceOffer, MarketError> {
        let kind = match service.kind {
            1 => ServiceKind::Tcp,
            2 => ServiceKind::Udp,
            other => {
                self.within("kind", other.into(), 1, 3)?;
                ServiceKind::Tls
            }
        };
        Ok(ServiceOffer { name: self.field(ServiceName::parse(&service.name))?, kind })
    }

    pub(super) fn direct(self, found: u32) -> Result<DirectPolicy, MarketError> {
        match found {
            1 => Ok(DirectPolicy::Always),
            2 => Ok(DirectPolicy::AfterFunding),
            other => {
                self.within("direct", other.into(), 1, 3)?;
                Ok(DirectPolicy::Never)
            }
        }
    }
}

/// Where in the network a tenant wants what it orders: the name of a topic, 1 to 32 of `a-z`, `0-9`
/// and `-`, starting with a letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region(ServiceName);

impl Region {
    /// Parses a name.
    ///
    /// # Errors
    /// When it does not have the form above.
    pub fn parse(name: &str) -> Result<Self, IdError> {
        ServiceName::parse(name).map(Self).map_err(|_| IdError::Region(clip(name)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn clip(name: &str) -> String {
    name.chars().take(64).collect()
}

/// What kind of socket a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKind {
    /// TCP connections.
    Tcp,
    /// UDP packets.
    Udp,
    /// TLS, by the name that the client asks for.
    Tls,
}

impl ServiceKind {
    pub(crate) const fn code(self) -> u32 {
        match self {
            Self::Tcp => 1,
            Self::Udp => 2,
            Self::Tls => 3,
        }
    }
}

/// One service, as ordered or leased.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceOffer {
    /// Its name.
    pub name: ServiceName,
    /// Its kind.
    pub kind: ServiceKind,
}

impl ServiceOffer {
    pub(super) fn to_wire(&self) -> market::Service {
        market::Service { name: self.name.as_str().to_owned(), kind: self.kind.code() }
    }
}

/// When a direct path, which shows each side the other's address, may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DirectPolicy {
    /// From the start.
    Always,
    /// Once the channel is seen open on-chain, or with price 0 once the right to connect is accepted.
    AfterFunding,
    /// Relays only.
    Never,
}

impl DirectPolicy {
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Always => 1,
            Self::AfterFunding => 2,
            Self::Never => 3,
        }
    }
}

/// On which chain, by which contract, in which token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Money {
    /// Chain and contract.
    pub domain: Domain,
    /// The ERC-20 token.
    pub token: EthAddress,
}

impl Money {
    /// The domain that leases and proofs of wallets are signed in; without money that of no chain.
    #[must_use]
    pub fn domain_of(money: Option<&Self>) -> Domain {
        let none = Domain { chain_id: 0, contract: EthAddress([0; 20]) };
        money.map_or(none, |money| money.domain)
    }

    pub(super) fn to_wire(self) -> market::Money {
        market::Money {
            chain_id: self.domain.chain_id,
            contract: Bytes::copy_from_slice(&self.domain.contract.0),
            token: Bytes::copy_from_slice(&self.token.0),
        }
    }
}

/// Sixteen big-endian bytes, as messages carry amounts and prices.
pub(super) fn wide(value: u128) -> Bytes {
    Bytes::copy_from_slice(&Amount(value).to_bytes())
}
