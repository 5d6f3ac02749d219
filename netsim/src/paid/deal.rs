//! A tenant, a provider and its relays, with channels between them and a session that is paid for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use sluice_ledger::Ledger;
use sluice_metering::Terms;
use sluice_proto::{Amount, LeaseId, Price, WINDOW_MIN, WalletKey, window_bytes};
use sluice_relay::RelayConfig;
use sluice_transport::{AcceptPolicy, Clock, LinkState, Session};
use sluice_tunnel::Account;
use tokio::sync::mpsc;

use super::{Bank, Ear, Guest, Holder, HolderView, Purser, ServeOptions, Served, serve};
use crate::net::{LinkSpec, Net, PlaceId};
use crate::rng::Rng;
use crate::scene::{EVENTS, HomeSpec, Party, SECRET, Scene};

/// One token base unit a byte, each way.
const PRICE: Price = Price { up: 1 << 30, down: 1 << 30 };
/// Every channel holds this: far more than a run can cost.
const DEPOSIT: Amount = Amount(1 << 40);
/// Bits per second of a reservation that has the smallest window.
const SLOW: u64 = 1_000_000;

/// What everybody charges, and how windows are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tariff {
    /// Token base units per GiB, on every edge; nothing is paid at 0.
    pub price: Price,
    /// Bits per second that the relays' windows are computed from.
    pub relay_rate_max: u64,
    /// The same for the session; none for the smallest window.
    pub rate_max: Option<u64>,
}

impl Default for Tariff {
    fn default() -> Self {
        Self { price: PRICE, relay_rate_max: SLOW, rate_max: None }
    }
}

/// A relay's edge: the provider's reservation, and what pays for it.
#[derive(Debug)]
pub struct RelayEdge {
    /// The relay's ledger.
    pub ledger: Ledger,
    /// The provider's channel to it.
    pub purser: Purser,
    /// What the provider's account with it stands at.
    pub view: Arc<Mutex<HolderView>>,
}

/// All that is on the stage before a session begins.
#[derive(Debug)]
pub struct Deal {
    /// Where the money lives.
    pub bank: Bank,
    /// The network and its relays.
    pub scene: Scene,
    /// One for each relay.
    pub edges: Vec<RelayEdge>,
    /// The tenant's channel to the provider.
    pub purser: Purser,
    /// The tenant's ledger.
    pub tenant_ledger: Ledger,
    /// The provider's.
    pub provider_ledger: Ledger,
    waits: Arc<Mutex<Option<Account>>>,
    tariff: Tariff,
    rng: Rng,
}

/// A session that is to be paid for, and its two ends.
#[derive(Debug)]
pub struct Meeting {
    /// The terms that both ends agree to.
    pub terms: Terms,
    /// The provider.
    pub provider: Party,
    /// The tenant.
    pub tenant: Party,
    /// The tenant's end.
    pub ours: Session,
    /// The provider's.
    pub theirs: Session,
}

impl Deal {
    /// Relays that charge behind each of `lines`, and channels to them and to a provider.
    ///
    /// # Errors
    /// When a relay, a ledger or the chain refuses.
    pub async fn open(clock: Clock, rng: Rng, lines: &[LinkSpec]) -> Result<Self> {
        Self::open_at(clock, rng, lines, Tariff::default()).await
    }

