//! The lease that follows from an order and a bid: both sides make it, and compare.

use sluice_proto::EthAddress;
use sluice_proto::market::{Bid, Lease, Order};

/// How long rates, service or vouchers may be missing until the other may end the lease, seconds: longer
/// than a failover or a restart of the other's process.
const BREACH_AFTER_S: u32 = 60;

/// The terms of `bid` for `order`. The tenant adds its wallet, the window, which depends on what it
/// measured, and when it made the choice.
#[must_use]
pub fn lease_of(
    order: &Order,
    bid: &Bid,
    tenant_wallet: EthAddress,
    window: u64,
    made_unix_s: u64,
) -> Lease {
    Lease {
        lease: bid.lease,
        order: bid.order,
        tenant: order.tenant,
        provider: bid.bidder,
        tenant_wallet,
        provider_wallet: bid.wallet,
        payout: bid.payout,
        price: bid.price,
        window,
        rate_max: bid.rate_max,
        rate_up_min: order.rate_up_min,
        rate_down_min: order.rate_down_min,
        budget: order.budget,
        made_unix_s,
        duration_s: order.duration_s,
        services: order.services.clone(),
        // Who bids nothing for what may cost something is not paid.
        money: order.money.filter(|_| !bid.price.is_zero()),
        period_s: order.period_s,
        idle_timeout_s: order.idle_timeout_s,
        direct: order.direct,
        breach_after_s: BREACH_AFTER_S,
        starter_bytes: bid.starter_bytes,
        noise_key: bid.noise_key,
        relays: bid.relays.clone(),
        invite: bid.invite,
    }
}
