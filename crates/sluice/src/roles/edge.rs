//! Leases between tenant and provider: how a session comes to terms.
//!
//! The tenant says hello, with the lease that it wants to go on with; the provider offers signed
//! terms and shows the newest voucher it holds; the tenant accepts, names the channel that pays and
//! shows the newest voucher it ever signed; both go on from the higher one, once it is durable with
//! both. Whoever forgot the lease itself, since its state was restored from a backup, takes it up
//! again from what the other shows: the provider the terms, which it signed once, and the tenant the
//! channel, which its wallet opened once.

#![expect(clippy::disallowed_methods, reason = "the id of a lease is drawn here")]
#![expect(clippy::wildcard_enum_match_arm, reason = "out of order is refused, whatever it is")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sluice_ledger::{
    ChannelRow, ChannelStatus, Edge, LeaseRow, Ledger, LedgerError, Recovery, Role, StoredVoucher,
};
use sluice_metering::{
    Channel, Lie, OnChain, Purse, Resumption, Terms, Unfit, VoucherRecord, accept_terms,
    check_accept, check_session, session_after, show_channel,
};
use sluice_proto::market::{DirectPolicy, Lease, SignedLease};
use sluice_proto::wire::{self, code, pay, session};
use sluice_proto::{
    Amount, EthAddress, Invited, Keypair, LeaseId, PeerId, Price, ServiceName, VERSION, WINDOW_MAX,
    window_bytes,
};
use sluice_transport::Session;

use super::channel::{CannotPay, Money, bind};
use super::control::Control;
use super::lease::{LeaseUnfit, check_terms};
use super::market::{Ended, LeaseState, Leases};
use super::starts::{Start, Starts};

/// A peer that does not answer within this is gone.
const ANSWER: Duration = Duration::from_secs(10);
/// The tenant opens its channel before it accepts: that takes a few blocks.
const ACCEPT: Duration = Duration::from_secs(180);

/// A lease that nobody has: asks for a new one.
const NO_LEASE: LeaseId = LeaseId([0; 32]);
/// What the older of two processes with one key is told.
const SUPERSEDED: &str = "another process with your keys started later, and stands";

/// What both sides hold once they came to terms.
pub(crate) struct Agreed {
    pub(crate) terms: Terms,
    pub(crate) session: u64,
    /// What the account goes on from.
    pub(crate) resumed: Resumption,
    pub(crate) control: Control,
    pub(crate) services: Vec<ServiceName>,
    /// The payee's view of the channel.
    pub(crate) channel: Option<Channel>,
    /// Who paid its deposit, as the payee knows it.
    pub(crate) wallet: Option<EthAddress>,
    /// The lease of an auction that the session goes on under, as the payee keeps it.
    pub(crate) award: Option<Arc<SignedLease>>,
    /// The payer's purse, and the gas that opening its channel took.
    pub(crate) purse: Option<Purse>,
    pub(crate) open_gas: u64,
    /// Of the tenant's process, as the provider keeps it while the session lasts.
    pub(crate) _start: Option<Start>,
}

/// What a provider offers to whoever is invited.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) key: Keypair,
    pub(crate) ledger: Ledger,
    pub(crate) money: Option<Money>,
    pub(crate) price: Price,
    pub(crate) rate_max: u64,
    pub(crate) starter_bytes: u64,
    pub(crate) idle_timeout: Duration,
    pub(crate) lease_for: Duration,
    pub(crate) services: Vec<ServiceName>,
    /// Of the tenants that have a session.
    pub(crate) starts: Starts,
    pub(crate) recovery: Recovery,
    /// What it won in auctions and must serve.
    pub(crate) leases: Option<Leases>,
}

impl Agreed {
    /// The most that may be earned on the session's channel, cumulative, whatever it holds: where the
    /// lease began, and its budget.
    pub(crate) fn earned_max(&self) -> Option<Amount> {
        earned_max(self.award.as_deref()?, &self.channel?)
    }

