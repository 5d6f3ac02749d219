//! Those who do not pay get at most one window, and those who listen read nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use sluice::roles::{
    Connect, Provide, ProvideOptions, RelayOptions, Report, Reporter, start_relay,
};
use sluice_proto::{PeerId, RelayAddr, Ticket, WINDOW_MIN};
use sluice_relay::Relay;
use sluice_relay_core::Dropped;
use sluice_transport::AcceptPolicy;
use sluice_tunnel::Snapshot;
use tests::{
    Capture, Cast, LyingHolder, LyingTenant, Member, PATIENCE, Runs, Web, curl, differs_at, node,
    read_all, skip, voucher_for,
};
use tokio::time::{Instant, sleep, timeout};

/// More than anybody here may get for nothing.
const LARGE: u64 = 1 << 30;

/// A provider of a web server, reached through a relay, everything paid.
struct Home {
    relay: Relay,
    provide: Provide,
    ticket: Ticket,
    lies: Arc<Mutex<Vec<String>>>,
    cast: Cast,
    web: Web,
}

impl Home {
    async fn new() -> Result<Self> {
        let (cast, web) = (Cast::paid().await?, Web::start()?);
        let (operator, owner) = (cast.member().await?, cast.member().await?);
        let relay = start_relay(cast.relay_options(&operator)).await?;
        let lies: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = lies.clone();
        let report = Reporter::new(move |report| {
            if let Report::Lie { what, .. } = report {
                heard.lock().push(what.clone());
            }
        });
        let options = cast.provide_options(&owner, &relay, &[("web", web.addr())]);
        let provide = Provide::start(ProvideOptions { report, ..options }).await?;
        let ticket = Ticket::decode(provide.ticket(), 0)?;
        Ok(Self { relay, provide, ticket, lies, cast, web })
    }

    async fn liar(&self) -> Result<(Member, LyingTenant)> {
        let who = self.cast.member().await?;
        let liar = LyingTenant::begin(&who, &self.ticket).await?;
        Ok((who, liar))
    }

    /// The account of a tenant whose session stands.
    fn account(&self, tenant: PeerId) -> Result<Snapshot> {
        let accounts = self.provide.accounts();
        let found = accounts.iter().find(|(peer, _)| *peer == tenant);
        found.map(|(_, account)| *account).context("no session of that tenant")
    }

    async fn wait_for_lie(&self, words: &str) -> Result<()> {
        wait(words, || self.lies.lock().iter().any(|lie| lie.contains(words))).await
    }
}

