//! The sections, their defaults and their bounds.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use sluice_ledger::Server;
use sluice_mesh::{Multiaddr, is_public_ip};
use sluice_proto::{EthAddress, PeerId, RelayAddr, Ticket};
use sluice_settlement::{PERIOD_MAX_S, RedemptionRule};

use super::read::{ConfigError, Problem, Section, flag, number, quantity, text};
use super::values::{
    BitRate, ByteSize, DirectPolicy, Expose, Finality, GasPrice, Map, ValueError, one_of,
    parse_bootstrap, parse_duration, parse_peer, parse_relay, parse_rule,
};

/// Most threads that a section may ask for.
const THREADS_MAX: usize = 1024;
/// Least close period that a payee may accept: time to notice a close and answer it.
const PERIOD_MIN: Duration = Duration::from_secs(48 * 3600);
/// Longest close period, the contract's own: a payer must get its refund some day.
const PERIOD_MAX: Duration = Duration::from_secs(PERIOD_MAX_S as u64);
/// Oftener would only load the node; rarer would leave little of a close's period.
const LOOK_MIN: Duration = Duration::from_secs(1);
const LOOK_MAX: Duration = Duration::from_secs(3600);
/// Bounds of the idle timeout of a session.
const IDLE_MIN: Duration = Duration::from_secs(5);
const IDLE_MAX: Duration = Duration::from_secs(86_400);
/// Port that a relay listens on by default.
const RELAY_PORT: u16 = 4433;

/// Most that guessing ports ever takes of a NAT's table.
const NAT_ENTRIES_MAX: u16 = 1024;

/// `[node]`: what every role needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSection {
    /// Where keys, ledger and the embedded chain are; `None`: a folder for each role below the
    /// user's state folder.
    pub state_dir: Option<PathBuf>,
    /// The data socket of `provide` and `connect`; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Filter of log messages, as `tracing` reads it.
    pub log: String,
    /// When direct paths may be used.
    pub direct: DirectPolicy,
    /// Whether the router may be asked to forward a port.
    pub port_mapping: bool,
    /// Entries of the router's NAT table that guessing ports may take at a time.
    pub nat_entries_max: u16,
    /// Threads of `provide` and `connect`; 0: one per core. One moves several Gbit/s, and a third
    /// cheaper than two.
    pub threads: usize,
}

impl Default for NodeSection {
    fn default() -> Self {
        Self {
            state_dir: None,
            bind: (Ipv4Addr::UNSPECIFIED, 0).into(),
            log: "info".to_owned(),
            direct: DirectPolicy::default(),
            port_mapping: true,
            nat_entries_max: NAT_ENTRIES_MAX,
            threads: 1,
        }
    }
}

impl NodeSection {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.maybe("state_dir", &mut it.state_dir, text(path));
        section.set("bind", &mut it.bind, text(socket));
        section.set("log", &mut it.log, text(words));
        section.set("direct", &mut it.direct, text(str::parse::<DirectPolicy>));
        section.set("port_mapping", &mut it.port_mapping, flag);
        section.set("nat_entries_max", &mut it.nat_entries_max, number(0, NAT_ENTRIES_MAX));
        section.set("threads", &mut it.threads, number(0, THREADS_MAX));
        it
    }
}

/// `[provide]`: a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvideSection {
    /// The services; nothing else is ever dialled.
    pub expose: Vec<Expose>,
    /// The relays to be reached through.
    pub relays: Vec<RelayAddr>,
    /// Token base units per GiB from tenant to provider; 0 is free.
    pub price_up: u128,
    /// Token base units per GiB from provider to tenant; 0 is free.
    pub price_down: u128,
    /// Bits per second that the lease's window is computed from.
    pub rate_max: BitRate,
    /// Bytes that a tenant gets before its first voucher is due.
    pub starter_bytes: ByteSize,
    /// Silence after which a session is closed; 5 s to 24 h.
    pub idle_timeout: Duration,
    /// Days that a ticket is good for; 0: for ever.
    pub ticket_days: u32,
    /// The cold address that is paid; `None`: the node's own wallet.
    pub payout: Option<EthAddress>,
    /// Windows that are served on a deposit that is included but not final.
    pub unfinal_credit_windows: u32,
    /// Token base units to pay into each relay's channel.
    pub relay_deposit: u128,
    /// The most that each relay's channel is topped up to; 0: it is never topped up.
    pub relay_deposit_max: u128,
    /// The dearest relay to use, token base units per GiB; 0: only free ones.
    pub relay_price_max: u128,
}

