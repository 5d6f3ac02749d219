//! Fixed inputs and the bytes they give: what another implementation must agree with.
//!
//! The vectors were computed by a second implementation in another language: its own Keccak-256,
//! secp256k1 with RFC 6979, SipHash-2-4, base 58 and protobuf encoding, and the Ed25519 of a
//! library that nothing here uses. A change that needs a vector changed breaks every peer.

use std::num::NonZeroU16;

use bytes::Bytes;
use prost::Message;
use sluice_proto::eth::keccak256;
use sluice_proto::frame::{self, FrameKey, FrameType, HEADER_LEN, Header, Observe, Observed};
use sluice_proto::record::{ProviderEntry, RelayEntry, ServiceKind};
use sluice_proto::wire::control::{self, Control, control::Kind};
use sluice_proto::wire::pay;
use sluice_proto::{
    Amount, ChannelId, ChannelKey, Domain, EthAddress, FlowId, Invite, Keypair, Price, Record,
    RelayAddr, ServiceName, SignedRecord, Ticket, Topic, Voucher, WalletKey, WalletSignature, sign,
    verify,
};

/// Address of the wallet key.
const SIGNER: &str = "4a62316623ad457f02cdc5d997ded67a383ec569";

/// The channel's id.
const CHANNEL: &str = "a6bc33bb6a8f7c7c84b8700a11f20d77761d49437a1f9d463b36b00f6089e0fe";

/// The EIP-712 domain separator.
const SEPARATOR: &str = "6140b82335f436c961c0afd79ca63c3c3e1106fd26a8d266feac2e05de002f45";

/// An encoded statement.
const STATEMENT: &str = "\
    08011220313131313131313131313131313131313131313131313131313131313131313118e8072080808080\
    80202803320f0480801008b502ac02828080808001";

/// What is signed for a voucher.
const VOUCHER_DIGEST: &str = "bacf43f75743ebf63c9aebfda8efe7d7dabd5450cb48d256dbe448b2995f4494";

/// The signature, RFC 6979.
const VOUCHER_SIGNATURE: &str = "\
    109aa0de8d01783da0f5534dc2b0b50b764bb1ce8e77677c614f0e857d7969ad49bdf2098c1bdd2565631fbd\
    cbdbffafd7df0786e7a8600665c5dd1efdf54baf1b";

/// The encoded voucher.
const VOUCHER: &str = "\
    0a4108011220313131313131313131313131313131313131313131313131313131313131313118e807208080\
    808080202803320f0480801008b502ac028280808080011220a6bc33bb6a8f7c7c84b8700a11f20d77761d49\
    437a1f9d463b36b00f6089e0fe1a10000000018ee90ff6c373e0ee4e3f0ad22241109aa0de8d01783da0f553\
    4dc2b0b50b764bb1ce8e77677c614f0e857d7969ad49bdf2098c1bdd2565631fbdcbdbffafd7df0786e7a860\
    0665c5dd1efdf54baf1b";

/// What a payee signs to let anyone close.
const CLOSE_DIGEST: &str = "ba28511a3c78fc2c09f02f285d0620b20e0bab3cc51ba7c6a4c3e9a19c20adaf";

/// The signature.
const CLOSE_SIGNATURE: &str = "\
    f8e5e05c806884f5544061cb9ac3f6548af1ae92f1ac0f3e1b136d3246bda3a951412f683c63c0bc832e0c84\
    1ecb52ed026d0abbcc1c9cac22b17484d9d0072f1b";

/// What binds a channel to a connection.
const BIND_DIGEST: &str = "9855c5807d9321415fb0e14df32c6f35be0e79949563832598aa2e7d82db63ae";

/// The signature.
const BIND_SIGNATURE: &str = "\
    a7eb576848e30e39d2bd0bb2fb1d22f70b1b547c98340781a140f915a291c52e210ee3c943edce103f409979\
    b8ecb1c269590efca35bb6b1adc31e1d71e5544c1b";