/// Waits until something is so.
async fn wait(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        ensure!(Instant::now() < end, "{what} did not happen");
        sleep(std::time::Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_never_signs_gets_at_most_one_window() -> Result<()> {
    let home = Home::new().await?;
    let (who, liar) = home.liar().await?;
    let mut got = 0;
    let mut streams = Vec::new();
    for seed in 0..6 {
        let mut stream = liar.ask("web", &format!("{seed}/{LARGE}")).await?;
        got += read_all(&mut stream).await?;
        streams.push(stream);
    }
    let window = liar.terms().window;
    ensure!(window == WINDOW_MIN && liar.terms().starter_bytes == 0);
    ensure!(got > window / 4, "something was given: {got}");
    ensure!(got <= window, "{got} bytes for nothing");
    let account = home.account(who.peer())?;
    ensure!(account.unpaid <= window && account.paid.down == 0, "{account:?}");
    ensure!(account.stalled.is_some(), "{account:?}");
    // An honest tenant beside it does not suffer.
    let honest = home.cast.member().await?;
    let options = home.cast.connect_options(&honest, &home.ticket, "web");
    let connect = Connect::start(options).await?;
    let port = connect.local().first().context("a local port")?.0;
    let page = tokio::task::spawn_blocking(move || curl(port, "9/3000000")).await??;
    ensure!(page.len() == 3_000_000 && differs_at(9, 0, &page).is_none());
    connect.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_asks_for_lease_after_lease_gets_no_window_for_each() -> Result<()> {
    const LEASES: u64 = 12;
    let home = Home::new().await?;
    let (who, first) = home.liar().await?;
    let (window, paid) = (first.terms().window, first.paid());
    let mut leases = std::collections::BTreeSet::from([first.terms().lease]);
    let (mut got, mut liar) = (0, first);
    for seed in 1..=LEASES {
        let mut stream = liar.ask("web", &format!("{seed}/{LARGE}")).await?;
        got += read_all(&mut stream).await?;
        liar.leave();
        liar = LyingTenant::begin_anew(&who, &home.ticket, &paid).await?;
        leases.insert(liar.terms().lease);
    }
    ensure!(leases.len() as u64 == LEASES + 1, "it had {} leases", leases.len());
    ensure!(got > window, "something was given: {got}");
    // Four that may be lost to crashes, and the one that is open.
    ensure!(got <= 5 * window, "{got} bytes for nothing");
    // Another key with the same channel does not get any.
    let mut other = home.cast.member().await?;
    other.money.clone_from(&who.money);
    let refused = LyingTenant::begin_anew(&other, &home.ticket, &paid).await;
    let refused = refused.err().context("a channel paid two leases")?;
    ensure!(format!("{refused:#}").contains("pays lease"), "{refused:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_channel_paid_once_pays_for_no_other_lease() -> Result<()> {
    let home = Home::new().await?;
    let (who, liar) = home.liar().await?;
    let wallet = who.money.as_ref().context("a wallet")?.wallet.clone();
    let mut stream = liar.ask("web", "1/100000").await?;
    let got = read_all(&mut stream).await?;
    liar.pay(voucher_for(&mut liar.payer(&wallet), &stream, got))?;
    wait("a voucher", || home.account(who.peer()).is_ok_and(|a| a.paid.down == got)).await?;
    let before = home.account(who.peer())?.amount;
    let (lease, paid) = (liar.terms().lease, liar.paid());
    liar.leave();

    let again = LyingTenant::begin_anew(&who, &home.ticket, &paid).await?;
    ensure!(again.terms().lease != lease);
    let mut stream = again.ask("web", "2/100000").await?;
    let more = read_all(&mut stream).await?;
    // The same amounts as before, from 0: worth nothing to who has them already.
    again.pay(voucher_for(&mut again.payer(&wallet), &stream, more))?;
    home.wait_for_lie("the voucher says").await?;
    let account = home.account(who.peer())?;
    ensure!((account.vouchers, account.amount) == (0, before), "{account:?}");
    again.leave();

    let honest = paid.from(before);
    let honest = LyingTenant::begin_anew(&who, &home.ticket, &honest).await?;
    let mut stream = honest.ask("web", "3/100000").await?;
    let more = read_all(&mut stream).await?;
    honest.pay(voucher_for(&mut honest.payer(&wallet), &stream, more))?;
    let due = before.0 + u128::from(more) * 2;
    wait("a voucher", || home.account(who.peer()).is_ok_and(|a| a.amount.0 == due)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_whose_channel_ends_goes_on_with_another() -> Result<()> {
    let home = Home::new().await?;
    let who = home.cast.member().await?;
    let mut channels = std::collections::BTreeSet::new();
    for seed in 1..=2 {
        let connect = Connect::start(home.cast.connect_options(&who, &home.ticket, "web")).await?;
        let port = connect.local().first().context("a local port")?.0;
        let page = tokio::task::spawn_blocking(move || curl(port, &format!("{seed}/300000")));
        ensure!(page.await??.len() == 300_000);
        connect.stop().await;
        let rows = who.ledger.channels().await?;
        let newest = rows.last().context("a channel")?;
        channels.insert(newest.id);
        let money = who.money.as_ref().context("a wallet")?;
        money.chain.start_close(&money.wallet, &newest.key).await?;
    }
    ensure!(channels.len() == 2, "{channels:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_voucher_that_holds_counts_and_only_once() -> Result<()> {
    let home = Home::new().await?;
    let (who, liar) = home.liar().await?;
    let peer = who.peer();
    let mut stream = liar.ask("web", "1/100000").await?;
    let got = read_all(&mut stream).await?;
    ensure!(got > 100_000, "{got} bytes");

    let stranger = home.cast.member().await?.identity.wallet;
    liar.pay(voucher_for(&mut liar.payer(&stranger), &stream, got))?;
    home.wait_for_lie("not signed by").await?;
    let mut forged = voucher_for(&mut liar.payer(&who.identity.wallet), &stream, got).to_vec();
    let at = forged.len() - 40;
    forged[at] ^= 1;
    liar.pay(forged.into())?;
    wait("two lies", || home.lies.lock().len() >= 2).await?;
    liar.pay(voucher_for(&mut liar.payer(&who.identity.wallet), &stream, 2 * got))?;
    wait("three lies", || home.lies.lock().len() >= 3).await?;
    let account = home.account(peer)?;
    ensure!(account.paid.down == 0 && account.vouchers == 0, "{account:?}");

    // The same, signed as it must be, counts; again and again, it counts no more.
    let mut payer = liar.payer(&who.identity.wallet);
    let first = voucher_for(&mut payer, &stream, got / 2);
    liar.pay(first.clone())?;
    wait("a voucher", || home.account(peer).is_ok_and(|a| a.vouchers == 1)).await?;
    let second = voucher_for(&mut payer, &stream, got - got / 2);
    liar.pay(second.clone())?;
    wait("another", || home.account(peer).is_ok_and(|a| a.vouchers == 2)).await?;
    let before = home.account(peer)?;
    ensure!(before.paid.down == got && before.amount.0 == u128::from(got) * 2, "{before:?}");
    for replayed in [&first, &second, &first, &second] {
        liar.pay(replayed.clone())?;
    }
    // Datagrams keep their order here: when this lie is heard, the others were looked at.
    liar.pay(vec![0xFF; 100].into())?;
    wait("four lies", || home.lies.lock().len() >= 4).await?;
    let after = home.account(peer)?;
    ensure!((after.paid, after.amount, after.vouchers) == (before.paid, before.amount, 2));
    ensure!(liar.hear_of_payment().await.is_ok(), "it was acknowledged");
    liar.leave();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_never_pays_its_relay_gets_at_most_one_window() -> Result<()> {
    let cast = Cast::paid().await?;
    let (operator, owner, tenant) =
        (cast.member().await?, cast.member().await?, cast.member().await?);
    let options = cast.relay_options(&operator);
    let relay = start_relay(RelayOptions { rate_max: 10_000_000, ..options }).await?;
    let addr = RelayAddr::new(relay.peer(), relay.local_addr());
    let holder = LyingHolder::begin(&owner, addr).await?;
    let tenant = node(&tenant, AcceptPolicy::Nobody)?;
    let link = tenant.link(addr, None);
    let session = tenant.connect(&holder.ticket, &link).await?;
    let theirs = timeout(PATIENCE, holder.node.accept()).await?.context("no session")?;
    let began = Instant::now();
    let blast = tokio::spawn(async move {
        let mut stream = theirs.connection().open_uni().await?;
        loop {
            stream.write_all(&[7; 65_536]).await?;
        }
        #[expect(unreachable_code, reason = "names the type of the error")]
        Ok::<_, anyhow::Error>(())
    });
    let got = Arc::new(AtomicU64::new(0));
    let count = got.clone();
    let reading = tokio::spawn(async move {
        let mut stream = session.connection().accept_uni().await?;
        while let Some(chunk) = stream.read_chunk(65_536, true).await? {
            count.fetch_add(chunk.bytes.len() as u64, Relaxed);
        }
        Ok::<_, anyhow::Error>(())
    });
    let stats = || relay.stats().reservations.first().copied();
    wait("the window's end", || stats().is_some_and(|s| s.unpaid)).await?;
    // The trickle shows that it goes on trying, and is all that it gets.
    let trickled = stats().context("a reservation")?.totals.unbilled;
    wait("the trickle", || stats().is_some_and(|s| s.totals.unbilled > trickled + 4_000)).await?;
    let totals = stats().context("a reservation")?.totals;
    let within_s = began.elapsed().as_secs() + 2;
    ensure!(totals.up + totals.down > WINDOW_MIN / 2, "something was given: {totals:?}");
    ensure!(totals.up + totals.down <= WINDOW_MIN, "{totals:?} for nothing");
    ensure!(totals.unbilled <= within_s * 16_000 / 8 + 16_000, "{totals:?} in {within_s} s");
    let got = got.load(Relaxed);
    ensure!(got <= WINDOW_MIN + totals.unbilled, "{got} bytes of payload came through");
    let meters = relay.stats().meters;
    ensure!(meters.iter().all(|m| m.vouchers == 0 && m.paid.total() == 0), "{meters:?}");
    blast.abort();
    reading.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_at_the_relay_reads_nothing_and_who_replays_gets_nothing() -> Result<()> {
    let home = Home::new().await?;
    let who = home.cast.member().await?;
    let connect = Connect::start(home.cast.connect_options(&who, &home.ticket, "web")).await?;
    let port = connect.local().first().context("a local port")?.0;
    let len = 1 << 20;
    let (web, at_relay) = (home.web.addr(), home.relay.local_addr());
    let captures = [at_relay.port(), web.port()].map(Capture::start);
    let [Ok(at_the_relay), Ok(at_the_workload)] = captures else {
        return skip("a packet capture at the relay", "it takes root");
    };
    let page = tokio::task::spawn_blocking(move || curl(port, &format!("7/{len}"))).await??;
    ensure!(page.len() == len && differs_at(7, 0, &page).is_none());
    let seen = tokio::task::spawn_blocking(|| (at_the_relay.stop(), at_the_workload.stop()));
    let (relayed, plain) = seen.await?;
    let bytes = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).sum::<usize>();
    ensure!(bytes(&relayed) > len, "only {} bytes were captured", bytes(&relayed));
    let runs = Runs::of_content(7, len);
    ensure!(runs.found_in(&plain) > 10, "the search finds nothing where there is something");
    ensure!(runs.found_in(&relayed) == 0, "the relay's packets hold what was served");

    let forwarded = || home.relay.stats().forwarded();
    let (before, account) = (forwarded(), home.account(who.peer())?);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let to_relay = |p: &&Vec<u8>| p[2..4] == at_relay.port().to_be_bytes();
    for packet in relayed.iter().filter(to_relay) {
        // A batch that the system has not cut up yet is larger than any datagram.
        let _ = socket.send_to(&packet[8..], at_relay);
    }
    let replays = || home.relay.stats().dropped(Dropped::Replay);
    wait("dropped replays", || replays() > 0).await?;
    // The session's own last words and keepalives are far less than what was replayed.
    let more = forwarded() - before;
    ensure!(more < 64 * 1024, "{more} bytes of replays were forwarded");
    ensure!(home.account(who.peer())?.counted == account.counted);
    connect.stop().await;
    Ok(())
}
