//! Tickets: what a tenant needs to reach a provider, as one word to copy and paste.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU16;

use bytes::Bytes;
use libp2p_identity::{Keypair, PeerId};
use prost::Message;

use crate::eth::keccak256;
use crate::ids::fixed;
use crate::wire::{self, rendezvous};
use crate::{IdError, ServiceName, SignatureError, Topic, sign, verify};

/// What a ticket begins with.
const PREFIX: &str = "sluice1";
/// Longest ticket that is looked at: 8 relays and 64 services of the longest names are less.
const TICKET_MAX: usize = 5120;
/// Most relays that are read from a ticket.
pub(crate) const RELAYS_MAX: usize = 8;

/// Why text is not a ticket, or not one that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Not of the form `sluice1...`.
    #[error("not a ticket: it must begin with `sluice1` and be copied whole")]
    Form,
    /// Damaged.
    #[error("the ticket is damaged ({0}): copy it again, whole")]
    Damaged(String),
    /// A field is not what it should be.
    #[error("the ticket is not valid: {0}")]
    Field(#[from] IdError),
    /// Signed by another.
    #[error("the ticket is not valid: {0}")]
    Signature(#[from] SignatureError),
    /// Of a version that is not known here.
    #[error("the ticket is of version {0}, and this Sluice knows version 1: update Sluice")]
    Version(u32),
    /// It names no relay.
    #[error("the ticket names no relay")]
    NoRelay,
    /// Its time is over.
    #[error("the ticket expired at unix time {0}: ask the provider for a new one")]
    Expired(u64),
}

/// A relay and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RelayAddr {
    /// The relay's identity.
    pub peer: PeerId,
    /// Its data socket.
    pub addr: SocketAddr,
    /// Its TCP port at the same IP address, for clients whose network blocks UDP.
    pub tcp: Option<NonZeroU16>,
}

impl RelayAddr {
    /// A relay that is reached over UDP only.
    #[must_use]
    pub const fn new(peer: PeerId, addr: SocketAddr) -> Self {
        Self { peer, addr, tcp: None }
    }

    /// The same, which also listens on this TCP port.
    #[must_use]
    pub const fn with_tcp(self, port: Option<NonZeroU16>) -> Self {
        Self { tcp: port, ..self }
    }

    /// Where it is reached over TCP.
    #[must_use]
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp.map(|port| SocketAddr::new(self.addr.ip(), port.get()))
    }

    /// Whether both are the same data socket of the same relay.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (self.peer, self.addr) == (other.peer, other.addr)
    }
}

impl fmt::Display for RelayAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.peer, self.addr)?;
        match self.tcp {
            Some(port) => write!(f, "+tcp:{port}"),
            None => Ok(()),
        }
    }
}

/// What a tenant needs to reach a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The provider.
    pub peer: PeerId,
    /// Its static Noise key (X25519).
    pub noise_key: [u8; 32],
    /// Where it has reservations; never empty.
    pub relays: Vec<RelayAddr>,
    /// The right to connect.
    pub invite: Invite,
    /// Unix seconds; 0: never.
    pub expires_unix_s: u64,
    /// The services it offered when the ticket was made.
    pub services: Vec<ServiceName>,
}

impl Ticket {
    /// Signs the ticket and writes it as text.
    #[must_use]
    pub fn encode(&self, key: &Keypair) -> String {
        let ticket = rendezvous::Ticket {
            version: 1,
            peer: self.peer.to_bytes().into(),
            noise_key: Bytes::copy_from_slice(&self.noise_key),
            relays: self.relays.iter().map(encode_relay).collect(),
            invite: Bytes::copy_from_slice(&self.invite.0),
            expires_unix_s: self.expires_unix_s,
            services: self.services.iter().map(|s| s.as_str().to_owned()).collect(),
        }
        .encode_to_vec();
        let signature = sign(key, Topic::Ticket, &ticket).into();
        let signed = rendezvous::SignedTicket { ticket: ticket.into(), signature };
        format!("{PREFIX}{}", bs58::encode(signed.encode_to_vec()).with_check().into_string())
    }

