//! Who of a fleet redeems: one process for each account that pays fees, and for each channel.

use std::time::Duration;

use anyhow::Result;
use sluice_ledger::{Duty, Ledger};
use sluice_proto::EthAddress;
use sluice_transport::Clock;

use super::Held;

/// How long after a ledger whose server is away is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// The duties of a round, to be left after it.
#[derive(Debug)]
pub(crate) struct Duties {
    ledger: Ledger,
    taken: Vec<Duty>,
}

impl Duties {
    /// Takes the account's and the channels' duties, before the chain is looked at: what nobody else
    /// redeems meanwhile stays in `held`. Nothing does while another process sends from the account.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub(crate) async fn take(
        ledger: &Ledger,
        account: EthAddress,
        held: &mut Vec<Held>,
    ) -> Result<Self> {
        let mut duties = Self { ledger: ledger.clone(), taken: Vec::new() };
        let taken = duties.take_all(account, held).await;
        if taken.is_err() {
            duties.leave().await;
            held.clear();
            return taken.map(|()| Self { ledger: ledger.clone(), taken: Vec::new() });
        }
        Ok(duties)
    }

    async fn take_all(&mut self, account: EthAddress, held: &mut Vec<Held>) -> Result<()> {
        if held.is_empty() || !self.try_take(Duty::Spend(account)).await? {
            held.clear();
            return Ok(());
        }
        let mut ours = Vec::with_capacity(held.len());
        for one in held.iter() {
            if self.try_take(Duty::Redeem(one.voucher.channel)).await? {
                ours.push(*one);
            }
        }
        *held = ours;
        Ok(())
    }

    async fn try_take(&mut self, duty: Duty) -> Result<bool> {
        let is_taken = self.ledger.take_duty(duty).await?;
        if is_taken {
            self.taken.push(duty);
        }
        Ok(is_taken)
    }

    /// Leaves them; what the ledger's server does not take now, since it is away, later.
    pub(crate) async fn leave(&mut self) {
        for duty in self.taken.drain(..) {
            match self.ledger.leave_duty(duty).await {
                Err(error) if error.is_passing() => {
                    tokio::spawn(leave_later(self.ledger.clone(), duty));
                }
                Err(error) => tracing::warn!("{error}"),
                Ok(()) => {}
            }
        }
    }
}

async fn leave_later(ledger: Ledger, duty: Duty) {
    let clock = Clock::default();
    loop {
        clock.sleep(AGAIN).await;
        match ledger.leave_duty(duty).await {
            Err(error) if error.is_passing() => {}
            Ok(()) | Err(_) => return,
        }
    }
}
