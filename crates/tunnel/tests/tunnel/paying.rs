//! Those who do not pay, and accounts that outlive sessions.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use sluice_metering::{Reason, RelayBudget, RelayFlow};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::rig::{Rig, Setup, WINDOW};
use crate::services::{pattern, source};

/// Reads until the provider says that it waits, and nothing more comes.
async fn read_until_stalled(rig: &Rig, tcp: &mut TcpStream) -> u64 {
    let (mut buffer, mut total) = (vec![0; 65536], 0);
    loop {
        let read = tcp.read(&mut buffer);
        match tokio::time::timeout(Duration::from_millis(500), read).await {
            Ok(n) => total += n.expect("open") as u64,
            Err(_) if rig.provider.account.snapshot().stalled.is_some() => return total,
            Err(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_never_pays_gets_at_most_one_window() {
    let setup = Setup { tenant_never_pays: true, stream_window: 4 << 20, ..Setup::default() };
    let rig = Rig::new(setup, &[("file", source(64 << 20).await)]).await;
    let addr = rig.local_port("file").await;
    let mut got = 0;
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut tcp = TcpStream::connect(addr).await.expect("accepted");
        got += read_until_stalled(&rig, &mut tcp).await;
        open.push(tcp);
    }
    assert!(got > WINDOW / 4, "something was given: {got}");
    assert!(got <= WINDOW, "{got} bytes for nothing");
    assert!(rig.provider.account.snapshot().unpaid <= WINDOW);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coming_back_again_and_again_brings_no_new_window_each_time() {
    let setup = Setup { tenant_never_pays: true, stream_window: 4 << 20, ..Setup::default() };
    let mut rig = Rig::new(setup, &[("file", source(64 << 20).await)]).await;
    let mut got = 0;
    for session in 2..14 {
        let mut tcp = rig.dial("file").await;
        got += read_until_stalled(&rig, &mut tcp).await;
        rig.tenant.connection.close(0u32.into(), b"");
        rig.provider.connection.closed().await;
        rig.reconnect_unpaying(session).await;
    }
    // Four windows may be lost on a lease, and one is never paid.
    assert!(got <= 5 * WINDOW, "{got} bytes for nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_is_paid_when_the_next_begins() {
    let mut rig = Rig::new(Setup::default(), &[("file", source(64 << 20).await)]).await;
    let mut tcp = rig.dial("file").await;
    let mut first = vec![0; 3_000_000];
    tcp.read_exact(&mut first).await.expect("read");
    rig.tenant.connection.close(0u32.into(), b"");
    rig.provider.connection.closed().await;
    let counted = loop {
        // The tenant's account signs for what it read once it sees the end.
        let (newest, counted) =
            (rig.tenant.account.newest(), rig.tenant.account.snapshot().counted);
        if newest.is_some_and(|v| v.counts == counted) {
            break counted;
        }
        tokio::task::yield_now().await;
    };
    rig.reconnect(2).await;
    assert_eq!(rig.provider.account.snapshot().paid, counted, "the voucher that was presented");
    let mut tcp = rig.dial("file").await;
    let mut again = vec![0; 5_000_000];
    tcp.read_exact(&mut again).await.expect("read");
    assert!(again == pattern(0, 5_000_000));
    drop(tcp);
    rig.settle().await;
    assert!(rig.provider.account.snapshot().paid.down >= counted.down + 5_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payee_whose_ledger_fails_stops_and_resets() {
    let rig = Rig::new(Setup::default(), &[("file", source(64 << 20).await)]).await;
    let mut tcp = rig.dial("file").await;
    let mut got = 0;
    let error = loop {
        match tcp.read(&mut [0; 65536]).await {
            Ok(0) => panic!("closed in order"),
            Ok(n) => got += n as u64,
            Err(error) => break error,
        }
        if got > 2 * WINDOW {
            rig.provider_owner.refuse.store(true, Relaxed);
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let snapshot = rig.provider.account.snapshot();
    assert!(snapshot.unpaid <= WINDOW && snapshot.unpaid_max <= WINDOW, "{snapshot:?}");
    // The reset may be quicker than the dial.
    if let Ok(mut tcp) = TcpStream::connect(rig.local_port("file").await).await {
        assert!(tcp.read(&mut [0]).await.is_err(), "nothing is served any more");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_deposit_is_said_and_a_top_up_lets_the_flow_go_on() {
    let mut rig = Rig::new(Setup::default(), &[("file", source(4 << 20).await)]).await;
    // One base unit a byte: the deposit is for less than the file.
    for account in [&rig.tenant.account, &rig.provider.account] {
        account.set_deposit(sluice_proto::Amount(1_500_000));
    }
    let mut tcp = rig.dial("file").await;
    let got = read_until_stalled(&rig, &mut tcp).await;
    assert!(got <= 1_500_000, "{got}");
    assert_eq!(rig.provider.account.snapshot().stalled, Some(Reason::Deposit));
    for account in [&rig.tenant.account, &rig.provider.account] {
        account.set_deposit(sluice_proto::Amount(1 << 40));
    }
    let mut rest = Vec::new();
    tcp.read_to_end(&mut rest).await.expect("read");
    assert_eq!(got + rest.len() as u64, 4 << 20);
    drop(tcp);
    rig.settle().await;
    let _ = rig.tenant_owner.exhausted.try_recv();
    assert!(rig.provider_owner.lies.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_relays_window_withholds_goes_on_when_it_is_raised() {
    let rig = Rig::new(Setup::default(), &[("file", source(1 << 20).await)]).await;
    let budget = RelayBudget::new(100_000);
    let flow = RelayFlow::new(budget.clone());
    rig.provider.account.set_relay(Some(flow.clone()));
    let mut tcp = rig.dial("file").await;
    // No frame is counted here: all that the gate lets pass stays queued for the relay.
    let mut first = vec![0; 65_536];
    tcp.read_exact(&mut first).await.expect("read");
    while rig.provider.account.snapshot().stalled != Some(Reason::Relay) {
        tokio::task::yield_now().await;
    }
    assert!(rig.provider.account.snapshot().counted.down <= 100_000);
    budget.set_limit(u64::MAX);
    rig.provider.account.wake();
    let mut rest = Vec::new();
    tcp.read_to_end(&mut rest).await.expect("read");
    assert_eq!(first.len() + rest.len(), 1 << 20);
    drop(tcp);
    rig.settle().await;
}
