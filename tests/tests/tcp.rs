//! The three roles where UDP to the relay is blocked: as three processes, over TCP.

use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use sluice_ledger::Edge;
use tests::{Curl, Lab, Web, both_agree, has, sha256_of_content, skip};

const LOOPBACK: &str = "127.0.0.1:0";
const SIZE: u64 = 24 << 20;

#[test]
fn a_paid_download_crosses_a_relay_that_both_ends_reach_only_over_tcp() -> Result<()> {
    if !has("curl") {
        return skip("a download over TCP", "curl is not installed");
    }
    let (lab, web) = (Lab::paid()?, Web::start()?);
    let mut relay = lab.relay_with(&["--bind", LOOPBACK, "--tcp", LOOPBACK])?;
    // Takes every datagram and answers none, as a firewall does.
    let nowhere = UdpSocket::bind(LOOPBACK)?;
    let address = relay.without_udp(nowhere.local_addr()?)?;
    ensure!(address.contains("+tcp:"), "{address}");
    let mut provider = lab.provide_at(&address, &[("web", web.addr())], "never")?;
    let mut tenant = lab.connect(&provider.ticket, &["web"], "never")?;
    let download = Curl::stream(tenant.port("web"), &format!("1/{SIZE}"))?.finish()?;
    ensure!(download.bytes == SIZE);
    ensure!(download.sha256 == sha256_of_content(1, SIZE), "other bytes came");
    for process in [&tenant.process, &provider.process] {
        let path = process.events("path").pop().context("no path was told of")?;
        ensure!((&path["kind"], &path["over_tcp"]) == (&"relayed".into(), &true.into()), "{path}");
    }
    tenant.process.stop()?;
    provider.process.event(0, "session_ended")?;
    provider.process.stop()?;
    relay.process.stop()?;
    let account = tenant.process.accounts()?.pop().context("the tenant told no account")?;
    ensure!(account.down == web.sent(), "{account:?}: {} were sent", web.sent());
    let (ours, theirs) = (lab.books("connect")?, lab.books("provide")?);
    ensure!(both_agree(Edge::Tenant, &ours, &theirs)? == 1);
    ensure!(both_agree(Edge::Relay, &theirs, &lab.books("relay")?)? == 1);
    Ok(())
}
