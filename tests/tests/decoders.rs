//! Whatever a stranger sends is decoded or refused, and never a panic: a target for each decoder.
//!
//! Each is fed spoilt copies of genuine messages, and noise. `SLUICE_FUZZ_SECONDS=5 cargo test -p tests
//! --test decoders` takes so long for each; without it some thousand inputs are tried. A failure
//! prints `BOLERO_RANDOM_SEED=..`, with which it is the same again. The decoders inside of crates have
//! their targets there; [`OF_FILES`] lists all of them.

#![expect(clippy::disallowed_methods, reason = "a beginning of time for cores that are told it")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use sluice::config::{
    BitRate, ByteSize, ChainKind, Config, DirectPolicy, Expose, Finality, GasPrice, Map, Score,
    parse_bootstrap, parse_duration, parse_latency, parse_lease_duration, parse_peer, parse_relay,
    parse_rule, parse_service, parse_volume,
};
use sluice::state::State;
use sluice::wallet::Keystore;
use sluice_ledger::{Found, Recovery, Server, ServerMark};
use sluice_metering::{Payee, Payer, Statement, Terms};
use sluice_proto::frame::{FrameType, Observe, Observed};
use sluice_proto::wire::{self, control, market, mesh, pay, record, rendezvous, session};
use sluice_proto::{
    Amount, ChannelId, EthAddress, Invite, Keypair, LeaseId, PacketReader, Price, RelayAddr,
    ServiceName, Ticket, Topic, WalletSignature, sign, verify,
};
use sluice_relay_core::{Forwarder, ReturnAddress};
use sluice_settlement::{ChannelEvent, RevertReason, answer};

/// Inputs that a target is fed when no time is given.
const INPUTS: usize = 2_000;

