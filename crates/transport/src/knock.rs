//! The rendezvous: a Noise IK handshake through a relay that cannot read it.
//!
//! Pattern `Noise_IK_25519_AESGCM_SHA256` (Noise specification, revision 34). The prologue binds
//! the version and the provider's identity. The keys that result seal the session's probes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use sluice_path::{Filtering, Guess, Mapping, Probe};
use sluice_proto::frame::{self, ReplayWindow};
use sluice_proto::wire::rendezvous::{self, probe};
use sluice_proto::wire::{self, CANDIDATES_MAX, SEALED_MAX, code};
use sluice_proto::{PeerId, VERSION};
use snow::params::NoiseParams;
use snow::resolvers::{DefaultResolver, FallbackResolver, RingResolver};

const PATTERN: &str = "Noise_IK_25519_AESGCM_SHA256";
/// Bytes of a probe in front of its ciphertext: type, session, nonce.
const PROBE_HEADER: usize = 17;
/// Bytes of a probe's authentication tag.
const TAG: usize = 16;
/// Plaintext bytes that every probe is padded to: only one that asks for a size, or answers, is larger
/// than another.
const PROBE_BODY: usize = 32;
/// Bytes of a probe that is not padded behind its seal.
pub(crate) const PROBE_LEN: usize = PROBE_HEADER + PROBE_BODY + TAG;
/// Initiators whose newest timestamp is remembered; the oldest is forgotten beyond.
const INITIATORS_MAX: usize = 10_000;