/// Encoded terms.
const TERMS: &str = "\
    0801122031313131313131313131313131313131313131313131313131313131313131311a26002408011220\
    ca93ac1705187071d67b83c7ff0efe8108e8ec4530575d7726879333dbdabe7c2226002408011220ed4928c6\
    28d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d12a100000000000000000000000000000\
    0007321000000000000000000de0b6b3a76400003880897a426008e9f4011214111111111111111111111111\
    11111111111111111a1424242424242424242424242424242424242424242214222222222222222222222222\
    22222222222222222a1423232323232323232323232323232323232323233080c60a48808080800150d80458\
    80a4a7da06608094ebdc03";

/// The payee's signature.
const TERMS_SIGNATURE: &str = "\
    95ab6e73842bc2bc11071bc843db583388e0b54f2813180507a34f58dc7c4aff8dee6d3a1e4f7b86ec49cc40\
    8489c6edb70f451016143b9215bb2356a0501d09";

/// Keccak-256 of the terms.
const TERMS_HASH: &str = "d4ce0f5654df9034be52c1534deffcd6d38f2e9927c2c97dd787e48ea6ab1499";

/// The payer's signature over the hash.
const ACCEPT_SIGNATURE: &str = "\
    d7d95c2ae41fa2f1ee3836913cb38c732f5598c0ade35a98b53e011a3b0a09206932032b33d8ff4350967fd4\
    80a3c0ecce649ec01aea6d0ff1e2fa7fb9d3940c";

/// The right to connect.
const INVITE: &str = "000000006b49d2002cbe2423e242cfb94eee18c7efe00052";

/// A ticket, as a person copies it.
const TICKET: &str = "\
    sluice125ACSerrWntQGNFY6NiiSbWiezx9eCmAMHAkChHAbpB2XxebtA3b4tL3PyLaUFDWBxMivaJhTh1T4Dqbo\
    CoaefBJnZPb9t2cCyLhN9Ft8QcJs7M65vtMzEgrThYnrv9Fhm4d986fkkEv5LZV8BgWhtzUzTKHQz7y2YeAp7N92\
    VmoBN34sqPocaFmuWWB8t1TfXCnohEpKzeMBQAN3RNwvxV4pNfLaWwWe4GagSsSv7uSsPduvau7GRRSuXVxafbXu\
    CUZAfATomBdarYzKLFUvGTwV1hLgLzkF4wGNianjN7obzM6kY3rpRKGzLRA4DMp3M4ju7uREPo3LLdLo4BFt7pFw\
    SG4yi8TPgK5xXWSnf5FYAkRDUqPMcwQWYPeFV2Pvco6PpXU7wxdvLmw3Lqpfvmyt4wFV7";

/// A signed record of a provider that is a relay too.
const RECORD: &str = "\
    0abb0208011226002408011220ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737\
    d118fbf38ebeb1342080a4a7da062a2052525252525252525252525252525252525252525252525252525252\
    52525252320804c00002010611d63a720a070a0377656210010a070a03646e73100212330a26002408011220\
    ca93ac1705187071d67b83c7ff0efe8108e8ec4530575d7726879333dbdabe7c1206c0000201115118bb031a\
    1000000000000000000000000000000007221000000000000000000de0b6b3a76400002a0561616161614262\
    0a3c0a26002408011220ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d11212\
    20010db800000000000000000000000101bb1210000000000000000000000000000000001a10000000000000\
    000000000000000000031240af53027077d61100f051883e4b28114b71fbb0752f0d00677449f8d684d4951e\
    815ca8279fa36187ef00f1d297d7cafd9edb7b24ec9775ae0dcac96966ca4807";

/// A data frame.
const FRAME_DATA: &str = "\
    80010203040a0b0c0d0e0fb04ac3121c8f6b9d000102030405060708090a0b0c0d0e0f101112131415161718\
    191a1b1c1d1e1f2021222324252627";

/// A keepalive.
const FRAME_KEEPALIVE: &str = "\
    81ffffffff0000000000002af957dfe82b7a81000000000000000000000000000000000000";

/// A challenge with the largest counter.
const FRAME_CHALLENGE: &str = "8300000007ffffffffffff6cb230814d4119249999999999999999";

