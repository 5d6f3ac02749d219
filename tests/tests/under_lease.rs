//! A tenant that connects under a lease holds the provider to what both signed, and itself to the budget.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use sluice::roles::{
    Connect, ConnectOptions, LeaseUnfit, Leases, Provide, ProvideOptions, deposit_under, fits,
    start_relay,
};
use sluice_ledger::Role;
use sluice_proto::market::{Lease, SignedLease};
use sluice_proto::{Amount, RelayAddr, Ticket};
use sluice_relay::Relay;
use sluice_transport::Clock;
use tempfile::TempDir;
use tests::{Cast, Member, Web, curl, differs_at, has, lease_terms, signed_lease, skip};

/// A provider that has leases, and a tenant.
struct Two {
    cast: Cast,
    owner: Member,
    tenant: Member,
    relay: Relay,
    provide: Provide,
    leases: Leases,
    _web: Web,
    _state: TempDir,
}

impl Two {
    async fn start(cast: Cast) -> Result<Self> {
        let (operator, owner) = (cast.member().await?, cast.member().await?);
        let tenant = cast.member().await?;
        let relay = start_relay(cast.relay_options(&operator)).await?;
        let (web, state) = (Web::start()?, tempfile::tempdir()?);
        let leases = Leases::open(state.path())?;
        let options = cast.provide_options(&owner, &relay, &[("web", web.addr())]);
        let options = ProvideOptions { leases: Some(leases.clone()), ..options };
        let provide = Provide::start(options).await?;
        Ok(Self { cast, owner, tenant, relay, provide, leases, _web: web, _state: state })
    }

    fn lease(&self, change: impl FnOnce(&mut Lease)) -> Result<SignedLease> {
        let relay = RelayAddr::new(self.relay.peer(), self.relay.local_addr());
        let mut terms = lease_terms(&self.tenant, &self.owner, relay, 1)?;
        change(&mut terms);
        signed_lease(&self.tenant, &self.owner, terms)
    }

    fn options(&self, ticket: &Ticket, lease: &SignedLease) -> ConnectOptions {
        let lease = Arc::new(lease.lease().clone());
        ConnectOptions {
            deposit: deposit_under(&lease, Amount(0)),
            lease: Some(lease),
            // What was signed was agreed to, whatever else is allowed.
            price_max: sluice_proto::Price { up: 0, down: 0 },
            ..self.cast.connect_options(&self.tenant, ticket, "web")
        }
    }

    async fn connect(&self, lease: &SignedLease) -> Result<Connect> {
        Connect::start(self.options(&lease.lease().ticket(), lease)).await
    }

