//! What breaks in the middle of a download, which goes on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netsim_labs::{Access, Cell, Link, PathKind};
use tests::Curl;

use crate::can_run;

/// A session over relays alone, slow enough for a few kills in mid-download.
const SLOW: Link = Link { up: 40_000_000, down: 40_000_000, ..Link::FIBRE };
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
        wait_until_warm(&cell, 1 - carrying)?;
        cell.kill_relay(carrying)?;
        wait_until_carrying(&cell, 1 - carrying)?;
        cell.start_relay(carrying)?;
    }
    cell.finish(download)
}

fn wait_until_warm(cell: &Cell, relay: usize) -> Result<()> {
    tests::until("the other relay is ready", || {
        let sent = cell.frames_sent(relay).ok()?;
        sent.iter().all(|count| *count >= WARM).then_some(())
    })
    .with_context(|| cell.story())
}

fn wait_until_carrying(cell: &Cell, relay: usize) -> Result<()> {
    tests::until("the other relay carries the session", || {
        (cell.carrying() == Some(relay)).then_some(())
    })
    .with_context(|| cell.story())
}

/// A download over a direct path, with a relay warm, of which some came already.
fn under_way(provider: Access, tenant: Access) -> Result<(Cell, Curl)> {
    let mut cell = Cell::build(1, (provider, SLOW), (tenant, SLOW))?;
    let download = direct_download(&mut cell)?;
    Ok((cell, download))
}

/// Starts all roles, and a download over a direct path of which some came already.
pub(super) fn direct_download(cell: &mut Cell) -> Result<Curl> {
    let web = cell.start("always")?;
    cell.wait_for_path(PathKind::Direct)?;
    let mut download = cell.download(web)?;
    download.wait_for_bytes(cell.len() / 10).with_context(|| cell.story())?;
    Ok(download)
}

#[test]
#[ignore = "a lab: cargo labs"]
fn a_direct_path_is_lost_and_found_again() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let (cell, mut download) = under_way(Access::PortRestricted, Access::PortRestricted)?;
    let [provider, tenant] = [&cell.provider_home, &cell.tenant_home].map(|home| home.public);
    cell.internet.backbone().nft(&format!(
        "table ip cut {{
chain cut {{
    type filter hook forward priority filter;
    ip saddr {{ {provider}, {tenant} }} ip daddr {{ {provider}, {tenant} }} drop
}}
}}"
    ))?;
    cell.wait_for_path(PathKind::Relayed)?;
    download.wait_for_bytes(cell.len() / 4).with_context(|| cell.story())?;
    cell.internet.backbone().run("nft delete table ip cut")?;
    cell.wait_for_path(PathKind::Direct)?;
    cell.finish(download)
}

#[test]
#[ignore = "a lab: cargo labs"]
fn a_home_gets_another_address() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let (cell, mut download) = under_way(Access::PortRestricted, Access::PortRestricted)?;
    let public = cell.provider_home.renumber()?;
    download.wait_for_bytes(cell.len() / 2).with_context(|| cell.story())?;
    tests::until("a direct path to the new address", || {
        let remote = cell.path()?["remote"].as_str()?.to_owned();
        remote.starts_with(&format!("{public}:")).then_some(())
    })
    .with_context(|| cell.story())?;
    cell.finish(download)
}

#[test]
#[ignore = "a lab: cargo labs"]
fn a_network_blocks_udp_and_lets_it_pass_again() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let (cell, mut download) = under_way(Access::Symmetric, Access::FullCone)?;
    let router = cell.tenant_home.router.clone().context("no router")?;
    router.nft(
        "table ip cut {
chain cut {
    type filter hook forward priority filter - 1;
    meta l4proto udp drop
}
}",
    )?;
    tests::until("the tenant is relayed over TCP", || {
        cell.path().filter(|path| path["over_tcp"] == true).map(drop)
    })
    .with_context(|| cell.story())?;
    download.wait_for_bytes(cell.len() / 3).with_context(|| cell.story())?;
    router.run("nft delete table ip cut")?;
    cell.wait_for_path(PathKind::Direct)?;
    cell.finish(download)
}

#[test]
#[ignore = "a lab: cargo labs"]
fn a_relay_falls_silent() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let home = (Access::Symmetric, SLOW);
    let mut cell = Cell::build(2, home, home)?;
    let web = cell.start("always")?;
    let mut download = cell.download(web)?;
    download.wait_for_bytes(cell.len() / 5).with_context(|| cell.story())?;
    let carrying = cell.carrying().context("no relay carries the session")?;
    wait_until_warm(&cell, 1 - carrying)?;
    // It runs, and knows nothing of it.
    cell.hosts[carrying].namespace.nft(
        "table ip cut {
chain cut {
    type filter hook input priority filter;
    iifname \"wan\" drop
}
}",
    )?;
    wait_until_carrying(&cell, 1 - carrying)?;
    cell.finish(download)
}

/// A radio link: packets come late, in bunches, or never.
#[test]
#[ignore = "a lab: cargo labs"]
fn packets_are_late_and_lost() -> Result<()> {
    if !can_run()? {
        return Ok(());
    }
    let radio = Link { jitter: Duration::from_millis(8), loss: 0.005, ..Link::FIBRE };
    let home = (Access::PortRestricted, Link::FIBRE);
    let mut cell = Cell::build(1, home, (Access::Cgnat, radio))?;
    let web = cell.start("always")?;
    cell.wait_for_path(PathKind::Direct)?;
    let before = cell.internet.tally();
    cell.finish(cell.download(web)?)?;
    let after = cell.internet.tally();
    let lost = after.lost - before.lost;
    ensure!(lost > 50, "only {lost} packets were lost of {}", after.passed - before.passed);
    Ok(())
}