/// A question how the relay sees the sender, to be answered from its other port to port 40,000.
const FRAME_OBSERVE: &str =
    "8501020304000000000009bd6ca7f025c0dfa60123456789abcdef019c40000000000000000000000000000000";

/// The answer.
const FRAME_OBSERVED: &str =
    "860102030400000000000333b745798aa51f2e0123456789abcdef00000000000000000000ffffcb007107ee49";

/// A knock with a session's first packets, as it goes to the relay.
const KNOCK: &str = "3a1f08ac0212063131313131311a067365616c65642205c3c3c3c3c32203434343";

/// The same, as the relay hands it to the holder.
const KNOCK_IN: &str = "4a210d0403020112063131313131311a067365616c65642205c3c3c3c3c32203434343";

/// What the relay tells the tenant.
const FLOW_OPENED: &str = "420a08ac0215040302011801";

const AMOUNT: Amount = Amount(123_456_789_012_345_678_901_234_567_890);
const EXPIRES: u64 = 1_800_000_000;

fn provider() -> Keypair {
    Keypair::ed25519_from_bytes([3; 32]).expect("a key")
}

fn tenant() -> Keypair {
    Keypair::ed25519_from_bytes([4; 32]).expect("a key")
}

fn wallet() -> WalletKey {
    WalletKey::from_bytes([7; 32]).expect("a key")
}

fn domain() -> Domain {
    Domain { chain_id: 31_337, contract: EthAddress([0x11; 20]) }
}

fn channel() -> ChannelId {
    let key = ChannelKey {
        payer: EthAddress([0x21; 20]),
        signer: wallet().address(),
        payee: EthAddress([0x22; 20]),
        payout: EthAddress([0x23; 20]),
        token: EthAddress([0x24; 20]),
        salt: [0x25; 32],
    };
    key.id(&domain())
}

fn peer_id(key: &Keypair) -> Bytes {
    key.public().to_peer_id().to_bytes().into()
}

fn statement() -> Vec<u8> {
    let statement = pay::Statement {
        version: 1,
        lease: vec![0x31; 32].into(),
        up: 1000,
        down: 1 << 40,
        session: 3,
        streams: vec![4, 65_536 << 2, 8, (77 << 2) | 1, 300, ((1 << 33) << 2) | 2],
    };
    statement.encode_to_vec()
}

/// A signature is the one expected, and recovers to its signer.
fn check_signature(digest: [u8; 32], expected: &str) {
    let signature = wallet().sign(digest);
    assert_eq!(hex::encode(signature.0), expected);
    let parsed = WalletSignature::parse(&hex::decode(expected).expect("hex")).expect("65 bytes");
    assert_eq!(parsed.recover(digest), Some(wallet().address()));
}

#[test]
fn a_channel_is_named_by_all_that_it_binds() {
    assert_eq!(hex::encode(wallet().address().0), SIGNER);
    assert_eq!(hex::encode(domain().separator()), SEPARATOR);
    assert_eq!(hex::encode(channel().0), CHANNEL);
}

#[test]
fn a_voucher_is_signed_over_channel_amount_and_statement() {
    let statement = statement();
    assert_eq!(hex::encode(&statement), STATEMENT);
    let voucher = Voucher { channel: channel(), amount: AMOUNT, statement: keccak256(&statement) };
    let digest = voucher.digest(&domain());
    assert_eq!(hex::encode(digest), VOUCHER_DIGEST);
    check_signature(digest, VOUCHER_SIGNATURE);
    let wire = pay::Voucher {
        statement: statement.into(),
        channel: Bytes::copy_from_slice(&channel().0),
        amount: Bytes::copy_from_slice(&AMOUNT.to_bytes()),
        signature: Bytes::copy_from_slice(&wallet().sign(digest).0),
    };
    assert_eq!(hex::encode(wire.encode_to_vec()), VOUCHER);
}

#[test]
fn a_close_is_signed_over_channel_and_amount() {
    let digest = domain().close_digest(channel(), AMOUNT);
    assert_eq!(hex::encode(digest), CLOSE_DIGEST);
    check_signature(digest, CLOSE_SIGNATURE);
}