    /// Whether the lease allows a direct path.
    pub(crate) fn may_be_direct(&self) -> bool {
        self.award.as_ref().is_none_or(|award| award.lease().direct != DirectPolicy::Never)
    }
}

impl Host {
    /// Comes to terms with a tenant whose session just began. `now` is since the Unix epoch; `kept`
    /// tells what an account in memory has, which may be ahead of the disk at price 0.
    pub(crate) async fn welcome(
        &self,
        conn: &Session,
        now: Duration,
        kept: impl Fn(LeaseId) -> Option<VoucherRecord>,
    ) -> Result<Agreed> {
        let accepted = tokio::time::timeout(ANSWER, conn.connection().accept_bi());
        let accepted = accepted.await.context("the tenant did not say hello");
        let accepted = accepted.and_then(|accepted| accepted.context("the session ended at once"));
        // Else it would stand, with nobody to serve it.
        let (send, receive) =
            accepted.inspect_err(|_| conn.close(code::PROTOCOL, "no hello in time"))?;
        let mut control = Control::new(send, receive);
        match self.negotiate(conn, &mut control, now, kept).await {
            Ok(agreed) => Ok(Agreed { control, ..agreed }),
            Err(error) => {
                let (code, message) = refusal_of(&error);
                control
                    .send(session::session::Kind::Refusal(pay::Refusal { code, message }))
                    .await?;
                // Let the words arrive before the connection goes.
                let _ = tokio::time::timeout(Duration::from_secs(1), control.next()).await;
                conn.close(code, "refused");
                Err(error)
            }
        }
    }

    async fn negotiate(
        &self,
        conn: &Session,
        control: &mut Control,
        now: Duration,
        kept: impl Fn(LeaseId) -> Option<VoucherRecord>,
    ) -> Result<Agreed> {
        let session::session::Kind::Hello(hello) = control.next_within(ANSWER).await? else {
            bail!(Refused::new(code::PROTOCOL, "a session begins with hello"));
        };
        if !hello.versions.contains(&VERSION) {
            let message = format!("this provider speaks version {VERSION}");
            bail!(Refused::new(code::VERSION, &message));
        }
        let Some(start) = self.starts.begin(conn.peer(), hello.start) else {
            bail!(Refused::new(code::SUPERSEDED, SUPERSEDED));
        };
        let award = self.award(conn, &hello, now.as_secs())?;
        let row = match &award {
            Some(award) => self.awarded(award, now.as_secs()).await?,
            None => self.lease_for(conn, &hello, now.as_secs()).await?,
        };
        let services = self.services_of(award.as_deref());
        let terms = Terms::parse(&row.terms)?;
        let held = self.ledger.newest_earned(terms.lease).await?.map(record);
        let kept = kept(terms.lease).filter(|kept| kept.exceeds(held.as_ref()));
        let held = kept.or(held);
        let paid_from = match row.channel {
            Some(id) => self.ledger.channel(id).await?,
            None => None,
        };
        let offer = session::Offer {
            version: VERSION,
            features: Vec::new(),
            terms: Some(pay::SignedTerms {
                terms: row.terms.clone(),
                signature: row.terms_signature.clone(),
            }),
            services: services.iter().map(|s| s.as_str().to_owned()).collect(),
            newest: held.as_ref().map(|v| v.voucher.clone()),
            channel: paid_from.map(|row| show_channel(row.id, &row.key)),
        };
        control.send(session::session::Kind::Offer(offer)).await?;
        let accept = match control.next_within(ACCEPT).await? {
            session::session::Kind::Accept(accept) => accept,
            session::session::Kind::Refusal(r) => {
                bail!("the tenant refused: {}", wire::display_text(&r.message))
            }
            _ => bail!(Refused::new(code::PROTOCOL, "accept or refuse the offer")),
        };
        check_accept(&conn.peer(), &row.terms, &accept)?;
        let signed = award.as_deref();
        let shown = self.check_channel(conn, &row, &terms, signed, &accept, now.as_secs()).await?;
        let channel = shown.as_ref().map(|(channel, ..)| *channel);
        let presented = accept.newest.as_ref();
        let resumed = Resumption::of(&terms, channel.as_ref(), held, presented);
        if let Err(Lie::Backwards { .. }) = &resumed {
            self.give_up(terms.lease).await?;
        }
        let resumed = resumed.map_err(|lie| {
            let message = format!("the voucher that you show does not hold: {lie}");
            anyhow!(lie).context(Refused::new(code::PROTOCOL, &message))
        })?;
        if let Some((channel, _, chain)) = &shown
            && resumed.is_forgotten(channel, chain.redeemed)
        {
            self.give_up(terms.lease).await?;
            let message = format!(
                "the chain says that {} of channel {} was redeemed, and neither of us has a voucher \
                 that reaches it: this lease is over, ask for another",
                chain.redeemed, channel.id
            );
            bail!(Refused::new(code::CHANNEL, &message));
        }
        let now_unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let session_number = session_after(row.sessions, resumed.newest.as_ref(), now_unix_ms);
        let row = LeaseRow {
            channel: channel.map(|c| c.id).or(row.channel),
            base: channel.map_or(row.base, |c| c.base),
            sessions: session_number,
            ..row
        };
        if let Some((_, row, _)) = &shown {
            self.ledger.put_channel(row.clone()).await?;
        }
        self.ledger.put_lease(row).await.map_err(told)?;
        if let Some(forgotten) = resumed.forgotten() {
            self.ledger.record_earned(stored(forgotten)).await?;
        }
        self.recovery.settle(terms.lease).await?;
        if award.is_some() && (channel.is_some() || terms.price.is_zero()) {
            self.fund(terms.lease, now.as_secs())?;
        }
        let ready = session::Ready { session: session_number };
        control.send(session::session::Kind::Ready(ready)).await?;
        Ok(Agreed {
            terms,
            session: session_number,
            resumed,
            control: Control::placeholder(),
            services,
            channel,
            wallet: shown.map(|(_, row, _)| row.key.payer),
            award,
            purse: None,
            open_gas: 0,
            _start: Some(start),
        })
    }

