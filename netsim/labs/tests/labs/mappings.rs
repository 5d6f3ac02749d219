//! Ports that a router forwards because somebody asked it to: a real miniupnpd.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netsim_labs::{Access, Cell, Internet, Link, PathKind, Protocol, Upnp};

use crate::can_run;

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
        $(
            #[test]
            #[ignore = "a lab: cargo labs"]
            fn $name() -> Result<()> {
                miniupnpd_maps(Protocol::$protocol)
            }
        )*
    };
}

miniupnpd! {
    miniupnpd_maps_a_port_by_upnp: Upnp;
    miniupnpd_maps_a_port_by_nat_pmp: NatPmp;
    miniupnpd_maps_a_port_by_pcp: Pcp;
}

/// Two symmetric NATs never meet, unless a port is mapped.
fn sluice_maps(protocol: Protocol) -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let home = (Access::Symmetric, Link::FIBRE);
    let mut cell = Cell::build(1, home, home)?;
    let router = Upnp::start(&cell.provider_home, protocol)?;
    let web = cell.start("always")?;
    cell.wait_for_path(PathKind::Direct)?;
    ensure!(router.mappings()? > 0, "a direct path without a mapping");
    cell.finish(cell.download(web)?)?;
    cell.wait_for_path(PathKind::Direct)?;
    cell.stop()?;
    ensure!(router.mappings()? == 0, "a mapping outlives who asked for it");
    Ok(())
}

macro_rules! mapped {
    ($($name:ident: $protocol:ident;)*) => {
        $(
            #[test]
            #[ignore = "a lab: cargo labs"]
            fn $name() -> Result<()> {
                sluice_maps(Protocol::$protocol)
            }
        )*
    };
}

mapped! {
    a_provider_maps_a_port_by_upnp: Upnp;
    a_provider_maps_a_port_by_nat_pmp: NatPmp;
    a_provider_maps_a_port_by_pcp: Pcp;
}
