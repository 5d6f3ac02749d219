//! Bounds on TCP connections, and the addresses made up for them.

#![allow(clippy::disallowed_methods, reason = "any instant to begin with")]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sluice_relay_core::{Limits, ReturnAddress, StreamId, StreamRefused, Streams};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn streams(now: Instant) -> Streams {
    let limits = Limits {
        streams_max: 20,
        streams_per_prefix_max: 10,
        streams_per_prefix_per_s: 1,
        ..Limits::default()
    };
    Streams::new(&limits, now)
}

#[test]
fn a_streams_address_names_it_and_no_real_address_does() {
    let now = Instant::now();
    let mut streams = streams(now);
    let remote: SocketAddr = "192.0.2.1:50000".parse().expect("an address");
    let [a, b] = [(); 2].map(|()| streams.open(remote.ip(), now).expect("room"));
    assert_ne!(a, b);
    for id in [a, b] {
        assert_eq!(StreamId::of(id.addr().ip()), Some(id));
        let at = id.return_address(remote);
        assert_eq!((at.stream(), at.remote), (Some(id), remote));
    }
    for real in ["192.0.2.1", "::1", "::", "2001:db8::1", "::ffff:1.2.3.4", "fd53:6c75::1"] {
        assert_eq!(StreamId::of(ip(real)), None, "{real}");
        assert_eq!(ReturnAddress { remote, local: Some(ip(real)) }.stream(), None);
    }
    assert_eq!(ReturnAddress { remote, local: None }.stream(), None);
}

#[test]
fn streams_are_bounded_in_all_and_for_each_prefix_and_closing_gives_room() {
    let mut now = Instant::now();
    let mut streams = streams(now);
    let mut open = |streams: &mut Streams, from: &str| {
        now += Duration::from_secs(1);
        streams.open(ip(from), now)
    };
    let first = open(&mut streams, "2001:db8:1::1").expect("room");
    for i in 1..10 {
        open(&mut streams, &format!("2001:db8:1:{i}::1")).expect("room");
    }
    assert_eq!(open(&mut streams, "2001:db8:1:ffff::1"), Err(StreamRefused::Prefix));
    for i in 0..10 {
        open(&mut streams, &format!("192.0.2.{i}")).expect("room");
    }
    assert_eq!(open(&mut streams, "198.51.100.1"), Err(StreamRefused::Full));
    streams.close(first);
    streams.close(first);
    assert_eq!(streams.len(), 19);
    assert_eq!(open(&mut streams, "192.0.2.200"), Err(StreamRefused::Prefix));
    assert!(open(&mut streams, "2001:db8:1::2").is_ok());
}

#[test]
fn streams_that_come_too_fast_are_refused_for_a_while() {
    let now = Instant::now();
    let mut streams = streams(now);
    for _ in 0..8 {
        let id = streams.open(ip("192.0.2.1"), now).expect("within the burst");
        streams.close(id);
    }
    assert_eq!(streams.open(ip("192.0.2.77"), now), Err(StreamRefused::Pace));
    assert!(streams.open(ip("203.0.113.1"), now).is_ok(), "another prefix is not held back");
    assert!(streams.open(ip("192.0.2.1"), now + Duration::from_secs(2)).is_ok());
}
