//! What a provider won in an auction is served at the lease's terms, to the lease's tenant, and to nobody
//! else at any.

use anyhow::{Context as _, Result, ensure};
use sluice::roles::{Ended, LeaseState, Leases, Provide, ProvideOptions, start_relay};
use sluice_metering::{Reason, Terms};
use sluice_proto::market::{Lease, SignedLease};
use sluice_proto::{Amount, PeerId, RelayAddr, Ticket, WINDOW_MIN};
use sluice_relay::Relay;
use sluice_transport::Clock;
use sluice_tunnel::Snapshot;
use tempfile::TempDir;
use tests::{
    Cast, LyingTenant, Member, PATIENCE, Web, lease_terms, read_all, signed_lease, voucher_for,
};
use tokio::time::{Instant, sleep};

/// More than anybody here may get for nothing.
const LARGE: u64 = 1 << 30;
/// What `lease_terms` asks for a byte down.
const PRICE: u64 = 3;

/// A provider of two web services that has leases, reached through a relay.
struct Home {
    cast: Cast,
    owner: Member,
    relay: Relay,
    web: Web,
    state: TempDir,
    leases: Leases,
    provide: Option<Provide>,
    ticket: Ticket,
}

impl Home {
    async fn new(cast: Cast) -> Result<Self> {
        let (operator, owner) = (cast.member().await?, cast.member().await?);
        let relay = start_relay(cast.relay_options(&operator)).await?;
        let (web, state) = (Web::start()?, tempfile::tempdir()?);
        let (leases, provide) = start(&cast, &owner, &relay, &web, &state).await?;
        let ticket = Ticket::decode(provide.ticket(), 0)?;
        Ok(Self { cast, owner, relay, web, state, leases, provide: Some(provide), ticket })
    }

    /// The provider's process ends, and another goes on with its files.
    async fn restart(&mut self) -> Result<()> {
        self.provide.take().context("no provider")?.stop().await;
        self.owner.identity.incarnation += 100;
        let again = start(&self.cast, &self.owner, &self.relay, &self.web, &self.state).await?;
        (self.leases, self.provide) = (again.0, Some(again.1));
        Ok(())
    }

    /// A lease of this name with a tenant, signed and kept.
    fn lease(&self, who: &Member, n: u8, change: impl FnOnce(&mut Lease)) -> Result<SignedLease> {
        let relay = RelayAddr::new(self.relay.peer(), self.relay.local_addr());
        let mut terms = lease_terms(who, &self.owner, relay, n)?;
        change(&mut terms);
        let lease = signed_lease(who, &self.owner, terms)?;
        self.leases.put(&lease)?;
        Ok(lease)
    }

    fn account(&self, tenant: PeerId) -> Result<Snapshot> {
        let accounts = self.provide.as_ref().context("no provider")?.accounts();
        let found = accounts.iter().find(|(peer, _)| *peer == tenant);
        found.map(|(_, account)| *account).context("no session of that tenant")
    }

    fn state(&self, lease: &SignedLease) -> Option<LeaseState> {
        self.leases.state(lease.lease().lease, Clock::default().unix_time().as_secs())
    }
}