    /// Reads a ticket and checks its signature and, against `now_unix_s`, its expiry.
    ///
    /// # Errors
    /// Says which of these is wrong.
    pub fn decode(text: &str, now_unix_s: u64) -> Result<Self, TicketError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(TicketError::Form)?;
        if body.len() > TICKET_MAX {
            return Err(TicketError::Form);
        }
        let damaged = |e: &dyn fmt::Display| TicketError::Damaged(e.to_string());
        let bytes = bs58::decode(body).with_check(None).into_vec().map_err(|e| damaged(&e))?;
        let signed: rendezvous::SignedTicket =
            wire::decode(bytes.into(), TICKET_MAX).map_err(|e| damaged(&e))?;
        let wire: rendezvous::Ticket =
            wire::decode(signed.ticket.clone(), TICKET_MAX).map_err(|e| damaged(&e))?;
        if wire.version != 1 {
            return Err(TicketError::Version(wire.version));
        }
        let ticket = Self::from_wire(&wire)?;
        verify(&ticket.peer, Topic::Ticket, &signed.ticket, &signed.signature)?;
        if ticket.expires_unix_s != 0 && ticket.expires_unix_s < now_unix_s {
            return Err(TicketError::Expired(ticket.expires_unix_s));
        }
        Ok(ticket)
    }

    fn from_wire(wire: &rendezvous::Ticket) -> Result<Self, TicketError> {
        let relays: Vec<_> = decode_relays(&wire.relays);
        if relays.is_empty() {
            return Err(TicketError::NoRelay);
        }
        Ok(Self {
            peer: peer(&wire.peer)?,
            noise_key: fixed("noise_key", &wire.noise_key)?,
            relays,
            invite: Invite(fixed("invite", &wire.invite)?),
            expires_unix_s: wire.expires_unix_s,
            services: wire
                .services
                .iter()
                .map(|s| ServiceName::parse(s))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn peer(bytes: &[u8]) -> Result<PeerId, IdError> {
    PeerId::from_bytes(bytes).map_err(|_| IdError::PeerId("peer"))
}

/// Relays as messages carry them; at most 8.
#[must_use]
pub fn encode_relays(relays: &[RelayAddr]) -> Vec<rendezvous::RelayHint> {
    relays.iter().take(RELAYS_MAX).map(encode_relay).collect()
}

/// The inverse: what is malformed is left out, and so is what is beyond 8.
#[must_use]
pub fn decode_relays(hints: &[rendezvous::RelayHint]) -> Vec<RelayAddr> {
    hints.iter().take(RELAYS_MAX).filter_map(decode_relay).collect()
}

pub(crate) fn encode_relay(relay: &RelayAddr) -> rendezvous::RelayHint {
    rendezvous::RelayHint {
        peer: relay.peer.to_bytes().into(),
        address: wire::encode_addr(relay.addr),
        tcp_port: relay.tcp.map_or(0, |port| port.get().into()),
    }
}

pub(crate) fn decode_relay(hint: &rendezvous::RelayHint) -> Option<RelayAddr> {
    // A port that cannot be is none: UDP may still work.
    let tcp = u16::try_from(hint.tcp_port).ok().and_then(NonZeroU16::new);
    Some(RelayAddr::new(peer(&hint.peer).ok()?, wire::decode_addr(&hint.address)?).with_tcp(tcp))
}

/// The right to connect: an expiry and a keyed hash of it, so that the provider remembers nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Invite(pub [u8; 24]);

impl fmt::Debug for Invite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Invite(..)")
    }
}

/// What an invite is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invited {
    /// To come to terms, as the holder of a ticket.
    Ticket,
    /// To use a lease that was signed before.
    Lease,
}

/// Why an invite is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// Not one of ours.
    #[error("the invite is not this provider's")]
    Unknown,
    /// Its time is over.
    #[error("the invite expired")]
    Expired,
}

impl Invite {
    /// Makes one for a ticket; `expires_unix_s` 0: never.
    #[must_use]
    pub fn issue(secret: &[u8; 16], expires_unix_s: u64) -> Self {
        Self::make(b"sluice invite v1", secret, expires_unix_s)
    }

    /// Makes one for a lease. It is worth nothing without the lease: whoever a tenant hands it on to
    /// gets no terms.
    #[must_use]
    pub fn for_lease(secret: &[u8; 16], expires_unix_s: u64) -> Self {
        Self::make(b"sluice lease invite v1", secret, expires_unix_s)
    }

