//! Whatever bytes come: every decoder answers, and what was written is read back.

use std::net::SocketAddr;
use std::num::NonZeroU16;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use sluice_proto::frame::{
    self, COUNTER_MAX, FrameError, FrameKey, FrameType, HEADER_LEN, Header, ReplayWindow,
    TAG_COVERS,
};
use sluice_proto::wire::{
    self, MESSAGE_MAX, TEXT_MAX, WireError, control, pay, rendezvous, session,
};
use sluice_proto::{
    Amount, ChannelId, EthAddress, FlowId, Invite, InviteError, Invited, Keypair, LeaseId, PeerId,
    Price, RelayAddr, RelayBudget, RelayFlow, ServiceName, Ticket, TicketError, WalletSignature,
    amount_due, window_bytes,
};

fn kind() -> impl Strategy<Value = FrameType> {
    prop::sample::select(vec![
        FrameType::Data,
        FrameType::Keepalive,
        FrameType::KeepaliveAck,
        FrameType::Challenge,
        FrameType::ChallengeEcho,
    ])
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    let v4 = (any::<[u8; 4]>(), 1..=u16::MAX).prop_map(SocketAddr::from);
    let v6 = (any::<[u8; 16]>(), 1..=u16::MAX).prop_map(SocketAddr::from);
    prop_oneof![v4, v6].prop_map(|a| SocketAddr::new(a.ip().to_canonical(), a.port()))
}

fn keypair() -> impl Strategy<Value = Keypair> {
    any::<[u8; 32]>().prop_map(|b| Keypair::ed25519_from_bytes(b).expect("32 bytes"))
}

fn relay() -> impl Strategy<Value = RelayAddr> {
    (keypair(), addr(), any::<u16>()).prop_map(|(k, addr, tcp)| {
        RelayAddr::new(k.public().to_peer_id(), addr).with_tcp(NonZeroU16::new(tcp))
    })
}

fn ticket() -> impl Strategy<Value = (Keypair, Ticket)> {
    let service = "[a-z][a-z0-9-]{0,31}".prop_map(|s| ServiceName::parse(&s).expect("a name"));
    let expires = prop_oneof![Just(0), 1000..u64::MAX];
    (keypair(), any::<([u8; 32], [u8; 24])>(), vec(relay(), 1..=8), expires, vec(service, 0..=16))
        .prop_map(|(key, (noise_key, invite), relays, expires_unix_s, services)| {
            let peer = key.public().to_peer_id();
            let invite = Invite(invite);
            (key, Ticket { peer, noise_key, relays, invite, expires_unix_s, services })
        })
}

/// Decodes `bytes` as each kind of message there is; those that are read, encode to what reads as
/// the same again.
fn decode_all(bytes: &Bytes) {
    fn one<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &Bytes) {
        if let Ok(message) = wire::decode::<M>(bytes.clone(), MESSAGE_MAX) {
            let again = Bytes::from(message.encode_to_vec());
            assert_eq!(wire::decode::<M>(again, usize::MAX).as_ref(), Ok(&message));
        }
    }
    one::<control::Control>(bytes);
    one::<session::Session>(bytes);
    one::<session::OpenService>(bytes);
    one::<pay::PayDatagram>(bytes);
    one::<pay::Statement>(bytes);
    one::<pay::Terms>(bytes);
    one::<rendezvous::Knock>(bytes);
    one::<rendezvous::Welcome>(bytes);
    one::<rendezvous::Probe>(bytes);
    one::<rendezvous::SignedTicket>(bytes);
    one::<rendezvous::Ticket>(bytes);
}

/// A message with something in it, to be damaged.
fn some_message(seed: u64) -> Bytes {
    let voucher = pay::Voucher {
        statement: vec![3; 60].into(),
        channel: vec![4; 32].into(),
        amount: vec![5; 16].into(),
        signature: vec![6; 65].into(),
    };
    let terms = pay::SignedTerms { terms: vec![1; 200].into(), signature: vec![2; 64].into() };
    let offer = control::ReserveOffer {
        terms: Some(terms),
        starter_left: seed,
        newest: Some(voucher),
        channel: None,
    };
    control::Control { kind: Some(control::control::Kind::Offer(offer)) }.encode_to_vec().into()
}

