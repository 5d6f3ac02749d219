//! A tenant and a provider with a session between them, and ledgers that can be made to fail.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig, VarInt};
use sluice_metering::{Channel, Evidence, Payee, Payer, Payment, Purse, Terms};
use sluice_proto::{
    ALPN_SESSION, Amount, ChannelId, Domain, EthAddress, Keypair, LeaseId, Price, ServiceName,
    WalletKey,
};
use sluice_transport::{Clock, client_config, server_config};
use sluice_tunnel::{Account, AccountOptions, Link, Persist, Services, listen, serve};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

pub(crate) const WINDOW: u64 = 512 * 1024;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) price: Price,
    pub(crate) window: u64,
    /// The tenant's ledger never answers: nothing is ever paid.
    pub(crate) tenant_never_pays: bool,
    pub(crate) stream_window: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            price: Price { up: 1 << 30, down: 1 << 30 },
            window: WINDOW,
            tenant_never_pays: false,
            stream_window: 256 * 1024,
        }
    }
}

/// What an account told its owner.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) lies: mpsc::UnboundedReceiver<Evidence>,
    pub(crate) exhausted: mpsc::UnboundedReceiver<(Amount, Amount)>,
    /// From now on the ledger refuses.
    pub(crate) refuse: Arc<AtomicBool>,
}

/// A ledger in memory.
pub(crate) fn options(silent: bool) -> (AccountOptions, Owner) {
    let (persist, mut requests) = mpsc::unbounded_channel::<Persist>();
    let (lies_tx, lies) = mpsc::unbounded_channel();
    let (exhausted_tx, exhausted) = mpsc::unbounded_channel();
    let refuse = Arc::new(AtomicBool::new(false));
    let refuses = Arc::clone(&refuse);
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(request) = requests.recv().await {
            if silent {
                kept.push(request);
            } else if refuses.load(Relaxed) {
                request.done(false);
            } else {
                request.done(true);
            }
        }
    });
    let options = AccountOptions {
        persist,
        lies: lies_tx,
        exhausted: exhausted_tx,
        delivered: None,
        clock: Clock::default(),
    };
    (options, Owner { lies, exhausted, refuse })
}

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::parse(name).expect("a valid name")
}

#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) terms: Terms,
    pub(crate) purse: Purse,
    pub(crate) tenant: Link,
    pub(crate) provider: Link,
    pub(crate) tenant_owner: Owner,
    pub(crate) provider_owner: Owner,
    links: watch::Sender<Option<Link>>,
    endpoints: [Endpoint; 2],
    keys: [Keypair; 2],
    transport: Arc<TransportConfig>,
    services: Arc<Services>,
}

fn transport(setup: Setup) -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(setup.stream_window))
        .receive_window(VarInt::from_u32(64 << 20))
        .send_window(8 << 20)
        .max_concurrent_bidi_streams(VarInt::from_u32(1024));
    Arc::new(transport)
}

fn key(n: u8) -> Keypair {
    Keypair::ed25519_from_bytes([n; 32]).expect("32 bytes")
}

fn money(setup: Setup, keys: &[Keypair; 2]) -> (Terms, Purse) {
    let domain = Domain { chain_id: 31_337, contract: EthAddress([1; 20]) };
    let payment = Payment {
        domain,
        token: EthAddress([2; 20]),
        payee: EthAddress([3; 20]),
        payout: EthAddress([4; 20]),
        period_s: 172_800,
    };
    let terms = Terms {
        lease: LeaseId([9; 32]),
        payer: keys[0].public().to_peer_id(),
        payee: keys[1].public().to_peer_id(),
        price: setup.price,
        window: setup.window,
        payment: (!setup.price.is_zero()).then_some(payment),
        starter_bytes: 0,
        idle_timeout_s: 600,
        expires_unix_s: u64::MAX,
        rate_max: 1_000_000_000,
    };
    let key = WalletKey::from_bytes([7; 32]).expect("a valid key");
    let channel = Channel {
        id: ChannelId([8; 32]),
        domain,
        signer: key.address(),
        deposit: Amount(1 << 60),
        base: Amount(0),
    };
    (terms, Purse { channel, key })
}