    async fn stop(self) {
        self.provide.stop().await;
        self.relay.drain(std::time::Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_all_that_is_needed_and_its_budget_all_that_is_deposited() -> Result<()> {
    if !has("curl") {
        return skip("a download under a lease", "curl is not installed");
    }
    let two = Two::start(Cast::paid().await?).await?;
    let lease = two.lease(|_| ())?;
    two.leases.put(&lease)?;
    for round in 1..=2_u64 {
        let connect = two.connect(&lease).await?;
        ensure!(connect.window() == Some(lease.lease().window));
        let local = connect.local().first().context("no local port")?.0;
        let path = format!("{round}/100000");
        let page = tokio::task::spawn_blocking(move || curl(local, &path)).await??;
        ensure!(page.len() == 100_000 && differs_at(round, 0, &page).is_none());
        connect.stop().await;
    }
    // The second session went on with the lease and its channel.
    let channels = two.tenant.ledger.channels().await?;
    let [channel] = channels.as_slice() else { anyhow::bail!("{} channels", channels.len()) };
    ensure!(channel.role == Role::Payer && channel.deposit == lease.lease().budget);
    let rows = two.tenant.ledger.leases().await?;
    ensure!(rows.len() == 1 && rows[0].id == lease.lease().lease);
    two.stop().await;
    Ok(())
}

/// The provider has signed `theirs` under the name of the tenant's lease: what differs, as the tenant
/// says it.
async fn refusal(two: &Two, ours: &SignedLease, theirs: &SignedLease) -> Result<LeaseUnfit> {
    two.leases.put(theirs)?;
    let refused = two.connect(ours).await.err().context("other terms were taken")?;
    refused.downcast::<LeaseUnfit>()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_terms_than_were_signed_are_refused_by_name_and_nothing_is_paid() -> Result<()> {
    let two = Two::start(Cast::paid().await?).await?;
    let ours = two.lease(|_| ())?;
    let dearer = two.lease(|lease| lease.price.down += 1)?;
    let named = |field| LeaseUnfit::OtherTerms { field };
    ensure!(refusal(&two, &ours, &dearer).await? == named("price"));
    let cheaper = two.lease(|lease| lease.price.up -= 1)?;
    ensure!(refusal(&two, &ours, &cheaper).await? == named("price"), "both signed another");
    let wider = two.lease(|lease| lease.window += 1)?;
    ensure!(refusal(&two, &ours, &wider).await? == named("window"));
    let elsewhere = two.lease(|lease| lease.payout.0[0] ^= 1)?;
    ensure!(refusal(&two, &ours, &elsewhere).await? == named("payment"));
    let shorter = two.lease(|lease| lease.duration_s -= 60)?;
    ensure!(refusal(&two, &ours, &shorter).await? == named("expires"));
    let restless = two.lease(|lease| lease.idle_timeout_s += 1)?;
    ensure!(refusal(&two, &ours, &restless).await? == named("idle_timeout"));
    ensure!(two.tenant.ledger.channels().await?.is_empty(), "no channel was opened");
    // Who comes with a ticket gets terms of its own, which are not the lease's either.
    let ticket = Ticket::decode(two.provide.ticket(), 0)?;
    let stranger = Two { tenant: two.cast.member().await?, ..two };
    let lease = stranger.lease(|_| ())?;
    let refused = Connect::start(stranger.options(&ticket, &lease)).await;
    let refused = refused.err().context("a lease that the provider does not have")?;
    ensure!(!format!("{refused:#}").is_empty());
    ensure!(stranger.tenant.ledger.channels().await?.is_empty(), "no channel was opened");
    stranger.stop().await;
    Ok(())
}

#[tokio::test]
async fn whoever_may_not_use_a_lease_is_told_why() -> Result<()> {
    let cast = Cast::paid().await?;
    let (tenant, provider) = (cast.member().await?, cast.member().await?);
    let relay = RelayAddr::new(provider.peer(), ([127, 0, 0, 1], 4433).into());
    let lease = lease_terms(&tenant, &provider, relay, 1)?;
    let now = Clock::default().unix_time().as_secs();
    let (own, wallet) = (tenant.peer(), tenant.identity.wallet.address());
    ensure!(fits(&lease, own, Some(wallet), now) == Ok(()));
    let other = provider.peer();
    let foreign = LeaseUnfit::OtherTenant { tenant: own, own: other };
    ensure!(fits(&lease, other, Some(wallet), now) == Err(foreign));
    let theirs = provider.identity.wallet.address();
    let unpaid = LeaseUnfit::OtherWallet { wallet, own: theirs };
    ensure!(fits(&lease, own, Some(theirs), now) == Err(unpaid));
    ensure!(fits(&lease, own, None, now) == Err(LeaseUnfit::NoChain));
    let ends = lease.ends_unix_s();
    ensure!(fits(&lease, own, Some(wallet), ends) == Err(LeaseUnfit::Over(ends)));
    let free = Lease { money: None, ..lease.clone() };
    ensure!(fits(&free, own, None, now) == Ok(()));
    let deposits = [0, 5, lease.budget.0 + 1].map(|wanted| deposit_under(&lease, Amount(wanted)));
    ensure!(deposits == [lease.budget, Amount(5), lease.budget]);
    Ok(())
}