impl Default for ProvideSection {
    fn default() -> Self {
        Self {
            expose: Vec::new(),
            relays: Vec::new(),
            price_up: 0,
            price_down: 0,
            rate_max: BitRate(1_000_000_000),
            starter_bytes: ByteSize(0),
            idle_timeout: Duration::from_secs(600),
            ticket_days: 30,
            payout: None,
            unfinal_credit_windows: 64,
            relay_deposit: 0,
            relay_deposit_max: 0,
            relay_price_max: 0,
        }
    }
}

impl ProvideSection {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.list("expose", &mut it.expose, Expose::parse);
        section.list("relays", &mut it.relays, parse_relay);
        section.set("price_up", &mut it.price_up, number(0, u128::MAX));
        section.set("price_down", &mut it.price_down, number(0, u128::MAX));
        section.set("rate_max", &mut it.rate_max, quantity(str::parse::<BitRate>));
        section.set("starter_bytes", &mut it.starter_bytes, quantity(str::parse::<ByteSize>));
        section.set("idle_timeout", &mut it.idle_timeout, text(within(IDLE_MIN, IDLE_MAX)));
        section.set("ticket_days", &mut it.ticket_days, number(0, 36_500));
        section.maybe("payout", &mut it.payout, text(address));
        let windows = &mut it.unfinal_credit_windows;
        section.set("unfinal_credit_windows", windows, number(0, 1_000_000));
        section.set("relay_deposit", &mut it.relay_deposit, number(0, u128::MAX));
        section.set("relay_deposit_max", &mut it.relay_deposit_max, number(0, u128::MAX));
        section.set("relay_price_max", &mut it.relay_price_max, number(0, u128::MAX));
        it
    }
}

/// `[relay]`: a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelaySection {
    /// Where it listens.
    pub bind: SocketAddr,
    /// How others reach it, when that is not where it listens.
    pub public_addr: Option<SocketAddr>,
    /// Where it listens on TCP for those whose network blocks UDP; `None`: nowhere.
    pub tcp: Option<SocketAddr>,
    /// Token base units per GiB, each way; 0 is free.
    pub price: u128,
    /// Bytes that a new holder may pass before its first voucher is due; 0 turns it off.
    pub starter_bytes: ByteSize,
    /// Starter bytes to all holders in a month.
    pub starter_total: ByteSize,
    /// Reservations at once.
    pub reservations_max: usize,
    /// Flows of one holder at once.
    pub flows_max: usize,
    /// Bits per second for each reservation, which its window is computed from.
    pub rate_max: BitRate,
    /// Who may reserve; `None`: everybody.
    pub allow: Option<Vec<PeerId>>,
    /// The cold address that is paid; `None`: the node's own wallet.
    pub payout: Option<EthAddress>,
    /// Forwarding threads; 0: one per core.
    pub threads: usize,
    /// The server of the ledger that a fleet shares; `None`: a file in the state directory.
    pub ledger: Option<Server>,
    /// A file of mode 0600 whose first line is the server's password.
    pub ledger_password_file: Option<PathBuf>,
}

impl Default for RelaySection {
    fn default() -> Self {
        Self {
            bind: (Ipv4Addr::UNSPECIFIED, RELAY_PORT).into(),
            public_addr: None,
            tcp: None,
            price: 0,
            starter_bytes: ByteSize(256 << 20),
            starter_total: ByteSize(16 << 30),
            reservations_max: 16_384,
            flows_max: 4096,
            rate_max: BitRate(1_000_000_000),
            allow: None,
            payout: None,
            threads: 0,
            ledger: None,
            ledger_password_file: None,
        }
    }
}