/// Why a rendezvous message was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum RendezvousError {
    /// Not sealed to this node, or damaged.
    #[error("the message is not sealed to this node: {0}")]
    Sealed(#[from] snow::Error),
    /// Malformed inside.
    #[error("the message is malformed: {0}")]
    Malformed(#[from] wire::WireError),
    /// Its fields contradict one another or the relay's word.
    #[error("the message's {0} is wrong")]
    Field(&'static str),
    /// It asks for a new flow of a session that does not stand, or for a session that does.
    #[error("the session is not known, or known already")]
    UnknownSession,
    /// A newer one of the same initiator came before.
    #[error("the message was replayed")]
    Replayed,
    /// The sender may not connect.
    #[error("{0}")]
    NotInvited(#[from] sluice_proto::InviteError),
}

impl RendezvousError {
    /// What the sender is told. A session that is unknown here, or a sender that is not welcome,
    /// need not try again.
    pub(crate) const fn code(&self) -> u32 {
        match self {
            Self::NotInvited(_) | Self::UnknownSession => code::NOT_INVITED,
            Self::Sealed(_) | Self::Malformed(_) | Self::Field(_) | Self::Replayed => {
                code::PROTOCOL
            }
        }
    }
}

/// A node's static Noise keys (X25519).
#[derive(Clone)]
pub struct NoiseKeys {
    secret: [u8; 32],
    public: [u8; 32],
}

impl std::fmt::Debug for NoiseKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoiseKeys(..)")
    }
}

impl NoiseKeys {
    /// From a secret key; the public one follows.
    ///
    /// # Errors
    /// When the key is refused by the curve's implementation.
    pub fn from_secret(secret: [u8; 32]) -> Result<Self, snow::Error> {
        use snow::resolvers::CryptoResolver;
        let mut dh = DefaultResolver
            .resolve_dh(&snow::params::DHChoice::Curve25519)
            .ok_or(snow::Error::Dh)?;
        dh.set(&secret);
        let public = dh.pubkey().try_into().map_err(|_| snow::Error::Dh)?;
        Ok(Self { secret, public })
    }

    /// The public key, for tickets.
    #[must_use]
    pub const fn public(&self) -> [u8; 32] {
        self.public
    }
}

fn builder(keys: &NoiseKeys, prologue: &[u8]) -> Result<snow::HandshakeState, snow::Error> {
    build(keys, prologue, None)
}

fn build(
    keys: &NoiseKeys,
    prologue: &[u8],
    remote: Option<&[u8; 32]>,
) -> Result<snow::HandshakeState, snow::Error> {
    let params: NoiseParams = PATTERN.parse()?;
    let resolver = FallbackResolver::new(Box::new(RingResolver), Box::new(DefaultResolver));
    let builder = snow::Builder::with_resolver(params, Box::new(resolver))
        .local_private_key(&keys.secret)?
        .prologue(prologue)?;
    match remote {
        Some(remote) => builder.remote_public_key(remote)?.build_initiator(),
        None => builder.build_responder(),
    }
}

fn prologue(provider: &PeerId) -> Vec<u8> {
    let mut out = b"sluice rendezvous v1".to_vec();
    out.extend_from_slice(&provider.to_bytes());
    out
}

/// Reads at most [`CANDIDATES_MAX`] addresses.
pub(crate) fn decode_candidates(list: &[Bytes]) -> Vec<SocketAddr> {
    list.iter().take(CANDIDATES_MAX).filter_map(|b| wire::decode_addr(b)).collect()
}

/// The inverse, for messages.
pub(crate) fn encode_candidates(list: &[SocketAddr]) -> Vec<Bytes> {
    list.iter().take(CANDIDATES_MAX).map(|a| wire::encode_addr(*a)).collect()
}

/// The tenant's side, waiting for the answer.
pub(crate) struct Knocking(snow::HandshakeState);

impl Knocking {
    /// Seals the first message.
    pub(crate) fn begin(
        keys: &NoiseKeys,
        provider: &PeerId,
        provider_key: &[u8; 32],
        knock: &rendezvous::Knock,
    ) -> Result<(Self, Bytes), RendezvousError> {
        let mut state = build(keys, &prologue(provider), Some(provider_key))?;
        let mut out = vec![0; SEALED_MAX];
        let len = state.write_message(&knock.encode_to_vec(), &mut out)?;
        out.truncate(len);
        Ok((Self(state), out.into()))
    }

    /// Opens the answer.
    pub(crate) fn finish(
        mut self,
        session: u64,
        sealed: &[u8],
    ) -> Result<(rendezvous::Welcome, ProbeSeal), RendezvousError> {
        let mut out = vec![0; SEALED_MAX];
        let len = self.0.read_message(sealed, &mut out)?;
        out.truncate(len);
        let welcome = wire::decode(out.into(), SEALED_MAX)?;
        Ok((welcome, ProbeSeal::new(session, self.0.into_stateless_transport_mode()?)))
    }
}

/// A knock that was opened, not yet answered.
pub(crate) struct Opened {
    state: snow::HandshakeState,
    pub(crate) knock: rendezvous::Knock,
    /// The initiator's static key, proven by the handshake.
    pub(crate) initiator: [u8; 32],
}

/// The provider's side: opens knocks, and remembers each initiator's newest timestamp.
#[derive(Debug, Default)]
pub(crate) struct Door {
    newest: HashMap<[u8; 32], u64>,
}

impl Door {
    /// Opens the first message. `from` is who the relay says it is from.
    pub(crate) fn open(
        keys: &NoiseKeys,
        us: &PeerId,
        from: &PeerId,
        sealed: &[u8],
    ) -> Result<Opened, RendezvousError> {
        if sealed.len() > SEALED_MAX {
            return Err(RendezvousError::Field("length"));
        }
        let mut state = builder(keys, &prologue(us))?;
        let mut out = vec![0; SEALED_MAX];
        let len = state.read_message(sealed, &mut out)?;
        out.truncate(len);
        let knock: rendezvous::Knock = wire::decode(out.into(), SEALED_MAX)?;
        let initiator: [u8; 32] = state
            .get_remote_static()
            .and_then(|k| k.try_into().ok())
            .ok_or(RendezvousError::Field("static key"))?;
        if knock.version != VERSION {
            return Err(RendezvousError::Field("version"));
        }
        if knock.peer != from.to_bytes() {
            return Err(RendezvousError::Field("peer id"));
        }
        Ok(Opened { state, knock, initiator })
    }

    /// Refuses what is not newer than the initiator's newest. Only for those who may connect, or
    /// strangers could make it forget.
    pub(crate) fn note(
        &mut self,
        initiator: [u8; 32],
        timestamp: u64,
    ) -> Result<(), RendezvousError> {
        if self.newest.get(&initiator).is_some_and(|newest| *newest >= timestamp) {
            return Err(RendezvousError::Replayed);
        }
        if self.newest.len() >= INITIATORS_MAX && !self.newest.contains_key(&initiator) {
            let oldest = self.newest.iter().min_by_key(|(_, t)| **t).map(|(k, _)| *k);
            oldest.map(|k| self.newest.remove(&k));
        }
        self.newest.insert(initiator, timestamp);
        Ok(())
    }
}

impl Opened {
    /// Seals the answer.
    pub(crate) fn answer(
        mut self,
        welcome: &rendezvous::Welcome,
    ) -> Result<(Bytes, ProbeSeal), RendezvousError> {
        let mut out = vec![0; SEALED_MAX];
        let len = self.state.write_message(&welcome.encode_to_vec(), &mut out)?;
        out.truncate(len);
        let session = self.knock.session;
        let seal = ProbeSeal::new(session, self.state.into_stateless_transport_mode()?);
        Ok((out.into(), seal))
    }
}

/// Seals and opens the probes of one session.
pub(crate) struct ProbeSeal {
    session: u64,
    state: snow::StatelessTransportState,
    next: AtomicU64,
    seen: Mutex<ReplayWindow>,
}

impl std::fmt::Debug for ProbeSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProbeSeal({:016x})", self.session)
    }
}

