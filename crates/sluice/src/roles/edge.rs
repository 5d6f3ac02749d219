//! Leases between tenant and provider: how a session comes to terms.
//!
//! The tenant says hello, with the lease that it wants to go on with; the provider offers signed
//! terms and shows the newest voucher it holds; the tenant accepts, names the channel that pays and
//! shows the newest voucher it ever signed; both go on from the higher one.

#![expect(clippy::disallowed_methods, reason = "the id of a lease is drawn here")]
#![expect(clippy::wildcard_enum_match_arm, reason = "out of order is refused, whatever it is")]

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use sluice_ledger::{Edge, LeaseRow, Ledger, Role, StoredVoucher};
use sluice_metering::{Channel, Purse, Terms, VoucherRecord, accept_terms, check_accept};
use sluice_proto::wire::{self, code, pay, session};
use sluice_proto::{
    Amount, Keypair, LeaseId, Price, ServiceName, VERSION, WINDOW_MAX, window_bytes,
};
use sluice_transport::Session;

use super::channel::{Money, bind};
use super::control::Control;

/// A peer that does not answer within this is gone.
const ANSWER: Duration = Duration::from_secs(10);
/// The tenant opens its channel before it accepts: that takes a few blocks.
const ACCEPT: Duration = Duration::from_secs(180);

/// What both sides hold once they came to terms.
pub(crate) struct Agreed {
    pub(crate) terms: Terms,
    pub(crate) session: u64,
    pub(crate) newest: Option<VoucherRecord>,
    pub(crate) control: Control,
    pub(crate) services: Vec<ServiceName>,
    /// The payee's view of the channel.
    pub(crate) channel: Option<Channel>,
    /// The payer's purse, and the gas that opening its channel took.
    pub(crate) purse: Option<Purse>,
    pub(crate) open_gas: u64,
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
}