/// Files that make sense of bytes or text from outside, in how many places, and where they are fed.
const OF_FILES: &[(&str, usize, &str)] = &[
    ("crates/chain/src/embedded/store.rs", 1, "the_embedded_chains_file"),
    ("crates/chain/src/rpc/http.rs", 2, "crates/chain/tests/rpc.rs::a_nodes_answers"),
    ("crates/chain/src/rpc/node.rs", 1, "crates/chain/tests/rpc.rs::a_nodes_answers"),
    ("crates/chain/src/rpc/value.rs", 1, "crates/chain/tests/rpc.rs::a_nodes_answers"),
    ("crates/ledger/src/postgres/mark.rs", 1, "what_a_fleet_remembers_of_its_server"),
    ("crates/ledger/src/postgres/server.rs", 1, "values_of_the_configuration"),
    ("crates/ledger/src/recovery.rs", 2, "what_a_restored_node_remembers"),
    ("crates/ledger/src/rows.rs", 1, "messages"),
    ("crates/ledger/src/vouchers.rs", 1, "messages"),
    ("crates/market/src/seal.rs", 1, "tests/tests/decoders/market.rs::sealed_bids"),
    ("crates/mesh/src/records.rs", 1, "tests/tests/decoders/mesh.rs::keys_and_contradictions"),
    ("crates/mesh/src/remembered.rs", 1, "tests/tests/decoders/mesh.rs::remembered_peers"),
    ("crates/metering/src/payer.rs", 1, "pay_datagrams"),
    ("crates/metering/src/statement.rs", 2, "statements"),
    ("crates/metering/src/terms.rs", 3, "terms"),
    ("crates/settlement/src/answer.rs", 2, "contract_answers"),
    ("crates/settlement/src/artifacts.rs", 1, "contract_answers"),
    ("crates/settlement/src/event.rs", 1, "contract_events"),
    ("crates/settlement/src/revert.rs", 5, "contract_reverts"),
    ("crates/sluice/src/commands/export.rs", 2, "crates/sluice/src/commands/export.rs::exports"),
    (
        "crates/sluice/src/commands/mesh.rs",
        2,
        "crates/sluice/src/commands/mesh.rs::what_a_role_knows",
    ),
    ("crates/sluice/src/commands/order.rs", 3, "crates/sluice/src/commands/order.rs::kept_bids"),
    ("crates/sluice/src/config.rs", 1, "configurations"),
    ("crates/sluice/src/config/order.rs", 5, "values_of_the_configuration"),
    ("crates/sluice/src/config/read.rs", 1, "configurations"),
    ("crates/sluice/src/config/sections.rs", 1, "values_of_the_configuration"),
    ("crates/sluice/src/config/values.rs", 15, "values_of_the_configuration"),
    (
        "crates/sluice/src/roles/market/bids.rs",
        1,
        "crates/sluice/src/roles/market/bids.rs::the_list_of_bids",
    ),
    (
        "crates/sluice/src/roles/market/memory.rs",
        1,
        "crates/sluice/src/roles/market/memory.rs::what_is_known_of_providers",
    ),
    ("crates/sluice/src/state.rs", 2, "crates/sluice/src/state.rs::keys"),
    ("crates/sluice/src/state/origin.rs", 2, "what_a_restored_node_remembers"),
    ("crates/sluice/src/wallet/keystore.rs", 4, "keystores"),
    ("crates/transport/src/knock.rs", 4, "crates/transport/src/knock/fed.rs::knocks_and_probes"),
    ("crates/transport/src/node/rendezvous.rs", 1, "messages"),
    ("proto/src/ask.rs", 3, "tests/tests/decoders/mesh.rs::asks_and_answers"),
    ("proto/src/eth.rs", 7, "ids_and_addresses"),
    ("proto/src/frame.rs", 3, "frames"),
    ("proto/src/ids.rs", 2, "ids_and_addresses"),
    ("proto/src/market/bid.rs", 1, "tests/tests/decoders/market.rs::market_messages"),
    ("proto/src/market/fields.rs", 3, "tests/tests/decoders/market.rs::market_messages"),
    ("proto/src/market/lease.rs", 3, "tests/tests/decoders/market.rs::market_messages"),
    ("proto/src/market/order.rs", 3, "tests/tests/decoders/market.rs::market_messages"),
    ("proto/src/record.rs", 3, "tests/tests/decoders/mesh.rs::records"),
    ("proto/src/signed.rs", 1, "signatures"),
    ("proto/src/ticket.rs", 5, "tickets"),
    ("proto/src/units.rs", 1, "ids_and_addresses"),
    ("proto/src/wire.rs", 4, "messages"),
    ("relay/core/src/admission/flows.rs", 1, "messages"),
];

/// What betrays a decoder: its definition, or the use of somebody else's.
const SIGNS: &[&str] = &[
    "fn decode",
    "fn parse",
    "fn from_str",
    "fn from_code",
    "serde_json::from_",
    "toml::from",
    "abi_decode",
    "read_message(",
    "bs58::decode",
    "hex::decode",
    "from_protobuf_encoding",
    "try_decode_protobuf",
    "PeerId::from_bytes",
    "pay::Voucher::decode",
    "M::decode",
];

/// Which seed to spoil, the edits (place, byte), where to cut, and what comes after or instead.
type Spoiling = (u8, Vec<(u16, u8)>, u16, Vec<u8>);

/// A seed with some bytes changed, perhaps cut, perhaps longer; or noise alone.
fn spoil(seeds: &[Vec<u8>], (pick, edits, cut, tail): &Spoiling) -> Vec<u8> {
    let pick = usize::from(*pick);
    let mut bytes = seeds.get(pick % (seeds.len() + 1)).cloned().unwrap_or_default();
    // A few edits find more than many.
    for (place, byte) in edits.iter().take(1 + pick % 4) {
        let len = bytes.len().max(1);
        if let Some(at) = bytes.get_mut(usize::from(*place) % len) {
            *at = *byte;
        }
    }
    if cut % 4 == 0 {
        bytes.truncate(usize::from(*cut) % (bytes.len() + 1));
    }
    if bytes.is_empty() || cut % 3 == 0 {
        bytes.extend(tail);
    }
    bytes
}