impl ProbeSeal {
    fn new(session: u64, state: snow::StatelessTransportState) -> Self {
        Self { session, state, next: AtomicU64::new(0), seen: Mutex::default() }
    }

    pub(crate) fn seal(&self, probe: Probe) -> Option<Vec<u8>> {
        let kind = match probe {
            Probe::Ping { token } => probe::Kind::Ping(rendezvous::Ping { token }),
            Probe::Pong { token } => {
                probe::Kind::Pong(rendezvous::Pong { token, observed: Bytes::new() })
            }
            Probe::Use { epoch } => probe::Kind::Use(rendezvous::Use { epoch }),
            Probe::Nat { mapping, filtering } => probe::Kind::Nat(rendezvous::Nat {
                mapping: mapping.map_or(0, |m| match m {
                    Mapping::Independent => 1,
                    Mapping::Address => 2,
                    Mapping::AddressAndPort => 3,
                }),
                filtering: filtering.map_or(0, |f| match f {
                    Filtering::Independent => 1,
                    Filtering::Address => 2,
                    Filtering::AddressAndPort => 3,
                }),
            }),
            Probe::Guess { round, guess } => probe::Kind::Guess(rendezvous::Guess {
                round,
                first: guess.first.into(),
                step: guess.step.into(),
                count: guess.count.into(),
            }),
            Probe::Trial { epoch } => probe::Kind::Trial(rendezvous::Trial { epoch }),
            Probe::Measure { token, size, packets } => {
                let (size, packets) = (size.into(), packets.into());
                probe::Kind::Measure(rendezvous::Measure { token, size, packets })
            }
            Probe::Measured { token, size } => {
                probe::Kind::Measured(rendezvous::Measured { token, size: size.into() })
            }
        };
        let mut body = rendezvous::Probe { kind: Some(kind) }.encode_to_vec();
        let len = u8::try_from(body.len()).ok()?;
        body.insert(0, len);
        body.resize(PROBE_BODY, 0);
        let nonce = self.next.fetch_add(1, Relaxed);
        let mut out = vec![0; len_of(probe)];
        out[0] = frame::PROBE;
        out[1..9].copy_from_slice(&self.session.to_be_bytes());
        out[9..17].copy_from_slice(&nonce.to_be_bytes());
        self.state.write_message(nonce, &body, &mut out[PROBE_HEADER..PROBE_LEN]).ok()?;
        Some(out)
    }

