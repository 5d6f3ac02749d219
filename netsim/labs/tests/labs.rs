//! Labs with the real binaries behind real kernel NAT. `cargo labs` runs them.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netsim_labs::{
    Access, Cell, Frame, Frames, Host, Internet, Link, NEEDED, PathKind, Protocol, Upnp,
};
use tests::{has, skip};

/// What a direct download may cost the relays: keepalives and echoes.
const RELAYED_BYTES_MAX: u64 = 1_000_000;

/// Whether labs can run here; says loudly why not.
fn can_run() -> Result<bool> {
    let missing: Vec<_> = NEEDED.into_iter().filter(|program| !has(program)).collect();
    let why = if !rustix::process::geteuid().is_root() {
        "labs need root".to_owned()
    } else if !missing.is_empty() {
        format!("not installed: {}", missing.join(", "))
    } else if let Err(error) = Internet::new(0) {
        format!("the kernel lacks something: {error:#}")
    } else {
        return Ok(true);
    };
    skip("labs", &why)?;
    Ok(false)
}

#[test]
#[ignore = "a lab: cargo labs"]
fn links_are_as_asked() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let mut internet = Internet::lossy(1)?;
    internet.host("reference", Link::DATA_CENTRE)?;
    internet.host("fibre", Link::FIBRE)?;
    let cable = Link { up: 17_000_000, down: 300_000_000, ..Link::FIBRE };
    internet.home("cable", Access::PortRestricted, cable, 10)?;
    let jittery = Link { jitter: Duration::from_millis(6), loss: 0.02, ..Link::DATA_CENTRE };
    internet.home("radio", Access::Cgnat, jittery, 10)?;
    internet.measure()
}

/// A leg that was built as asked, and then changed, is refused for what was changed.
fn refuses(change: impl FnOnce(&Internet) -> Result<()>, words: &str) -> Result<()> {
    let mut internet = Internet::new(1)?;
    internet.host("reference", Link::DATA_CENTRE)?;
    internet.home("home", Access::PortRestricted, Link::FIBRE, 10)?;
    internet.measure().context("as asked")?;
    change(&internet)?;
    let refused = format!("{:#}", internet.measure().err().context("it went on")?);
    ensure!(refused.contains(words), "refused for something else: {refused}");
    Ok(())
}

#[test]
#[ignore = "a lab: cargo labs"]
fn control_a_rate_that_is_off_is_refused() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let change = "tc qdisc replace dev leg1 root tbf rate 95mbit burst 32k latency 100ms";
    refuses(|internet| internet.backbone().run(change).map(drop), "bit/s Down, asked for")
}

#[test]
#[ignore = "a lab: cargo labs"]
fn control_a_delay_that_does_nothing_is_refused() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let change = "iptables-nft -t mangle -F FORWARD";
    refuses(|internet| internet.backbone().run(change).map(drop), "a delay of")
}

/// What a router did with packets from and to one socket behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// Two ports of one machine and another machine saw the same source.
    mapping_is_one: bool,
    /// What came through that was not asked for: from a machine never sent to, from another port of
    /// one that was sent to.
    from_strangers: bool,
    from_other_ports: bool,
}

/// Sends and watches from inside and outside.
fn look(access: Access) -> Result<Option<Seen>> {
    let mut internet = Internet::new(1)?;
    let one = internet.host("one", Link::DATA_CENTRE)?;
    let other = internet.host("other", Link::DATA_CENTRE)?;
    let home = internet.home("home", access, Link::FIBRE, 10)?;
    let bind = |host: &Host, port| -> Result<_> {
        let socket = host.namespace.udp(host.addr, port)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    };
    let (first, second, third) = (bind(&one, 1001)?, bind(&one, 1002)?, bind(&other, 1003)?);
    let inside = home.host.udp(Ipv4Addr::UNSPECIFIED, 0)?;
    inside.set_read_timeout(Some(Duration::from_millis(500)))?;
    let arrives = |from: &UdpSocket, addr: SocketAddr, at: &UdpSocket| -> Result<_> {
        from.send_to(b"?", addr)?;
        Ok(at.recv_from(&mut [0; 1]).ok().map(|(_, source)| source))
    };
    let Some(mapped) = arrives(&inside, first.local_addr()?, &first)? else { return Ok(None) };
    ensure!(arrives(&first, mapped, &inside)?.is_some(), "an answer did not come through");
    let from_other_ports = arrives(&second, mapped, &inside)?.is_some();
    let from_strangers = arrives(&third, mapped, &inside)?.is_some();
    let others = [(&second, second.local_addr()?), (&third, third.local_addr()?)];
    let mut mapping_is_one = true;
    for (socket, addr) in others {
        mapping_is_one &= arrives(&inside, addr, socket)? == Some(mapped);
    }
    Ok(Some(Seen { mapping_is_one, from_strangers, from_other_ports }))
}

fn behaves(access: Access, expected: Option<(bool, bool, bool)>) -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let seen = look(access)?.map(|s| (s.mapping_is_one, s.from_strangers, s.from_other_ports));
    ensure!(seen == expected, "{access}: {seen:?}, not {expected:?}");
    Ok(())
}