    /// The lease of an auction under which the session goes on: the one that the tenant names, or its
    /// newest. Whoever has a ticket and names another lease, or asks for a new one, is not held to it;
    /// whoever has nothing but the invite of a lease gets nothing else.
    fn award(
        &self,
        conn: &Session,
        hello: &session::Hello,
        now_unix_s: u64,
    ) -> Result<Option<Arc<SignedLease>>> {
        let asked = LeaseId::parse(&hello.lease).ok();
        let by_lease = conn.invited() == Some(Invited::Lease);
        let refuse = |what: &str| Refused::new(code::NOT_INVITED, what);
        let Some(leases) = &self.leases else {
            ensure!(!by_lease, refuse("this provider sells nothing on the market"));
            return Ok(None);
        };
        let (tenant, provider) = (conn.peer(), self.key.public().to_peer_id());
        let named = asked.and_then(|id| leases.get(id)).filter(|signed| {
            (signed.lease().tenant, signed.lease().provider) == (tenant, provider)
        });
        if let Some(named) = named {
            let id = named.lease().lease;
            return match leases.state(id, now_unix_s) {
                Some(LeaseState::Open) => Ok(Some(named)),
                Some(LeaseState::Ended(why)) if by_lease => {
                    bail!(refuse(&format!("lease {id} has ended ({}): order again", why.as_str())))
                }
                Some(_) | None if by_lease => {
                    bail!(refuse(&format!("the time of lease {id} is over: order again")))
                }
                Some(_) | None => Ok(None),
            };
        }
        let newest = match by_lease || asked.is_none() {
            true => leases.open_between(tenant, provider, now_unix_s),
            false => None,
        };
        ensure!(
            newest.is_some() || !by_lease,
            refuse("no lease with you stands here: order again")
        );
        Ok(newest)
    }

