//! Two relays, one of them killed in the middle of a download: the real binaries, free and paid.

use anyhow::{Context as _, Result, ensure};
use sluice_ledger::Edge;
use tests::{
    Curl, Lab, Process, Provider, RelayRole, Tenant, Web, both_agree, curl, has, sha256_of_content,
    skip,
};

/// The download is so long, longer where it is faster ..
const LEN: u64 = if cfg!(debug_assertions) { 24 << 20 } else { 128 << 20 };
/// .. and this much of it came when the relay is killed.
const FIRST: u64 = 6 << 20;
/// The relays' state directories.
const NAMES: [&str; 2] = ["relay-a", "relay-b"];

struct Four {
    lab: Lab,
    web: Web,
    relays: [RelayRole; 2],
    provider: Provider,
    tenant: Tenant,
}

impl Four {
    fn start(lab: Lab) -> Result<Self> {
        let web = Web::start()?;
        let [a, b] = NAMES.map(|name| lab.relay_called(name, &["--bind", "127.0.0.1:0"]));
        let relays = [a?, b?];
        let [a, b] = relays.each_ref().map(|relay| relay.address.as_str());
        let provider = lab.provide_through(&[a, b], &[("web", web.addr())], "never")?;
        let tenant = lab.connect(&provider.ticket, &["web"], "never")?;
        for process in [&tenant.process, &provider.process] {
            process.wait_for(0, "two warm relays", |event| {
                let relays = event["relays"].as_array().filter(|_| event["event"] == "warm")?;
                (relays.len() == 2).then_some(())
            })?;
        }
        Ok(Self { lab, web, relays, provider, tenant })
    }

    /// Which relay carries the session.
    fn in_use(&self) -> Result<usize> {
        let paths = self.tenant.process.events("path");
        let relay = paths.last().and_then(|path| path["relay"].as_str()).context("no path")?;
        self.relays.iter().position(|r| r.address == relay).context("another relay")
    }

    /// Both edges agree about what was paid: the tenant's, and that of the relay that still runs.
    fn settle(mut self, killed: usize) -> Result<()> {
        let left = 1 - killed;
        let processes =
            [&mut self.tenant.process, &mut self.provider.process, &mut self.relays[left].process];
        processes.into_iter().try_for_each(Process::stop)?;
        let (tenant, provider) = (self.lab.books("connect")?, self.lab.books("provide")?);
        let voucher = tenant.audit(&tenant.lease(Edge::Tenant)?)?;
        ensure!(voucher.down > LEN && voucher.down < LEN + 10_000, "{} bytes", voucher.down);
        ensure!(voucher.down <= self.web.sent(), "more is paid than was ever served");
        if self.lab.is_paid() {
            ensure!(both_agree(Edge::Tenant, &tenant, &provider)? == 1, "one lease");
            let relay = self.lab.books(NAMES[left])?;
            ensure!(both_agree(Edge::Relay, &provider, &relay)? == 1, "one reservation");
            let after = relay.audit(&relay.lease(Edge::Relay)?)?;
            ensure!(after.amount.0 > 0, "the relay that went on is paid");
            // Nothing is paid twice: both relays together were paid for what crossed them.
            let dead = self.lab.books(NAMES[killed])?;
            let before = dead.audit(&dead.lease(Edge::Relay)?)?;
            let crossed = before.up + after.up;
            ensure!(crossed < LEN + LEN / 4, "{crossed} bytes are paid to relays for {LEN}");
        }
        Ok(())
    }
}

fn a_relay_is_killed(paid: bool) -> Result<()> {
    if !has("curl") {
        return skip("a relay killed in the middle of a download", "curl is not installed");
    }
    let mut four = Four::start(if paid { Lab::paid()? } else { Lab::free()? })?;
    let file = four.lab.path().join("file");
    let mut download = Curl::to_file(four.tenant.port("web"), &format!("5/{LEN}"), &file, false)?;
    download.wait_for_bytes(FIRST)?;
    let killed = four.in_use()?;
    four.relays[killed].process.kill()?;
    ensure!(file.metadata()?.len() < LEN, "the download was over before the relay was killed");
    let done = download.finish()?;
    ensure!(done.bytes == LEN, "{} bytes", done.bytes);
    ensure!(done.sha256 == sha256_of_content(5, LEN), "other bytes came");
    for process in [&four.tenant.process, &four.provider.process] {
        ensure!(process.events("session").len() == 1, "the session is the same");
        ensure!(process.events("session_ended").is_empty(), "the session goes on");
    }
    // New tenants are sent elsewhere, and this one still works.
    let left = four.relays[1 - killed].address.clone();
    four.provider.process.wait_for(0, "the relay is withdrawn", |event| {
        let relays = event["relays"].as_array().filter(|_| event["event"] == "reachable")?;
        (relays.len() == 1 && relays[0] == left.as_str()).then_some(())
    })?;
    ensure!(curl(four.tenant.port("web"), "6/1000")?.len() == 1_000);
    four.settle(killed)
}

#[test]
fn a_download_goes_on_when_its_relay_is_killed() -> Result<()> {
    a_relay_is_killed(false)
}

#[test]
fn a_download_goes_on_when_its_relay_that_is_paid_is_killed() -> Result<()> {
    a_relay_is_killed(true)
}
