//! Whether routers treat packets as their kind says.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use netsim_labs::{Access, Host, Internet, Link};

use crate::can_run;

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
        $(
            #[test]
            #[ignore = "a lab: cargo labs"]
            fn $name() -> Result<()> {
                behaves(Access::$access, $expected)
            }
        )*
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
