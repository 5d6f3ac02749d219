//! Two relays, real sockets, and one of the relays gone: the session goes on.

#[path = "support/lab.rs"]
mod lab;

use std::time::Duration;

use lab::{
    Fast, Party, Toward, Wire, noise, relay_addr, session_by, soon, start_relay, until, warm, works,
};
use sluice_proto::RelayAddr;
use sluice_proto::frame::FrameType;
use sluice_relay::Relay;
use sluice_transport::{Clock, PathInfo, PathReason, Session};

/// First byte of a data frame.
const DATA: u8 = FrameType::Data as u8;

/// Two relays, each behind a wire towards the provider and one towards the tenant.
struct Pair {
    relays: [Option<Relay>; 2],
    to_provider: [Wire; 2],
    to_tenant: [Wire; 2],
    provider: Party,
    tenant: Party,
}

impl Pair {
    async fn start(clock: Clock) -> Self {
        let relays = [start_relay().await, start_relay().await];
        let [a, b] = relays.each_ref().map(relay_addr);
        let to_provider = [Wire::to(a).await, Wire::to(b).await];
        let to_tenant = [Wire::to(a).await, Wire::to(b).await];
        let provider = Party::provider_by(to_provider[0].addr, clock.clone()).await;
        // Its links live as long as the node's owner keeps them.
        std::mem::forget(provider.reserve_at(to_provider[1].addr).await);
        let tenant = Party::tenant_by(to_tenant[0].addr, clock).await;
        Self { relays: relays.map(Some), to_provider, to_tenant, provider, tenant }
    }

    fn at_tenant(&self) -> Vec<RelayAddr> {
        self.to_tenant.iter().map(|wire| wire.addr).collect()
    }

    /// A session with both relays warm.
    async fn session(&self) -> (Session, Session) {
        let (ours, theirs) = session_by(&self.tenant, &self.provider, self.at_tenant()).await;
        warm(&ours, &theirs, 2).await;
        (ours, theirs)
    }

    /// Kills the relay whose wire this address is.
    fn kill(&mut self, wire: RelayAddr) {
        let at = self.at_tenant().iter().position(|addr| addr.is_same(&wire)).expect("a wire");
        self.relays[at] = None;
    }
}

fn in_use(session: &Session) -> RelayAddr {
    let path = session.path().borrow().expect("a path");
    path.relay.expect("a relay carries it")
}

/// Waits until a session has left this relay.
async fn leaves(session: &Session, lost: &RelayAddr) {
    let mut path = session.path();
    let elsewhere = path.wait_for(|p| p.is_some_and(|p| p.relay.is_some_and(|r| !r.is_same(lost))));
    soon("another relay", elsewhere).await.expect("a path");
}