    /// The same at another tariff.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_at(
        clock: Clock,
        mut rng: Rng,
        lines: &[LinkSpec],
        tariff: Tariff,
    ) -> Result<Self> {
        let mut bank = Bank::open(rng.split())?;
        let provider_wallet = bank.wallet();
        let mut relays = Vec::new();
        for number in 0..lines.len() {
            relays.push((bank.wallet(), bank.ledger(&format!("relay-{number}"))?));
        }
        let charge = |number: usize, config: &mut RelayConfig| {
            let (wallet, ledger): &(WalletKey, Ledger) = &relays[number];
            if !tariff.price.is_zero() {
                bank.charge(config, wallet, ledger.clone());
            }
            config.price = tariff.price;
            config.rate_max = tariff.relay_rate_max;
            config.starter_bytes = 0;
            Ok(())
        };
        let scene = Scene::charging(clock, rng.number(), lines, charge).await?;
        let mut edges = Vec::new();
        for (wallet, ledger) in relays {
            let purser = bank.channel(&wallet, DEPOSIT).await?;
            edges.push(RelayEdge { ledger, purser, view: Arc::default() });
        }
        let purser = bank.channel(&provider_wallet, DEPOSIT).await?;
        let (tenant_ledger, provider_ledger) = (bank.ledger("tenant")?, bank.ledger("provider")?);
        let waits = Arc::default();
        Ok(Self { bank, scene, edges, purser, tenant_ledger, provider_ledger, waits, tariff, rng })
    }

    /// The provider reserves at all relays, the tenant connects to the first `tenant_relays`, and
    /// they meet. `watch` sees the provider's host before anything is sent.
    ///
    /// # Errors
    /// When somebody does not get there in time.
    pub async fn meet(
        &mut self,
        provider: &HomeSpec,
        tenant: &HomeSpec,
        tenant_relays: usize,
        ear: Ear,
        watch: impl FnOnce(&Net, PlaceId),
    ) -> Result<Meeting> {
        let mut provider = self.scene.party(provider, AcceptPolicy::Invited(SECRET))?;
        watch(&self.scene.net, provider.host);
        for (relay, edge) in self.scene.relays.iter().zip(&self.edges) {
            let (sender, events) = mpsc::channel(EVENTS);
            let link = provider.node.link(relay.addr, Some(sender));
            let holder = Holder {
                key: provider.key.clone(),
                ledger: self.provider_ledger.clone(),
                purser: edge.purser.clone(),
                clock: self.scene.net.clock().clone(),
                ear,
                waits: self.waits.clone(),
                view: edge.view.clone(),
            };
            tokio::spawn(holder.hold(link.clone(), events));
            provider.links.push(link);
        }
        for link in &provider.links {
            let mut state = link.state();
            let reserved = state.wait_for(|s| matches!(s, LinkState::Reserved(_)));
            self.scene.within("a reservation", reserved).await??;
        }
        let tenant = self.scene.tenant(tenant, tenant_relays).await?;
        let (ours, theirs) =
            self.scene.session(&tenant, &provider).await.context("the session did not begin")?;
        let rtt = theirs.connection().rtt();
        let price = self.tariff.price;
        let terms = Terms {
            lease: LeaseId(self.rng.bytes()),
            payer: tenant.node.id(),
            payee: provider.node.id(),
            price,
            window: self.tariff.rate_max.map_or(WINDOW_MIN, |rate| window_bytes(rate, rtt)),
            payment: (!price.is_zero()).then(|| self.bank.payment(self.purser.payee())),
            starter_bytes: 0,
            idle_timeout_s: 600,
            expires_unix_s: u64::MAX >> 1,
            rate_max: 1_000_000_000,
        };
        Ok(Meeting { terms, provider, tenant, ours, theirs })
    }

    /// The provider begins to serve.
    ///
    /// # Errors
    /// When its ledger does not take the lease.
    pub async fn serve(&self, meeting: &Meeting) -> Result<Served> {
        let options = ServeOptions {
            key: meeting.provider.key.clone(),
            ledger: self.provider_ledger.clone(),
            terms: meeting.terms.clone(),
            purser: self.purser.clone(),
            clock: self.scene.net.clock().clone(),
            waits: self.waits.clone(),
        };
        serve(meeting.theirs.clone(), options).await
    }

    /// The tenant begins to pay.
    ///
    /// # Errors
    /// When its ledger does not take the lease.
    pub async fn guest(&self, meeting: &Meeting) -> Result<Guest> {
        let clock = self.scene.net.clock().clone();
        let (key, ledger) = (&meeting.provider.key, self.tenant_ledger.clone());
        let terms = meeting.terms.clone();
        Guest::begin(&meeting.ours, key, ledger, terms, &self.purser, clock).await
    }

    /// Another channel to the provider, from somebody else.
    ///
    /// # Errors
    /// When the chain refuses.
    pub async fn strangers_channel(&mut self) -> Result<Purser> {
        let payee = self.purser.payee().clone();
        self.bank.channel(&payee, DEPOSIT).await
    }
}

/// A line that only has a rate and a delay.
#[must_use]
pub fn megabits(rate: u64, delay: Duration) -> LinkSpec {
    LinkSpec { rate: Some(rate * 1_000_000), ..LinkSpec::delay(delay) }
}
