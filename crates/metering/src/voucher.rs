//! Building and checking vouchers.

use bytes::Bytes;
use sluice_proto::eth::keccak256;
use sluice_proto::{Amount, LeaseId, Voucher, WalletSignature, amount_due, wire};

use crate::{Channel, Counts, Lie, Purse, Statement, Terms};

/// A voucher that was checked or signed here, with what its statement says: what a ledger keeps.
#[derive(Debug, Clone, PartialEq)]
pub struct VoucherRecord {
    /// The lease, or the reservation on a relay's edge.
    pub lease: LeaseId,
    /// The session that its positions refer to.
    pub session: u64,
    /// What it pays for, cumulative.
    pub counts: Counts,
    /// What it pays, cumulative over the channel.
    pub amount: Amount,
    /// As sent or received.
    pub voucher: wire::pay::Voucher,
}

impl VoucherRecord {
    /// Checks a voucher by itself: form, lease, channel, amount for its counts, signature, deposit.
    /// Whether its counts are true is for the account to say.
    ///
    /// # Errors
    /// When it does not hold: what is wrong with it.
    pub fn verify(
        terms: &Terms,
        channel: Option<&Channel>,
        voucher: &wire::pay::Voucher,
    ) -> Result<Self, Lie> {
        let statement = Statement::parse(&voucher.statement)?;
        Self::verify_parsed(terms, channel, voucher, &statement)
    }

    pub(crate) fn verify_parsed(
        terms: &Terms,
        channel: Option<&Channel>,
        voucher: &wire::pay::Voucher,
        statement: &Statement,
    ) -> Result<Self, Lie> {
        let amount = Amount::parse(&voucher.amount).map_err(|e| Lie::Malformed(e.to_string()))?;
        if statement.lease != terms.lease {
            return Err(Lie::WrongLease { expected: terms.lease, found: statement.lease });
        }
        let counts = statement.counts;
        let due = due(terms, channel, counts);
        if due != Some(amount) {
            let due = due.unwrap_or(Amount(u128::MAX));
            return Err(Lie::WrongAmount { due, found: amount, counts });
        }
        if !terms.price.is_zero() {
            let channel = channel.ok_or(Lie::NoChannel)?;
            verify_signature(channel, voucher, amount)?;
        }
        let (lease, session) = (statement.lease, statement.session);
        Ok(Self { lease, session, counts, amount, voucher: voucher.clone() })
    }

    /// Builds the voucher for `statement`; at price 0 it bears no signature. `None` when the amount
    /// does not fit or exceeds the deposit.
    pub(crate) fn sign(
        terms: &Terms,
        purse: Option<&Purse>,
        mut statement: Statement,
    ) -> Option<(Self, Statement)> {
        let channel = purse.map(|p| &p.channel);
        let amount = due(terms, channel, statement.counts)?;
        if channel.is_some_and(|c| amount > c.deposit) {
            return None;
        }
        let bytes = statement.encode_fitting();
        let mut voucher = wire::pay::Voucher {
            statement: bytes,
            amount: Bytes::copy_from_slice(&amount.to_bytes()),
            ..Default::default()
        };
        if !terms.price.is_zero() {
            let purse = purse?;
            let signed = Voucher {
                channel: purse.channel.id,
                amount,
                statement: keccak256(&voucher.statement),
            };
            let signature = purse.key.sign(signed.digest(&purse.channel.domain));
            voucher.channel = Bytes::copy_from_slice(&purse.channel.id.0);
            voucher.signature = Bytes::copy_from_slice(&signature.0);
        }
        let (lease, session, counts) = (statement.lease, statement.session, statement.counts);
        Some((Self { lease, session, counts, amount, voucher }, statement))
    }

    /// Keccak-256 of the encoded statement: tells vouchers of the same amount apart.
    #[must_use]
    pub fn statement_hash(&self) -> [u8; 32] {
        keccak256(&self.voucher.statement)
    }

    /// Whether it says more than `other`: a higher amount, or the same amount for higher counts.
    #[must_use]
    pub fn exceeds(&self, other: Option<&Self>) -> bool {
        other.is_none_or(|o| {
            self.amount > o.amount || (self.amount == o.amount && self.counts.since(o.counts) > 0)
        })
    }
}

/// What `counts` cost in all on this edge; `None` when it does not fit.
pub(crate) fn due(terms: &Terms, channel: Option<&Channel>, counts: Counts) -> Option<Amount> {
    let base = channel.map_or(Amount(0), |c| c.base);
    amount_due(base, counts.up, counts.down, terms.price)
}

fn verify_signature(
    channel: &Channel,
    voucher: &wire::pay::Voucher,
    amount: Amount,
) -> Result<(), Lie> {
    if voucher.channel != channel.id.0.as_slice() {
        return Err(Lie::WrongChannel { expected: channel.id });
    }
    let signature =
        WalletSignature::parse(&voucher.signature).map_err(|e| Lie::Malformed(e.to_string()))?;
    let statement = keccak256(&voucher.statement);
    let digest = Voucher { channel: channel.id, amount, statement }.digest(&channel.domain);
    let found = signature.recover(digest);
    if found != Some(channel.signer) {
        return Err(Lie::WrongSigner { expected: channel.signer, found });
    }
    if amount > channel.deposit {
        return Err(Lie::OverDeposit { deposit: channel.deposit, amount });
    }
    Ok(())
}
