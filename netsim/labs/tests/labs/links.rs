//! What is measured before any lab runs, and that a lab which is not as asked is refused.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use netsim_labs::{Access, Internet, Link};

use crate::can_run;

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