proptest! {
    #[test]
    fn any_bytes_are_a_frame_or_a_named_error(bytes in vec(any::<u8>(), 0..200), key in any::<[u8; 16]>()) {
        match frame::peek(&bytes) {
            Ok(header) => {
                prop_assert!(bytes.len() >= HEADER_LEN && header.counter <= COUNTER_MAX);
                prop_assert_eq!(frame::check(&bytes, &FrameKey::new(&key)), Err(FrameError::Tag));
            }
            Err(FrameError::Short(len)) => prop_assert!(len == bytes.len() && len < HEADER_LEN),
            Err(FrameError::Type(t)) => prop_assert_eq!(t, bytes[0]),
            Err(FrameError::Tag) => prop_assert!(false, "the tag was not looked at"),
        }
    }

    #[test]
    fn a_frame_is_read_back_and_any_change_that_the_tag_covers_is_noticed(
        kind in kind(),
        flow in any::<u32>(),
        counter in 0..=COUNTER_MAX,
        payload in vec(any::<u8>(), 0..1500),
        key in any::<[u8; 16]>(),
        other in any::<[u8; 16]>(),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
        cut in any::<prop::sample::Index>(),
        more in vec(any::<u8>(), 1..50),
    ) {
        let (header, key) = (Header { kind, flow: FlowId(flow), counter }, FrameKey::new(&key));
        let mut sealed = vec![0; HEADER_LEN];
        sealed.extend_from_slice(&payload);
        frame::seal(&mut sealed, header, &key);
        prop_assert!(frame::is_frame(sealed[0]));
        prop_assert_eq!(frame::peek(&sealed), Ok(header));
        prop_assert_eq!(frame::check(&sealed, &key), Ok(()));
        prop_assert_eq!(&sealed[HEADER_LEN..], &payload[..]);
        let refused = |bytes: &[u8], key: &FrameKey| {
            frame::peek(bytes).is_err() || frame::check(bytes, key).is_err()
        };
        prop_assert!(refused(&sealed, &FrameKey::new(&other)));
        let mut changed = sealed.clone();
        changed[at.index((HEADER_LEN + TAG_COVERS).min(sealed.len()))] ^= flip;
        prop_assert!(refused(&changed, &key));
        prop_assert!(refused(&sealed[..cut.index(sealed.len())], &key));
        prop_assert!(refused(&[sealed, more].concat(), &key));
    }

    #[test]
    fn a_counter_is_accepted_once_wherever_the_window_stands(
        base in prop_oneof![Just(0), 0..=COUNTER_MAX - 40_000, Just(COUNTER_MAX - 40_000)],
        steps in vec(0..40_000_u64, 1..200),
    ) {
        let mut window = ReplayWindow::default();
        let mut seen = std::collections::BTreeSet::new();
        for step in steps {
            if window.accept(base + step) {
                prop_assert!(seen.insert(step), "{step} was accepted twice");
            }
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..600)) {
        decode_all(&bytes.into());
    }

    #[test]
    fn a_damaged_message_is_read_or_refused(
        seed in any::<u64>(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let message = some_message(seed);
        let mut damaged = message.to_vec();
        for (at, byte) in damage {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        decode_all(&damaged.clone().into());
        damaged.truncate(cut.index(message.len() + 1));
        decode_all(&damaged.into());
        prop_assert!(wire::decode::<control::Control>(message, MESSAGE_MAX).is_ok(), "the control");
    }

    #[test]
    fn nothing_longer_than_its_bound_is_looked_at(len in 0..9000_usize, max in 0..5000_usize) {
        let got = wire::decode::<pay::Claim>(vec![0; len].into(), max);
        if len > max {
            prop_assert_eq!(got, Err(WireError::TooLarge { max, found: len }));
        } else {
            prop_assert!(len == 0 || matches!(got, Err(WireError::Malformed(_))));
        }
    }

    #[test]
    fn an_address_is_read_back_and_nothing_else_is_one(addr in addr(), bytes in vec(any::<u8>(), 0..24)) {
        prop_assert_eq!(wire::decode_addr(&wire::encode_addr(addr)), Some(addr));
        match wire::decode_addr(&bytes) {
            Some(addr) => prop_assert_eq!(wire::decode_addr(&wire::encode_addr(addr)), Some(addr)),
            None => prop_assert!(![6, 18].contains(&bytes.len()) || bytes.ends_with(&[0, 0])),
        }
    }

    #[test]
    fn a_peers_text_is_safe_to_show(text in any::<String>()) {
        let shown = wire::display_text(&text);
        prop_assert!(shown.chars().count() <= TEXT_MAX);
        prop_assert!(!shown.chars().any(char::is_control));
    }

    #[test]
    fn a_ticket_is_read_back_whole_or_not_at_all((key, ticket) in ticket(), cut in any::<prop::sample::Index>()) {
        let text = ticket.encode(&key);
        prop_assert_eq!(Ticket::decode(&text, 1000), Ok(ticket));
        prop_assert!(Ticket::decode(&text[..cut.index(text.len())], 1000).is_err());
    }

    #[test]
    fn a_ticket_with_any_change_is_refused(
        (key, ticket) in ticket(),
        at in any::<prop::sample::Index>(),
        other in any::<char>(),
    ) {
        let text = ticket.encode(&key);
        let mut changed: Vec<char> = text.chars().collect();
        let at = at.index(changed.len());
        prop_assume!(changed[at] != other && !other.is_whitespace());
        changed[at] = other;
        let changed: String = changed.into_iter().collect();
        prop_assert!(Ticket::decode(&changed, 1000).is_err());
    }

    #[test]
    fn any_text_is_refused_as_a_ticket(text in any::<String>(), body in "[1-9A-HJ-NP-Za-km-z]{0,300}") {
        prop_assert!(Ticket::decode(&text, 0).is_err());
        for text in [["sluice1", &body].concat(), ["sluice1", &text].concat()] {
            prop_assert!(Ticket::decode(&text, 0).is_err());
        }
    }

    #[test]
    fn an_invite_holds_for_its_secret_and_not_a_bit_less(
        secret in any::<[u8; 16]>(),
        expires in any::<u64>(),
        now in any::<u64>(),
        bit in 0..24 * 8_usize,
        junk in vec(any::<u8>(), 0..40),
    ) {
        let (ticket, lease) =
            (Invite::issue(&secret, expires), Invite::for_lease(&secret, expires));
        for (invite, good_for) in [(ticket, Invited::Ticket), (lease, Invited::Lease)] {
            let expired = expires != 0 && expires < now;
            let expected = if expired { Err(InviteError::Expired) } else { Ok(good_for) };
            prop_assert_eq!(Invite::check(&secret, &invite.0, now), expected);
            let mut changed = invite.0;
            changed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Invite::check(&secret, &changed, now), Err(InviteError::Unknown));
        }
        prop_assert_eq!(Invite::check(&secret, &junk, now), Err(InviteError::Unknown));
    }

    #[test]
    fn ids_and_amounts_take_their_own_length_only(bytes in vec(any::<u8>(), 0..70)) {
        prop_assert_eq!(LeaseId::parse(&bytes).is_ok(), bytes.len() == 32);
        prop_assert_eq!(ChannelId::parse(&bytes).is_ok(), bytes.len() == 32);
        prop_assert_eq!(EthAddress::parse("payee", &bytes).is_ok(), bytes.len() == 20);
        prop_assert_eq!(Amount::parse(&bytes).is_ok(), bytes.len() == 16);
        if let Ok(signature) = WalletSignature::parse(&bytes) {
            let _ = signature.recover([1; 32]);
        }
        let _ = PeerId::from_bytes(&bytes);
    }

    #[test]
    fn any_signature_recovers_or_does_not(bytes in any::<[u8; 32]>(), more in any::<[u8; 32]>(), v in any::<u8>()) {
        let signature = WalletSignature::parse(&[&bytes[..], &more, &[v]].concat()).expect("65");
        let recovered = signature.recover(bytes);
        prop_assert!(recovered.is_none() || [27, 28].contains(&v));
    }

    #[test]
    fn amounts_grow_with_counts_and_never_wrap(
        base in any::<u128>(),
        (up, down) in any::<(u64, u64)>(),
        (more_up, more_down) in any::<(u32, u32)>(),
        price in (any::<u128>(), any::<u128>()).prop_map(|(up, down)| Price { up, down }),
        rate in any::<u64>(),
        rtt in any::<u64>(),
    ) {
        let less = amount_due(Amount(base), up, down, price);
        let more = amount_due(
            Amount(base),
            up.saturating_add(more_up.into()),
            down.saturating_add(more_down.into()),
            price,
        );
        prop_assert!(less.is_some() || more.is_none());
        prop_assert!(more.is_none() || less <= more);
        prop_assert!(less.is_none_or(|l| l >= Amount(base)));
        let window = window_bytes(rate, std::time::Duration::from_millis(rtt));
        prop_assert!((sluice_proto::WINDOW_MIN..=sluice_proto::WINDOW_MAX).contains(&window));
    }

    #[test]
    fn flows_never_reserve_more_than_the_relays_window_has_room_for(
        limit in 0..10_000_000_u64,
        steps in vec((0..3_usize, 0..5_u8, 0..200_000_u64), 1..100),
    ) {
        let budget = RelayBudget::new(limit);
        let mut flows: Vec<_> = (0..3).map(|_| RelayFlow::new(budget.clone())).collect();
        let mut queued = [0_u64; 3];
        for (i, what, bytes) in steps {
            let flow = &mut flows[i % 3];
            let queued_here = &mut queued[i % 3];
            match what {
                0 | 1 => {
                    let got = flow.reserve(bytes);
                    prop_assert!(got <= bytes);
                    *queued_here += got + got / 16;
                    prop_assert!(got == 0 || queued.iter().sum::<u64>() <= budget.room());
                }
                2 => {
                    flow.count_sent(bytes);
                    *queued_here = queued_here.saturating_sub(bytes + bytes / 16);
                }
                3 => flow.count_received(bytes),
                _ => {
                    *flow = RelayFlow::new(budget.clone());
                    *queued_here = 0;
                }
            }
        }
        drop(flows);
        // All that was set aside is given back.
        let fresh = RelayFlow::new(budget.clone());
        let room = budget.room();
        prop_assert_eq!(fresh.reserve(u64::MAX / 4), room - room / 16);
    }
}

#[test]
fn a_ticket_of_the_most_relays_and_services_can_be_read() {
    let key = Keypair::ed25519_from_bytes([1; 32]).expect("a key");
    let peer = key.public().to_peer_id();
    let addr = "[2001:db8::1]:65535".parse().expect("an address");
    let name = ServiceName::parse(&"s".repeat(32)).expect("a name");
    let ticket = Ticket {
        peer,
        noise_key: [255; 32],
        relays: vec![RelayAddr::new(peer, addr).with_tcp(NonZeroU16::new(u16::MAX)); 8],
        invite: Invite([255; 24]),
        expires_unix_s: u64::MAX,
        services: vec![name; 64],
    };
    assert_eq!(Ticket::decode(&ticket.encode(&key), 0), Ok(ticket));
    let too_long = format!("sluice1{}", "2".repeat(100_000));
    assert_eq!(Ticket::decode(&too_long, 0), Err(TicketError::Form));
}

#[test]
fn threads_that_reserve_at_once_do_not_share_a_byte() {
    let budget = RelayBudget::new(1_000_000);
    let total: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let flow = RelayFlow::new(budget.clone());
                scope.spawn(move || {
                    let got: u64 = (0..20_000).map(|_| flow.reserve(97)).map(|p| p + p / 16).sum();
                    // The flow lives until all have reserved.
                    (got, flow)
                })
            })
            .collect();
        let all: Vec<_> = threads.into_iter().map(|t| t.join().expect("no panic")).collect();
        all.iter().map(|(got, _)| got).sum()
    });
    assert!(total <= 1_000_000, "{total} bytes were reserved");
}