#[test]
fn a_channel_is_bound_to_a_peer_and_one_connection() {
    let digest = domain().bind_digest(channel(), &peer_id(&tenant()), &[0x41; 32]);
    assert_eq!(hex::encode(digest), BIND_DIGEST);
    check_signature(digest, BIND_SIGNATURE);
}

#[test]
fn terms_are_signed_by_their_payee_and_accepted_by_their_payer() {
    let terms = pay::Terms {
        version: 1,
        lease: vec![0x31; 32].into(),
        payer_peer: peer_id(&tenant()),
        payee_peer: peer_id(&provider()),
        price_up: Bytes::copy_from_slice(&Amount(7).to_bytes()),
        price_down: Bytes::copy_from_slice(&Amount(10_u128.pow(18)).to_bytes()),
        window: 2_000_000,
        payment: Some(pay::Payment {
            chain_id: 31_337,
            contract: vec![0x11; 20].into(),
            token: vec![0x24; 20].into(),
            payee: vec![0x22; 20].into(),
            payout: vec![0x23; 20].into(),
            period_s: 172_800,
        }),
        starter_bytes: 256 << 20,
        idle_timeout_s: 600,
        expires_unix_s: EXPIRES,
        rate_max: 1_000_000_000,
    };
    let encoded = terms.encode_to_vec();
    assert_eq!(hex::encode(&encoded), TERMS);
    assert_eq!(hex::encode(sign(&provider(), Topic::Terms, &encoded)), TERMS_SIGNATURE);
    let hash = keccak256(&encoded);
    assert_eq!(hex::encode(hash), TERMS_HASH);
    assert_eq!(hex::encode(sign(&tenant(), Topic::Accept, &hash)), ACCEPT_SIGNATURE);
    // The control: neither signature serves as the other, or as another node's.
    let signature = hex::decode(ACCEPT_SIGNATURE).expect("hex");
    let (ours, theirs) = (tenant().public().to_peer_id(), provider().public().to_peer_id());
    assert_eq!(verify(&ours, Topic::Accept, &hash, &signature), Ok(()));
    assert!(verify(&ours, Topic::Terms, &hash, &signature).is_err());
    assert!(verify(&theirs, Topic::Accept, &hash, &signature).is_err());
}

#[test]
fn a_ticket_reads_as_it_was_written_elsewhere() {
    let relay = |key: &Keypair, addr: &str| {
        RelayAddr::new(key.public().to_peer_id(), addr.parse().expect("an address"))
    };
    let name = |name| ServiceName::parse(name).expect("a name");
    let invite = Invite::issue(&[0x51; 16], EXPIRES);
    assert_eq!(hex::encode(invite.0), INVITE);
    let ticket = Ticket {
        peer: provider().public().to_peer_id(),
        noise_key: [0x52; 32],
        relays: vec![relay(&tenant(), "192.0.2.1:4433"), relay(&provider(), "[2001:db8::1]:443")],
        invite,
        expires_unix_s: EXPIRES,
        services: vec![name("web"), name("ssh")],
    };
    assert_eq!(ticket.encode(&provider()), TICKET);
    assert_eq!(Ticket::decode(TICKET, EXPIRES), Ok(ticket));
}

#[test]
fn a_record_reads_as_it_was_written_elsewhere() {
    let address = |key: &Keypair, addr: &str| {
        RelayAddr::new(key.public().to_peer_id(), addr.parse().expect("an address"))
    };
    let name = |name| ServiceName::parse(name).expect("a name");
    let record = Record {
        peer: provider().public().to_peer_id(),
        sequence: 1_799_990_000_123,
        expires_unix_s: EXPIRES,
        noise_key: [0x52; 32],
        mesh: vec![Bytes::from_static(&[4, 192, 0, 2, 1, 6, 0x11, 0xD6])],
        provider: Some(ProviderEntry {
            services: vec![(name("web"), ServiceKind::Tcp), (name("dns"), ServiceKind::Udp)],
            relays: vec![address(&tenant(), "192.0.2.1:4433").with_tcp(NonZeroU16::new(443))],
            price: Price { up: 7, down: 10_u128.pow(18) },
            certificate: Bytes::from_static(&[0x61; 5]),
        }),
        relay: Some(RelayEntry {
            addresses: vec![address(&provider(), "[2001:db8::1]:443")],
            price: Price { up: 0, down: 3 },
        }),
    };
    let signed = SignedRecord::sign(&record, &provider()).expect("it is within the bounds");
    assert_eq!(hex::encode(signed.encode()), RECORD);
    let bytes = Bytes::from(hex::decode(RECORD).expect("hex"));
    assert_eq!(SignedRecord::decode(bytes), Ok(signed));
}