    /// `None`: forged, replayed, not a probe, or not as long as it says: a relay may not take away the
    /// padding that it does not carry.
    pub(crate) fn open(&self, bytes: &[u8]) -> Option<Probe> {
        let nonce = u64::from_be_bytes(bytes.get(9..17)?.try_into().ok()?);
        if nonce > frame::COUNTER_MAX {
            return None;
        }
        let sealed = bytes.get(PROBE_HEADER..PROBE_LEN)?;
        let mut body = [0; PROBE_BODY + TAG];
        let len = self.state.read_message(nonce, sealed, &mut body).ok()?;
        if !self.seen.lock().accept(nonce) {
            return None;
        }
        let (size, body) = body.get(..len)?.split_first()?;
        let body = Bytes::copy_from_slice(body.get(..usize::from(*size))?);
        let probe = probe_within(body)?;
        (bytes.len() == len_of(probe)).then_some(probe)
    }
}

/// Bytes of a probe on the wire.
fn len_of(probe: Probe) -> usize {
    match probe {
        Probe::Measure { size, .. } | Probe::Measured { size, .. } => PROBE_LEN.max(size.into()),
        Probe::Ping { .. }
        | Probe::Pong { .. }
        | Probe::Use { .. }
        | Probe::Guess { .. }
        | Probe::Nat { .. }
        | Probe::Trial { .. } => PROBE_LEN,
    }
}

fn probe_within(body: Bytes) -> Option<Probe> {
    match wire::decode::<rendezvous::Probe>(body, PROBE_BODY).ok()?.kind? {
        probe::Kind::Ping(p) => Some(Probe::Ping { token: p.token }),
        probe::Kind::Pong(p) => Some(Probe::Pong { token: p.token }),
        probe::Kind::Use(u) => Some(Probe::Use { epoch: u.epoch }),
        probe::Kind::Nat(n) => Some(Probe::Nat {
            mapping: match n.mapping {
                1 => Some(Mapping::Independent),
                2 => Some(Mapping::Address),
                3 => Some(Mapping::AddressAndPort),
                _ => None,
            },
            filtering: match n.filtering {
                1 => Some(Filtering::Independent),
                2 => Some(Filtering::Address),
                3 => Some(Filtering::AddressAndPort),
                _ => None,
            },
        }),
        probe::Kind::Guess(g) => {
            let guess = Guess {
                first: g.first.try_into().ok()?,
                step: g.step.try_into().ok()?,
                count: g.count.try_into().ok()?,
            };
            Some(Probe::Guess { round: g.round, guess })
        }
        probe::Kind::Trial(t) => Some(Probe::Trial { epoch: t.epoch }),
        probe::Kind::Measure(m) => Some(Probe::Measure {
            token: m.token,
            size: m.size.try_into().ok()?,
            packets: m.packets.try_into().ok()?,
        }),
        probe::Kind::Measured(m) => {
            Some(Probe::Measured { token: m.token, size: m.size.try_into().ok()? })
        }
    }
}

/// A timestamp for a knock, strictly above the last one.
#[derive(Debug, Default)]
pub(crate) struct Timestamps(AtomicU64);

impl Timestamps {
    pub(crate) fn next(&self, unix: Duration) -> u64 {
        let wall = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
        let last = self.0.fetch_max(wall, Relaxed);
        if last >= wall { self.0.fetch_add(1, Relaxed) + 1 } else { wall }
    }
}

#[cfg(test)]
mod fed;
