//! Whether a holder's channel pays this relay.

use sluice_chain::{ChainError, ChannelState, View};
use sluice_ledger::{ChannelRow, ChannelStatus, LedgerError, Role};
use sluice_metering::{Channel, Payment, Terms, VoucherRecord};
use sluice_proto::eth::BIND_EXPORTER_LABEL;
use sluice_proto::wire::{code, pay};
use sluice_proto::{Amount, ChannelKey, EthAddress, PeerId, WalletSignature};

use crate::config::RelayPayment;

/// Why a reservation is not made: a code and words for a person.
#[derive(Debug)]
pub(crate) struct Declined {
    pub(crate) code: u32,
    pub(crate) message: String,
}

pub(crate) fn declined<T>(code: u32, message: impl Into<String>) -> Result<T, Declined> {
    Err(Declined { code, message: message.into() })
}

impl From<LedgerError> for Declined {
    fn from(error: LedgerError) -> Self {
        if let LedgerError::Owned { what, .. } = &error {
            // The others of a fleet are its operator's business.
            let message = format!("{what} is in use at another relay: show another channel here");
            return Self { code: code::CHANNEL, message };
        }
        // The holder need not know our paths.
        tracing::error!(%error, "the ledger failed");
        Self { code: code::LEDGER, message: "the relay cannot use its ledger now".into() }
    }
}

/// Why a channel does not pay.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// The chain cannot be read: it may pay all the same.
    Unknown(ChainError),
    /// What is wrong with it.
    Channel(String),
}

impl From<ChainError> for Unfit {
    fn from(error: ChainError) -> Self {
        Self::Unknown(error)
    }
}

impl From<Unfit> for Declined {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Channel(message) => Self { code: code::CHANNEL, message },
            Unfit::Unknown(error) => {
                tracing::warn!(%error, "the chain could not be read");
                let message = "the relay cannot read the chain now".into();
                Self { code: code::CHANNEL, message }
            }
        }
    }
}

/// A channel that was found to pay this relay.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown {
    pub(crate) key: ChannelKey,
    /// `base` is what was earned or redeemed on it before.
    pub(crate) channel: Channel,
    pub(crate) state: ChannelState,
    /// How much of the deposit is final.
    pub(crate) settled: Amount,
}

impl Shown {
    /// A lease begins at what was earned or redeemed on its channel before. Where a voucher on these
    /// terms counts from 0 and reaches that, it was earned on this very lease, and forgotten.
    pub(crate) fn recall(&mut self, terms: &Terms, voucher: &pay::Voucher) {
        let from_zero = Channel { base: Amount(0), ..self.channel };
        let found = VoucherRecord::verify(terms, Some(&from_zero), voucher);
        if found.is_ok_and(|found| found.amount >= self.channel.base) {
            self.channel = from_zero;
        }
    }
}

impl RelayPayment {
    /// The payment part of this relay's terms.
    pub(crate) fn terms(&self) -> Payment {
        Payment {
            domain: self.chain.domain(),
            token: self.chain.token(),
            payee: self.payee,
            payout: self.payout,
            period_s: self.period_s,
        }
    }

    /// Checks the channel that `holder` shows on `connection`.
    pub(crate) async fn check(
        &self,
        connection: &quinn::Connection,
        holder: &PeerId,
        binding: &pay::ChannelBinding,
        terms: &Terms,
    ) -> Result<Shown, Declined> {
        let key = self.key_of(binding)?;
        let domain = self.chain.domain();
        let id = key.id(&domain);
        if binding.channel != id.0[..] {
            return declined(
                code::CHANNEL,
                format!(
                    "the channel is not one of payee {}, payout {} and token {} at contract {} on \
                     chain {}",
                    self.payee, self.payout, key.token, domain.contract, domain.chain_id
                ),
            );
        }
        let mut exported = [0; 32];
        let bound = connection.export_keying_material(&mut exported, BIND_EXPORTER_LABEL, b"");
        let digest = domain.bind_digest(id, &holder.to_bytes(), &exported);
        let signature = WalletSignature::parse(&binding.signature)
            .or_else(|e| declined(code::CHANNEL, format!("channel binding: {e}")))?;
        if bound.is_err() || signature.recover(digest) != Some(key.signer) {
            return declined(
                code::CHANNEL,
                format!("the channel binding is not signed by {} for this connection", key.signer),
            );
        }
        let (state, settled) = self.state(&key).await?;
        // Before what was earned is read: nobody else earns on it from now on.
        self.ledger.take_channel(id).await?;
        let earned = self.ledger.newest_on_channel(id, Role::Payee).await?;
        let base = earned.map_or(Amount(0), |v| v.amount).max(state.redeemed);
        let deposit = terms.usable(state.deposit, settled, self.unfinal_credit);
        let channel = Channel { id, domain, signer: key.signer, deposit, base };
        Ok(Shown { key, channel, state, settled })
    }

    fn key_of(&self, binding: &pay::ChannelBinding) -> Result<ChannelKey, Declined> {
        let address = |field, bytes: &[u8]| {
            EthAddress::parse(field, bytes)
                .or_else(|e| declined(code::CHANNEL, format!("channel binding: {e}")))
        };
        let Ok(salt) = <[u8; 32]>::try_from(&binding.salt[..]) else {
            return declined(code::CHANNEL, "channel binding: salt must be 32 bytes");
        };
        Ok(ChannelKey {
            payer: address("payer", &binding.payer)?,
            signer: address("signer", &binding.signer)?,
            payee: self.payee,
            payout: self.payout,
            token: self.chain.token(),
            salt,
        })
    }

    /// The channel as the chain has it, if it can pay, and how much of its deposit is final.
    pub(crate) async fn state(&self, key: &ChannelKey) -> Result<(ChannelState, Amount), Unfit> {
        let id = key.id(&self.chain.domain());
        let unfit = |what: String| Err(Unfit::Channel(format!("channel {id} {what}")));
        let Some(state) = self.chain.channel(key, View::Latest).await? else {
            return unfit("is not on the chain: open it first".into());
        };
        if state.closed {
            return unfit("is closed: open another".into());
        }
        if state.closing_at_unix_s.is_some() {
            return unfit("is being closed by its payer: open another".into());
        }
        if state.period_s < self.period_s {
            return unfit(format!(
                "closes after {} s, but this relay asks for {} s or more",
                state.period_s, self.period_s
            ));
        }
        let settled = self.chain.channel(key, View::Final).await?;
        Ok((state, settled.map_or(Amount(0), |s| s.deposit)))
    }

    /// What the ledger keeps about a channel that was shown.
    pub(crate) fn row(&self, shown: &Shown, holder: PeerId) -> ChannelRow {
        ChannelRow {
            id: shown.channel.id,
            key: shown.key,
            domain: shown.channel.domain,
            deposit: shown.state.deposit,
            role: Role::Payee,
            peer: holder,
            status: ChannelStatus::Open,
            period_s: shown.state.period_s,
        }
    }
}