macro_rules! routers {
    ($($name:ident: $access:ident => $expected:expr;)*) => {
        mod router_is {
            use super::*;
            $(
                #[test]
                #[ignore = "a lab: cargo labs"]
                fn $name() -> Result<()> {
                    behaves(Access::$access, $expected)
                }
            )*
        }
    };
}

// One mapping for all, strangers come through, other ports of known machines come through.
routers! {
    none: Public => Some((true, true, true));
    full_cone: FullCone => Some((true, true, true));
    address_restricted: AddressRestricted => Some((true, false, true));
    port_restricted: PortRestricted => Some((true, false, false));
    symmetric: Symmetric => Some((false, false, false));
    cgnat: Cgnat => Some((true, false, false));
    udp_blocked: UdpBlocked => None;
}

/// A download from a provider at home by a tenant at home, over a path of this kind.
fn reaches(provider: Access, tenant: Access, kind: PathKind) -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let mut cell = Cell::build(1, (provider, Link::FIBRE), (tenant, Link::FIBRE))?;
    let web = cell.start("always")?;
    if kind == PathKind::Direct {
        cell.wait_for_path(kind)?;
    }
    let before = cell.relayed_bytes()?;
    cell.finish(cell.download(web)?)?;
    let relayed = cell.relayed_bytes()? - before;
    cell.wait_for_path(kind)?;
    // The relay's wire tells the truth, whatever anybody says.
    let is_as_said = match kind {
        PathKind::Direct => relayed < RELAYED_BYTES_MAX,
        PathKind::Relayed | PathKind::Tcp => relayed > cell.len(),
    };
    ensure!(is_as_said, "{kind}, and the relay sent {relayed} bytes{}", cell.story());
    let sent = cell.frames_sent(0)?;
    for (home, sent) in [(provider, sent[0]), (tenant, sent[1])] {
        let is_blocked = home == Access::UdpBlocked;
        ensure!((sent == 0) == is_blocked, "{sent} frames over UDP to where {home} stands");
    }
    Ok(())
}

macro_rules! cells {
    ($($name:ident: $provider:ident, $tenant:ident => $kind:ident;)*) => {
        mod cell {
            use super::*;
            $(
                #[test]
                #[ignore = "a lab: cargo labs"]
                fn $name() -> Result<()> {
                    reaches(Access::$provider, Access::$tenant, PathKind::$kind)
                }
            )*
        }
    };
}

// Provider, tenant, and the path that their routers allow.
cells! {
    public_to_public: Public, Public => Direct;
    public_to_full_cone: Public, FullCone => Direct;
    port_restricted_to_public: PortRestricted, Public => Direct;
    public_to_symmetric: Public, Symmetric => Direct;
    cgnat_to_public: Cgnat, Public => Direct;
    full_cone_to_full_cone: FullCone, FullCone => Direct;
    full_cone_to_port_restricted: FullCone, PortRestricted => Direct;
    symmetric_to_full_cone: Symmetric, FullCone => Direct;
    full_cone_to_cgnat: FullCone, Cgnat => Direct;
    address_restricted_to_port_restricted: AddressRestricted, PortRestricted => Direct;
    address_restricted_to_symmetric: AddressRestricted, Symmetric => Direct;
    port_restricted_to_port_restricted: PortRestricted, PortRestricted => Direct;
    cgnat_to_port_restricted: Cgnat, PortRestricted => Direct;
    cgnat_to_cgnat: Cgnat, Cgnat => Direct;
    symmetric_to_symmetric: Symmetric, Symmetric => Relayed;
    udp_blocked_to_public: UdpBlocked, Public => Tcp;
    full_cone_to_udp_blocked: FullCone, UdpBlocked => Tcp;
    port_restricted_to_udp_blocked: PortRestricted, UdpBlocked => Tcp;
    udp_blocked_to_symmetric: UdpBlocked, Symmetric => Tcp;
    cgnat_to_udp_blocked: Cgnat, UdpBlocked => Tcp;
    udp_blocked_to_udp_blocked: UdpBlocked, UdpBlocked => Tcp;
}

/// A session over relays alone, slow enough for a few kills in mid-download.
const SLOW: Link = Link { up: 20_000_000, down: 20_000_000, ..Link::FIBRE };
/// Frames to each home after which a relay surely carries echoes from end to end, or packets.
const WARM: u64 = 4;

#[test]
#[ignore = "a lab: cargo labs"]
fn one_download_survives_three_relay_kills() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let home = (Access::PortRestricted, SLOW);
    let mut cell = Cell::build(2, home, home)?;
    let web = cell.start("never")?;
    let mut download = cell.download(web)?;
    for kill in 1..=3 {
        download.wait_for_bytes(kill * cell.len() / 5).with_context(|| cell.story())?;
        let carrying = cell.carrying().context("no relay carries the session")?;
        let other = 1 - carrying;
        tests::until("the other relay is ready", || {
            let sent = cell.frames_sent(other).ok()?;
            sent.iter().all(|count| *count >= WARM).then_some(())
        })
        .with_context(|| cell.story())?;
        cell.kill_relay(carrying)?;
        tests::until("the other relay carries the session", || {
            (cell.carrying() == Some(other)).then_some(())
        })
        .with_context(|| cell.story())?;
        cell.start_relay(carrying)?;
    }
    cell.finish(download)
}