/// How long a target is fed, if that was asked for.
fn time() -> Option<Duration> {
    let text = std::env::var("SLUICE_FUZZ_SECONDS").ok()?;
    Some(Duration::from_secs(text.parse().expect("SLUICE_FUZZ_SECONDS is a number of seconds")))
}

/// Feeds the body spoilt copies of the seeds.
macro_rules! feed {
    ($seeds:expr, |$bytes:ident| $body:block) => {{
        let seeds: Vec<Vec<u8>> = $seeds;
        let target = bolero::check!();
        let target = match time() {
            Some(time) => target.with_test_time(time).with_iterations(usize::MAX),
            None => target.with_iterations(INPUTS),
        };
        target.with_type::<Spoiling>().for_each(|spoiling: &Spoiling| {
            let spoilt = spoil(&seeds, spoiling);
            let $bytes: &[u8] = &spoilt;
            $body
        });
    }};
}

#[path = "decoders/market.rs"]
mod market_messages;
#[path = "decoders/mesh.rs"]
mod mesh_messages;

/// All messages of the protocol, each with its decoder.
macro_rules! messages {
    ($($module:ident: $($name:ident)*;)*) => {
        const MESSAGES: &[(&str, &str)] = &[$($((stringify!($module), stringify!($name)),)*)*];

        fn decode_as_each(bytes: &[u8]) {
            $($(
                if let Ok(message) = wire::decode::<$module::$name>(Bytes::copy_from_slice(bytes), wire::MESSAGE_MAX) {
                    let again = wire::decode::<$module::$name>(message.encode_to_vec().into(), usize::MAX);
                    assert_eq!(again.as_ref(), Ok(&message));
                }
            )*)*
        }
    };
}

messages! {
    control: Control Hello Welcome Reserve ReserveOffer Reserved Rendezvous FlowOpened FlowRefused
        RendezvousIn RendezvousAnswer CloseFlow Grant Unpaid Drain PermitAddress PeerAddress;
    pay: Statement Voucher VoucherAck Claim PayDatagram Payment Terms SignedTerms ChannelBinding
        Accept Refusal;
    record: Record Provider Service Relay SignedRecord;
    session: Session Hello Offer Ready Candidates Relays DirectPolicy Goodbye OpenService;
    market: Order Service Money SignedOrder WalletProof OrderClosed Bid SignedBid SealedBid Lease
        Signatures Award AwardAnswer AwardRefused SignedLease;
    mesh: Ask Answer BidTaken RelaysWanted RelaysKnown AskRefused;
    rendezvous: Knock Welcome Ticket RelayHint SignedTicket Probe Ping Pong Use Guess Nat Trial Measure Measured;
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root").to_owned()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry")) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// Lines that decode, by file; tests, what only they use, and generated code left out.
fn decoders() -> BTreeMap<String, usize> {
    let root = root();
    let mut files = Vec::new();
    sources(&root.join("proto/src"), &mut files);
    for parent in ["crates", "relay"] {
        for entry in std::fs::read_dir(root.join(parent)).expect("a folder") {
            sources(&entry.expect("an entry").path().join("src"), &mut files);
        }
    }
    let count = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("a source");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        // A file of tests alone has no such mark.
        let code = if code.contains("#[test]") { "" } else { code };
        let decodes = |line: &&str| {
            let line = line.trim_start();
            !line.starts_with("//") && SIGNS.iter().any(|sign| line.contains(sign))
        };
        let name = path.strip_prefix(&root).expect("below the root").display().to_string();
        (name, code.lines().filter(decodes).count())
    };
    let is_ours =
        |name: &str| !name.contains("/generated/") && !name.starts_with("crates/chain/src/anvil/");
    let counts = |(name, count): &(String, usize)| *count > 0 && is_ours(name);
    files.into_iter().map(count).filter(counts).collect()
}