    /// The account of a lease that was won: its terms, and no others.
    async fn awarded(&self, signed: &SignedLease, now_unix_s: u64) -> Result<LeaseRow> {
        let terms = Terms::of_lease(signed.lease());
        if let Some(payment) = &terms.payment {
            let refuse = |what: &str| Refused::new(code::CHANNEL, what);
            let money = self.money.as_ref();
            let money = money.ok_or_else(|| refuse("this provider has no chain any more"))?;
            money.can_earn(payment).map_err(|e| refuse(&format!("{e:#}")))?;
        }
        let known = self.ledger.lease(terms.lease).await?;
        let row = known.unwrap_or_else(|| lease_row(&terms, terms.sign(&self.key)));
        if !self.stands(&row, terms.payer, now_unix_s).await? {
            self.give_up(terms.lease).await?;
            let message = format!(
                "lease {} has ended: its channel is closed, or pays another; order again",
                terms.lease
            );
            bail!(Refused::new(code::NOT_INVITED, &message));
        }
        Ok(row)
    }

    /// What may be reached: all that is declared, or of it what the lease names.
    fn services_of(&self, award: Option<&SignedLease>) -> Vec<ServiceName> {
        let leased = |name: &&ServiceName| {
            award.is_none_or(|award| award.lease().services.iter().any(|s| s.name == **name))
        };
        self.services.iter().filter(leased).cloned().collect()
    }

    /// The channel of a lease that was won was seen, or none is needed.
    fn fund(&self, lease: LeaseId, now_unix_s: u64) -> Result<()> {
        let stands = self.leases.as_ref().is_some_and(|leases| leases.fund(lease, now_unix_s));
        let message = "the lease was not funded in time, and its room is given away: order again";
        ensure!(stands, Refused::new(code::NOT_INVITED, message));
        Ok(())
    }

    fn is_award(&self, lease: LeaseId) -> bool {
        self.leases.as_ref().is_some_and(|leases| leases.get(lease).is_some())
    }

    /// Ends a lease for good, one that was won too.
    async fn give_up(&self, lease: LeaseId) -> Result<()> {
        self.ledger.end_lease(lease).await?;
        if let Some(leases) = self.leases.clone() {
            tokio::task::spawn_blocking(move || leases.end(lease, Ended::Closed)).await??;
        }
        Ok(())
    }

    /// The lease that the tenant wants to go on with, or the one that it forgot, while it can be used;
    /// else a new one. A tenant has one at a time, whatever id it says, and gives it up only by asking
    /// for [`NO_LEASE`].
    async fn lease_for(
        &self,
        conn: &Session,
        hello: &session::Hello,
        now_unix_s: u64,
    ) -> Result<LeaseRow> {
        let (peer, asked) = (conn.peer(), LeaseId::parse(&hello.lease).ok());
        if let Some(id) = asked.filter(|id| *id != NO_LEASE) {
            let known = match self.ledger.lease(id).await? {
                Some(row) => Some(row),
                None => self.remembered(id, hello).await?,
            };
            if let Some(row) = known.filter(|row| !self.is_award(row.id))
                && self.is_usable(&row, peer, now_unix_s).await?
            {
                return Ok(row);
            }
        }
        while let Some(row) =
            self.ledger.lease_with(peer, Edge::Tenant, Role::Payee, now_unix_s).await?
        {
            let is_award = self.is_award(row.id);
            if asked != Some(NO_LEASE)
                && !is_award
                && self.is_usable(&row, peer, now_unix_s).await?
            {
                return Ok(row);
            }
            self.give_up(row.id).await?;
        }
        let is_known = self.ledger.knows(peer, Edge::Tenant, Role::Payee).await?;
        let mut id = [0; 32];
        getrandom::fill(&mut id).map_err(|e| anyhow!("no random bytes: {e}"))?;
        let terms = Terms {
            lease: LeaseId(id),
            payer: conn.peer(),
            payee: self.key.public().to_peer_id(),
            price: self.price,
            window: window_bytes(self.rate_max, conn.connection().rtt()).min(WINDOW_MAX),
            payment: self.payment(),
            // Once for each node.
            starter_bytes: if is_known { 0 } else { self.starter_bytes },
            idle_timeout_s: u32::try_from(self.idle_timeout.as_secs()).unwrap_or(u32::MAX),
            expires_unix_s: now_unix_s.saturating_add(self.lease_for.as_secs()),
            rate_max: self.rate_max,
        };
        Ok(lease_row(&terms, terms.sign(&self.key)))
    }