/// The provider's machine, and the one whose service it declares.
const PROVIDER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const STORAGE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 30);
/// A machine that has nothing to do with it, and one that has not either, but has the address that
/// the tenant's machine has in the tenant's own home.
const PRINTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 40);
const NAMESAKE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);
/// Probes that a peer which names an address can make a provider send there in half a minute.
const PROBES_MAX: usize = 26;

#[test]
#[ignore = "a lab: cargo labs"]
fn a_household_sees_nothing_but_the_declared_service() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let home = (Access::PortRestricted, Link::FIBRE);
    let mut cell = Cell::build(1, home, home)?;
    ensure!(cell.tenant_home.addr == NAMESAKE, "the tenant's machine has another address");
    let (storage, port) = cell.serve_from(STORAGE.octets()[3])?;
    let printer = cell.provider_home.neighbour(PRINTER.octets()[3])?;
    let namesake = cell.provider_home.neighbour(NAMESAKE.octets()[3])?;
    let watched = [&storage, &printer, &namesake].map(|machine| Frames::start(machine));
    let web = cell.start("always")?;
    cell.wait_for_path(PathKind::Direct)?;
    cell.finish(cell.download(web)?)?;
    cell.stop()?;
    let mut seen = Vec::new();
    for watch in watched {
        let frames = watch?.stop().into_iter();
        seen.push(frames.filter(|f| !matches!(f, Frame::Arp { .. })).collect::<Vec<_>>());
    }
    let (served, others): (Vec<&Frame>, Vec<&Frame>) =
        seen[0].iter().partition(|f| is_service(f, port));
    ensure!(served.len() > 1000, "the capture saw {} packets of the service", served.len());
    ensure!(others.is_empty(), "to the declared service's machine: {others:?}");
    ensure!(seen[1].is_empty(), "to a machine that nobody named: {:?}", seen[1]);
    let (probes, others): (Vec<&Frame>, Vec<&Frame>) = seen[2].iter().partition(|f| is_probe(f));
    ensure!(probes.len() <= PROBES_MAX, "{} probes of an address it named", probes.len());
    ensure!(others.iter().all(|f| is_refusal(f)), "to a machine that the tenant named: {others:?}");
    Ok(())
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

fn is_service(frame: &Frame, port: u16) -> bool {
    match *frame {
        Frame::Ip { from: PROVIDER, to: STORAGE, protocol: TCP, ports: Some((_, to)) } => {
            to == port
        }
        Frame::Ip { from: STORAGE, to: PROVIDER, protocol: TCP, ports: Some((at, _)) } => {
            at == port
        }
        _ => false,
    }
}

fn is_probe(frame: &Frame) -> bool {
    matches!(frame, Frame::Ip { from: PROVIDER, to: NAMESAKE, protocol: UDP, .. })
}

/// The machine says that nobody listens there.
fn is_refusal(frame: &Frame) -> bool {
    matches!(frame, Frame::Ip { from: NAMESAKE, to: PROVIDER, protocol: ICMP, .. })
}

/// A stranger's packet reaches a machine behind a symmetric NAT through a port it asked for.
fn miniupnpd_maps(protocol: Protocol) -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let mut internet = Internet::new(1)?;
    let stranger = internet.host("stranger", Link::DATA_CENTRE)?;
    let home = internet.home("home", Access::Symmetric, Link::FIBRE, 10)?;
    let router = Upnp::start(&home, protocol)?;
    ensure!(router.mappings()? == 0, "mappings before anybody asked");
    let inside = home.host.udp(home.addr, 0)?;
    let port = router.ask(&home.host, home.addr, &inside)?;
    ensure!(router.mappings()? == 1, "{} mappings", router.mappings()?);
    let outside = stranger.namespace.udp(stranger.addr, 0)?;
    outside.send_to(b"!", (home.public, port))?;
    inside.set_read_timeout(Some(Duration::from_secs(5)))?;
    let from = inside.recv_from(&mut [0; 1]).context("nothing came through the mapping")?.1;
    ensure!(from == outside.local_addr()?, "a packet from {from}");
    Ok(())
}

macro_rules! miniupnpd {
    ($($name:ident: $protocol:ident;)*) => {
        mod miniupnpd_maps_a_port_by {
            use super::*;
            $(
                #[test]
                #[ignore = "a lab: cargo labs"]
                fn $name() -> Result<()> {
                    miniupnpd_maps(Protocol::$protocol)
                }
            )*
        }
    };
}

miniupnpd! {
    upnp: Upnp;
    nat_pmp: NatPmp;
    pcp: Pcp;
}
