//! Whatever a stranger, or a peer that holds the keys, puts into a knock or a probe.

use super::*;

fn keys(secret: u8) -> NoiseKeys {
    NoiseKeys::from_secret([secret; 32]).expect("a key")
}

fn peer(secret: u8) -> PeerId {
    let key = sluice_proto::Keypair::ed25519_from_bytes([secret; 32]).expect("a key");
    key.public().to_peer_id()
}

/// Both ends of a handshake whose messages carry these bytes.
fn handshake(body: &[u8]) -> (snow::HandshakeState, snow::HandshakeState, Vec<u8>) {
    let (ours, theirs) = (keys(1), keys(2));
    let prologue = prologue(&peer(2));
    let mut tenant = build(&ours, &prologue, Some(&theirs.public)).expect("a handshake");
    let provider = builder(&theirs, &prologue).expect("a handshake");
    let mut sealed = vec![0; SEALED_MAX];
    let len = tenant.write_message(body, &mut sealed).expect("it fits");
    sealed.truncate(len);
    (tenant, provider, sealed)
}

/// A probe's seal at each end.
fn seals() -> (ProbeSeal, ProbeSeal) {
    let (mut tenant, mut provider, sealed) = handshake(b"");
    let mut buffer = vec![0; SEALED_MAX];
    provider.read_message(&sealed, &mut buffer).expect("genuine");
    let len = provider.write_message(b"", &mut buffer).expect("it fits");
    let answer = buffer[..len].to_vec();
    tenant.read_message(&answer, &mut buffer).expect("genuine");
    let seal = |state: snow::HandshakeState| {
        ProbeSeal::new(7, state.into_stateless_transport_mode().expect("finished"))
    };
    (seal(tenant), seal(provider))
}

#[test]
fn knocks_and_probes() {
    let seconds = std::env::var("SLUICE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let target = bolero::check!();
    let target = match seconds.map(Duration::from_secs) {
        Some(time) => target.with_test_time(time).with_iterations(usize::MAX),
        None => target.with_iterations(300),
    };
    target.with_type::<(Vec<u8>, u16, u8)>().for_each(|(body, place, byte)| {
        // What is inside is a liar's, what is outside is genuine.
        let (tenant, _, mut sealed) = handshake(body);
        if let Ok(opened) = Door::open(&keys(2), &peer(2), &peer(1), &sealed) {
            assert_eq!(opened.knock.peer, peer(1).to_bytes());
        }
        assert!(Knocking(tenant).finish(7, body).is_err(), "an answer that nobody sealed");
        // What is outside is spoilt.
        let at = usize::from(*place) % sealed.len();
        sealed[at] ^= byte | 1;
        assert!(Door::open(&keys(2), &peer(2), &peer(1), &sealed).is_err());
        let _ = decode_candidates(&[Bytes::copy_from_slice(body), Bytes::from(sealed)]);

        let (ours, theirs) = seals();
        let probe = ours.seal(Probe::Ping { token: 7 }).expect("it fits");
        assert_eq!(theirs.open(&probe), Some(Probe::Ping { token: 7 }));
        assert_eq!(theirs.open(&probe), None, "it was replayed");
        let size = PROBE_LEN as u16 / 2 + place % 1400;
        let measure = Probe::Measure { token: 7, size, packets: *place };
        let mut padded = ours.seal(measure).expect("it fits");
        assert_eq!(padded.len(), PROBE_LEN.max(size.into()));
        assert_eq!(theirs.open(&padded), Some(measure));
        padded = ours.seal(Probe::Measured { token: 7, size }).expect("it fits");
        padded.push(0);
        assert_eq!(theirs.open(&padded), None, "it is longer than it says");
        if usize::from(size) > PROBE_LEN {
            padded = ours.seal(measure).expect("it fits");
            padded.truncate(padded.len() - 1);
            assert_eq!(theirs.open(&padded), None, "its padding was cut");
        }
        let mut spoilt = ours.seal(Probe::Pong { token: 8 }).expect("it fits");
        let at = PROBE_HEADER + usize::from(*place) % (spoilt.len() - PROBE_HEADER);
        spoilt[at] ^= byte | 1;
        assert_eq!(theirs.open(&spoilt), None);
        assert_eq!(theirs.open(body), None);

        let mut liar = vec![0; PROBE_LEN];
        liar[9..17].copy_from_slice(&9_u64.to_be_bytes());
        let mut inside = [0; PROBE_BODY];
        let len = body.len().min(PROBE_BODY);
        inside[..len].copy_from_slice(&body[..len]);
        ours.state.write_message(9, &inside, &mut liar[PROBE_HEADER..]).expect("it fits");
        let _ = theirs.open(&liar);
    });
}