impl Host {
    /// Comes to terms with a tenant whose session just began.
    pub(crate) async fn welcome(&self, conn: &Session, now_unix_s: u64) -> Result<Agreed> {
        let accepted = tokio::time::timeout(ANSWER, conn.connection().accept_bi());
        let (send, receive) = accepted.await.context("the tenant did not say hello")??;
        let mut control = Control::new(send, receive);
        match self.negotiate(conn, &mut control, now_unix_s).await {
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
        now_unix_s: u64,
    ) -> Result<Agreed> {
        let session::session::Kind::Hello(hello) = control.next_within(ANSWER).await? else {
            bail!(Refused::new(code::PROTOCOL, "a session begins with hello"));
        };
        if !hello.versions.contains(&VERSION) {
            let message = format!("this provider speaks version {VERSION}");
            bail!(Refused::new(code::VERSION, &message));
        }
        let row = self.lease_for(conn, &hello, now_unix_s).await?;
        let terms = Terms::parse(&row.terms)?;
        let held = self.ledger.newest_earned(terms.lease).await?;
        let offer = session::Offer {
            version: VERSION,
            features: Vec::new(),
            terms: Some(pay::SignedTerms {
                terms: row.terms.clone(),
                signature: row.terms_signature.clone(),
            }),
            services: self.services.iter().map(|s| s.as_str().to_owned()).collect(),
            newest: held.as_ref().map(|v| v.voucher.clone()),
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
        let channel = self.check_channel(conn, &terms, &accept).await?;
        let held = held.map(record);
        let newest = self.take_presented(&terms, channel.as_ref(), held, &accept)?;
        let session_number = row.sessions + 1;
        let row = LeaseRow {
            channel: channel.map(|c| c.id).or(row.channel),
            sessions: session_number,
            ..row
        };
        self.ledger.put_lease(row).await?;
        if let Some(newest) = &newest {
            self.ledger.record_earned(stored(newest)).await?;
        }
        let ready = session::Ready { session: session_number };
        control.send(session::session::Kind::Ready(ready)).await?;
        Ok(Agreed {
            terms,
            session: session_number,
            newest,
            control: Control::placeholder(),
            services: self.services.clone(),
            channel,
            purse: None,
            open_gas: 0,
        })
    }

    /// The lease that the tenant wants to go on with, if its terms are still ours; else a new one.
    async fn lease_for(
        &self,
        conn: &Session,
        hello: &session::Hello,
        now_unix_s: u64,
    ) -> Result<LeaseRow> {
        if let Ok(id) = LeaseId::parse(&hello.lease)
            && let Some(row) = self.ledger.lease(id).await?
            && row.peer == conn.peer()
            && row.role == Role::Payee
            && row.edge == Edge::Tenant
            && !row.closed
            && let Ok(terms) = Terms::parse(&row.terms)
            && terms.expires_unix_s > now_unix_s
            && terms.price == self.price
            && terms.payment == self.payment()
        {
            return Ok(row);
        }
        let mut id = [0; 32];
        getrandom::fill(&mut id).map_err(|e| anyhow!("no random bytes: {e}"))?;
        let terms = Terms {
            lease: LeaseId(id),
            payer: conn.peer(),
            payee: self.key.public().to_peer_id(),
            price: self.price,
            window: window_bytes(self.rate_max, conn.connection().rtt()).min(WINDOW_MAX),
            payment: self.payment(),
            starter_bytes: self.starter_bytes,
            idle_timeout_s: u32::try_from(self.idle_timeout.as_secs()).unwrap_or(u32::MAX),
            expires_unix_s: now_unix_s.saturating_add(self.lease_for.as_secs()),
            rate_max: self.rate_max,
        };
        let signed = terms.sign(&self.key);
        Ok(LeaseRow {
            id: terms.lease,
            edge: Edge::Tenant,
            role: Role::Payee,
            peer: conn.peer(),
            terms: signed.terms,
            terms_signature: signed.signature,
            channel: None,
            base: Amount(0),
            sessions: 0,
            closed: false,
        })
    }

    fn payment(&self) -> Option<sluice_metering::Payment> {
        if self.price.is_zero() { None } else { self.money.as_ref().map(Money::payment) }
    }

    async fn check_channel(
        &self,
        conn: &Session,
        terms: &Terms,
        accept: &pay::Accept,
    ) -> Result<Option<Channel>> {
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
        let checked = money.check_binding(terms, binding, &conn.peer(), &conn.exporter()).await;
        let (channel, row) =
            checked.map_err(|e| anyhow!(Refused::new(code::CHANNEL, &format!("{e:#}"))))?;
        self.ledger.put_channel(row).await?;
        Ok(Some(channel))
    }

    fn take_presented(
        &self,
        terms: &Terms,
        channel: Option<&Channel>,
        held: Option<VoucherRecord>,
        accept: &pay::Accept,
    ) -> Result<Option<VoucherRecord>> {
        let Some(presented) = &accept.newest else { return Ok(held) };
        let presented = VoucherRecord::verify(terms, channel, presented)
            .map_err(|lie| anyhow!("the tenant presented a voucher that does not hold: {lie}"))?;
        Ok(if presented.exceeds(held.as_ref()) { Some(presented) } else { held })
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
}

impl Guest {
    /// Comes to terms with the provider of a session that was just opened.
    pub(crate) async fn agree(&self, conn: &Session, now_unix_s: u64) -> Result<Agreed> {
        let (send, receive) = conn.connection().open_bi().await?;
        let mut control = Control::new(send, receive);
        let known =
            self.ledger.lease_with(conn.peer(), Edge::Tenant, Role::Payer, now_unix_s).await?;
        let hello = session::Hello {
            versions: vec![VERSION],
            features: Vec::new(),
            lease: known
                .as_ref()
                .map(|l| bytes::Bytes::copy_from_slice(&l.id.0))
                .unwrap_or_default(),
            invite: bytes::Bytes::new(),
        };
        control.send(session::session::Kind::Hello(hello)).await?;
        let offer = match control.next_within(ANSWER).await? {
            session::session::Kind::Offer(offer) => offer,
            session::session::Kind::Refusal(r) => {
                bail!("the provider refused: {}", wire::display_text(&r.message))
            }
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
        let (purse, key, open_gas) = self.find_purse(&terms, known.as_ref()).await?;
        let signed_before = self.ledger.newest_signed(terms.lease).await?.map(record);
        let newest = merge_shown(&terms, purse.as_ref(), signed_before, offer.newest.as_ref())?;
        let row = LeaseRow {
            id: terms.lease,
            edge: Edge::Tenant,
            role: Role::Payer,
            peer: conn.peer(),
            terms: signed.terms.clone(),
            terms_signature: signed.signature.clone(),
            channel: purse.as_ref().map(|p| p.channel.id),
            base: Amount(0),
            sessions: known.map_or(0, |l| l.sessions) + 1,
            closed: false,
        };
        self.ledger.put_lease(row).await?;
        let mut accept = accept_terms(&self.key, &signed.terms);
        accept.newest = newest.as_ref().map(|v| v.voucher.clone());
        accept.channel = match (&purse, &key) {
            (Some(purse), Some(key)) => {
                Some(bind(purse, key, &self.key.public().to_peer_id(), &conn.exporter()))
            }
            _ => None,
        };
        control.send(session::session::Kind::Accept(accept)).await?;
        let ready = match control.next_within(ANSWER * 2).await? {
            session::session::Kind::Ready(ready) => ready,
            session::session::Kind::Refusal(r) => {
                bail!("the provider refused: {}", wire::display_text(&r.message))
            }
            _ => bail!("the provider did not confirm the terms"),
        };
        let services = offer.services.iter().filter_map(|s| ServiceName::parse(s).ok()).collect();
        Ok(Agreed {
            terms,
            session: ready.session,
            newest,
            control,
            services,
            channel: None,
            purse,
            open_gas,
        })
    }

    fn check_terms(&self, conn: &Session, terms: &Terms, now_unix_s: u64) -> Result<()> {
        ensure!(terms.payee == conn.peer(), "the terms are another provider's");
        ensure!(terms.payer == self.key.public().to_peer_id(), "the terms are for another tenant");
        ensure!(terms.expires_unix_s > now_unix_s, "the terms expired");
        let (asked, most) = (terms.price, self.price_max);
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
    ) -> Result<(Option<Purse>, Option<sluice_proto::ChannelKey>, u64)> {
        let Some(money) = self.money.as_ref().filter(|_| !terms.price.is_zero()) else {
            return Ok((None, None, 0));
        };
        let known = known.and_then(|l| l.channel);
        let (purse, key, gas) = money.purse(&self.ledger, terms, known, self.deposit).await?;
        Ok((Some(purse), Some(key), gas))
    }
}

/// The higher of what this payer has on disk and what the payee shows, which must hold: a payer
/// whose disk lost its newest voucher must not sign below it.
pub(crate) fn merge_shown(
    terms: &Terms,
    purse: Option<&Purse>,
    signed: Option<VoucherRecord>,
    shown: Option<&pay::Voucher>,
) -> Result<Option<VoucherRecord>> {
    let Some(shown) = shown else { return Ok(signed) };
    let shown = VoucherRecord::verify(terms, purse.map(|p| &p.channel), shown)
        .map_err(|lie| anyhow!("the payee shows a voucher that is not ours: {lie}"))?;
    Ok(if shown.exceeds(signed.as_ref()) { Some(shown) } else { signed })
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