    /// Whether a lease can go on: its terms are still those of every ticket, and it stands.
    async fn is_usable(&self, row: &LeaseRow, peer: PeerId, now_unix_s: u64) -> Result<bool> {
        let terms = Terms::parse(&row.terms);
        let ours = terms.is_ok_and(|t| t.price == self.price && t.payment == self.payment());
        Ok(ours && self.stands(row, peer, now_unix_s).await?)
    }

    /// Whether a lease is a tenant's, not over, and the channel that pays it stays open.
    async fn stands(&self, row: &LeaseRow, peer: PeerId, now_unix_s: u64) -> Result<bool> {
        let theirs = (row.peer, row.role, row.edge) == (peer, Role::Payee, Edge::Tenant);
        let terms = Terms::parse(&row.terms)?;
        let holds = theirs && !row.closed && terms.expires_unix_s > now_unix_s;
        let (Some(id), Some(money), Some(payment), true) =
            (row.channel, &self.money, &terms.payment, holds)
        else {
            return Ok(holds);
        };
        let Some(channel) = self.ledger.channel(id).await? else { return Ok(false) };
        if channel.status != ChannelStatus::Open {
            return Ok(false);
        }
        let found = money.on_chain(&channel.key, payment).await;
        // A chain that cannot be read ends nothing.
        let ending = found.err().and_then(|e| e.downcast_ref::<Unfit>().and_then(Unfit::ending));
        Ok(ending.is_none())
    }

    /// A lease that this ledger lost, from the terms that this provider signed. Starter bytes are for
    /// those whom it does not know yet.
    async fn remembered(&self, id: LeaseId, hello: &session::Hello) -> Result<Option<LeaseRow>> {
        let Some(signed) = hello.terms.clone() else { return Ok(None) };
        let Ok(terms) = Terms::open(&signed) else { return Ok(None) };
        let is_ours = terms.lease == id && terms.payee == self.key.public().to_peer_id();
        let is_fair = terms.starter_bytes == 0
            || !self.ledger.knows(terms.payer, Edge::Tenant, Role::Payee).await?;
        Ok((is_ours && is_fair).then(|| lease_row(&terms, signed)))
    }

    fn payment(&self) -> Option<sluice_metering::Payment> {
        if self.price.is_zero() { None } else { self.money.as_ref().map(Money::payment) }
    }

    async fn check_channel(
        &self,
        conn: &Session,
        lease: &LeaseRow,
        terms: &Terms,
        award: Option<&SignedLease>,
        accept: &pay::Accept,
        now_unix_s: u64,
    ) -> Result<Option<(Channel, ChannelRow, OnChain)>> {
        let Some(money) = self.money.as_ref().filter(|_| !terms.price.is_zero()) else {
            return Ok(None);
        };
        let Some(binding) = &accept.channel else {
            ensure!(
                terms.starter_bytes > 0,
                Refused::new(code::CHANNEL, "this provider gives no starter bytes: open a channel")
            );
            return Ok(None);
        };
        if let Some(award) = award {
            let signer = award.lease().tenant_wallet;
            let message = format!("this lease is paid by wallet {signer}, not by who signs here");
            ensure!(binding.signer == signer.0[..], Refused::new(code::CHANNEL, &message));
        }
        let checked = money.check_binding(terms, binding, &conn.peer(), &conn.exporter()).await;
        if let Err(error) = &checked
            && let Some(unfit) = error.downcast_ref::<Unfit>()
            && unfit.ending().is_some_and(|ending| lease.channel == Some(ending))
        {
            self.give_up(lease.id).await?;
        }
        let (channel, row, chain) =
            checked.map_err(|e| anyhow!(Refused::new(code::CHANNEL, &format!("{e:#}"))))?;
        match lease.channel {
            Some(known) if known == channel.id => {
                let channel = within_budget(award, Channel { base: lease.base, ..channel });
                return Ok(Some((channel, row, chain)));
            }
            Some(known) => {
                let message = format!("this lease is paid from channel {known}: show it");
                bail!(Refused::new(code::CHANNEL, &message));
            }
            None => {}
        }
        let (id, ledger) = (channel.id, &self.ledger);
        ledger.end_leases_on(id, conn.peer(), lease.id, now_unix_s).await?;
        let earned = ledger.newest_on_channel(id, Role::Payee).await?.map(|v| v.amount);
        let channel = channel
            .begin(terms, &chain, earned, accept.newest.as_ref())
            .map_err(|unfit| anyhow!(Refused::new(code::CHANNEL, &unfit.to_string())))?;
        Ok(Some((within_budget(award, channel), row, chain)))
    }
}

