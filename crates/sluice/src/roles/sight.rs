//! A tenant's channel, looked at for as long as a provider serves on it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sluice_ledger::{ChannelRow, Ledger};
use sluice_metering::{Reason, Sight, Terms, Unfit};
use sluice_proto::wire::code;
use sluice_proto::{Amount, ChannelId};
use sluice_transport::{Clock, Session};
use sluice_tunnel::Account;

use super::channel::Money;

/// A channel whose deposit is used up is looked at this often, and whether bytes moved on any.
const DEPOSIT_LOOK: Duration = Duration::from_secs(2);

/// A session that is served on a channel.
pub(crate) struct Served {
    pub(crate) session: Session,
    pub(crate) account: Account,
    pub(crate) terms: Terms,
    pub(crate) channel: ChannelId,
    /// The most that may be earned on it, cumulative; `None`: all that it holds.
    pub(crate) earned_max: Option<Amount>,
    pub(crate) money: Money,
    pub(crate) ledger: Ledger,
    pub(crate) clock: Clock,
}

/// What a look found.
enum Found {
    /// It is open, and so much of it may be earned by now.
    Open(Amount),
    /// It pays no more, and why.
    Ends(&'static str),
    /// Its opening was undone, or the node does not know of it yet. What may be earned stays what it
    /// was: the credit on a deposit that is not final.
    Absent,
}

impl Served {
    /// Counts top-ups and what became final, and ends the session once the channel pays no more or was
    /// not seen for too long (see [`Sight`]).
    pub(crate) async fn follow_channel(self) {
        let period_s = self.terms.payment.map_or(0, |payment| payment.period_s);
        let mut sight = Sight::new(period_s, self.money.look, self.clock.now());
        loop {
            self.clock.sleep(DEPOSIT_LOOK.min(self.money.look)).await;
            let (now, snapshot) = (self.clock.now(), self.account.snapshot());
            let total = snapshot.counted.total();
            if snapshot.stalled != Some(Reason::Deposit) && !sight.is_due(total, false, now) {
                continue;
            }
            sight.handle_look(total, now);
            match self.look().await {
                Ok(Found::Open(usable)) => {
                    sight.handle_open(now);
                    self.account.set_deposit(usable);
                }
                Ok(Found::Ends(why)) => return self.end(why).await,
                Ok(Found::Absent) => {
                    tracing::warn!(channel = %self.channel, "the chain does not know it");
                }
                Err(error) => {
                    tracing::warn!(channel = %self.channel, "serving on within its deposit: {error:#}");
                }
            }
            if sight.is_lost(self.clock.now()) {
                return self.end(&unseen(&sight, self.clock.now())).await;
            }
        }
    }

    async fn look(&self) -> Result<Found> {
        let row = self.ledger.channel(self.channel).await?.context("the ledger lost it")?;
        let payment = self.terms.payment.context("the terms name no chain")?;
        let chain = match self.money.on_chain(&row.key, &payment).await {
            Ok(chain) => chain,
            Err(error) => {
                return match error.downcast_ref() {
                    Some(Unfit::Closed(_)) => Ok(Found::Ends("is closed: open another")),
                    Some(Unfit::Closing(_)) => {
                        Ok(Found::Ends("is being closed by its payer: open another"))
                    }
                    Some(_) | None => Err(error),
                };
            }
        };
        let Some(chain) = chain else { return Ok(Found::Absent) };
        // No voucher is taken that the ledger's row does not cover.
        if chain.deposit > row.deposit {
            self.ledger.put_channel(ChannelRow { deposit: chain.deposit, ..row }).await?;
        }
        let credit = self.money.unfinal_credit;
        let usable = self.terms.usable(chain.deposit, chain.settled, credit);
        Ok(Found::Open(self.earned_max.map_or(usable, |most| usable.min(most))))
    }

    /// Gives nothing more, lets the tenant pay for what it got, and ends the session.
    async fn end(&self, why: &str) {
        let why = format!("channel {} {why}", self.channel);
        tracing::info!(tenant = %self.session.peer(), "nothing more is served: {why}");
        self.account.channel_ends();
        self.account.settle().await;
        self.session.close(code::CHANNEL, &why);
    }
}

fn unseen(sight: &Sight, now: Instant) -> String {
    let hours = now.saturating_duration_since(sight.seen()).as_secs() / 3600;
    format!("could not be looked at for {hours} hours: it is served on once it can be")
}
