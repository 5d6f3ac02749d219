//! The end of the story: last vouchers, then the contract pays and refunds.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_chain::{Chain, ChannelEvent, TxReceipt};
use sluice_ledger::{Role, StoredVoucher};
use sluice_proto::{Amount, ChannelId, Voucher, WalletSignature};
use sluice_relay::Relay;
use tokio::task::JoinSet;

use super::{DEPOSIT, Player};
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
    /// Transactions that closed the tenant's channel.
    pub(super) closes: usize,
}

/// Who has an account with whom.
pub(super) struct Parties<'p> {
    pub(super) chain: &'p Chain,
    pub(super) tenant: &'p Player,
    pub(super) provider: &'p Player,
    /// Those that may have carried the session.
    pub(super) relays: Vec<&'p Player>,
}

/// Settles both edges off-chain, stops everything, then closes their channels on-chain.
pub(super) async fn settle(
    parties: &Parties<'_>,
    connect: Connect,
    provide: Provide,
    relays: Vec<Relay>,
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
    let mut draining: JoinSet<()> =
        relays.into_iter().map(|relay| async move { relay.drain(DRAIN).await }).collect();
    while let Some(drained) = draining.join_next().await {
        drained?;
    }
    provide.stop().await;

    let Parties { chain, tenant: payer, provider, .. } = parties;
    let tenant = edge(provider, payer).await?.context("nothing was earned of the tenant")?;
    let paid = close(chain, provider, &tenant).await?;
    let (mut relay_gas, mut relay_earned, mut locked) = (0, Amount(0), 0);
    for relay in &parties.relays {
        let Some(held) = edge(relay, provider).await? else {
            locked += deposit_between(relay, provider).await?;
            continue;
        };
        let receipt = close(chain, relay, &held).await?;
        relay_gas += receipt.gas;
        relay_earned = Amount(relay_earned.0 + receipt.paid().0);
    }
    ensure!(relay_earned.0 > 0, "no relay was paid");
    let refunded = chain.token_balance(payer.money.wallet.address()).await?;
    let earned = paid.paid();
    ensure!(
        earned.0 + refunded.0 == DEPOSIT && paid.refunded() == refunded,
        "of a deposit of {DEPOSIT} {earned} was paid and {refunded} refunded"
    );
    let provider_has = chain.token_balance(provider.money.wallet.address()).await?;
    ensure!(
        provider_has.0 + locked == DEPOSIT + earned.0 - relay_earned.0,
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
        relay_earned,
        tenant_refunded: refunded,
        gas: Gas { open: open_gas, redeem: 0, close: paid.gas + relay_gas },
        closes: paid.events.iter().filter(|e| matches!(e, ChannelEvent::Closed { .. })).count(),
    })
}

/// One edge as both ledgers have it.
struct EdgeEnd {
    channel: ChannelId,
    earned: StoredVoucher,
    signed: StoredVoucher,
}

/// `None` if nothing was earned.
async fn edge(payee: &Player, payer: &Player) -> Result<Option<EdgeEnd>> {
    let (leases, from) = (payee.ledger.leases().await?, payer.identity.peer());
    let lease =
        leases.into_iter().find(|l| l.role == Role::Payee && l.peer == from && l.channel.is_some());
    let Some(lease) = lease else { return Ok(None) };
    let Some(earned) = payee.ledger.newest_earned(lease.id).await? else { return Ok(None) };
    let signed = payer.ledger.newest_signed(lease.id).await?.context("no voucher was signed")?;
    ensure!(
        earned.amount == signed.amount,
        "{} was earned, but {} signed",
        earned.amount,
        signed.amount
    );
    Ok(Some(EdgeEnd { channel: lease.channel.context("no channel")?, earned, signed }))
}

/// What lies in channels between these two that nothing was paid from.
async fn deposit_between(payee: &Player, payer: &Player) -> Result<u128> {
    let channels = payer.ledger.channels().await?;
    let theirs =
        channels.iter().filter(|c| c.role == Role::Payer && c.peer == payee.identity.peer());
    Ok(theirs.map(|channel| channel.deposit.0).sum())
}

/// The payee closes: the contract pays it and refunds the rest.
async fn close(chain: &Chain, payee: &Player, edge: &EdgeEnd) -> Result<TxReceipt> {
    let row = payee.ledger.channel(edge.channel).await?.context("the channel is not recorded")?;
    let newest = &edge.earned.voucher;
    let voucher = Voucher {
        channel: edge.channel,
        amount: edge.earned.amount,
        statement: sluice_proto::eth::keccak256(&newest.statement),
    };
    let signature = WalletSignature::parse(&newest.signature)?;
    let wallet = &payee.money.wallet;
    let receipt = chain
        .close_by_payee(wallet, &row.key, Some((voucher, signature)), wallet)
        .await
        .context("failed to close a channel")?;
    let closed = receipt.events.iter().any(|e| matches!(e, ChannelEvent::Closed { .. }));
    ensure!(closed, "the contract did not close the channel");
    Ok(receipt)
}
