//! The end of the story: last vouchers, then the contract pays and refunds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_chain::{ChannelEvent, TxReceipt};
use sluice_ledger::{Ledger, Role, StoredVoucher};
use sluice_proto::{Amount, ChannelId, Voucher, WalletSignature};
use sluice_relay::Relay;

use super::{Cast, DEPOSIT, Player};
use crate::bill::Gas;
use crate::roles::{Connect, Provide};

/// The relay waits so long for flows to end.
const DRAIN: Duration = Duration::from_secs(5);

/// What the accounts came to.
pub(super) struct Settled {
    pub(super) tenant_bytes: u64,
    pub(super) provider_bytes: u64,
    pub(super) vouchers: u64,
    pub(super) unpaid_max: u64,
    pub(super) window: u64,
    pub(super) tenant_paid: Amount,
    pub(super) provider_earned: Amount,
    pub(super) relay_earned: Amount,
    pub(super) tenant_refunded: Amount,
    pub(super) gas: Gas,
}

/// Settles both edges off-chain, stops everything, then closes both channels on-chain.
pub(super) async fn settle(
    cast: &Cast,
    connect: Connect,
    provide: Provide,
    relay: Relay,
) -> Result<Settled> {
    let window = connect.window().context("the session is gone")?;
    let open_gas = connect.open_gas().unwrap_or_default() + provide.relay_gas();
    ensure!(connect.settle().await, "the tenant's last voucher was not acknowledged");
    provide.settle_tenants().await;
    let unpaid_max = provide.unpaid_max();
    let ours = connect.account().context("the session is gone")?;
    let (_, theirs) = *provide.accounts().first().context("the session is gone")?;
    let vouchers = theirs.vouchers;
    connect.stop().await;
    // The relay claims what is left while it drains, and the provider answers.
    relay.drain(DRAIN).await;
    provide.stop().await;

    let tenant = edge(&cast.provider, &cast.tenant.ledger).await?;
    let held = edge(&cast.relay, &cast.provider.ledger).await?;
    let paid = close(cast, &cast.provider, &tenant).await?;
    let paid_relay = close(cast, &cast.relay, &held).await?;
    let refunded = cast.chain.token_balance(cast.tenant.money.wallet.address()).await?;
    let earned = paid.paid();
    ensure!(
        earned.0 + refunded.0 == DEPOSIT && paid.refunded() == refunded,
        "of a deposit of {DEPOSIT} {earned} was paid and {refunded} refunded"
    );
    let provider_has = cast.chain.token_balance(cast.provider.money.wallet.address()).await?;
    ensure!(
        provider_has.0 == DEPOSIT + earned.0 - paid_relay.paid().0,
        "the provider has {provider_has} after it earned {earned}"
    );
    Ok(Settled {
        tenant_bytes: ours.counted.total(),
        provider_bytes: theirs.paid.total(),
        vouchers,
        unpaid_max,
        window,
        tenant_paid: tenant.signed.amount,
        provider_earned: earned,
        relay_earned: paid_relay.paid(),
        tenant_refunded: refunded,
        gas: Gas { open: open_gas, redeem: 0, close: paid.gas + paid_relay.gas },
    })
}

/// One edge as both ledgers have it.
struct EdgeEnd {
    channel: ChannelId,
    earned: StoredVoucher,
    signed: StoredVoucher,
}

async fn edge(payee: &Player, payer: &Ledger) -> Result<EdgeEnd> {
    let leases = payee.ledger.leases().await?;
    let lease = leases
        .into_iter()
        .find(|l| l.role == Role::Payee && l.channel.is_some())
        .context("no lease was recorded")?;
    let earned = payee.ledger.newest_earned(lease.id).await?.context("no voucher was earned")?;
    let signed = payer.newest_signed(lease.id).await?.context("no voucher was signed")?;
    ensure!(
        earned.amount == signed.amount,
        "{} was earned, but {} signed",
        earned.amount,
        signed.amount
    );
    Ok(EdgeEnd { channel: lease.channel.context("no channel")?, earned, signed })
}

/// The payee closes: the contract pays it and refunds the rest.
async fn close(cast: &Cast, payee: &Player, edge: &EdgeEnd) -> Result<TxReceipt> {
    let row = payee.ledger.channel(edge.channel).await?.context("the channel is not recorded")?;
    let newest = &edge.earned.voucher;
    let voucher = Voucher {
        channel: edge.channel,
        amount: edge.earned.amount,
        statement: sluice_proto::eth::keccak256(&newest.statement),
    };
    let signature = WalletSignature::parse(&newest.signature)?;
    let wallet = &payee.money.wallet;
    let receipt = cast
        .chain
        .close_by_payee(wallet, &row.key, Some((voucher, signature)), wallet)
        .await
        .context("failed to close a channel")?;
    let closed = receipt.events.iter().any(|e| matches!(e, ChannelEvent::Closed { .. }));
    ensure!(closed, "the contract did not close the channel");
    Ok(receipt)
}