#[test]
fn every_decoder_is_fed() {
    let listed: BTreeMap<_, _> =
        OF_FILES.iter().map(|(file, count, _)| ((*file).to_owned(), *count)).collect();
    assert_eq!(
        decoders(),
        listed,
        "a file decodes in more or fewer places than OF_FILES says: feed the new one, then list it"
    );
    for (_, _, target) in OF_FILES {
        let (file, name) = target.split_once("::").unwrap_or(("tests/tests/decoders.rs", target));
        let text = std::fs::read_to_string(root().join(file)).expect("the target's file");
        let (_, rest) = text.split_once(&format!("fn {name}()")).expect(target);
        let body = rest.split("\n}\n").next().unwrap_or_default();
        assert!(
            body.contains("feed!") || body.contains("bolero::check!"),
            "{target} feeds nothing"
        );
    }
}

#[test]
fn every_message_is_fed() {
    let mut defined = Vec::new();
    for (module, _) in MESSAGES {
        let path = root().join(format!("proto/proto/{module}.proto"));
        let text = std::fs::read_to_string(path).expect("a definition");
        let names = text.lines().filter_map(|line| line.strip_prefix("message "));
        defined.extend(names.map(|name| {
            let name = name.split([' ', '{']).next().unwrap_or_default();
            ((*module).to_owned(), name.to_owned())
        }));
    }
    let files = std::fs::read_dir(root().join("proto/proto")).expect("a folder").count();
    let mut modules: Vec<_> = MESSAGES.iter().map(|(module, _)| *module).collect();
    modules.dedup();
    assert_eq!(modules.len(), files, "a file of messages is not fed");
    for (module, name) in defined {
        assert!(MESSAGES.contains(&(&*module, &*name)), "{module}.{name} is not fed");
    }
}

#[test]
fn the_spoiler_leaves_some_seeds_whole_and_spoils_others() {
    let seeds = [b"genuine".to_vec()];
    assert_eq!(spoil(&seeds, &(0, Vec::new(), 1, Vec::new())), b"genuine");
    assert_eq!(spoil(&seeds, &(0, vec![(8, b'E')], 3, b"!".to_vec())), b"gEnuine!");
    assert_eq!(spoil(&seeds, &(1, Vec::new(), 1, b"noise".to_vec())), b"noise");
}

fn peer() -> Keypair {
    Keypair::ed25519_from_bytes([7; 32]).expect("a key")
}

fn some_terms() -> Terms {
    Terms {
        lease: LeaseId([1; 32]),
        payer: peer().public().to_peer_id(),
        payee: peer().public().to_peer_id(),
        price: Price { up: 0, down: 0 },
        window: 1 << 20,
        payment: None,
        starter_bytes: 5,
        idle_timeout_s: 60,
        expires_unix_s: 2_000_000_000,
        rate_max: 1_000_000,
    }
}

fn some_statement() -> Vec<u8> {
    pay::Statement {
        version: 1,
        lease: Bytes::from_static(&[1; 32]),
        up: 1_000,
        down: 2_000,
        session: 3,
        streams: vec![4, 8_000, 6, 9],
    }
    .encode_to_vec()
}

fn some_ticket() -> Ticket {
    let relay: SocketAddr = "192.0.2.1:4433".parse().expect("an address");
    Ticket {
        peer: peer().public().to_peer_id(),
        noise_key: [5; 32],
        relays: vec![RelayAddr::new(peer().public().to_peer_id(), relay)],
        invite: Invite([3; 24]),
        expires_unix_s: 100,
        services: vec![ServiceName::parse("web").expect("a name")],
    }
}

