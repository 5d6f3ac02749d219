//! One provider with many tenants through one relay: each gets its own bytes, and pays for them.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use sluice::roles::{Connect, Provide, RelayOptions, start_relay};
use sluice_ledger::Edge;
use sluice_proto::Ticket;
use tests::{Cast, Member, PATIENCE, Web, differs_at};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// What each tenant downloads at a time.
const LEN: usize = 100_000;

/// Downloads the content `seed` over one connection; bytes that came, headers included.
async fn download(from: SocketAddr, seed: u64) -> Result<u64> {
    let mut tcp = TcpStream::connect(from).await?;
    tcp.write_all(format!("GET /{seed}/{LEN} HTTP/1.1\r\n\r\n").as_bytes()).await?;
    tcp.shutdown().await?;
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no header")? + 4;
    let body = &answer[end..];
    ensure!(body.len() == LEN, "{} bytes of content {seed}", body.len());
    ensure!(differs_at(seed, 0, body).is_none(), "other bytes than content {seed}");
    Ok(answer.len() as u64)
}

/// One tenant's life: it connects, waits for all others, downloads three times, and leaves.
async fn live(
    cast: Arc<Cast>,
    who: Member,
    n: u64,
    ticket: Ticket,
    all_here: Arc<Barrier>,
) -> Result<(Member, u64)> {
    let connect = Connect::start(cast.connect_options(&who, &ticket, "web")).await;
    // Others need not wait for one that failed.
    let met = tokio::time::timeout(PATIENCE, all_here.wait()).await;
    let connect = connect.with_context(|| format!("tenant {n}"))?;
    met.context("the other tenants did not come")?;
    let (port, _) = connect.local().first().context("a local port")?;
    let mut got = 0;
    for round in 0..3 {
        let downloads = [0, 1].map(|i| download(*port, n * 100 + round * 10 + i));
        let [a, b] = downloads;
        let both = tokio::time::timeout(PATIENCE, async { tokio::try_join!(a, b) }).await;
        let (a, b) = both.context("a download stalls")?.with_context(|| format!("tenant {n}"))?;
        got += a + b;
    }
    connect.stop().await;
    Ok((who, got))
}

/// What relays forward at most unless a test is about less.
const FAST: u64 = 1_000_000_000;

async fn many(cast: Cast, count: u64, relay_rate_max: u64) -> Result<()> {
    let cast = Arc::new(cast);
    let web = Web::start()?;
    let (operator, home) = (cast.member().await?, cast.member().await?);
    let options = cast.relay_options(&operator);
    let relay = start_relay(RelayOptions { rate_max: relay_rate_max, ..options }).await?;
    let provide =
        Provide::start(cast.provide_options(&home, &relay, &[("web", web.addr())])).await?;
    let ticket = Ticket::decode(provide.ticket(), 0)?;
    let all_here = Arc::new(Barrier::new(usize::try_from(count)?));
    let mut tenants = JoinSet::new();
    for n in 1..=count {
        let who = cast.member().await?;
        tenants.spawn(live(cast.clone(), who, n, ticket.clone(), all_here.clone()));
    }
    let mut all = 0;
    while let Some(done) = tenants.join_next().await {
        let (who, got) = done??;
        all += got;
        let lease = who.ledger.leases().await?.pop().context("a lease")?;
        let paid = cast.chain().is_some();
        if paid {
            let signed = who.ledger.newest_signed(lease.id).await?.context("it signed")?;
            let earned = home.ledger.newest_earned(lease.id).await?.context("it earned")?;
            ensure!(signed.amount == earned.amount && signed.down == earned.down);
            ensure!(signed.down == got, "{got} bytes came, but {} are paid", signed.down);
        }
    }
    ensure!(web.sent() == all, "{} bytes were sent, and {all} came", web.sent());
    let leases = home.ledger.leases().await?;
    let tenants = leases.iter().filter(|l| l.edge == Edge::Tenant).count() as u64;
    ensure!(tenants == count, "{tenants} leases");
    relay.drain(PATIENCE).await;
    provide.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_tenants_each_get_their_own_bytes() -> Result<()> {
    many(Cast::free()?, 100, FAST).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_tenants_each_pay_for_their_own_bytes() -> Result<()> {
    many(Cast::paid().await?, 20, FAST).await
}

/// What exceeds a relay's rate is lost between a provider and its relay: sent, but never billed. It
/// must not use up the window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paid_relay_that_drops_much_stalls_nobody() -> Result<()> {
    many(Cast::paid().await?, 6, 10_000_000).await
}
