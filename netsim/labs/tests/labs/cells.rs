//! Downloads from a provider at home by a tenant at home, over the path that their networks allow.

use anyhow::{Result, ensure};
use netsim_labs::{Access, Cell, Link, PathKind};

use crate::can_run;

/// What a direct download may cost the relays: keepalives and echoes.
const RELAYED_BYTES_MAX: u64 = 1_000_000;

/// A download from a provider at home by a tenant at home, over a path of this kind.
fn reaches(provider: Access, tenant: Access, kind: PathKind) -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let mut cell = Cell::build(1, (provider, Link::FIBRE), (tenant, Link::FIBRE))?;
    let mut web = cell.start("always")?;
    if kind == PathKind::Direct {
        let mut found = cell.wait_for_path(kind);
        if found.is_err() && needs_guesses(provider, tenant) {
            eprintln!("no port was guessed; once more");
            web = cell.connect("always")?;
            found = cell.wait_for_path(kind);
        }
        found?;
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

/// Whether one side's port must be guessed. By chance a round of 1,024 guesses misses all of 256
/// sockets once in sixty times, so that a lab allows a second session.
fn needs_guesses(one: Access, other: Access) -> bool {
    let is_strict = |access| matches!(access, Access::PortRestricted | Access::Cgnat);
    let pairs = [(one, other), (other, one)];
    pairs.iter().any(|(one, other)| *one == Access::Symmetric && is_strict(*other))
}

macro_rules! cells {
    ($($name:ident: $provider:ident, $tenant:ident => $kind:ident;)*) => {
        $(
            #[test]
            #[ignore = "a lab: cargo labs"]
            fn $name() -> Result<()> {
                reaches(Access::$provider, Access::$tenant, PathKind::$kind)
            }
        )*
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
    port_restricted_to_symmetric: PortRestricted, Symmetric => Direct;
    symmetric_to_port_restricted: Symmetric, PortRestricted => Direct;
    symmetric_to_cgnat: Symmetric, Cgnat => Direct;
    cgnat_to_symmetric: Cgnat, Symmetric => Direct;
    symmetric_to_symmetric: Symmetric, Symmetric => Relayed;
    udp_blocked_to_public: UdpBlocked, Public => Tcp;
    full_cone_to_udp_blocked: FullCone, UdpBlocked => Tcp;
    port_restricted_to_udp_blocked: PortRestricted, UdpBlocked => Tcp;
    udp_blocked_to_symmetric: UdpBlocked, Symmetric => Tcp;
    cgnat_to_udp_blocked: Cgnat, UdpBlocked => Tcp;
    udp_blocked_to_udp_blocked: UdpBlocked, UdpBlocked => Tcp;
}