async fn start(
    cast: &Cast,
    owner: &Member,
    relay: &Relay,
    web: &Web,
    state: &TempDir,
) -> Result<(Leases, Provide)> {
    let leases = Leases::open(state.path())?;
    let options = cast.provide_options(owner, relay, &[("web", web.addr()), ("own", web.addr())]);
    let kept = Some(leases.clone());
    Ok((leases, Provide::start(ProvideOptions { leases: kept, ..options }).await?))
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

/// The words of a refusal.
fn words<T>(outcome: Result<T>) -> Result<String> {
    Ok(format!("{:#}", outcome.err().context("it was not refused")?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_served_at_its_terms_whatever_a_ticket_costs() -> Result<()> {
    let mut home = Home::new(Cast::paid().await?).await?;
    let who = home.cast.member().await?;
    let lease = home.lease(&who, 1, |_| ())?;
    let tenant = LyingTenant::begin_under(&who, lease.lease(), None).await?;
    ensure!(*tenant.terms() == Terms::of_lease(lease.lease()), "{:?}", tenant.terms());
    let mut stream = tenant.ask("web", "1/100000").await?;
    let got = read_all(&mut stream).await?;
    ensure!(got > 100_000, "{got} bytes");
    let mut hidden = tenant.ask("own", "1/100").await?;
    ensure!(read_all(&mut hidden).await.is_err(), "a service that the lease does not name");
    tenant.pay(voucher_for(&mut tenant.payer(&who.identity.wallet), &stream, got))?;
    let due = Amount(u128::from(got * PRICE));
    wait("a voucher", || home.account(who.peer()).is_ok_and(|a| a.amount == due)).await?;
    let paid = tenant.paid();
    tenant.leave();

    // Both forgot nothing: the account goes on, by the lease's name, after a restart of the provider.
    home.restart().await?;
    let again = LyingTenant::begin_under(&who, lease.lease(), Some(&paid)).await?;
    ensure!(*again.terms() == Terms::of_lease(lease.lease()), "{:?}", again.terms());
    wait("the account", || home.account(who.peer()).is_ok_and(|a| a.amount == due)).await?;
    again.leave();

    // Who holds a ticket and no lease is served as ever.
    let guest = home.cast.member().await?;
    let ticketed = LyingTenant::begin(&guest, &home.ticket).await?;
    ensure!(ticketed.terms().price.down == 2 << 30, "{:?}", ticketed.terms());
    // Who has both gets what it won, unless it asks for something else.
    let ticketed = LyingTenant::begin_on_ticket(&who, &home.ticket, Some(&paid)).await?;
    ensure!(ticketed.terms().lease == lease.lease().lease, "{:?}", ticketed.terms());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_the_budget_is_served_whatever_the_channel_holds() -> Result<()> {
    const BUDGET: u64 = 3 * 700_000;
    let mut home = Home::new(Cast::paid().await?).await?;
    let who = home.cast.member().await?;
    let lease = home.lease(&who, 1, |terms| terms.budget = Amount(BUDGET.into()))?;
    let mut tenant = LyingTenant::begin_under(&who, lease.lease(), None).await?;
    let mut payer = tenant.payer(&who.identity.wallet);
    let mut stream = tenant.ask("web", &format!("1/{LARGE}")).await?;
    let mut got = 0;
    let end = Instant::now() + PATIENCE;
    loop {
        let more = read_all(&mut stream).await?;
        got += more;
        if more > 0 {
            tenant.pay(voucher_for(&mut payer, &stream, more))?;
        } else if home.account(who.peer())?.stalled == Some(Reason::Deposit) {
            break;
        }
        ensure!(Instant::now() < end, "it did not come to the end of the budget: {got} bytes");
    }
    let due = Amount(u128::from(got * PRICE));
    wait("the last voucher", || home.account(who.peer()).is_ok_and(|a| a.amount == due)).await?;
    let within = |bytes: u64| bytes * PRICE <= BUDGET && bytes * PRICE > BUDGET - 3 * 4096;
    ensure!(within(got), "{got} bytes of {}", BUDGET / PRICE);
    // Neither another session nor another process of the provider gives more.
    let paid = tenant.paid();
    for _ in 0..2 {
        tenant.leave();
        home.restart().await?;
        tenant = LyingTenant::begin_under(&who, lease.lease(), Some(&paid)).await?;
        let mut stream = tenant.ask("web", &format!("2/{LARGE}")).await?;
        got += read_all(&mut stream).await?;
        ensure!(got * PRICE <= BUDGET, "{got} bytes for a budget of {BUDGET}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_serves_nobody_but_its_tenant_and_its_wallet() -> Result<()> {
    let home = Home::new(Cast::paid().await?).await?;
    let (who, other) = (home.cast.member().await?, home.cast.member().await?);
    let lease = home.lease(&who, 1, |_| ())?;
    // The invite in it is no ticket: not for a stranger, not by the lease's name, not without.
    let refused = words(LyingTenant::begin_under(&other, lease.lease(), None).await)?;
    ensure!(refused.contains("no lease with you"), "{refused}");
    let refused = words(LyingTenant::begin(&other, &lease.lease().ticket()).await)?;
    ensure!(refused.contains("no lease with you"), "{refused}");
    // The tenant itself, with the channel of a wallet that signed no lease.
    let mut richer = who.clone();
    richer.money.clone_from(&other.money);
    let refused = words(LyingTenant::begin_under(&richer, lease.lease(), None).await)?;
    ensure!(refused.contains("paid by wallet"), "{refused}");
    ensure!(home.state(&lease) == Some(LeaseState::Open), "a refusal ends nothing");
    LyingTenant::begin_under(&who, lease.lease(), None).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_over_or_was_never_funded_is_not_served() -> Result<()> {
    let home = Home::new(Cast::paid().await?).await?;
    let who = home.cast.member().await?;
    let now = Clock::default().unix_time().as_secs();
    // Its invite would still hold.
    let over = home.lease(&who, 1, |terms| {
        (terms.made_unix_s, terms.duration_s) = (now - 120, 60);
    })?;
    let refused = words(LyingTenant::begin_under(&who, over.lease(), None).await)?;
    ensure!(refused.contains("is over"), "{refused}");
    let unfunded = home.lease(&who, 2, |_| ())?;
    home.leases.end(unfunded.lease().lease, Ended::Unfunded)?;
    let refused = words(LyingTenant::begin_under(&who, unfunded.lease(), None).await)?;
    ensure!(refused.contains("unfunded"), "{refused}");
    // With a ticket too it is not the lease that is served.
    let ticketed = LyingTenant::begin(&who, &home.ticket).await?;
    ensure!(ticketed.terms().price.down == 2 << 30, "{:?}", ticketed.terms());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_with_the_time_of_its_lease() -> Result<()> {
    let home = Home::new(Cast::paid().await?).await?;
    let who = home.cast.member().await?;
    let now = Clock::default().unix_time().as_secs();
    let lease = home.lease(&who, 1, |terms| {
        (terms.made_unix_s, terms.duration_s) = (now - 50, 60);
    })?;
    let tenant = LyingTenant::begin_under(&who, lease.lease(), None).await?;
    let ended = tenant.ended().await?;
    ensure!(ended.contains("the time of the lease is over"), "{ended}");
    ensure!(Clock::default().unix_time().as_secs() >= lease.lease().ends_unix_s());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_channel_pays_lease_after_lease_and_no_window_twice() -> Result<()> {
    let home = Home::new(Cast::paid().await?).await?;
    let who = home.cast.member().await?;
    let first = home.lease(&who, 1, |_| ())?;
    let tenant = LyingTenant::begin_under(&who, first.lease(), None).await?;
    let mut stream = tenant.ask("web", "1/100000").await?;
    let got = read_all(&mut stream).await?;
    tenant.pay(voucher_for(&mut tenant.payer(&who.identity.wallet), &stream, got))?;
    let earned = Amount(u128::from(got * PRICE));
    wait("a voucher", || home.account(who.peer()).is_ok_and(|a| a.amount == earned)).await?;
    let paid = tenant.paid();
    tenant.leave();

    // What it paid under the first lease does not pay the second, which has a budget of its own.
    let budget = 3 * 600_000;
    let second = home.lease(&who, 2, |terms| terms.budget = Amount(budget))?;
    let tenant = LyingTenant::begin_under(&who, second.lease(), Some(&paid)).await?;
    let mut stream = tenant.ask("web", "2/100000").await?;
    let more = read_all(&mut stream).await?;
    tenant.pay(voucher_for(&mut tenant.payer(&who.identity.wallet), &stream, more))?;
    tenant.leave();
    let honest = paid.clone().from(earned);
    let tenant = LyingTenant::begin_under(&who, second.lease(), Some(&honest)).await?;
    wait("the account", || home.account(who.peer()).is_ok_and(|a| a.amount == earned)).await?;
    tenant.leave();

    // The first has ended with it, for good.
    let refused = words(LyingTenant::begin_under(&who, first.lease(), Some(&paid)).await)?;
    ensure!(refused.contains("has ended"), "{refused}");
    ensure!(home.state(&first) == Some(LeaseState::Ended(Ended::Closed)));

    // Lease after lease, nothing paid: four windows may be lost to crashes, and one is open.
    let mut taken = 0;
    for n in 3..12 {
        let lease = home.lease(&who, n, |_| ())?;
        let tenant = LyingTenant::begin_under(&who, lease.lease(), Some(&honest)).await?;
        let mut stream = tenant.ask("web", &format!("{n}/{LARGE}")).await?;
        taken += read_all(&mut stream).await?;
        tenant.leave();
    }
    ensure!(taken + more <= 5 * WINDOW_MIN, "{taken} bytes for nothing");
    ensure!(taken > WINDOW_MIN / 2, "something was given: {taken}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_whose_channel_closes_is_over_and_its_invite_buys_nothing_else() -> Result<()> {
    let home = Home::new(Cast::paid().await?).await?;
    let who = home.cast.member().await?;
    let lease = home.lease(&who, 1, |_| ())?;
    let tenant = LyingTenant::begin_under(&who, lease.lease(), None).await?;
    let money = who.money.as_ref().context("a wallet")?;
    money.chain.start_close(&money.wallet, tenant.paid().key()).await?;
    // Only who gets something is looked at.
    let _stream = tenant.ask("web", "1/1000").await?;
    let ended = tenant.ended().await?;
    ensure!(ended.contains("being closed"), "{ended}");
    tenant.leave();
    let refused = words(LyingTenant::begin_under(&who, lease.lease(), None).await)?;
    ensure!(refused.contains("has ended"), "{refused}");
    let refused = words(LyingTenant::begin(&who, &lease.lease().ticket()).await)?;
    ensure!(refused.contains("no lease with you"), "{refused}");
    Ok(())
}