#[test]
fn messages() {
    let voucher = pay::Voucher {
        channel: Bytes::from_static(&[2; 32]),
        amount: Bytes::from_static(&[0; 16]),
        statement: some_statement().into(),
        signature: Bytes::from_static(&[9; 65]),
    };
    let datagram = pay::PayDatagram { kind: Some(pay::pay_datagram::Kind::Voucher(voucher)) };
    let control = control::Control {
        kind: Some(control::control::Kind::Rendezvous(control::Rendezvous {
            to: peer().public().to_peer_id().to_bytes().into(),
            ..control::Rendezvous::default()
        })),
    };
    let probe = rendezvous::Probe {
        kind: Some(rendezvous::probe::Kind::Ping(rendezvous::Ping { token: 7 })),
    };
    let seeds = vec![
        datagram.encode_to_vec(),
        control.encode_to_vec(),
        probe.encode_to_vec(),
        some_terms().encode().to_vec(),
        some_statement(),
    ];
    feed!(seeds, |bytes| {
        decode_as_each(bytes);
        if let Some(addr) = wire::decode_addr(bytes) {
            assert_eq!(wire::decode_addr(&wire::encode_addr(addr)), Some(addr));
        }
        if let Some(seen) = wire::decode_seen(bytes) {
            assert_eq!(wire::decode_seen(&wire::encode_addr(seen)), Some(seen));
        }
        let _ = wire::are_first_packets(&[Bytes::copy_from_slice(bytes)]);
        let _ = wire::display_text(&String::from_utf8_lossy(bytes));
    });
}

#[test]
fn frames() {
    let questions = [
        Observe { token: 7, from_other_port: true, to_port: Some(9) }.encode().to_vec(),
        Observed { token: 7, address: "[2001:db8::1]:4".parse().expect("an address") }
            .encode()
            .to_vec(),
    ];
    feed!(questions.to_vec(), |bytes| {
        if let Some(question) = Observe::decode(bytes) {
            assert_eq!(Observe::decode(&question.encode()), Some(question));
        }
        if let Some(observed) = Observed::decode(bytes) {
            assert_eq!(Observed::decode(&observed.encode()), Some(observed));
        }
        let _ = bytes.first().copied().map(FrameType::parse);
    });
}

/// What comes in at a relay's UDP sockets: nobody there is known, so nothing is forwarded.
#[test]
fn batches_of_strangers() {
    let begin = Instant::now();
    let forwarder = AssertUnwindSafe(Forwarder::new([1; 16], begin));
    let remote = "192.0.2.1:9".parse().expect("an address");
    let from = ReturnAddress { remote, local: None };
    let frames: Vec<Vec<u8>> =
        (0x80_u8..0x88).map(|kind| [vec![kind], vec![0; 18], vec![kind; 40]].concat()).collect();
    feed!(frames, |bytes| {
        let forwarder = &forwarder;
        let stride = usize::from(bytes.first().copied().unwrap_or_default());
        let mut sent = 0;
        forwarder.forward(begin, from, &mut bytes.to_vec(), stride, &mut |output| {
            // Only what is QUIC's goes on, to the relay's own endpoint.
            sent += usize::from(!matches!(output, sluice_relay_core::Output::Quic { .. }));
        });
        forwarder.forward_alternate(begin, from, bytes, stride, &mut |_| sent += 1);
        assert_eq!(sent, 0);
    });
}

#[test]
fn streams_of_packets() {
    feed!(vec![[&[0, 5][..], &[0xC0; 5], &[0, 3], &[0x80; 3]].concat()], |bytes| {
        let cut = usize::from(bytes.first().copied().unwrap_or_default()) % (bytes.len() + 1);
        let read = |parts: &[&[u8]]| {
            let (mut reader, mut got) = (PacketReader::default(), Vec::new());
            for part in parts {
                let mut part = part.to_vec();
                let taken = reader.take(&mut part, |run, stride| {
                    got.extend(run.chunks(stride).map(<[u8]>::to_vec));
                });
                if let Err(error) = taken {
                    return (got, Some(error));
                }
            }
            (got, None)
        };
        let (early, late) = bytes.split_at(cut);
        assert_eq!(read(&[bytes]).1, read(&[early, late]).1);
        if read(&[bytes]).1.is_none() {
            assert_eq!(read(&[bytes]).0, read(&[early, late]).0);
        }
    });
}