impl Rig {
    /// A session on loopback, and a provider that serves `services` over it.
    pub(crate) async fn new(setup: Setup, services: &[(&str, SocketAddr)]) -> Self {
        let keys = [key(1), key(2)];
        let transport = transport(setup);
        let server = server_config(&keys[1], ALPN_SESSION).expect("a server's TLS");
        let mut server = ServerConfig::with_crypto(server);
        server.transport_config(Arc::clone(&transport));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoints = [
            Endpoint::client(any).expect("a socket"),
            Endpoint::server(server, any).expect("a socket"),
        ];
        let (terms, purse) = money(setup, &keys);
        let services = services.iter().map(|(name, addr)| (service(name), *addr)).collect();
        let connections = connect(&endpoints, &keys, &transport).await;
        let purse_of = |p: &Purse| (!setup.price.is_zero()).then(|| p.clone());
        let payer = Payer::new(terms.clone(), purse_of(&purse), 1, None);
        let channel = purse_of(&purse).map(|p| p.channel);
        let payee = Payee::new(terms.clone(), channel, 1, None);
        let (tenant_options, tenant_owner) = options(setup.tenant_never_pays);
        let (provider_options, provider_owner) = options(false);
        let [ours, theirs] = connections;
        let tenant = Account::payer(payer, ours.clone(), tenant_options);
        let provider = Account::payee(payee, theirs.clone(), provider_options);
        let rig = Self {
            terms,
            purse,
            tenant: Link { connection: ours, account: tenant },
            provider: Link { connection: theirs, account: provider },
            tenant_owner,
            provider_owner,
            links: watch::channel(None).0,
            endpoints,
            keys,
            transport,
            services: Arc::new(services),
        };
        rig.start();
        rig
    }

    fn start(&self) {
        self.links.send_replace(Some(self.tenant.clone()));
        let Link { connection, account } = self.provider.clone();
        tokio::spawn(serve(connection, Arc::clone(&self.services), account));
    }

    /// Another session of the same lease.
    pub(crate) async fn reconnect(&mut self, session: u64) {
        self.next_session(session, false).await;
    }

    /// Another session of the same lease, whose tenant does not pay either.
    pub(crate) async fn reconnect_unpaying(&mut self, session: u64) {
        self.next_session(session, true).await;
    }

    async fn next_session(&mut self, session: u64, tenant_never_pays: bool) {
        let [ours, theirs] = connect(&self.endpoints, &self.keys, &self.transport).await;
        let newest = self.tenant.account.newest();
        let payer =
            Payer::new(self.terms.clone(), Some(self.purse.clone()), session, newest.as_ref());
        let (tenant_options, tenant_owner) = options(tenant_never_pays);
        let (provider_options, provider_owner) = options(false);
        let provider = self
            .provider
            .account
            .next_session(session, newest, theirs.clone(), provider_options)
            .expect("a provider's account");
        let tenant = Account::payer(payer, ours.clone(), tenant_options);
        self.tenant = Link { connection: ours, account: tenant };
        self.provider = Link { connection: theirs, account: provider };
        (self.tenant_owner, self.provider_owner) = (tenant_owner, provider_owner);
        self.start();
    }

    /// A local port of the tenant that leads to a service.
    pub(crate) async fn local_port(&self, name: &str) -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        tokio::spawn(listen(listener, service(name), Clock::default(), self.links.subscribe()));
        addr
    }

    pub(crate) async fn dial(&self, name: &str) -> TcpStream {
        let addr = self.local_port(name).await;
        TcpStream::connect(addr).await.expect("the local port accepts")
    }

    /// Settles both ends and compares their accounts. A connection that was just dropped may still
    /// bring bytes, so this is done until nothing moves.
    pub(crate) async fn settle(&self) {
        let (tenant, provider) = (&self.tenant.account, &self.provider.account);
        let mut last = None;
        loop {
            let settled = tokio::join!(provider.settle(), tenant.settle());
            let now = (tenant.snapshot(), provider.snapshot());
            assert_eq!(settled, (true, true), "{now:?}");
            if last.replace(now) == Some(now) {
                break;
            }
        }
        let (tenant, provider) = (tenant.snapshot(), provider.snapshot());
        assert_eq!(tenant.paid, provider.paid, "both bill the same");
        assert_eq!(tenant.counted, tenant.paid, "and all of it");
        assert_eq!(tenant.amount, provider.amount);
        assert_eq!((tenant.lies, provider.lies), (0, 0));
        if !self.terms.price.is_zero() {
            assert!(provider.unpaid_max <= self.terms.window, "{}", provider.unpaid_max);
        }
    }
}

async fn connect(
    endpoints: &[Endpoint; 2],
    keys: &[Keypair; 2],
    transport: &Arc<TransportConfig>,
) -> [quinn::Connection; 2] {
    let peer = keys[1].public().to_peer_id();
    let client = client_config(&keys[0], peer, ALPN_SESSION).expect("a client's TLS");
    let mut client = ClientConfig::new(client);
    client.transport_config(Arc::clone(transport));
    let addr = endpoints[1].local_addr().expect("bound");
    let connecting = endpoints[0].connect_with(client, addr, "sluice").expect("a client");
    let accepting = async { endpoints[1].accept().await.expect("open").await.expect("a session") };
    let (ours, theirs) = tokio::join!(connecting, accepting);
    [ours.expect("a session"), theirs]
}
