//! The relay: forwards for others, and is paid for each byte.

use std::net::SocketAddr;

use anyhow::Result;
use sluice_ledger::Ledger;
use sluice_proto::Price;
use sluice_relay::{Relay, RelayConfig, RelayPayment};

use super::channel::Money;
use super::identity::Identity;

/// What a relay is told.
#[derive(Debug, Clone)]
pub struct RelayOptions {
    /// Its keys.
    pub identity: Identity,
    /// Where it listens.
    pub bind: SocketAddr,
    /// Where it listens on TCP, if it does.
    pub tcp: Option<SocketAddr>,
    /// Forwarding threads; 0: one per core.
    pub threads: usize,
    /// What holders pay per GiB, each way.
    pub price: u128,
    /// Bits per second for each reservation, which its window is computed from.
    pub rate_max: u64,
    /// Bytes that a new holder may pass before its first voucher is due.
    pub starter_bytes: u64,
    /// The same for all holders in a month.
    pub starter_total: u64,
    /// Reservations at once.
    pub reservations_max: usize,
    /// Flows of one holder at once.
    pub flows_max: usize,
    /// Where it is paid; `None`: it forwards for free.
    pub money: Option<Money>,
    /// Its ledger.
    pub ledger: Ledger,
}

/// Starts a relay.
///
/// # Errors
/// When its port cannot be bound, or it has a price and nowhere to be paid.
pub async fn start_relay(options: RelayOptions) -> Result<Relay> {
    let mut config = RelayConfig::new(options.identity.node.clone(), options.bind);
    let (half, _) = options.identity.reset.split_at(32);
    config.reset_key = half.try_into().expect("32 of 64 bytes");
    config.tcp = options.tcp;
    config.threads = options.threads;
    config.price = Price { up: options.price, down: options.price };
    config.rate_max = options.rate_max;
    config.starter_bytes = options.starter_bytes;
    config.starter_total = options.starter_total;
    config.limits.reservations_max = options.reservations_max;
    config.limits.flows_per_holder_max = options.flows_max;
    config.limits.reservation_bits_per_s = options.rate_max.saturating_mul(2);
    config.limits.leg_bits_per_s = options.rate_max.saturating_mul(2);
    config.payment = options.money.filter(|_| options.price > 0).map(|money| {
        let mut payment = RelayPayment::new(
            options.ledger.clone(),
            money.chain.clone(),
            money.wallet.address(),
            money.payout,
        );
        payment.period_s = money.period_s;
        payment.recovery = options.identity.recovery.clone();
        payment
    });
    Ok(Relay::start(config).await?)
}