#[test]
fn ids_and_addresses() {
    let key = EthAddress([7; 20]).to_string().into_bytes();
    feed!(vec![vec![1; 32], vec![1; 20], vec![1; 16], vec![1; 65], key], |bytes| {
        let _ = EthAddress::parse("field", bytes);
        let _ = WalletSignature::parse(bytes);
        if let Ok(id) = ChannelId::parse(bytes) {
            assert_eq!(id.0, bytes);
        }
        if let Ok(id) = LeaseId::parse(bytes) {
            assert_eq!(id.0, bytes);
        }
        if let Ok(amount) = Amount::parse(bytes) {
            assert_eq!(Amount::parse(&amount.to_bytes()), Ok(amount));
        }
        let text = String::from_utf8_lossy(bytes);
        if let Ok(address) = text.parse::<EthAddress>() {
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        if let Ok(id) = text.parse::<ChannelId>() {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        if let Ok(name) = ServiceName::parse(&text) {
            assert_eq!(name.as_str(), text);
        }
    });
}

#[test]
fn signatures() {
    let body = b"what was signed";
    let genuine = sign(&peer(), Topic::Ticket, body);
    feed!(vec![genuine.clone()], |bytes| {
        let judged = verify(&peer().public().to_peer_id(), Topic::Ticket, body, bytes);
        assert_eq!(judged.is_ok(), bytes == &genuine[..]);
    });
}

#[test]
fn tickets() {
    let genuine = some_ticket().encode(&peer());
    let again = genuine.clone();
    feed!(vec![genuine.into_bytes()], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(ticket) = Ticket::decode(&text, 99) {
            assert_eq!((ticket, text.trim()), (some_ticket(), &*again));
        }
    });
}

#[test]
fn terms() {
    let seeds = vec![some_terms().encode().to_vec()];
    feed!(seeds, |bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        if let Ok(terms) = Terms::parse(&bytes) {
            assert_eq!(Terms::parse(&terms.encode()), Ok(terms));
        }
    });
}

#[test]
fn statements() {
    feed!(vec![some_statement()], |bytes| {
        if let Ok(mut statement) = Statement::parse(&Bytes::copy_from_slice(bytes)) {
            let again = statement.encode_fitting();
            assert_eq!(Statement::parse(&again), Ok(statement));
        }
    });
}

#[test]
fn pay_datagrams() {
    let now = Instant::now();
    let voucher = pay::Voucher { statement: some_statement().into(), ..pay::Voucher::default() };
    let claim = pay::Claim { lease: Bytes::from_static(&[1; 32]), ..pay::Claim::default() };
    let kinds = [
        pay::pay_datagram::Kind::Voucher(voucher),
        pay::pay_datagram::Kind::Claim(claim),
        pay::pay_datagram::Kind::Ack(pay::VoucherAck::default()),
    ];
    let seeds = kinds.map(|kind| pay::PayDatagram { kind: Some(kind) }.encode_to_vec());
    feed!(seeds.to_vec(), |bytes| {
        let bytes = Bytes::copy_from_slice(bytes);
        let mut payee = Payee::new(some_terms(), None, 3, None);
        payee.handle_datagram(&bytes, now);
        assert!(payee.newest().is_none(), "a voucher that nobody signed counts");
        let mut payer = Payer::new(some_terms(), None, 3, None);
        payer.handle_datagram(&bytes, now);
        assert_eq!(payer.amount(), Amount(0));
    });
}

