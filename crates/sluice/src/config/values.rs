//! Values as people write them: sizes, rates, durations, services, relays.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use sluice_mesh::Multiaddr;
use sluice_proto::market;
use sluice_proto::{PeerId, RelayAddr, ServiceName};
use sluice_settlement::RedemptionRule;
use sluice_transport::NatOptions;

/// What is wrong with a value and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

pub(super) fn wrong<T>(what: impl Into<String>) -> Result<T, ValueError> {
    Err(ValueError(what.into()))
}

/// The name among `known` that somebody may have meant by `word`.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters, two at least: enough for a slip, too few to turn one word into another.
    let most = (word.len() / 3).max(2);
    let word = word.to_lowercase().replace('-', "_");
    known
        .map(|name| (strsim::damerau_levenshtein(&word, name), name))
        .filter(|(distance, name)| *distance <= most && *distance < name.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// Largest first within each family, so that the first that divides is the one to print.
const BYTE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match quantity(text, &BYTE_UNITS, "B") {
            Some(bytes) => Ok(Self(bytes)),
            None => wrong(format!(
                "{text:?} is not a size: write a number and B, KB, MB, GB, TB, KiB, MiB, GiB or \
                 TiB, such as \"256 MiB\""
            )),
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        largest(f, self.0, &BYTE_UNITS)
    }
}

/// Bits per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitRate(pub u64);

const RATE_UNITS: [(&str, u64); 5] = [
    ("Tbit/s", 1_000_000_000_000),
    ("Gbit/s", 1_000_000_000),
    ("Mbit/s", 1_000_000),
    ("kbit/s", 1_000),
    ("bit/s", 1),
];

impl FromStr for BitRate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match quantity(text, &RATE_UNITS, "bit/s") {
            Some(0) => wrong("the rate must not be 0"),
            Some(rate) => Ok(Self(rate)),
            None => wrong(format!(
                "{text:?} is not a rate: write a number and kbit/s, Mbit/s or Gbit/s, such as \
                 \"100 Mbit/s\""
            )),
        }
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        largest(f, self.0, &RATE_UNITS)
    }
}

/// Wei for each unit of gas.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GasPrice(pub u64);

const GAS_PRICE_UNITS: [(&str, u64); 2] = [("gwei", 1_000_000_000), ("wei", 1)];

impl FromStr for GasPrice {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match quantity(text, &GAS_PRICE_UNITS, "") {
            Some(0) => wrong("a cap of 0 would never be met: write \"never\" as wallet.redeem"),
            Some(wei) => Ok(Self(wei)),
            None => wrong(format!(
                "{text:?} is not a price of gas: write a number and gwei or wei, such as \"30 gwei\""
            )),
        }
    }
}

impl fmt::Display for GasPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        largest(f, self.0, &GAS_PRICE_UNITS)
    }
}

/// Parses a rule of redemption: a fraction such as `1 %`, `before_close`, `on_demand` or `never`.
///
/// # Errors
/// When it is none, or the fraction is not above 0 and at most 100 %.
pub fn parse_rule(text: &str) -> Result<RedemptionRule, ValueError> {
    match text {
        "before_close" => return Ok(RedemptionRule::BeforeClose),
        "on_demand" => return Ok(RedemptionRule::OnDemand),
        "never" => return Ok(RedemptionRule::Never),
        _ => {}
    }
    let ppm = quantity(text, &[("%", 10_000)], "").and_then(|ppm| u32::try_from(ppm).ok());
    match ppm {
        Some(ppm @ 1..=1_000_000) => Ok(RedemptionRule::FeeBelow { ppm }),
        Some(_) | None => wrong(format!(
            "{text:?} is not a rule: write the largest fee as a part of the amount, such as \"1 %\", \
             or \"before_close\", \"on_demand\" or \"never\""
        )),
    }
}

const SECOND_MS: u64 = 1_000;
const TIME_UNITS: [(&str, u64); 8] = [
    ("days", 86_400 * SECOND_MS),
    ("day", 86_400 * SECOND_MS),
    ("d", 86_400 * SECOND_MS),
    ("h", 3_600 * SECOND_MS),
    ("min", 60 * SECOND_MS),
    ("m", 60 * SECOND_MS),
    ("s", SECOND_MS),
    ("ms", 1),
];

/// Parses a duration such as `10m`, `72h`, `30 days`.
///
/// # Errors
/// When it has no known unit, or does not fit.
pub fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    match quantity(text, &TIME_UNITS, "") {
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => wrong(format!(
            "{text:?} is not a duration: write a number and s, m, h or d, such as \"10m\" or \"72h\""
        )),
    }
}

/// A number, with a decimal fraction if need be, times its unit; exact, or rounded down.
fn quantity(text: &str, units: &[(&str, u64)], without: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'));
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let unit = match unit.trim() {
        "" => without,
        unit => unit,
    };
    let (_, scale) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, "0"));
    // Nine decimals are more than anybody writes, and cannot overflow below.
    if fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let scale = u128::from(*scale);
    let whole: u128 = whole.parse::<u64>().ok()?.into();
    let part: u128 = fraction.parse::<u64>().ok()?.into();
    let tens = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    u64::try_from(whole * scale + part * scale / tens).ok()
}