/// Carries `bytes` and calls `cut` once a third of them has arrived.
async fn carry_and(from: &Session, to: &Session, bytes: &[u8], cut: impl FnOnce()) -> Vec<u8> {
    let send = async {
        let mut stream = from.connection().open_bi().await.expect("a stream").0;
        stream.write_all(bytes).await.expect("written");
        stream.finish().expect("finished");
    };
    let receive = async {
        let mut stream = to.connection().accept_bi().await.expect("a stream").1;
        let (mut out, mut cut) = (Vec::new(), Some(cut));
        while let Some(chunk) = stream.read_chunk(64 << 10, true).await.expect("read") {
            out.extend_from_slice(&chunk.bytes);
            to.set_delivered(out.len() as u64);
            if out.len() > bytes.len() / 3
                && let Some(cut) = cut.take()
            {
                cut();
            }
        }
        out
    };
    soon("the bytes", async { tokio::join!(send, receive).1 }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_is_killed_in_mid_transfer_costs_no_byte_and_no_connection() {
    for down in [true, false] {
        let mut pair = Pair::start(Clock::default()).await;
        let (ours, theirs) = pair.session().await;
        let lost = in_use(&ours);
        let bytes = noise(20_000_000, 7);
        let (from, to) = if down { (&theirs, &ours) } else { (&ours, &theirs) };
        let got = carry_and(from, to, &bytes, || pair.kill(lost)).await;
        assert!(got == bytes, "down: {down}");
        leaves(&ours, &lost).await;
        works(&ours, &theirs).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_drops_silently_is_left_by_both_ends_whichever_way_it_drops() {
    // What is dropped at the tenant's wire: towards the relay, towards the node.
    for dropped in [[true, true], [true, false], [false, true]] {
        let pair = Pair::start(Clock::default()).await;
        let (ours, theirs) = pair.session().await;
        until("both use one", || in_use(&ours).peer == in_use(&theirs).peer).await;
        let lost = in_use(&ours);
        let mut path = theirs.path();
        let left = tokio::spawn(async move {
            let other = |p: &Option<PathInfo>| {
                p.is_some_and(|p| p.relay.is_some_and(|relay| relay.peer != lost.peer))
            };
            path.wait_for(other).await.expect("a path").expect("it is another")
        });
        let wire = pair.to_tenant.iter().find(|w| w.addr.is_same(&lost)).expect("a wire");
        let bytes = noise(5_000_000, 8);
        // Its control connection lives: only frames are dropped.
        let cut = || {
            wire.meddle(Box::new(move |toward, bytes| {
                let way = if toward == Toward::Relay { 0 } else { 1 };
                let drop = dropped[way] && bytes[0] & 0xC0 == 0x80;
                if drop { Vec::new() } else { vec![bytes.to_vec()] }
            }));
        };
        let got = carry_and(&theirs, &ours, &bytes, cut).await;
        assert!(got == bytes, "{dropped:?}");
        leaves(&ours, &lost).await;
        works(&ours, &theirs).await;
        let path = soon("the provider leaves it", left).await.expect("no panic");
        assert!(matches!(path.reason, PathReason::Silent | PathReason::Followed), "{path:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_last_before_a_relay_dies_arrives_all_the_same() {
    let mut pair = Pair::start(Clock::default()).await;
    let (ours, theirs) = pair.session().await;
    let lost = in_use(&ours);
    let mut stream = ours.connection().open_bi().await.expect("a stream").0;
    stream.write_all(b"opened").await.expect("written");
    let mut incoming = soon("it", theirs.connection().accept_bi()).await.expect("a stream").1;
    let mut start = [0; 6];
    soon("the start", incoming.read_exact(&mut start)).await.expect("read");
    pair.kill(lost);
    // Nothing follows it that could show the loss.
    stream.write_all(b"last words").await.expect("written");
    let mut end = [0; 10];
    soon("the end", incoming.read_exact(&mut end)).await.expect("read");
    assert_eq!(&end, b"last words");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_relay_is_replaced_by_another_that_the_provider_named() {
    let mut pair = Pair::start(Clock::default()).await;
    let (ours, theirs) = pair.session().await;
    let third = start_relay().await;
    let link = pair.provider.reserve_at(relay_addr(&third)).await;
    // Both relays of the ticket die; the provider named another just before.
    ours.set_relays([pair.at_tenant(), vec![relay_addr(&third)]].concat());
    let lost = in_use(&ours);
    pair.kill(lost);
    works(&ours, &theirs).await;
    let third_warm = |relays: &Vec<RelayAddr>| relays.iter().any(|r| r.is_same(&link.relay()));
    let mut warm = ours.warm_relays();
    soon("the third relay", warm.wait_for(third_warm)).await.expect("a state");
    let other = pair.at_tenant().into_iter().find(|relay| !relay.is_same(&lost)).expect("two");
    pair.kill(other);
    works(&ours, &theirs).await;
    leaves(&ours, &other).await;
    assert!(in_use(&ours).is_same(&relay_addr(&third)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_lost_all_its_relays_goes_on_when_one_comes_back() {
    let pair = Pair::start(Fast::clock()).await;
    let (ours, theirs) = pair.session().await;
    for wire in &pair.to_tenant {
        wire.cut();
    }
    let silent = {
        let (ours, theirs) = (ours.clone(), theirs.clone());
        tokio::spawn(async move { works(&ours, &theirs).await })
    };
    let mut warm = ours.warm_relays();
    soon("both are lost", warm.wait_for(Vec::is_empty)).await.expect("a state");
    pair.to_tenant[1].mend();
    soon("the bytes", silent).await.expect("no panic");
    assert!(in_use(&ours).is_same(&pair.to_tenant[1].addr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flows_through_all_relays_end_with_the_session() {
    let pair = Pair::start(Clock::default()).await;
    let (ours, _theirs) = pair.session().await;
    let flows = || pair.relays.iter().flatten().map(|r| r.stats().flows.len()).sum::<usize>();
    assert_eq!(flows(), 2);
    ours.close(0, "");
    until("the flows go", || flows() == 0).await;
}

/// Drops frames both ways; the control connection lives.
fn half_dead(wire: &Wire) {
    wire.meddle(Box::new(|_, bytes| match bytes[0] & 0xC0 {
        0x80 => Vec::new(),
        _ => vec![bytes.to_vec()],
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_stopped_forwarding_is_found_out_though_it_still_answers() {
    let relay = start_relay().await;
    let wire = Wire::to(relay_addr(&relay)).await;
    let provider = Party::provider_by(wire.addr, Fast::clock()).await;
    assert!(provider.link.forwards());
    half_dead(&wire);
    until("it is noticed", || !provider.link.forwards()).await;
    assert!(provider.link.is_up(), "its control connection stands");
    wire.mend();
    until("it works again", || provider.link.forwards()).await;
}

/// Drops data frames both ways; keepalive frames and the control connection live.
fn drop_data(wire: &Wire) {
    wire.meddle(Box::new(|_, bytes| match bytes[0] {
        DATA => Vec::new(),
        _ => vec![bytes.to_vec()],
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_drops_data_is_found_out_though_it_answers_keepalives() {
    let relay = start_relay().await;
    let wire = Wire::to(relay_addr(&relay)).await;
    let provider = Party::provider_by(wire.addr, Fast::clock()).await;
    assert!(provider.link.forwards());
    drop_data(&wire);
    until("it is noticed", || !provider.link.forwards()).await;
    assert!(provider.link.is_up(), "its control connection stands");
    // A new control connection is no reason to trust it again before a frame came back.
    let before = provider.link.state().borrow().generation();
    wire.cut();
    until("it is down", || !provider.link.is_up()).await;
    drop_data(&wire);
    until("it is up", || provider.link.is_up()).await;
    provider.reserved().await;
    assert_ne!(provider.link.state().borrow().generation(), before);
    provider.node.clock().sleep(Duration::from_secs(60)).await;
    assert!(!provider.link.forwards());
    wire.mend();
    until("it works again", || provider.link.forwards()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_drops_frames_talks_no_provider_out_of_its_relay() {
    let relay = start_relay().await;
    let wire = Wire::to(relay_addr(&relay)).await;
    let provider = Party::provider_by(relay_addr(&relay), Fast::clock()).await;
    let tenant = Party::tenant(wire.addr).await;
    let (ours, theirs) = session_by(&tenant, &provider, vec![wire.addr]).await;
    works(&ours, &theirs).await;
    drop_data(&wire);
    // Half a minute is what a relay that drops data takes to be found out.
    for _ in 0..12 {
        provider.node.clock().sleep(Duration::from_secs(5)).await;
        assert!(provider.link.forwards());
    }
    // The control: it is as good as ever.
    let tenant = Party::tenant(relay_addr(&relay)).await;
    let (ours, theirs) = session_by(&tenant, &provider, vec![relay_addr(&relay)]).await;
    works(&ours, &theirs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_whose_address_changes_keeps_its_sessions_whichever_way_the_bytes_go() {
    for down in [true, false] {
        let pair = Pair::start(Clock::default()).await;
        let (ours, theirs) = pair.session().await;
        let before = pair.provider.link.observed();
        let bytes = noise(6_000_000, 9);
        let (from, to) = if down { (&theirs, &ours) } else { (&ours, &theirs) };
        let (sender, moving) = tokio::sync::oneshot::channel();
        let moves = async {
            moving.await.expect("it begins");
            for wire in &pair.to_provider {
                wire.move_node();
            }
        };
        let carrying = carry_and(from, to, &bytes, || sender.send(()).expect("it is awaited"));
        let (got, ()) = tokio::join!(carrying, moves);
        assert!(got == bytes, "down: {down}");
        works(&ours, &theirs).await;
        until("the new address is noticed", || pair.provider.link.observed() != before).await;
    }
}