#[test]
fn contract_answers() {
    let slot = [[0; 31].as_slice(), &[9], &[0; 31], &[1], &[0; 32], &[0; 31], &[5]].concat();
    let symbol = [&[0; 31][..], &[32], &[0; 31], &[3], b"ABC", &[0; 29]].concat();
    feed!(vec![slot, symbol, vec![0; 32]], |bytes| {
        let _ = answer::channel(bytes);
        let _ = answer::word(bytes);
        let _ = answer::amount(bytes);
        assert!(answer::symbol(bytes).is_none_or(|s| s.len() <= 16 && s.is_ascii()));
    });
}

#[test]
fn contract_events() {
    let signatures = [
        "Redeemed(bytes32,uint256,uint256)",
        "ToppedUp(bytes32,uint256)",
        "Refused(bytes32,uint8)",
        "CloseStarted(bytes32,uint256)",
        "Closed(bytes32,uint256,uint256)",
        "Opened(bytes32,address,address,(address,address,address,address,address,bytes32),uint256,uint256)",
    ];
    let seeds = signatures.map(|signature| {
        let topic = sluice_proto::eth::keccak256(signature.as_bytes());
        [&topic[..], &[1; 32], &[0; 31], &[9], &[0; 31], &[3], &[0; 256]].concat()
    });
    let decoded = |bytes: &[u8], topics: usize| {
        let (words, _) = bytes.as_chunks::<32>();
        let topics = words.get(..topics)?;
        ChannelEvent::decode(topics, &bytes[topics.len() * 32..])
    };
    assert!(decoded(&seeds[0][..128], 2).is_some(), "the seeds are not genuine");
    feed!(seeds.to_vec(), |bytes| {
        for topics in 0..5 {
            let _ = decoded(bytes, topics);
            let _ = decoded(bytes.get(..128).unwrap_or_default(), topics);
        }
    });
}

#[test]
fn contract_reverts() {
    let text = [&[0x08, 0xc3, 0x79, 0xa0][..], &[0; 31], &[32], &[0; 31], &[3], b"why", &[0; 29]];
    let no_tokens = sluice_proto::eth::keccak256(b"TooEarly(uint256)")[..4].to_vec();
    feed!(vec![text.concat(), [no_tokens, vec![0; 32]].concat()], |bytes| {
        let shown = RevertReason::decode(bytes).to_string();
        assert!(!shown.is_empty() && shown.len() < 2_000, "{shown}");
    });
}

#[test]
fn configurations() {
    let text = "version = 1\n\n[node]\ndirect = \"never\"\n\n[provide]\nexpose = [\"web=127.0.0.1:80\"]\n\
                price_down = \"3\"\n\n[chain]\nkind = \"rpc\"\nrpc = \"http://127.0.0.1:8545\"\n\
                period = \"72 h\"\nfinality = 3\n\n[wallet]\nredeem = \"1 %\"\n";
    feed!(vec![text.as_bytes().to_vec()], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Err(error) = Config::parse("sluice.toml", &text) {
            assert!(error.to_string().contains("sluice.toml"), "{error}");
        }
    });
}

#[test]
fn values_of_the_configuration() {
    let seeds = [
        "10 GB",
        "5 Mbit/s",
        "3 gwei",
        "1 %",
        "before_close",
        "72 h",
        "1 d 2 h",
        "auto",
        "finalized",
        "12",
        "web=127.0.0.1:80",
        "udp/dns=[::1]:53",
        "127.0.0.1:8080=web",
        "embedded",
        "price=3,latency=1",
        "80 ms",
        "/ip4/192.0.2.1/udp/4435/quic-v1",
        "postgres://u:s3cret@127.0.0.1:6543/fleet?sslmode=disable",
    ];
    let relay = format!("{}@192.0.2.1:4433+tcp:443", peer().public().to_peer_id());
    let seeds = seeds.iter().map(|text| (*text).to_owned()).chain([relay]);
    feed!(seeds.map(String::into_bytes).collect(), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _ = text.parse::<ByteSize>();
        let _ = text.parse::<BitRate>();
        let _ = text.parse::<GasPrice>();
        let _ = text.parse::<DirectPolicy>();
        let _ = text.parse::<Finality>();
        let _ = text.parse::<ChainKind>();
        let _ = text.parse::<Expose>();
        let _ = text.parse::<Map>();
        let _ = text.parse::<Server>();
        let _ = parse_rule(&text);
        let _ = parse_duration(&text);
        let _ = parse_bootstrap(&text);
        let _ = parse_peer(&text);
        let _ = parse_latency(&text);
        let _ = parse_lease_duration(&text);
        let _ = parse_volume(&text);
        let _ = parse_service(&text);
        let _ = text.parse::<Score>();
        if let Ok(relay) = parse_relay(&text) {
            assert_eq!(parse_relay(&relay.to_string()), Ok(relay));
        }
    });
}

