//! What a provider's household sees.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use netsim_labs::{Access, Cell, Frame, Frames, Link, PathKind};

use crate::can_run;

/// The provider's machine, and the one whose service it declares.
const PROVIDER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const STORAGE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 30);
/// A machine that has nothing to do with it, and one that has not either, but has the address that
/// the tenant's machine has in the tenant's own home.
const PRINTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 40);
const NAMESAKE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);

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
        seen.push(frames.filter(|f| !is_for_all(f)).collect::<Vec<_>>());
    }
    let (served, others): (Vec<&Frame>, Vec<&Frame>) =
        seen[0].iter().partition(|f| is_service(f, port));
    ensure!(served.len() > 1000, "the capture saw {} packets of the service", served.len());
    ensure!(others.is_empty(), "to the declared service's machine: {others:?}");
    ensure!(seen[1].is_empty(), "to a machine that nobody named: {:?}", seen[1]);
    ensure!(seen[2].is_empty(), "to a machine that the tenant named: {:?}", seen[2]);
    Ok(())
}

/// Where UPnP searches.
const SEARCH: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const TCP: u8 = 6;

fn is_service(frame: &Frame, port: u16) -> bool {
    let Frame::Ip { from, to, protocol: TCP, ports: Some(ports) } = *frame else { return false };
    let is_request = (from, to, ports.1) == (PROVIDER, STORAGE, port);
    is_request || (from, to, ports.0) == (STORAGE, PROVIDER, port)
}

/// Who asks for an address, or for a router that speaks UPnP, asks the whole LAN.
fn is_for_all(frame: &Frame) -> bool {
    let Frame::Ip { to, ports, .. } = frame else { return matches!(frame, Frame::Arp { .. }) };
    (*to, ports.map(|(_, to)| to)) == (SEARCH, Some(1900))
}
