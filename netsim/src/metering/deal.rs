//! Terms, keys and channels: the same for all schedules, but for what a plan says.

use std::sync::OnceLock;

use sluice_metering::{Channel, Payment, Purse, Terms};
use sluice_proto::{
    Amount, ChannelKey, Domain, EthAddress, Keypair, LeaseId, PeerId, Price, WalletKey,
};

use super::plan::{Plan, RELAYS};

/// What the provider pays its relays.
pub(super) const RELAY_PRICE: Price = Price { up: 3 << 29, down: (1 << 30) + 7 };
/// More than a schedule can cost.
const DEPOSIT: Amount = Amount(1 << 90);
/// Amount of every channel when its lease began.
const BASE: Amount = Amount(77);

/// Edges: the session's, and one for each relay.
const EDGES: usize = 1 + RELAYS;

/// What both parties of each edge agreed to.
#[derive(Debug)]
pub(super) struct Deal {
    edges: [(Terms, Purse); EDGES],
}

impl Deal {
    pub(super) fn new(plan: &Plan) -> Self {
        let edges = std::array::from_fn(|edge| {
            let price = if edge == 0 { plan.price } else { RELAY_PRICE };
            let purse = purses()[edge].clone();
            (terms(edge, price, plan.window, &purse), purse)
        });
        Self { edges }
    }

    pub(super) const fn base(&self) -> u128 {
        BASE.0
    }

    /// Between tenant and provider.
    pub(super) fn session(&self) -> (Terms, Purse) {
        self.edges[0].clone()
    }

    /// Between the provider and a relay.
    pub(super) fn relay(&self, relay: usize) -> (Terms, Purse) {
        self.edges[1 + relay].clone()
    }
}

fn terms(edge: usize, price: Price, window: u64, purse: &Purse) -> Terms {
    let n = edge as u8;
    let peers = peers();
    let (payer, payee) = if edge == 0 { (peers[0], peers[1]) } else { (peers[1], peers[1 + edge]) };
    Terms {
        lease: LeaseId([n; 32]),
        payer,
        payee,
        price,
        window,
        payment: Some(Payment {
            domain: purse.channel.domain,
            token: EthAddress([2; 20]),
            payee: EthAddress([3; 20]),
            payout: EthAddress([4; 20]),
            period_s: 172_800,
        }),
        starter_bytes: 0,
        idle_timeout_s: 600,
        expires_unix_s: u64::MAX >> 1,
        rate_max: 1_000_000_000,
    }
}

fn peers() -> &'static [PeerId; 1 + EDGES] {
    static PEERS: OnceLock<[PeerId; 1 + EDGES]> = OnceLock::new();
    PEERS.get_or_init(|| {
        std::array::from_fn(|n| {
            let key =
                Keypair::ed25519_from_bytes([n as u8 + 1; 32]).expect("any 32 bytes are a key");
            key.public().to_peer_id()
        })
    })
}

fn purses() -> &'static [Purse; EDGES] {
    static PURSES: OnceLock<[Purse; EDGES]> = OnceLock::new();
    PURSES.get_or_init(|| std::array::from_fn(|n| purse(n as u8)))
}

fn purse(n: u8) -> Purse {
    let domain = Domain { chain_id: 31_337, contract: EthAddress([1; 20]) };
    let key = WalletKey::from_bytes([n + 7; 32]).expect("nearly all numbers are keys");
    let channel = ChannelKey {
        payer: key.address(),
        signer: key.address(),
        payee: EthAddress([3; 20]),
        payout: EthAddress([4; 20]),
        token: EthAddress([2; 20]),
        salt: [n; 32],
    };
    let id = channel.id(&domain);
    let channel = Channel { id, domain, signer: key.address(), deposit: DEPOSIT, base: BASE };
    Purse { channel, key }
}