#[test]
fn keystores() {
    let genuine = r#"{"version":3,"id":"00000000-0000-4000-8000-000000000000",
        "address":"0000000000000000000000000000000000000000","crypto":{"cipher":"aes-128-ctr",
        "cipherparams":{"iv":"00000000000000000000000000000000"},"ciphertext":"00",
        "kdf":"pbkdf2","kdfparams":{"dklen":32,"c":1,"prf":"hmac-sha256","salt":"00"},
        "mac":"0000000000000000000000000000000000000000000000000000000000000000"}}"#;
    Keystore::parse(genuine.as_bytes()).expect("the seed is genuine");
    feed!(vec![genuine.as_bytes().to_vec()], |bytes| {
        if let Ok(keystore) = Keystore::parse(bytes) {
            assert!(Keystore::parse(keystore.to_json().as_bytes()).is_ok());
        }
    });
}

#[test]
fn what_a_restored_node_remembers() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = State::recovery_in(dir.path());
    let found = Found { at_unix_s: 9, why: "copied".to_owned() };
    let recovery = Recovery::begin(&path, &found).expect("a disk");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(recovery.settle(LeaseId([7; 32]))).expect("a disk");
    drop(State::open(dir.path(), "relay").expect("a directory"));
    let files = [path, dir.path().join("instance"), dir.path().join("seal")];
    let genuine = files.clone().map(|file| std::fs::read(file).expect("a file"));
    assert_eq!(State::moved(dir.path()).expect("reads"), None, "the seeds are genuine");
    feed!(genuine.to_vec(), |bytes| {
        for (file, whole) in files.iter().zip(&genuine) {
            std::fs::write(file, bytes).expect("a disk");
            let in_place = State::moved(dir.path()).expect("reads").is_none();
            assert!(!in_place || file.ends_with("recovery"), "a file was replaced unseen");
            if let Ok(recovery) = Recovery::open(&files[0]) {
                let _ = recovery.doubts(LeaseId([7; 32]));
            }
            std::fs::write(file, whole).expect("a disk");
        }
    });
}

#[test]
fn what_a_fleet_remembers_of_its_server() {
    let genuine = "sluice server 1\nsystem 7\nhistory 3\ntables 5\nflushed 9\n";
    assert!(ServerMark::parse(genuine).is_some(), "the seed is genuine");
    feed!(vec![genuine.into()], |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        if let Some(mark) = ServerMark::parse(text) {
            assert_eq!(ServerMark::parse(&mark.to_string()), Some(mark));
        }
    });
}

#[test]
fn the_embedded_chains_file() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(sluice_chain::Chain::open_embedded(dir.path()).expect("a chain"));
    let files = std::fs::read_dir(dir.path()).expect("a folder").map(|e| e.expect("a file").path());
    let file = files.max_by_key(|p| p.metadata().map_or(0, |m| m.len())).expect("the state");
    let genuine = std::fs::read(&file).expect("the state");
    let again = genuine.clone();
    feed!(vec![genuine], |bytes| {
        std::fs::write(&file, bytes).expect("a disk");
        let opened = sluice_chain::Chain::open_embedded(dir.path()).is_ok();
        assert_eq!(opened, bytes == again, "opened a damaged file, or refused a whole one");
    });
}
