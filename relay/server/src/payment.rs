//! Whether a holder's channel pays this relay.

use sluice_chain::{ChainError, View};
use sluice_ledger::{ChannelRow, ChannelStatus, LedgerError, Role};
use sluice_metering::{Channel, OnChain, Payment, Terms, Unfit};
use sluice_proto::eth::BIND_EXPORTER_LABEL;
use sluice_proto::wire::{code, pay};
use sluice_proto::{Amount, ChannelKey, PeerId};

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
        if let LedgerError::ChannelInUse { .. } | LedgerError::BaseTooLow { .. } = &error {
            return Self { code: code::CHANNEL, message: error.to_string() };
        }
        // The holder need not know our paths.
        tracing::error!(%error, "the ledger failed");
        Self { code: code::LEDGER, message: "the relay cannot use its ledger now".into() }
    }
}

/// Why a channel is not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The chain cannot be read: it may pay all the same.
    Unknown(ChainError),
    /// What is wrong with it.
    Unfit(Unfit),
}

impl From<ChainError> for Refused {
    fn from(error: ChainError) -> Self {
        Self::Unknown(error)
    }
}

impl From<Unfit> for Refused {
    fn from(unfit: Unfit) -> Self {
        Self::Unfit(unfit)
    }
}

impl From<Unfit> for Declined {
    fn from(unfit: Unfit) -> Self {
        Self { code: code::CHANNEL, message: unfit.to_string() }
    }
}

impl From<Refused> for Declined {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unfit(unfit) => unfit.into(),
            Refused::Unknown(error) => {
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
    /// `base` is 0 until the lease is known.
    pub(crate) channel: Channel,
    pub(crate) chain: OnChain,
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
    ) -> Result<Shown, Refused> {
        let payment = self.terms();
        let mut exporter = [0; 32];
        // Nobody signs for zeros: a connection that is gone binds nothing.
        let _ = connection.export_keying_material(&mut exporter, BIND_EXPORTER_LABEL, b"");
        let (id, key) = payment.channel_bound(binding, holder, &exporter)?;
        let chain = self.state(&key).await?;
        let deposit = terms.usable(chain.deposit, chain.settled, self.unfinal_credit);
        let (domain, signer) = (payment.domain, key.signer);
        Ok(Shown { key, channel: Channel { id, domain, signer, deposit, base: Amount(0) }, chain })
    }

    /// The channel as the chain has it, if it can pay.
    pub(crate) async fn state(&self, key: &ChannelKey) -> Result<OnChain, Refused> {
        let id = key.id(&self.chain.domain());
        let latest = self.chain.channel(key, View::Latest).await?.ok_or(Unfit::Missing(id))?;
        let settled = self.chain.channel(key, View::Final).await?;
        let chain = OnChain {
            deposit: latest.deposit,
            settled: settled.map_or(Amount(0), |settled| settled.deposit),
            redeemed: latest.redeemed,
            period_s: latest.period_s,
            closing: latest.closing_at_unix_s.is_some(),
            closed: latest.closed,
        };
        chain.check(id, &self.terms())?;
        Ok(chain)
    }

    /// What the ledger keeps about a channel that was shown.
    pub(crate) fn row(&self, shown: &Shown, holder: PeerId) -> ChannelRow {
        ChannelRow {
            id: shown.channel.id,
            key: shown.key,
            domain: shown.channel.domain,
            deposit: shown.chain.deposit,
            role: Role::Payee,
            peer: holder,
            status: ChannelStatus::Open,
            period_s: shown.chain.period_s,
        }
    }
}