#[test]
fn a_knock_carries_a_sessions_first_packets_through_the_relay() {
    let (to, sealed) = (Bytes::from_static(b"111111"), Bytes::from_static(b"sealed"));
    let first = vec![Bytes::from_static(&[0xC3; 5]), Bytes::from_static(&[0x43; 3])];
    let (request, flow) = (300, 0x0102_0304);
    let encode = |kind| hex::encode(Control { kind: Some(kind) }.encode_to_vec());
    let inbound = control::RendezvousIn {
        flow,
        from: to.clone(),
        sealed: sealed.clone(),
        first: first.clone(),
    };
    let knock = control::Rendezvous { request, to, sealed, first };
    assert_eq!(encode(Kind::Rendezvous(knock)), KNOCK);
    assert_eq!(encode(Kind::RendezvousIn(inbound)), KNOCK_IN);
    let opened = control::FlowOpened { request, flow, passed_on: true };
    assert_eq!(encode(Kind::FlowOpened(opened)), FLOW_OPENED);
    // Without them nothing is written that older nodes would not know.
    let (to, sealed) = (Bytes::from_static(b"111111"), Bytes::from_static(b"sealed"));
    let knock = control::Rendezvous { request, to, sealed, first: Vec::new() };
    assert_eq!(encode(Kind::Rendezvous(knock)), "3a1308ac0212063131313131311a067365616c6564");
}

#[test]
fn frames_have_their_header_counter_and_tag_where_others_look_for_them() {
    let exported: [u8; 32] = std::array::from_fn(|i| i as u8);
    let (to_relay, to_client) = FrameKey::pair(&exported);
    let frame = |kind, flow, counter, payload: &[u8], key: &FrameKey| {
        let mut out = vec![0; HEADER_LEN];
        out.extend_from_slice(payload);
        frame::seal(&mut out, Header { kind, flow: FlowId(flow), counter }, key);
        assert_eq!(frame::check(&out, key), Ok(()));
        hex::encode(out)
    };
    let payload: Vec<u8> = (0..40).collect();
    let data = frame(FrameType::Data, 0x0102_0304, 0x0A0B_0C0D_0E0F, &payload, &to_relay);
    assert_eq!(data, FRAME_DATA);
    let keepalive = frame(FrameType::Keepalive, u32::MAX, 0, &[0; 18], &to_relay);
    assert_eq!(keepalive, FRAME_KEEPALIVE);
    let challenge = frame(FrameType::Challenge, 7, frame::COUNTER_MAX, &[0x99; 8], &to_client);
    assert_eq!(challenge, FRAME_CHALLENGE);
    let observe =
        Observe { token: 0x0123_4567_89AB_CDEF, from_other_port: true, to_port: Some(40_000) };
    let asked = frame(FrameType::Observe, 0x0102_0304, 9, &observe.encode(), &to_relay);
    assert_eq!(asked, FRAME_OBSERVE);
    assert_eq!(Observe::decode(&observe.encode()), Some(observe));
    let address = "203.0.113.7:61001".parse().expect("an address");
    let observed = Observed { token: observe.token, address };
    let answered = frame(FrameType::Observed, 0x0102_0304, 3, &observed.encode(), &to_client);
    assert_eq!(answered, FRAME_OBSERVED);
    assert_eq!(Observed::decode(&observed.encode()), Some(observed));
}
