//! Whether a channel that a payer shows pays an edge.

use sluice_proto::wire::pay;
use sluice_proto::{
    Amount, ChannelId, ChannelKey, EthAddress, IdError, PeerId, WalletSignature, amount_due,
};

use crate::{Channel, Payment, Statement, Terms, VoucherRecord};

/// Why a channel does not pay an edge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A field of what is shown has the wrong form.
    #[error("channel binding: {0}")]
    Field(#[from] IdError),
    /// The salt has the wrong length.
    #[error("channel binding: salt must be 32 bytes")]
    Salt,
    /// A channel to somebody else, of another token, or elsewhere.
    #[error(
        "the channel is not one of payee {}, payout {} and token {} at contract {} on chain {}",
        .0.payee, .0.payout, .0.token, .0.domain.contract, .0.domain.chain_id
    )]
    Elsewhere(Payment),
    /// Its signer did not sign for this connection.
    #[error("the channel binding is not signed by {0} for this connection")]
    Unbound(EthAddress),
    /// The chain does not have it.
    #[error("channel {0} is not on the chain: open it first")]
    Missing(ChannelId),
    /// It is settled.
    #[error("channel {0} is closed: open another")]
    Closed(ChannelId),
    /// Its payer wants it back.
    #[error("channel {0} is being closed by its payer: open another")]
    Closing(ChannelId),
    /// Its payer could have it back too soon.
    #[error("channel {channel} closes after {found} s, but this node asks for {asked} s or more")]
    Period {
        /// The channel.
        channel: ChannelId,
        /// What the terms ask for.
        asked: u32,
        /// What it has.
        found: u32,
    },
    /// All that it holds was earned before.
    #[error("channel {0} has nothing left: top it up, or open another")]
    Spent(ChannelId),
}

impl Unfit {
    /// The channel that ends, so that a lease that it pays can't go on.
    #[must_use]
    pub fn ending(&self) -> Option<ChannelId> {
        if let Self::Closed(id) | Self::Closing(id) = self { Some(*id) } else { None }
    }
}

/// A channel as the chain has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnChain {
    /// Ever deposited.
    pub deposit: Amount,
    /// What of it is final.
    pub settled: Amount,
    /// Paid out so far.
    pub redeemed: Amount,
    /// Seconds between its payer's wish to close and its refund.
    pub period_s: u32,
    /// Its payer wants it back.
    pub closing: bool,
    /// It is settled for good.
    pub closed: bool,
}

impl OnChain {
    /// Whether what is signed on it can be redeemed in time.
    ///
    /// # Errors
    /// When it can't.
    pub fn check(&self, channel: ChannelId, payment: &Payment) -> Result<(), Unfit> {
        let (asked, found) = (payment.period_s, self.period_s);
        match (self.closed, self.closing, found < asked) {
            (true, _, _) => Err(Unfit::Closed(channel)),
            (_, true, _) => Err(Unfit::Closing(channel)),
            (_, _, true) => Err(Unfit::Period { channel, asked, found }),
            _ => Ok(()),
        }
    }
}

impl Payment {
    /// The channel that somebody shows under these terms.
    ///
    /// # Errors
    /// When a field of it has the wrong form, or it is not one of these terms.
    pub fn channel_shown(
        &self,
        shown: &pay::ChannelBinding,
    ) -> Result<(ChannelId, ChannelKey), Unfit> {
        let key = ChannelKey {
            payer: EthAddress::parse("payer", &shown.payer)?,
            signer: EthAddress::parse("signer", &shown.signer)?,
            payee: self.payee,
            payout: self.payout,
            token: self.token,
            salt: shown.salt.as_ref().try_into().map_err(|_| Unfit::Salt)?,
        };
        let id = key.id(&self.domain);
        if shown.channel == id.0[..] { Ok((id, key)) } else { Err(Unfit::Elsewhere(*self)) }
    }

    /// The channel that `payer` binds to a connection, which `exporter` names.
    ///
    /// # Errors
    /// As [`channel_shown`](Self::channel_shown), and when its signer did not sign for the connection.
    pub fn channel_bound(
        &self,
        binding: &pay::ChannelBinding,
        payer: &PeerId,
        exporter: &[u8; 32],
    ) -> Result<(ChannelId, ChannelKey), Unfit> {
        let (id, key) = self.channel_shown(binding)?;
        let digest = self.domain.bind_digest(id, &payer.to_bytes(), exporter);
        let signer = WalletSignature::parse(&binding.signature)?.recover(digest);
        if signer == Some(key.signer) { Ok((id, key)) } else { Err(Unfit::Unbound(key.signer)) }
    }
}

impl Channel {
    /// The channel of a lease that begins: where the newest voucher on it ended, under whatever lease
    /// (`earned`), or what the chain says was redeemed, if that is more. A payee whose ledger forgot
    /// the lease may find that it began elsewhere: where `shown`, a voucher of it that the payer
    /// signed, says so and reaches as far.
    ///
    /// # Errors
    /// [`Unfit::Spent`].
    pub fn begin(
        self,
        terms: &Terms,
        chain: &OnChain,
        earned: Option<Amount>,
        shown: Option<&pay::Voucher>,
    ) -> Result<Self, Unfit> {
        let base = earned.unwrap_or(Amount(0)).max(chain.redeemed);
        if let Some(remembered) = shown.and_then(|shown| self.recall(terms, base, shown)) {
            return Ok(remembered);
        }
        if base >= chain.deposit {
            return Err(Unfit::Spent(self.id));
        }
        Ok(Self { base, ..self })
    }

    fn recall(self, terms: &Terms, reached: Amount, shown: &pay::Voucher) -> Option<Self> {
        let statement = Statement::parse(&shown.statement).ok()?;
        let amount = Amount::parse(&shown.amount).ok()?;
        let (up, down) = (statement.counts.up, statement.counts.down);
        let cost = amount_due(Amount(0), up, down, terms.price)?;
        let channel = Self { base: Amount(amount.0.checked_sub(cost.0)?), ..self };
        let holds =
            amount >= reached && VoucherRecord::verify(terms, Some(&channel), shown).is_ok();
        holds.then_some(channel)
    }
}