impl RelaySection {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.set("bind", &mut it.bind, text(socket));
        section.maybe("public_addr", &mut it.public_addr, text(public));
        section.maybe("tcp", &mut it.tcp, text(socket));
        section.set("price", &mut it.price, number(0, u128::MAX));
        section.set("starter_bytes", &mut it.starter_bytes, quantity(str::parse::<ByteSize>));
        section.set("starter_total", &mut it.starter_total, quantity(str::parse::<ByteSize>));
        section.set("reservations_max", &mut it.reservations_max, number(1, 1 << 20));
        section.set("flows_max", &mut it.flows_max, number(1, 1 << 20));
        section.set("rate_max", &mut it.rate_max, quantity(str::parse::<BitRate>));
        let mut allow = Vec::new();
        if section.list("allow", &mut allow, parse_peer) {
            it.allow = Some(allow);
        }
        section.maybe("payout", &mut it.payout, text(address));
        section.set("threads", &mut it.threads, number(0, THREADS_MAX));
        section.maybe("ledger", &mut it.ledger, text(str::parse::<Server>));
        section.maybe("ledger_password_file", &mut it.ledger_password_file, text(path));
        it
    }
}

/// `[mesh]`: how nodes find one another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MeshSection {
    /// Where it listens, UDP and TCP; `None`: `relay` beside its data socket's address, the others on a
    /// free port.
    pub listen: Option<SocketAddr>,
    /// Nodes to begin with.
    pub bootstrap: Vec<Multiaddr>,
    /// Where others reach it, if that is not where it listens.
    pub public_addr: Option<SocketAddr>,
    /// Whether addresses of private networks are dialled.
    pub private: bool,
    /// Whether peers are looked for on the LAN by mDNS.
    pub lan: bool,
}

impl MeshSection {
    /// Whether anything asks for a mesh.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.listen.is_some() || !self.bootstrap.is_empty() || self.lan
    }

    /// Whether addresses of private networks are dialled: if that is asked for, or the node begins or
    /// listens in one.
    #[must_use]
    pub fn is_private(&self) -> bool {
        let listens = self.listen.map(|listen| listen.ip()).filter(|ip| !ip.is_unspecified());
        let is_private = self.bootstrap.iter().any(sluice_mesh::is_private);
        self.private || self.lan || is_private || listens.is_some_and(|ip| !is_public_ip(ip))
    }

    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.maybe("listen", &mut it.listen, text(socket));
        section.list("bootstrap", &mut it.bootstrap, parse_bootstrap);
        section.maybe("public_addr", &mut it.public_addr, text(public));
        section.set("private", &mut it.private, flag);
        section.set("lan", &mut it.lan, flag);
        it
    }
}

/// `[connect]`: a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectSection {
    /// Local ports and the services that they lead to.
    pub map: Vec<Map>,
    /// The provider's ticket, of the right form; whether it expired is seen when it is used.
    pub ticket: Option<String>,
    /// Token base units to pay into the channel.
    pub deposit: u128,
    /// The most that the channel is topped up to; 0: it is never topped up.
    pub deposit_max: u128,
    /// The dearest offer to accept, token base units per GiB to the provider; 0: only free ones.
    pub max_price_up: u128,
    /// The same per GiB from the provider.
    pub max_price_down: u128,
    /// When direct paths may be used; `None`: as `[node]` says.
    pub direct: Option<DirectPolicy>,
}

impl ConnectSection {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.list("map", &mut it.map, Map::parse);
        section.maybe("ticket", &mut it.ticket, text(ticket));
        section.set("deposit", &mut it.deposit, number(0, u128::MAX));
        section.set("deposit_max", &mut it.deposit_max, number(0, u128::MAX));
        section.set("max_price_up", &mut it.max_price_up, number(0, u128::MAX));
        section.set("max_price_down", &mut it.max_price_down, number(0, u128::MAX));
        section.maybe("direct", &mut it.direct, text(str::parse::<DirectPolicy>));
        it
    }
}

