//! Terms, keys and channels for tests.

use std::time::Instant;

use bytes::Bytes;
use prost::Message;
use sluice_metering::{Channel, Lie, Payee, PayeeEvent, Payer, PayerEvent, Payment, Purse, Terms};
use sluice_proto::wire::pay::{self, pay_datagram::Kind};
use sluice_proto::{
    Amount, ChannelKey, Domain, EthAddress, Keypair, LeaseId, PeerId, Price, WalletKey,
};

pub(crate) const WINDOW: u64 = 512 * 1024;

pub(crate) fn peer(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id()
}

pub(crate) fn key() -> WalletKey {
    WalletKey::from_bytes([7; 32]).expect("a valid key")
}

pub(crate) fn domain() -> Domain {
    Domain { chain_id: 31_337, contract: EthAddress([1; 20]) }
}

pub(crate) fn terms(price: Price) -> Terms {
    let payment = Payment {
        domain: domain(),
        token: EthAddress([2; 20]),
        payee: EthAddress([3; 20]),
        payout: EthAddress([4; 20]),
        period_s: 172_800,
    };
    Terms {
        lease: LeaseId([9; 32]),
        payer: peer(1),
        payee: peer(2),
        price,
        window: WINDOW,
        payment: (!price.is_zero()).then_some(payment),
        starter_bytes: 0,
        idle_timeout_s: 600,
        expires_unix_s: 2_000_000_000,
        rate_max: 1_000_000_000,
    }
}

/// About one base unit a byte down, two up.
pub(crate) fn price() -> Price {
    Price { up: 2 << 30, down: 1 << 30 }
}

pub(crate) fn purse(deposit: u128, base: u128) -> Purse {
    let key = key();
    let channel = ChannelKey {
        payer: key.address(),
        signer: key.address(),
        payee: EthAddress([3; 20]),
        payout: EthAddress([4; 20]),
        token: EthAddress([2; 20]),
        salt: [5; 32],
    };
    let channel = Channel {
        id: channel.id(&domain()),
        domain: domain(),
        signer: key.address(),
        deposit: Amount(deposit),
        base: Amount(base),
    };
    Purse { channel, key }
}

/// A pair of accounts on priced terms, at a moment.
pub(crate) fn pair() -> (Payer, Payee, Instant) {
    let purse = purse(1 << 60, 1000);
    let channel = purse.channel;
    let payer = Payer::new(terms(price()), Some(purse), 1, None);
    let payee = Payee::new(terms(price()), Some(channel), 1, None);
    (payer, payee, Instant::now())
}

/// Persists at once and returns what is to be sent.
pub(crate) fn drain_payer(payer: &mut Payer, now: Instant) -> (Vec<Bytes>, Vec<PayerEvent>) {
    let mut others = Vec::new();
    while let Some(event) = payer.poll_event() {
        match event {
            PayerEvent::Persist { seq, .. } => payer.handle_persisted(seq, now),
            other @ (PayerEvent::Lie(_) | PayerEvent::DepositExhausted { .. }) => {
                others.push(other);
            }
        }
    }
    (std::iter::from_fn(|| payer.poll_transmit(now)).collect(), others)
}

/// Persists at once and returns what is to be sent.
pub(crate) fn drain_payee(payee: &mut Payee, now: Instant) -> (Vec<Bytes>, Vec<PayeeEvent>) {
    let mut others = Vec::new();
    while let Some(event) = payee.poll_event() {
        match event {
            PayeeEvent::Persist { seq, .. } => payee.handle_durable(seq),
            other @ (PayeeEvent::Lie(_) | PayeeEvent::Stale | PayeeEvent::Writable) => {
                others.push(other);
            }
        }
    }
    (std::iter::from_fn(|| payee.poll_transmit(now)).collect(), others)
}

/// Carries messages both ways until nobody has anything to say.
pub(crate) fn settle(payer: &mut Payer, payee: &mut Payee, now: Instant) {
    loop {
        let (out, events) = drain_payer(payer, now);
        assert_eq!(events, Vec::new(), "an honest payee gives no offence");
        let (back, events) = drain_payee(payee, now);
        assert_eq!(lies(&events), Vec::<Lie>::new(), "an honest payer gives no offence");
        if out.is_empty() && back.is_empty() {
            return;
        }
        out.iter().for_each(|m| payee.handle_datagram(m, now));
        back.iter().for_each(|m| payer.handle_datagram(m, now));
    }
}

pub(crate) fn lies(events: &[PayeeEvent]) -> Vec<Lie> {
    events
        .iter()
        .filter_map(|e| match e {
            PayeeEvent::Lie(evidence) => Some(evidence.lie.clone()),
            PayeeEvent::Persist { .. } | PayeeEvent::Stale | PayeeEvent::Writable => None,
        })
        .collect()
}

pub(crate) fn decode(message: &Bytes) -> Kind {
    pay::PayDatagram::decode(message.clone()).expect("well formed").kind.expect("not empty")
}

pub(crate) fn encode(kind: Kind) -> Bytes {
    pay::PayDatagram { kind: Some(kind) }.encode_to_vec().into()
}