/// The channel of a lease, of whose deposit no more than its budget may be earned.
fn within_budget(award: Option<&SignedLease>, channel: Channel) -> Channel {
    let most = award.and_then(|award| earned_max(award, &channel));
    Channel { deposit: most.map_or(channel.deposit, |most| channel.deposit.min(most)), ..channel }
}

fn earned_max(award: &SignedLease, channel: &Channel) -> Option<Amount> {
    // What does not fit is beyond every deposit.
    channel.base.0.checked_add(award.lease().budget.0).map(Amount)
}

/// What the ledger says of a channel that is not free is for the tenant to hear.
fn told(error: LedgerError) -> anyhow::Error {
    use LedgerError::{BaseTooLow, ChannelInUse};
    if let ChannelInUse { .. } | BaseTooLow { .. } = &error {
        return anyhow!(Refused::new(code::CHANNEL, &error.to_string()));
    }
    anyhow!(error)
}

fn lease_row(terms: &Terms, signed: pay::SignedTerms) -> LeaseRow {
    LeaseRow {
        id: terms.lease,
        edge: Edge::Tenant,
        role: Role::Payee,
        peer: terms.payer,
        terms: signed.terms,
        terms_signature: signed.signature,
        channel: None,
        base: Amount(0),
        sessions: 0,
        closed: false,
    }
}

/// How a tenant comes to terms.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) key: Keypair,
    pub(crate) ledger: Ledger,
    pub(crate) money: Option<Money>,
    pub(crate) deposit: Amount,
    /// The most that may be asked per GiB.
    pub(crate) price_max: Price,
    /// What both signed, if they did: other terms are refused, whatever their price.
    pub(crate) lease: Option<Arc<Lease>>,
    /// Number of this start of the process.
    pub(crate) start: u64,
    /// The lease that the provider remembers is of no use: ask for another.
    pub(crate) anew: Arc<AtomicBool>,
    pub(crate) recovery: Recovery,
}

