//! A session under a lease: what both signed, and nothing else.

use sluice_metering::Terms;
use sluice_proto::market::Lease;
use sluice_proto::{Amount, EthAddress, PeerId};

/// Why there is no session under a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseUnfit {
    /// Another node's.
    #[error("the lease is of tenant {tenant}, and this node is {own}: use its state directory")]
    OtherTenant {
        /// Who signed.
        tenant: PeerId,
        /// Who asks.
        own: PeerId,
    },
    /// Its channel would have another signer.
    #[error(
        "the lease is paid from wallet {wallet}, and this node's is {own}: name the key of the \
         former as `payer` in [wallet]"
    )]
    OtherWallet {
        /// Who signed.
        wallet: EthAddress,
        /// What is here.
        own: EthAddress,
    },
    /// Something is charged, and there is nothing to pay with.
    #[error("the lease is paid for, but no chain is configured: set [chain] in sluice.toml")]
    NoChain,
    /// Its time is over.
    #[error("the lease ended at unix time {0}: order another with `sluice order`")]
    Over(u64),
    /// It ended before its time.
    #[error("the lease has ended: its provider or its channel went on to another; `sluice order`")]
    Ended,
    /// The provider offers other terms than it signed.
    #[error(
        "the provider offers other terms than the lease that it signed: `{field}` differs; nothing \
         was paid"
    )]
    OtherTerms {
        /// The first that differs.
        field: &'static str,
    },
}

/// Whether this node may use a lease at `now_unix_s`, with this wallet if it has any money.
///
/// # Errors
/// Says why not.
pub fn fits(
    lease: &Lease,
    own: PeerId,
    wallet: Option<EthAddress>,
    now_unix_s: u64,
) -> Result<(), LeaseUnfit> {
    if lease.tenant != own {
        return Err(LeaseUnfit::OtherTenant { tenant: lease.tenant, own });
    }
    if lease.ends_unix_s() <= now_unix_s {
        return Err(LeaseUnfit::Over(lease.ends_unix_s()));
    }
    if lease.money.is_none() {
        return Ok(());
    }
    match wallet {
        None => Err(LeaseUnfit::NoChain),
        Some(own) if own != lease.tenant_wallet => {
            Err(LeaseUnfit::OtherWallet { wallet: lease.tenant_wallet, own })
        }
        Some(_) => Ok(()),
    }
}

/// What to deposit under a lease when `wanted` is what the tenant says, 0 for nothing: the budget that
/// both signed, and never more.
#[must_use]
pub fn deposit_under(lease: &Lease, wanted: Amount) -> Amount {
    if wanted.0 == 0 { lease.budget } else { wanted.min(lease.budget) }
}

/// Whether offered terms are those of a lease.
///
/// # Errors
/// [`LeaseUnfit::OtherTerms`], with what differs first.
pub(crate) fn check_terms(lease: &Lease, offered: &Terms) -> Result<(), LeaseUnfit> {
    let signed = Terms::of_lease(lease);
    let same = [
        ("lease", offered.lease == signed.lease),
        ("payer", offered.payer == signed.payer),
        ("payee", offered.payee == signed.payee),
        ("price", offered.price == signed.price),
        ("window", offered.window == signed.window),
        ("payment", offered.payment == signed.payment),
        ("starter_bytes", offered.starter_bytes == signed.starter_bytes),
        ("idle_timeout", offered.idle_timeout_s == signed.idle_timeout_s),
        ("expires", offered.expires_unix_s == signed.expires_unix_s),
        ("rate_max", offered.rate_max == signed.rate_max),
        // Should terms ever say more.
        ("terms", *offered == signed),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((field, _)) => Err(LeaseUnfit::OtherTerms { field }),
        None => Ok(()),
    }
}