fn largest(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let (unit, scale) = units
        .iter()
        .find(|(_, scale)| value >= *scale && value.is_multiple_of(*scale))
        .or(units.last())
        .expect("every family has a unit");
    write!(f, "{} {unit}", value / scale)
}

/// When a direct path, which shows each side the other's address, may be used; the stricter is the
/// greater.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DirectPolicy {
    /// From the start.
    Always,
    /// Once the channel is seen open on-chain, or with price 0 once the right to connect is
    /// accepted.
    #[default]
    AfterFunding,
    /// Relays only.
    Never,
}

impl DirectPolicy {
    /// What may be done for direct paths: nothing, if there are to be none.
    #[must_use]
    pub fn nat_options(self, options: NatOptions) -> NatOptions {
        let may = self != Self::Never;
        NatOptions {
            survey: options.survey && may,
            port_mapping: options.port_mapping && may,
            ..options
        }
    }
}

impl From<market::DirectPolicy> for DirectPolicy {
    fn from(policy: market::DirectPolicy) -> Self {
        match policy {
            market::DirectPolicy::Always => Self::Always,
            market::DirectPolicy::AfterFunding => Self::AfterFunding,
            market::DirectPolicy::Never => Self::Never,
        }
    }
}

impl From<DirectPolicy> for market::DirectPolicy {
    fn from(policy: DirectPolicy) -> Self {
        match policy {
            DirectPolicy::Always => Self::Always,
            DirectPolicy::AfterFunding => Self::AfterFunding,
            DirectPolicy::Never => Self::Never,
        }
    }
}

impl FromStr for DirectPolicy {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "always" => Ok(Self::Always),
            "after_funding" => Ok(Self::AfterFunding),
            "never" => Ok(Self::Never),
            other => one_of(other, &["always", "after_funding", "never"]),
        }
    }
}

/// The error for a word that is none of `words`.
pub(super) fn one_of<T>(word: &str, words: &[&str]) -> Result<T, ValueError> {
    let list = words.iter().map(|w| format!("\"{w}\"")).collect::<Vec<_>>().join(", ");
    match nearest(word, words.iter().copied()) {
        Some(near) => wrong(format!("{word:?} is none of {list}; did you mean \"{near}\"?")),
        None => wrong(format!("{word:?} is none of {list}")),
    }
}

/// What is final on a chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Finality {
    /// What the chain itself calls final.
    #[default]
    Finalized,
    /// A number of blocks, the including one counted; at least 1.
    Confirmations(u64),
}

impl FromStr for Finality {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match (text, text.parse()) {
            ("finalized", _) => Ok(Self::Finalized),
            (_, Ok(blocks @ 1..=1_000_000)) => Ok(Self::Confirmations(blocks)),
            _ => wrong(format!(
                "{text:?} is not a finality: write \"finalized\" or a number of confirmations from 1"
            )),
        }
    }
}

/// What a service carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceKind {
    /// TCP connections.
    Tcp,
}

impl From<ServiceKind> for market::ServiceKind {
    fn from(kind: ServiceKind) -> Self {
        match kind {
            ServiceKind::Tcp => Self::Tcp,
        }
    }
}

/// A service that a provider offers: `web=tcp:127.0.0.1:8080`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expose {
    /// Its name.
    pub service: ServiceName,
    /// What it carries.
    pub kind: ServiceKind,
    /// Where to dial, in this order: one address, or for `localhost` both of its.
    pub targets: Vec<SocketAddr>,
}

impl Expose {
    /// Parses `name=tcp:address:port`; the address is an IP address or `localhost`.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let Some((name, rest)) = text.split_once('=') else {
            return wrong(format!(
                "{text:?} is not a service: write name=tcp:address:port, such as \
                 web=tcp:127.0.0.1:8080"
            ));
        };
        let service = service(name)?;
        let target = match rest.split_once(':') {
            Some(("tcp", target)) => target,
            Some(("udp" | "tls", _)) => {
                return wrong(format!("{text:?}: only tcp services can be exposed so far"));
            }
            Some(_) | None => rest,
        };
        Ok(Self { service, kind: ServiceKind::Tcp, targets: targets(target)? })
    }
}

impl FromStr for Expose {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.targets.as_slice() {
            [target] => write!(f, "{}=tcp:{target}", self.service),
            [target, ..] => write!(f, "{}=tcp:localhost:{}", self.service, target.port()),
            [] => write!(f, "{}=tcp:", self.service),
        }
    }
}

fn service(name: &str) -> Result<ServiceName, ValueError> {
    ServiceName::parse(name).map_err(|e| ValueError(e.to_string()))
}