impl Guest {
    /// Comes to terms with the provider of a session that was just opened.
    pub(crate) async fn agree(&self, conn: &Session, now_unix_s: u64) -> Result<Agreed> {
        let (send, receive) = conn.connection().open_bi().await?;
        let mut control = Control::new(send, receive);
        let known = self.known(conn.peer(), now_unix_s).await?;
        let hello = session::Hello {
            versions: vec![VERSION],
            features: Vec::new(),
            lease: match (&self.lease, &known) {
                (Some(lease), _) => bytes::Bytes::copy_from_slice(&lease.lease.0),
                (None, Some(lease)) => bytes::Bytes::copy_from_slice(&lease.id.0),
                (None, None) if self.anew.load(Relaxed) => {
                    bytes::Bytes::copy_from_slice(&NO_LEASE.0)
                }
                (None, None) => bytes::Bytes::new(),
            },
            invite: bytes::Bytes::new(),
            start: self.start,
            terms: known.as_ref().map(|lease| pay::SignedTerms {
                terms: lease.terms.clone(),
                signature: lease.terms_signature.clone(),
            }),
        };
        control.send(session::session::Kind::Hello(hello)).await?;
        let offer = match control.next_within(ANSWER).await? {
            session::session::Kind::Offer(offer) => offer,
            session::session::Kind::Refusal(r) => return Err(refused(conn.peer(), &r)),
            _ => bail!("the provider did not answer with an offer"),
        };
        let signed = offer.terms.clone().context("the offer has no terms")?;
        let terms = Terms::open(&signed)?;
        if let Err(error) = self.check_terms(conn, &terms, now_unix_s) {
            let message = format!("{error:#}").chars().take(wire::TEXT_MAX).collect();
            let refusal = pay::Refusal { code: code::CHANNEL, message };
            control.send(session::session::Kind::Refusal(refusal)).await?;
            return Err(error);
        }
        let known = known.filter(|l| l.id == terms.lease);
        let (purse, key, open_gas) = self.find_purse(&terms, known.as_ref(), &offer).await?;
        let signed_before = self.ledger.newest_signed(terms.lease).await?.map(record);
        let (channel, shown) = (purse.as_ref().map(|p| &p.channel), offer.newest.as_ref());
        let resumed = Resumption::of(&terms, channel, signed_before, shown).map_err(|lie| {
            anyhow!(lie).context("the provider shows a voucher that does not hold")
        })?;
        let before = known.map_or(0, |l| l.sessions);
        let row = LeaseRow {
            id: terms.lease,
            edge: Edge::Tenant,
            role: Role::Payer,
            peer: conn.peer(),
            terms: signed.terms.clone(),
            terms_signature: signed.signature.clone(),
            channel: purse.as_ref().map(|p| p.channel.id),
            base: Amount(0),
            sessions: before,
            closed: false,
        };
        self.ledger.put_lease(row.clone()).await?;
        if let Some(forgotten) = resumed.forgotten() {
            self.ledger.record_signed(stored(forgotten)).await?;
        }
        self.recovery.settle(terms.lease).await?;
        let mut accept = accept_terms(&self.key, &signed.terms);
        accept.newest = resumed.newest.as_ref().map(|v| v.voucher.clone());
        accept.channel = match (&purse, &key) {
            (Some(purse), Some(key)) => {
                Some(bind(purse, key, &self.key.public().to_peer_id(), &conn.exporter()))
            }
            _ => None,
        };
        control.send(session::session::Kind::Accept(accept)).await?;
        let ready = match control.next_within(ANSWER * 2).await? {
            session::session::Kind::Ready(ready) => ready,
            session::session::Kind::Refusal(r) => return Err(refused(conn.peer(), &r)),
            _ => bail!("the provider did not confirm the terms"),
        };
        check_session(ready.session, before, resumed.newest.as_ref())?;
        self.ledger.put_lease(LeaseRow { sessions: ready.session, ..row }).await?;
        let services = offer.services.iter().filter_map(|s| ServiceName::parse(s).ok()).collect();
        Ok(Agreed {
            terms,
            session: ready.session,
            resumed,
            control,
            services,
            channel: None,
            wallet: None,
            award: None,
            purse,
            open_gas,
            _start: None,
        })
    }

    /// The lease to go on with, as this ledger has it.
    async fn known(&self, peer: PeerId, now_unix_s: u64) -> Result<Option<LeaseRow>> {
        let Some(lease) = &self.lease else {
            return Ok(self.ledger.lease_with(peer, Edge::Tenant, Role::Payer, now_unix_s).await?);
        };
        let row = self.ledger.lease(lease.lease).await?;
        ensure!(row.as_ref().is_none_or(|row| !row.closed), LeaseUnfit::Ended);
        let ours =
            |row: &LeaseRow| (row.peer, row.role, row.edge) == (peer, Role::Payer, Edge::Tenant);
        Ok(row.filter(ours))
    }