    fn make(purpose: &[u8], secret: &[u8; 16], expires_unix_s: u64) -> Self {
        let mut invite = [0; 24];
        invite[..8].copy_from_slice(&expires_unix_s.to_be_bytes());
        let hash = keccak256(&[purpose, &secret[..], &invite[..8]].concat());
        invite[8..].copy_from_slice(&hash[..16]);
        Self(invite)
    }

    /// Checks one that a tenant shows, and says what it is good for.
    ///
    /// # Errors
    /// When it was not issued with `secret`, or its time is over.
    pub fn check(
        secret: &[u8; 16],
        invite: &[u8],
        now_unix_s: u64,
    ) -> Result<Invited, InviteError> {
        let invite: [u8; 24] = invite.try_into().map_err(|_| InviteError::Unknown)?;
        let expires = u64::from_be_bytes(invite[..8].try_into().expect("8 of 24 bytes"));
        let is =
            |right: Self| right.0.iter().zip(&invite).fold(0, |acc, (a, b)| acc | (a ^ b)) == 0;
        let (ticket, lease) =
            (is(Self::issue(secret, expires)), is(Self::for_lease(secret, expires)));
        let invited = match (ticket, lease) {
            (true, _) => Invited::Ticket,
            (_, true) => Invited::Lease,
            (false, false) => return Err(InviteError::Unknown),
        };
        if expires != 0 && expires < now_unix_s {
            return Err(InviteError::Expired);
        }
        Ok(invited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(key: &Keypair) -> Ticket {
        Ticket {
            peer: key.public().to_peer_id(),
            noise_key: [5; 32],
            relays: vec![
                RelayAddr::new(
                    key.public().to_peer_id(),
                    "192.0.2.1:4433".parse().expect("an address"),
                )
                .with_tcp(NonZeroU16::new(443)),
            ],
            invite: Invite::issue(&[1; 16], 100),
            expires_unix_s: 100,
            services: vec![ServiceName::parse("web").expect("a name")],
        }
    }

    #[test]
    fn a_ticket_survives_copy_and_paste_and_nothing_less() {
        let key = Keypair::ed25519_from_bytes([3; 32]).expect("a key");
        let text = ticket(&key).encode(&key);
        assert_eq!(Ticket::decode(&format!(" {text}\n"), 99), Ok(ticket(&key)));
        assert_eq!(Ticket::decode(&text, 101), Err(TicketError::Expired(100)));
        assert!(matches!(
            Ticket::decode(&text[..text.len() - 3], 99),
            Err(TicketError::Damaged(_))
        ));
        assert_eq!(Ticket::decode("hello", 99), Err(TicketError::Form));
    }

    #[test]
    fn a_ticket_signed_by_another_is_refused() {
        let key = Keypair::ed25519_from_bytes([3; 32]).expect("a key");
        let other = Keypair::ed25519_from_bytes([4; 32]).expect("a key");
        let text = ticket(&key).encode(&other);
        assert!(matches!(Ticket::decode(&text, 99), Err(TicketError::Signature(_))));
    }

    #[test]
    fn an_invite_holds_for_its_secret_and_its_time() {
        let invite = Invite::issue(&[1; 16], 100);
        assert_eq!(Invite::check(&[1; 16], &invite.0, 100), Ok(Invited::Ticket));
        assert_eq!(Invite::check(&[1; 16], &invite.0, 101), Err(InviteError::Expired));
        assert_eq!(Invite::check(&[2; 16], &invite.0, 100), Err(InviteError::Unknown));
        let leased = Invite::for_lease(&[1; 16], 100);
        assert_eq!(Invite::check(&[1; 16], &leased.0, 100), Ok(Invited::Lease));
        assert_eq!(Invite::check(&[1; 16], &leased.0, 101), Err(InviteError::Expired));
        assert_eq!(Invite::check(&[2; 16], &leased.0, 100), Err(InviteError::Unknown));
        let mut later = invite.0;
        later[7] = 200;
        assert_eq!(Invite::check(&[1; 16], &later, 100), Err(InviteError::Unknown));
    }
}
