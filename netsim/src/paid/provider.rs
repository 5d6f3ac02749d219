//! A provider that serves made-up programs, and is paid for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::Result;
use parking_lot::Mutex;
use sluice_ledger::{Edge, LeaseRow, Ledger, Role};
use sluice_metering::{Payee, Terms};
use sluice_proto::{Amount, Keypair};
use sluice_transport::{Clock, Session};
use sluice_tunnel::{Account, AccountOptions, Persist, carry};
use tokio::sync::mpsc;

use super::bank::{Purser, stored};
use super::echo::Echo;
use super::program::{Asked, Outcome, Program};

/// The relay is told of what was delivered in steps of this many bytes.
const DELIVERED_STEP: u64 = 16 * 1024;

/// What a provider serves with.
#[derive(Debug)]
pub struct ServeOptions {
    /// Its identity.
    pub key: Keypair,
    /// Where it writes what it earned.
    pub ledger: Ledger,
    /// The terms of the lease.
    pub terms: Terms,
    /// What the tenant pays with.
    pub purser: Purser,
    /// The network's clock.
    pub clock: Clock,
    /// Those that pay relays wake this account.
    pub waits: Arc<Mutex<Option<Account>>>,
}

/// A session that is served.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its account.
    pub account: Account,
    /// What the programs heard, each in its own stream.
    pub outcomes: Arc<Mutex<Vec<Arc<Outcome>>>>,
}

impl Served {
    /// Bytes that the provider's programs heard.
    #[must_use]
    pub fn heard(&self) -> u64 {
        self.outcomes.lock().iter().map(|o| o.heard()).sum()
    }
}

/// Serves a session until it ends.
///
/// # Errors
/// When the ledger does not take the lease.
pub async fn serve(session: Session, options: ServeOptions) -> Result<Served> {
    let ServeOptions { key, ledger, terms, purser, clock, waits } = options;
    put_lease(&ledger, &key, &terms, &purser, Role::Payee).await?;
    let payee = Payee::new(terms, Some(purser.purse.channel), 1, None);
    let reported = AtomicU64::new(0);
    let conn = session.clone();
    let delivered = Box::new(move |total: u64| {
        if total - reported.load(Relaxed) >= DELIVERED_STEP {
            reported.store(total, Relaxed);
            conn.set_delivered(total);
        }
    });
    let options = account_options(ledger, Role::Payee, clock, Some(delivered));
    let account = Account::payee(payee, session.connection().clone(), options);
    *waits.lock() = Some(account.clone());
    tokio::spawn(follow_path(session.clone(), account.clone()));
    let served = Served { account, outcomes: Arc::default() };
    tokio::spawn(accept(session, served.clone()));
    Ok(served)
}

/// The gate follows the path.
async fn follow_path(session: Session, account: Account) {
    let mut path = session.path();
    loop {
        let is_direct = path.borrow_and_update().is_some_and(|info| info.relay.is_none());
        account.set_relay(session.relay_flow());
        if is_direct {
            session.set_delivered(0);
        }
        if path.changed().await.is_err() {
            return;
        }
    }
}

async fn accept(session: Session, served: Served) {
    let connection = session.connection().clone();
    while let Ok((send, mut recv)) = connection.accept_bi().await {
        let (connection, served) = (connection.clone(), served.clone());
        tokio::spawn(async move {
            let mut asked = [0; Asked::LEN];
            if recv.read_exact(&mut asked).await.is_err() {
                return;
            }
            let (asked, streams) = (Asked::decode(&asked), (send, recv));
            let (carried, ended) = if asked == Asked::ECHO {
                carry(Echo::default(), &connection, &served.account, streams, None).await
            } else {
                let outcome = Arc::<Outcome>::default();
                served.outcomes.lock().push(outcome.clone());
                let program = Program::answering(asked, outcome);
                carry(program, &connection, &served.account, streams, None).await
            };
            tracing::debug!(?carried, ?ended, "a provider's stream ended");
        });
    }
}

/// Writes down a lease and the channel that pays it.
pub(super) async fn put_lease(
    ledger: &Ledger,
    payee: &Keypair,
    terms: &Terms,
    purser: &Purser,
    role: Role,
) -> Result<()> {
    let peer = match role {
        Role::Payee => terms.payer,
        Role::Payer => terms.payee,
    };
    let signed = terms.sign(payee);
    ledger.put_channel(purser.row(role, peer)).await?;
    let row = LeaseRow {
        id: terms.lease,
        edge: Edge::Tenant,
        role,
        peer,
        terms: signed.terms,
        terms_signature: signed.signature,
        channel: (!terms.price.is_zero()).then_some(purser.purse.channel.id),
        base: Amount(0),
        sessions: 1,
        closed: false,
    };
    Ok(ledger.put_lease(row).await?)
}

/// An account whose vouchers go to a ledger.
pub(super) fn account_options(
    ledger: Ledger,
    role: Role,
    clock: Clock,
    delivered: Option<Box<dyn Fn(u64) + Send + Sync>>,
) -> AccountOptions {
    let (persist, requests) = mpsc::unbounded_channel();
    // The account counts lies itself; deposits are never used up here.
    let (lies, _) = mpsc::unbounded_channel();
    let (exhausted, _) = mpsc::unbounded_channel();
    tokio::spawn(keep(ledger, role, requests));
    AccountOptions { persist, lies, exhausted, delivered, clock }
}

async fn keep(ledger: Ledger, role: Role, mut requests: mpsc::UnboundedReceiver<Persist>) {
    while let Some(request) = requests.recv().await {
        let row = stored(&request.record);
        let kept = match role {
            Role::Payer => ledger.record_signed(row).await,
            Role::Payee => ledger.record_earned(row).await,
        };
        request.done(kept.is_ok());
    }
}
