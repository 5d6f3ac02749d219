//! A tenant that asks a provider's made-up programs for bytes, and pays for them.

use std::sync::Arc;

use anyhow::Result;
use sluice_ledger::{Ledger, Role};
use sluice_metering::{Payer, Terms};
use sluice_proto::Keypair;
use sluice_transport::{Clock, Session};
use sluice_tunnel::{Account, carry};

use super::bank::Purser;
use super::echo::{Typing, Typist};
use super::program::{Asked, Outcome, Program};
use super::provider::{account_options, put_lease};

/// A tenant's end of a paid session.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its account.
    pub account: Account,
    connection: quinn::Connection,
    clock: Clock,
}

impl Guest {
    /// Begins to pay for a session. `payee` signed the terms.
    ///
    /// # Errors
    /// When the ledger does not take the lease.
    pub async fn begin(
        session: &Session,
        payee: &Keypair,
        ledger: Ledger,
        terms: Terms,
        purser: &Purser,
        clock: Clock,
    ) -> Result<Self> {
        put_lease(&ledger, payee, &terms, purser, Role::Payer).await?;
        let payer = Payer::new(terms, Some(purser.purse.clone()), 1, None);
        let connection = session.connection().clone();
        let options = account_options(ledger, Role::Payer, clock.clone(), None);
        let account = Account::payer(payer, connection.clone(), options);
        Ok(Self { account, connection, clock })
    }
}

/// Asks for some bytes each way on a stream of its own, and hears them out.
///
/// # Errors
/// When the stream broke.
pub async fn fetch(guest: Guest, asked: Asked, outcome: Arc<Outcome>) -> Result<()> {
    let streams = guest.connection.open_bi().await?;
    let program = Program::asking(asked, outcome);
    let preamble = Some(asked.encode());
    let (_, ended) = carry(program, &guest.connection, &guest.account, streams, preamble).await;
    Ok(ended?)
}

/// Types, and hears it said back; how many bytes came.
///
/// # Errors
/// When the stream broke.
pub async fn chat(guest: &Guest, typing: Typing) -> Result<u64> {
    let streams = guest.connection.open_bi().await?;
    let typist = Typist::new(typing, guest.clock.clone());
    let preamble = Some(Asked::ECHO.encode());
    let (_, ended) = carry(&typist, &guest.connection, &guest.account, streams, preamble).await;
    ended?;
    Ok(typist.heard())
}