fn targets(text: &str) -> Result<Vec<SocketAddr>, ValueError> {
    if let Some(port) = text.strip_prefix("localhost:") {
        let port = port_of(text, port)?;
        let hosts = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        return Ok(hosts.map(|host| SocketAddr::new(host, port)).to_vec());
    }
    let target: SocketAddr = match text.parse() {
        Ok(target) => target,
        Err(_) => {
            return wrong(format!(
                "{text:?} is not an address that can be exposed: write an IP address and a port, \
                 such as 127.0.0.1:8080, or localhost:8080; names are not looked up"
            ));
        }
    };
    if target.port() == 0 {
        return wrong(format!("{text:?}: the port must not be 0"));
    }
    if target.ip().is_unspecified() || target.ip().is_multicast() {
        return wrong(format!(
            "{text:?} cannot be dialled: write the service's own address, such as 127.0.0.1:{}",
            target.port()
        ));
    }
    Ok(vec![target])
}

fn port_of(whole: &str, port: &str) -> Result<u16, ValueError> {
    match port.parse() {
        Ok(port @ 1..) => Ok(port),
        Ok(0) | Err(_) => {
            wrong(format!("{whole:?}: {port:?} is not a port; write a number from 1 to 65535"))
        }
    }
}

/// A local port that leads to a provider's service: `127.0.0.1:9000=web`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Where to listen; port 0 takes a free one.
    pub local: SocketAddr,
    /// The service.
    pub service: ServiceName,
}

impl Map {
    /// Parses `address:port=name`; `port=name` listens on 127.0.0.1.
    ///
    /// # Errors
    /// Says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, ValueError> {
        let Some((local, name)) = text.split_once('=') else {
            return wrong(format!(
                "{text:?} is not a mapping: write address:port=service, such as 127.0.0.1:9000=web"
            ));
        };
        let host_port = local.strip_prefix("localhost:").unwrap_or(local);
        let local = match (local.parse(), host_port.parse()) {
            (Ok(local), _) => local,
            (_, Ok(port)) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            (Err(_), Err(_)) => {
                return wrong(format!(
                    "{local:?} is not a local address: write an IP address and a port, such as \
                     127.0.0.1:9000"
                ));
            }
        };
        Ok(Self { local, service: service(name)? })
    }
}

impl FromStr for Map {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::parse(text)
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.local, self.service)
    }
}

/// TCP port of a relay whose address says `+tcp` and no more: the one that firewalls let through.
const TCP_PORT: NonZeroU16 = NonZeroU16::new(443).expect("not zero");

/// Parses a relay as `sluice relay` prints it: `<peer id>@<IP address>:<port>`, then `+tcp:<port>`
/// if it can be reached over TCP too (`+tcp` alone: 443).
///
/// # Errors
/// Says which part is wrong.
pub fn parse_relay(text: &str) -> Result<RelayAddr, ValueError> {
    let Some((peer, addr)) = text.split_once('@') else {
        return wrong(format!(
            "{text:?} is not a relay: copy what `sluice relay` prints, <peer id>@<address>:<port>"
        ));
    };
    let (addr, tcp) = match addr.split_once("+tcp") {
        Some((addr, port)) => (addr, Some(parse_tcp_port(port)?)),
        None => (addr, None),
    };
    let addr: SocketAddr = match addr.parse() {
        Ok(addr) => addr,
        Err(_) => {
            return wrong(format!(
                "{addr:?} is not a relay's address: write an IP address and a port, such as \
                 192.0.2.1:4433"
            ));
        }
    };
    if addr.port() == 0 || addr.ip().is_unspecified() {
        return wrong(format!("{addr} cannot be dialled: write the relay's own address and port"));
    }
    Ok(RelayAddr::new(parse_peer(peer)?, addr).with_tcp(tcp))
}

fn parse_tcp_port(text: &str) -> Result<NonZeroU16, ValueError> {
    match (text, text.strip_prefix(':').map(str::parse)) {
        ("", _) => Ok(TCP_PORT),
        (_, Some(Ok(port))) => Ok(port),
        (_, Some(Err(_)) | None) => wrong(format!(
            "\"+tcp{text}\" does not name a relay's TCP port: write +tcp:<port>, or +tcp for 443"
        )),
    }
}

/// Parses an address of the mesh to begin with: `/ip4/192.0.2.1/udp/4435/quic-v1/p2p/<peer id>` as
/// `sluice relay` prints it, or a name, `/dnsaddr/example.org`.
///
/// # Errors
/// When it is none.
pub fn parse_bootstrap(text: &str) -> Result<Multiaddr, ValueError> {
    const HOSTS: [&str; 6] = ["/ip4/", "/ip6/", "/dns/", "/dns4/", "/dns6/", "/dnsaddr/"];
    match text.parse::<Multiaddr>() {
        Ok(address) if HOSTS.iter().any(|host| text.starts_with(host)) => Ok(address),
        Ok(_) | Err(_) => wrong(format!(
            "{text:?} is not an address of the mesh: copy what `sluice relay` prints, such as \
             /ip4/192.0.2.1/udp/4435/quic-v1/p2p/<peer id>, or write /dnsaddr/<name>"
        )),
    }
}

/// Parses a peer id.
///
/// # Errors
/// When it is none.
pub fn parse_peer(text: &str) -> Result<PeerId, ValueError> {
    match text.parse() {
        Ok(peer) => Ok(peer),
        Err(_) => {
            wrong(format!("{text:?} is not a peer id: copy it whole; it begins with 12D3KooW"))
        }
    }
}
