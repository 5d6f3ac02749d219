//! An idle direct path through NATs that forget, over hours of virtual time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netsim::nat::{Allocator, Dependence, NatSpec};
use netsim::net::{LinkSpec, Seen};
use netsim::scene::{HomeSpec, Party, Scene, allow_direct};
use netsim::{time, workload};
use sluice_path::KEEPALIVE_MAX;
use sluice_proto::frame;
use sluice_transport::{PathKind, Session};

/// A measurement takes so long at most.
const MEASURED_WITHIN: Duration = Duration::from_secs(1200);
const HOUR: Duration = Duration::from_secs(3600);
/// Between requests; longer than any keepalive.
const REQUEST_EVERY: Duration = Duration::from_secs(600);

/// A provider behind a NAT whose mapping for the tenant only the two of them keep open.
struct Idle {
    scene: Scene,
    tenant: Party,
    provider: Party,
    ours: Session,
    theirs: Session,
}

impl Idle {
    async fn begin(clock: sluice_transport::Clock, timeout: Duration) -> Result<Self> {
        let line = LinkSpec::default();
        let mut scene = Scene::new(clock, 1, &[line, line]).await?;
        let by_destination = Dependence::AddressAndPort;
        let nat = NatSpec {
            timeout,
            inbound_refreshes: false,
            ..NatSpec::new(by_destination, by_destination, Allocator::Preserving)
        };
        let home = HomeSpec { nats: vec![nat], ..HomeSpec::default() };
        let provider = scene.provider(&home, 2).await?;
        let tenant = scene.tenant(&HomeSpec::default(), 2).await?;
        let (ours, theirs) = scene.session(&tenant, &provider).await?;
        allow_direct(&ours, &theirs).await?;
        let direct = scene.until_path(&ours, PathKind::Direct, Duration::from_secs(10)).await;
        direct.context("no direct path")?;
        Ok(Self { scene, tenant, provider, ours, theirs })
    }

    /// Probes that the provider sends to the tenant from now on.
    fn count_probes(&self) -> Arc<AtomicUsize> {
        let target: IpAddr = self.scene.net.addresses(self.tenant.host)[0];
        let (from, count) = (self.provider.host, Arc::new(AtomicUsize::new(0)));
        let counted = count.clone();
        self.scene.net.watch(Box::new(move |_, host, seen, packet| {
            let to: SocketAddr = packet.dst;
            let is_probe = packet.bytes.first() == Some(&frame::PROBE);
            if (host, seen, to.ip()) == (from, Seen::Sent, target) && is_probe {
                counted.fetch_add(1, Relaxed);
            }
        }));
        count
    }

    async fn request(&self) -> Result<()> {
        let came = workload::echo(&self.scene, &self.ours, &self.theirs, 100).await?;
        ensure!(came, "other bytes came");
        Ok(())
    }
}

fn is_kept_open(timeout: Duration) -> Result<()> {
    time::run(async |clock| {
        let idle = Idle::begin(clock, timeout).await?;
        idle.scene.sleep(MEASURED_WITHIN).await;
        let timer = idle.provider.node.nat().borrow().timer;
        ensure!(timer.kept < timeout, "{timer:?}");
        ensure!(timer.lost.is_none_or(|lost| lost >= timeout), "{timer:?}");
        let probes = idle.count_probes();
        let mut path = idle.ours.path();
        path.mark_unchanged();
        for _ in 0..HOUR.as_secs() / REQUEST_EVERY.as_secs() {
            idle.scene.sleep(REQUEST_EVERY).await;
            idle.request().await?;
        }
        ensure!(!path.has_changed()?, "the path changed: {:?}", path.borrow());
        let kind = path.borrow().context("no path")?.kind;
        ensure!(kind == PathKind::Direct, "{kind}");
        // Its own, and the answers to the tenant's, whom no NAT forgets.
        let least = (timeout / 2).min(KEEPALIVE_MAX);
        let most = HOUR.as_secs() / least.as_secs() + HOUR.as_secs() / KEEPALIVE_MAX.as_secs() + 5;
        let sent = probes.load(Relaxed) as u64;
        ensure!(sent <= most, "{sent} probes in an hour, at most {most} are needed");
        ensure!(sent > 0, "the counter sees nothing");
        Ok(())
    })
}

#[test]
fn a_nat_that_forgets_after_20_seconds_is_kept_open() -> Result<()> {
    is_kept_open(Duration::from_secs(20))
}

#[test]
fn a_nat_that_forgets_after_30_seconds_is_kept_open() -> Result<()> {
    is_kept_open(Duration::from_secs(30))
}

#[test]
fn a_nat_that_forgets_after_2_minutes_is_kept_open() -> Result<()> {
    is_kept_open(Duration::from_secs(120))
}

#[test]
fn a_nat_that_forgets_after_5_minutes_is_kept_open() -> Result<()> {
    is_kept_open(Duration::from_secs(300))
}

/// Control, and the fallback: a mapping that is lost although it was kept open as was measured.
#[test]
fn a_nat_that_forgets_earlier_than_before_is_noticed_and_kept_open_again() -> Result<()> {
    time::run(async |clock| {
        let idle = Idle::begin(clock, Duration::from_secs(300)).await?;
        idle.scene.sleep(MEASURED_WITHIN).await;
        let nat = idle.provider.node.nat();
        let before = nat.borrow().timer.keepalive();
        ensure!(before == KEEPALIVE_MAX, "{before:?}");
        let forgets_after = Duration::from_secs(40);
        let gateway = idle.provider.gateways[0];
        idle.scene.net.with_nat(gateway, |nat| nat.set_timeout(forgets_after));
        let mut path = idle.ours.path();
        path.mark_unchanged();
        let mut requests = 0;
        while !path.has_changed()? {
            ensure!(requests < 20, "nothing was lost: the NAT forgets nothing");
            requests += 1;
            idle.scene.sleep(Duration::from_secs(97)).await;
            idle.request().await?;
        }
        let after = nat.borrow().timer.keepalive();
        ensure!(after < forgets_after, "still {after:?}");
        let direct =
            idle.scene.until_path(&idle.ours, PathKind::Direct, Duration::from_secs(60)).await;
        direct.context("no direct path again")?;
        idle.scene.sleep(MEASURED_WITHIN * 2).await;
        let timer = nat.borrow().timer;
        ensure!(timer.kept < forgets_after && timer.lost.is_some(), "{timer:?}");
        path.mark_unchanged();
        for _ in 0..10 {
            idle.scene.sleep(Duration::from_secs(97)).await;
            idle.request().await?;
        }
        ensure!(!path.has_changed()?, "the path changed: {:?}", path.borrow());
        Ok(())
    })
}