    fn check_terms(&self, conn: &Session, terms: &Terms, now_unix_s: u64) -> Result<()> {
        if let Some(lease) = &self.lease {
            check_terms(lease, terms)?;
        }
        ensure!(terms.payee == conn.peer(), "the terms are another provider's");
        ensure!(terms.payer == self.key.public().to_peer_id(), "the terms are for another tenant");
        ensure!(terms.expires_unix_s > now_unix_s, "the terms expired");
        // What was signed was agreed to.
        let signed = self.lease.as_ref().map(|lease| lease.price);
        let (asked, most) = (terms.price, signed.unwrap_or(self.price_max));
        ensure!(
            asked.up <= most.up && asked.down <= most.down,
            "the provider asks {} up and {} down per GiB (token base units), more than allowed \
             ({} and {}): raise --max-price-up and --max-price-down if you agree",
            asked.up,
            asked.down,
            most.up,
            most.down
        );
        ensure!(
            terms.price.is_zero() || self.money.is_some(),
            "the provider asks for payment, but no chain is configured: set [chain] in sluice.toml"
        );
        Ok(())
    }

    async fn find_purse(
        &self,
        terms: &Terms,
        known: Option<&LeaseRow>,
        offer: &session::Offer,
    ) -> Result<(Option<Purse>, Option<sluice_proto::ChannelKey>, u64)> {
        let Some(money) = self.money.as_ref().filter(|_| !terms.price.is_zero()) else {
            return Ok((None, None, 0));
        };
        let known = match known {
            Some(lease) => lease.channel,
            None => {
                let (shown, paid) = (offer.channel.as_ref(), offer.newest.is_some());
                let found = money.remembered(&self.ledger, terms, shown, paid).await;
                found.inspect_err(|_| self.anew.store(true, Relaxed))?
            }
        };
        let purse = money.purse(&self.ledger, terms, known, self.deposit).await;
        let (mut purse, key, gas) = purse.context(CannotPay)?;
        if let Some(lease) = &self.lease {
            // One that was left by an earlier start may hold more.
            purse.channel.deposit = purse.channel.deposit.min(lease.budget);
        }
        Ok((Some(purse), Some(key), gas))
    }
}

/// A ledger's row as metering's record.
pub(crate) fn record(v: StoredVoucher) -> VoucherRecord {
    VoucherRecord {
        lease: v.lease,
        session: v.session,
        counts: sluice_metering::Counts { up: v.up, down: v.down },
        amount: v.amount,
        voucher: v.voucher,
    }
}

/// Metering's record as a ledger's row.
pub(crate) fn stored(v: &VoucherRecord) -> StoredVoucher {
    StoredVoucher {
        lease: v.lease,
        up: v.counts.up,
        down: v.counts.down,
        amount: v.amount,
        voucher: v.voucher.clone(),
        session: v.session,
    }
}

/// Another process with this node's key started later. It stands while it lasts.
#[derive(Debug, thiserror::Error)]
#[error(
    "{by} says that another process with this node's keys started later, so a copy of this state \
     directory runs elsewhere: this one signs nothing until that one has stopped; stop the one that \
     should not run, and give each node a state directory of its own"
)]
pub(crate) struct Superseded {
    /// Who refused this one.
    pub(crate) by: PeerId,
}

fn refused(by: PeerId, refusal: &pay::Refusal) -> anyhow::Error {
    match refusal.code {
        code::SUPERSEDED => anyhow!(Superseded { by }),
        _ => anyhow!("the provider refused: {}", wire::display_text(&refusal.message)),
    }
}

/// An error whose words go to the peer.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    code: u32,
    message: String,
}

impl Refused {
    pub(crate) fn new(code: u32, message: &str) -> Self {
        Self { code, message: message.chars().take(wire::TEXT_MAX).collect() }
    }
}

fn refusal_of(error: &anyhow::Error) -> (u32, String) {
    match error.downcast_ref::<Refused>() {
        Some(refused) => (refused.code, refused.message.clone()),
        None => (code::PROTOCOL, "the session could not be set up".to_owned()),
    }
}
