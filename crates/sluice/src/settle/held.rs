//! Vouchers that a payee holds, as they are redeemed.

use sluice_chain::Redemption;
use sluice_ledger::{ChannelRow, ChannelStatus, Ledger, LedgerError, Role, StoredVoucher};
use sluice_proto::eth::keccak256;
use sluice_proto::{ChannelKey, Domain, IdError, PeerId, Voucher, WalletSignature};

/// A channel that pays somebody, and the newest voucher on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// What the channel binds.
    pub key: ChannelKey,
    /// Its chain and contract.
    pub domain: Domain,
    /// Who pays, where that is known.
    pub peer: Option<PeerId>,
    /// The voucher.
    pub voucher: Voucher,
    /// The signer's.
    pub signature: WalletSignature,
}

/// Why a voucher of the ledger cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeldError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A voucher's signature has the wrong form.
    #[error("the newest voucher of channel {channel} is damaged: {source}")]
    Voucher {
        /// Whose.
        channel: sluice_proto::ChannelId,
        /// How.
        source: IdError,
    },
}

impl Held {
    /// The newest voucher of a channel.
    ///
    /// # Errors
    /// When its signature is not 65 bytes long.
    pub fn new(row: &ChannelRow, newest: &StoredVoucher) -> Result<Self, HeldError> {
        let signature = WalletSignature::parse(&newest.voucher.signature)
            .map_err(|source| HeldError::Voucher { channel: row.id, source })?;
        let voucher = Voucher {
            channel: row.id,
            amount: newest.amount,
            statement: keccak256(&newest.voucher.statement),
        };
        let peer = Some(row.peer);
        Ok(Self { key: row.key, domain: row.domain, peer, voucher, signature })
    }

    /// As the contract takes it.
    #[must_use]
    pub const fn redemption(&self) -> Redemption {
        Redemption { key: self.key, voucher: self.voucher, signature: self.signature }
    }
}

/// Of a channel that pays this node; `None` while it has no voucher.
///
/// # Errors
/// When the ledger cannot be read, or the voucher is damaged.
pub async fn held_of(ledger: &Ledger, row: &ChannelRow) -> Result<Option<Held>, HeldError> {
    let newest = ledger.newest_on_channel(row.id, Role::Payee).await?;
    newest.map(|newest| Held::new(row, &newest)).transpose()
}

/// All that the ledger holds for channels of this chain and contract that are not closed. Those of
/// another chain are left out; a damaged voucher is logged, and does not keep the others back.
///
/// # Errors
/// When the ledger cannot be read.
pub async fn held(ledger: &Ledger, domain: &Domain) -> Result<Vec<Held>, LedgerError> {
    let mut all = Vec::new();
    for row in ledger.channels().await? {
        let ours = row.role == Role::Payee && row.domain == *domain;
        if !ours || row.status == ChannelStatus::Closed {
            continue;
        }
        match held_of(ledger, &row).await {
            Ok(found) => all.extend(found),
            Err(HeldError::Ledger(error)) => return Err(error),
            Err(error @ HeldError::Voucher { .. }) => tracing::error!("{error}"),
        }
    }
    Ok(all)
}
