//! A lease that both signed, without an auction.

use anyhow::Result;
use sluice_proto::market::{
    Award, DirectPolicy, Lease, Money, OrderId, ServiceKind, ServiceOffer, Signatures, SignedLease,
};
use sluice_proto::{Amount, Invite, LeaseId, Price, RelayAddr, ServiceName, WINDOW_MIN};
use sluice_transport::{Clock, NoiseKeys};

use crate::Member;

/// The terms of a lease between two that begins now, named by `n`: an hour of the service `web`,
/// reached through this relay, where both have money for 3 base units a byte down and 1 up.
///
/// # Errors
/// When a key is not valid.
///
/// # Panics
/// When a service cannot be called `web`.
pub fn lease_terms(tenant: &Member, provider: &Member, relay: RelayAddr, n: u8) -> Result<Lease> {
    const DURATION_S: u32 = 3600;
    let money = provider.money.as_ref();
    let made_unix_s = Clock::default().unix_time().as_secs();
    let ends = made_unix_s + u64::from(DURATION_S);
    let charged = |price: u128| if money.is_some() { price } else { 0 };
    Ok(Lease {
        lease: LeaseId([n; 32]),
        order: OrderId([n; 32]),
        tenant: tenant.peer(),
        provider: provider.peer(),
        tenant_wallet: tenant.identity.wallet.address(),
        provider_wallet: provider.identity.wallet.address(),
        payout: provider.identity.wallet.address(),
        price: Price { up: charged(1 << 30), down: charged(3 << 30) },
        window: WINDOW_MIN,
        rate_max: 10_000_000,
        rate_up_min: 1_000_000,
        rate_down_min: 1_000_000,
        budget: Amount(1 << 30),
        made_unix_s,
        duration_s: DURATION_S,
        services: vec![ServiceOffer {
            name: ServiceName::parse("web").expect("a service's name"),
            kind: ServiceKind::Tcp,
        }],
        money: money
            .map(|money| Money { domain: money.chain.domain(), token: money.chain.token() }),
        period_s: 48 * 3600,
        idle_timeout_s: 60,
        direct: DirectPolicy::Never,
        breach_after_s: 60,
        starter_bytes: 0,
        noise_key: NoiseKeys::from_secret(provider.identity.noise)?.public(),
        relays: vec![relay],
        invite: Invite::for_lease(&provider.identity.invites, ends),
    })
}

/// The lease of these terms, signed by both.
///
/// # Errors
/// When it is not between these two.
pub fn signed_lease(tenant: &Member, provider: &Member, terms: Lease) -> Result<SignedLease> {
    let (ours, theirs) = (&tenant.identity, &provider.identity);
    let award = Award::make(terms, u64::MAX, &ours.node, &ours.wallet);
    let signatures = Signatures::make(&award.lease, &award.encoded, &theirs.node, &theirs.wallet);
    Ok(SignedLease::seal(award, signatures)?)
}
