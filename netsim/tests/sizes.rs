//! Links that carry only smaller packets than Ethernet does, from the start or all at once.

use std::net::IpAddr;
use std::time::Duration;

use netsim::nat::{Allocator, Dependence, NatSpec};
use netsim::net::{LinkSpec, Queueing};
use netsim::scene::{HomeSpec, Scene, allow_direct};
use netsim::{time, workload};
use sluice_transport::{PathKind, Session};

const LINE: Duration = Duration::from_millis(5);

fn home(mtu: Option<usize>) -> HomeSpec {
    let usual =
        NatSpec::new(Dependence::Endpoint, Dependence::AddressAndPort, Allocator::Preserving);
    let line = LinkSpec {
        rate: Some(20_000_000),
        delay: LINE,
        queue: Queueing::Fifo(100_000),
        mtu,
        ..LinkSpec::default()
    };
    HomeSpec { nats: vec![usual], up: line, down: line, ipv6: false }
}

/// What came of a download of some seconds.
struct Download {
    /// The longest time without a byte.
    gap: Duration,
    /// How often the provider's QUIC found out by losses that its packets are too large.
    black_holes: u64,
    /// How large they were in the end.
    size: u16,
    kind: PathKind,
}

/// Downloads for `span`, from the session's first moment on.
async fn download(scene: &Scene, ours: &Session, theirs: &Session, span: Duration) -> Download {
    let clock = scene.net.clock().clone();
    let began = scene.net.elapsed();
    let (send, _) = theirs.connection().open_bi().await.expect("a stream");
    let writer = tokio::spawn({
        let (clock, until) = (clock.clone(), clock.now() + span);
        async move { workload::pour(&clock, send, 7, until).await }
    });
    let (_, stream) = ours.connection().accept_bi().await.expect("a stream");
    let net = scene.net.clone();
    let received = workload::read(|| net.elapsed(), stream, 7, 0, |_| {}).await.expect("all of it");
    let sent = writer.await.expect("no panic").expect("a session");
    assert_eq!(received.bytes, sent);
    let stats = theirs.connection().stats().path;
    Download {
        gap: received.gap(began, began + span),
        black_holes: stats.black_holes_detected,
        size: stats.current_mtu,
        kind: ours.path().borrow().expect("a path").kind,
    }
}

/// A session between homes of which the tenant's line carries `mtu`.
async fn meet(clock: sluice_transport::Clock, mtu: Option<usize>) -> (Scene, Session, Session) {
    let mut scene = Scene::new(clock, 1, &[LinkSpec::delay(LINE); 2]).await.expect("relays");
    let provider = scene.provider(&home(None), 2).await.expect("a provider");
    let tenant = scene.tenant(&home(mtu), 2).await.expect("a tenant");
    let (ours, theirs) = scene.session(&tenant, &provider).await.expect("a session");
    (scene, ours, theirs)
}

#[test]
fn packets_never_grow_beyond_a_line_that_was_narrow_from_the_start() {
    for (mtu, sizes) in [(1280, 1200..=1233), (1380, 1300..=1333), (1500, 1420..=1420)] {
        let outcome = time::run(async |clock| {
            let (scene, ours, theirs) = meet(clock, Some(mtu)).await;
            download(&scene, &ours, &theirs, Duration::from_secs(10)).await
        });
        assert!(sizes.contains(&outcome.size), "{} bytes on a line of {mtu}", outcome.size);
        assert_eq!(outcome.black_holes, 0, "on a line of {mtu}");
        let gap = outcome.gap.as_millis();
        assert!(gap < 300, "nothing came for {gap} ms on a line of {mtu}");
    }
}

#[test]
fn a_direct_path_narrower_than_the_relays_is_used_with_smaller_packets() {
    let outcome = time::run(async |clock| {
        let (scene, ours, theirs) = meet(clock, None).await;
        let public =
            |site: usize| -> IpAddr { scene.net.addresses(scene.sites[site].gateways[0])[0] };
        scene.net.narrow(public(0), public(1), 1280);
        allow_direct(&ours, &theirs).await.expect("a session");
        download(&scene, &ours, &theirs, Duration::from_secs(10)).await
    });
    assert_eq!(outcome.kind, PathKind::Direct);
    assert!((1200..=1252).contains(&outcome.size), "{} bytes", outcome.size);
    let gap = outcome.gap.as_millis();
    assert!(gap < 1500, "nothing came for {gap} ms");
}