/// Which chain, if any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChainKind {
    /// No money: price 0 only.
    #[default]
    None,
    /// An EVM inside the process, its state on disk.
    Embedded,
    /// A node that speaks JSON-RPC.
    Rpc,
}

impl std::str::FromStr for ChainKind {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "none" => Ok(Self::None),
            "embedded" => Ok(Self::Embedded),
            "rpc" => Ok(Self::Rpc),
            other => one_of(other, &["none", "embedded", "rpc"]),
        }
    }
}

/// `[chain]`: where money lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSection {
    /// Which chain, if any.
    pub kind: ChainKind,
    /// Embedded: the folder of its state, which several processes of one machine may share; `None`:
    /// inside the state directory.
    pub dir: Option<PathBuf>,
    /// RPC: the node's URL.
    pub url: Option<String>,
    /// RPC: further nodes of the same chain.
    pub other_urls: Vec<String>,
    /// RPC: the address of `Channels`.
    pub contract: Option<EthAddress>,
    /// RPC: the address of the ERC-20 token.
    pub token: Option<EthAddress>,
    /// RPC: the chain's id; a node of another chain is refused.
    pub chain_id: Option<u64>,
    /// What is final.
    pub finality: Finality,
    /// From a payer's start of a close to its refund; a payee accepts no shorter one. 48 h to
    /// 180 days, as the contract has it.
    pub period: Duration,
    /// Token base units that one whole coin of the network is worth, to weigh fees; `None`: fees
    /// are not weighed on a node, and play prices hold on the embedded chain.
    pub coin_price: Option<u128>,
    /// The dearest gas to redeem at; `None`: any.
    pub gas_price_max: Option<GasPrice>,
    /// How often roles look at their channels; 1 s to 1 h.
    pub look: Duration,
}

impl Default for ChainSection {
    fn default() -> Self {
        Self {
            kind: ChainKind::None,
            dir: None,
            url: None,
            other_urls: Vec::new(),
            contract: None,
            token: None,
            chain_id: None,
            finality: Finality::Finalized,
            period: Duration::from_secs(72 * 3600),
            coin_price: None,
            gas_price_max: None,
            look: Duration::from_secs(60),
        }
    }
}

/// What `[chain]` comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainChoice {
    /// No money.
    None,
    /// The embedded chain.
    Embedded {
        /// The folder of its state; `None`: inside the state directory.
        dir: Option<PathBuf>,
    },
    /// A node.
    Rpc {
        /// Its URL.
        url: String,
        /// Those of further nodes of the same chain.
        other_urls: Vec<String>,
        /// The address of `Channels`.
        contract: Option<EthAddress>,
        /// The address of the token.
        token: Option<EthAddress>,
        /// The chain's id.
        chain_id: Option<u64>,
        /// What is final.
        finality: Finality,
    },
}

