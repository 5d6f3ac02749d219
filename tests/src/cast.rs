//! The roles inside the test's own process.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Result;
use sluice::config::DirectPolicy;
use sluice::roles::{ConnectOptions, Identity, Money, ProvideOptions, RelayOptions, Reporter};
use sluice::settle::Deposits;
use sluice_chain::Chain;
use sluice_ledger::{Ledger, Recovery};
use sluice_proto::{Amount, Keypair, PeerId, Price, RelayAddr, ServiceName, Ticket, WalletKey};
use sluice_relay::Relay;
use sluice_transport::NatOptions;
use sluice_tunnel::Services;
use tempfile::TempDir;

/// A paid tenant's edge costs this much for each GiB: 2 base units a byte.
const PRICE: u128 = 2 << 30;
/// A paid relay's edge: 1 base unit a byte.
const RELAY_PRICE: u128 = 1 << 30;
/// What every wallet has, and what every channel is opened with.
const MONEY: Amount = Amount(1 << 40);
const DEPOSIT: Amount = Amount(1 << 35);
const PERIOD_S: u32 = 48 * 3600;
/// Windows on a deposit that is not final.
const UNFINAL_CREDIT: u64 = 64;
/// Channels that are in use are looked at this often.
const LOOK: Duration = Duration::from_millis(200);
/// A provider's windows are the smallest.
const RATE_MAX: u64 = 10_000_000;
/// A relay does not slow anybody down.
const RELAY_RATE_MAX: u64 = 1_000_000_000;

/// A free UDP or TCP port on loopback.
#[must_use]
pub fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Somebody with keys, a ledger and, where something is charged, money.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its keys.
    pub identity: Identity,
    /// Its ledger.
    pub ledger: Ledger,
    /// Its wallet on the chain.
    pub money: Option<Money>,
}

impl Member {
    /// Its name.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.identity.peer()
    }
}

/// A folder with ledgers and, where something is charged, an embedded chain.
#[derive(Debug)]
pub struct Cast {
    dir: TempDir,
    chain: Option<Chain>,
    members: AtomicU64,
}

impl Cast {
    /// Nothing is charged.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn free() -> Result<Self> {
        Ok(Self { dir: tempfile::tempdir()?, chain: None, members: AtomicU64::new(0) })
    }

    /// Both edges are paid.
    ///
    /// # Errors
    /// When the chain cannot be made.
    pub async fn paid() -> Result<Self> {
        let mut cast = Self::free()?;
        let chain = Chain::open_embedded(&cast.dir.path().join("chain"))?;
        cast.chain = Some(chain.deploy_dev().await?);
        Ok(cast)
    }

    /// The chain, where something is charged.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// A new member, with money where something is charged.
    ///
    /// # Errors
    /// When its ledger cannot be made.
    pub async fn member(&self) -> Result<Member> {
        let n = self.members.fetch_add(1, Relaxed) + 1;
        let mut seed = [0x5A; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        let wallet = WalletKey::from_bytes(seed).expect("below the curve's order");
        let money = match &self.chain {
            None => None,
            Some(chain) => {
                chain.fund_dev(wallet.address(), MONEY).await?;
                let (chain, payout) = (chain.clone(), wallet.address());
                let (top_up, deposits) = (None, Deposits::default());
                let wallet = wallet.clone();
                let (period_s, unfinal_credit) = (PERIOD_S, UNFINAL_CREDIT);
                let look = LOOK;
                Some(Money {
                    chain,
                    wallet,
                    payout,
                    period_s,
                    unfinal_credit,
                    look,
                    top_up,
                    deposits,
                })
            }
        };
        let identity = Identity {
            node: Keypair::ed25519_from_bytes(seed)?,
            noise: seed,
            reset: [seed[7]; 64],
            wallet,
            invites: [7; 16],
            incarnation: n,
            recovery: Recovery::none(),
        };
        let ledger = Ledger::open(&self.dir.path().join(format!("{n}.db")))?;
        Ok(Member { identity, ledger, money })
    }

    fn price(&self, price: u128) -> u128 {
        if self.chain.is_some() { price } else { 0 }
    }

    /// What a relay is told.
    #[must_use]
    pub fn relay_options(&self, who: &Member) -> RelayOptions {
        RelayOptions {
            identity: who.identity.clone(),
            bind: loopback(),
            tcp: None,
            threads: 0,
            price: self.price(RELAY_PRICE),
            rate_max: RELAY_RATE_MAX,
            starter_bytes: 0,
            starter_total: 0,
            reservations_max: 16,
            flows_max: 1024,
            money: who.money.clone(),
            ledger: who.ledger.clone(),
        }
    }

    /// What a provider is told.
    ///
    /// # Panics
    /// When a service has a name that none may have.
    #[must_use]
    pub fn provide_options(
        &self,
        who: &Member,
        relay: &Relay,
        services: &[(&str, SocketAddr)],
    ) -> ProvideOptions {
        let services = services
            .iter()
            .map(|(name, addr)| (ServiceName::parse(name).expect("a service's name"), *addr));
        let price = self.price(PRICE);
        ProvideOptions {
            identity: who.identity.clone(),
            bind: loopback(),
            mesh: None,
            relays: vec![RelayAddr::new(relay.peer(), relay.local_addr())],
            services: services.collect::<Services>(),
            price: Price { up: price, down: price },
            rate_max: RATE_MAX,
            starter_bytes: 0,
            idle_timeout: Duration::from_secs(60),
            ticket_for: Duration::ZERO,
            direct: DirectPolicy::Never,
            nat: NatOptions::default(),
            money: who.money.clone(),
            relay_deposit: DEPOSIT,
            relay_price_max: RELAY_PRICE,
            ledger: who.ledger.clone(),
            leases: None,
            report: Reporter::logged(),
        }
    }

    /// What a tenant is told.
    ///
    /// # Panics
    /// When a service has a name that none may have.
    #[must_use]
    pub fn connect_options(&self, who: &Member, ticket: &Ticket, service: &str) -> ConnectOptions {
        ConnectOptions {
            identity: who.identity.clone(),
            bind: loopback(),
            ticket: ticket.clone(),
            lease: None,
            map: vec![(loopback(), ServiceName::parse(service).expect("a service's name"))],
            direct: DirectPolicy::Never,
            nat: NatOptions::default(),
            hold_relayed: false,
            money: who.money.clone(),
            deposit: DEPOSIT,
            price_max: Price { up: PRICE, down: PRICE },
            idle_timeout: Duration::from_secs(60),
            ledger: who.ledger.clone(),
            report: Reporter::logged(),
        }
    }
}
