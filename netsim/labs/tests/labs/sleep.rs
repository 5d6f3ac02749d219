//! A laptop's lid is closed in mid-download, and opened again.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netsim_labs::{Access, Cell, Home, Link, PathKind};
use rustix::process::Signal;
use tests::{Curl, Process};

use crate::can_run;
use crate::faults::direct_download;

const SLOW: Link = Link { up: 40_000_000, down: 40_000_000, ..Link::FIBRE };
/// Longer than a NAT remembers, than a control connection outlives its last packet (30 s), and than
/// a relay then remembers whom it was to (60 s).
const ASLEEP: Duration = Duration::from_secs(100);
/// The routers forget a mapping after this, in seconds.
const FORGETS_AFTER: u64 = 20;

/// Makes a home's router forget mappings as early as many do.
fn forget_early(home: &Home) -> Result<()> {
    let router = home.router.as_ref().context("no router")?;
    for timer in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
        let path = format!("/proc/sys/net/netfilter/{timer}");
        router.call(move || std::fs::write(path, FORGETS_AFTER.to_string()))?;
    }
    Ok(())
}

/// A download over a direct path of which some came already.
fn under_way() -> Result<(Cell, Curl)> {
    let home = (Access::PortRestricted, SLOW);
    let mut cell = Cell::build(2, home, home)?;
    forget_early(&cell.provider_home)?;
    forget_early(&cell.tenant_home)?;
    let download = direct_download(&mut cell)?;
    Ok((cell, download))
}

/// Both at once, in a lab each: it takes long.
#[test]
#[ignore = "a lab: cargo labs"]
fn a_download_goes_on_after_the_provider_slept_and_after_the_tenant_did() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let (one, one_download) = under_way()?;
    let (other, other_download) = under_way()?;
    let asleep: [&Process; 2] = [one.provider(), other.tenant()];
    for process in asleep {
        process.signal(Signal::STOP)?;
    }
    std::thread::sleep(ASLEEP);
    for process in asleep {
        process.signal(Signal::CONT)?;
    }
    for (cell, download) in [(one, one_download), (other, other_download)] {
        cell.finish(download)?;
        cell.wait_for_path(PathKind::Direct)?;
        let sessions = cell.provider().events("session").len();
        ensure!(sessions == 1, "{sessions} sessions\n{}", cell.story());
    }
    Ok(())
}