impl ChainSection {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.set("kind", &mut it.kind, text(str::parse::<ChainKind>));
        section.maybe("dir", &mut it.dir, text(path));
        section.maybe("url", &mut it.url, text(url));
        section.list("other_urls", &mut it.other_urls, url);
        section.maybe("contract", &mut it.contract, text(address));
        section.maybe("token", &mut it.token, text(address));
        section.maybe("chain_id", &mut it.chain_id, number(1, u64::MAX >> 1));
        section.set("finality", &mut it.finality, quantity(str::parse::<Finality>));
        section.set("period", &mut it.period, text(within(PERIOD_MIN, PERIOD_MAX)));
        section.maybe("coin_price", &mut it.coin_price, number(1, u128::MAX));
        section.maybe("gas_price_max", &mut it.gas_price_max, text(str::parse::<GasPrice>));
        section.set("look", &mut it.look, text(within(LOOK_MIN, LOOK_MAX)));
        it
    }

    /// The chain that these fields name together.
    ///
    /// # Errors
    /// When `rpc` has no URL, or a field belongs to another kind of chain.
    pub fn choice(&self) -> Result<ChainChoice, ConfigError> {
        let refuse = |key, what: &str| {
            ConfigError::of(None, vec![Problem::new(key, what)]).map(|()| ChainChoice::None)
        };
        match (self.kind, &self.url) {
            (_, None) if !self.other_urls.is_empty() => {
                refuse("chain.other_urls", "they are beside chain.url, which is missing")
            }
            (ChainKind::None, None) => Ok(ChainChoice::None),
            (ChainKind::Embedded, None) => Ok(ChainChoice::Embedded { dir: self.dir.clone() }),
            (ChainKind::None | ChainKind::Embedded, Some(_)) => {
                refuse("chain.url", "a URL needs chain.kind = \"rpc\"")
            }
            (ChainKind::Rpc, None) => {
                refuse("chain.url", "is missing: chain.kind = \"rpc\" needs the node's URL")
            }
            (ChainKind::Rpc, Some(url)) => Ok(ChainChoice::Rpc {
                url: url.clone(),
                other_urls: self.other_urls.clone(),
                contract: self.contract,
                token: self.token,
                chain_id: self.chain_id,
                finality: self.finality,
            }),
        }
    }
}

/// `[wallet]`: files with a secp256k1 secret key each, mode 0600: an encrypted keystore, or 64
/// hexadecimal digits. Without one the state directory's own key, made at first start, is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WalletSection {
    /// Pays deposits and signs vouchers.
    pub payer: Option<PathBuf>,
    /// Redeems and closes.
    pub payee: Option<PathBuf>,
    /// A file of mode 0600 whose first line unlocks keystores.
    pub passphrase_file: Option<PathBuf>,
    /// When vouchers are redeemed.
    pub redeem: RedemptionRule,
}

impl WalletSection {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.maybe("payer", &mut it.payer, text(path));
        section.maybe("payee", &mut it.payee, text(path));
        section.maybe("passphrase_file", &mut it.passphrase_file, text(path));
        section.set("redeem", &mut it.redeem, text(parse_rule));
        it
    }
}

fn words(text: &str) -> Result<String, ValueError> {
    Ok(text.to_owned())
}

fn path(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("must not be empty".to_owned()),
        text if text.starts_with('~') => {
            Err(format!("{text:?}: `~` is not expanded here: write the whole path"))
        }
        text => Ok(text.into()),
    }
}

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is not a socket: write an IP address and a port, such as 0.0.0.0:4433")
    })
}

fn public(text: &str) -> Result<SocketAddr, String> {
    let addr = socket(text)?;
    if addr.port() == 0 || addr.ip().is_unspecified() {
        return Err(format!("{text:?} cannot be reached: write the address that others dial"));
    }
    Ok(addr)
}

fn address(text: &str) -> Result<EthAddress, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not an address: write 0x and 40 hexadecimal digits"))
}

fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or(text.strip_prefix("https://"));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.starts_with('/') => Ok(text.to_owned()),
        Some(_) | None => {
            Err(format!("{text:?} is not a URL: write one such as \"http://127.0.0.1:8545\""))
        }
    }
}

fn ticket(text: &str) -> Result<String, String> {
    // Time 0: nothing is expired yet.
    Ticket::decode(text, 0).map(|_| text.trim().to_owned()).map_err(|e| e.to_string())
}

pub(super) fn within(min: Duration, max: Duration) -> impl Fn(&str) -> Result<Duration, String> {
    move |text| {
        let duration = parse_duration(text).map_err(|e| e.to_string())?;
        if (min..=max).contains(&duration) {
            Ok(duration)
        } else {
            Err(format!("must be from {} to {}, not {text}", spoken(min), spoken(max)))
        }
    }
}

fn spoken(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds => format!("{seconds} s"),
    }
}
