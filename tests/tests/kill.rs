//! `kill -9` in the middle of a transfer, then a new start: nothing that was acknowledged is
//! missing, nothing is paid twice, and the download completes.

use anyhow::{Context as _, Result, ensure};
use sluice_ledger::{Edge, StoredVoucher};
use sluice_metering::Terms;
use tests::{
    Curl, Downloaded, Lab, Process, Provider, RelayRole, Tenant, Web, both_agree, curl, has,
    sha256_of_content, skip,
};

/// The download is so long, longer where it is faster ..
const LEN: u64 = if cfg!(debug_assertions) { 24 << 20 } else { 128 << 20 };
/// .. and this much of it came when somebody is killed.
const FIRST: u64 = 6 << 20;
struct Three {
    lab: Lab,
    web: Web,
    relay: RelayRole,
    provider: Provider,
    tenant: Tenant,
}

impl Three {
    fn start(lab: Lab) -> Result<Self> {
        let web = Web::start()?;
        let relay = lab.relay()?;
        let provider = lab.provide(&relay, &[("web", web.addr())], "never")?;
        let tenant = lab.connect(&provider.ticket, &["web"], "never")?;
        Ok(Self { lab, web, relay, provider, tenant })
    }

    /// Starts the download, and returns it in the middle.
    fn download(&self, resume: bool) -> Result<Curl> {
        let file = self.lab.path().join("file");
        let path = format!("5/{LEN}");
        let mut curl = Curl::to_file(self.tenant.port("web"), &path, &file, resume)?;
        if !resume {
            curl.wait_for_bytes(FIRST)?;
        }
        Ok(curl)
    }

    /// The download was cut off, and `curl -C -` completes it.
    fn complete(&self, mut cut: Curl) -> Result<()> {
        ensure!(!cut.ended_well()?, "the download did not notice");
        // The first attempt may meet what is left of the session before.
        let done = tests::until("the download completes", || {
            self.download(true).and_then(Curl::finish).ok()
        })?;
        is_whole(done)
    }

    /// Stops all in order; the newest voucher of the tenant's edge, after both edges were checked.
    fn stop(&mut self) -> Result<StoredVoucher> {
        let processes =
            [&mut self.tenant.process, &mut self.provider.process, &mut self.relay.process];
        processes.into_iter().try_for_each(Process::stop)?;
        self.check().with_context(|| {
            let [a, b] = [&self.tenant.process, &self.provider.process].map(Process::story);
            format!("{a}{b}")
        })
    }

    fn check(&self) -> Result<StoredVoucher> {
        let [tenant, provider, relay] =
            ["connect", "provide", "relay"].map(|state| self.lab.books(state));
        let (tenant, provider, relay) = (tenant?, provider?, relay?);
        let voucher = tenant.audit(&tenant.lease(Edge::Tenant)?)?;
        ensure!(voucher.down <= self.web.sent(), "more is paid than was ever served");
        if self.lab.is_paid() {
            // At price 0 counts are for the record only, and may reach the disk later.
            ensure!(both_agree(Edge::Tenant, &tenant, &provider)? == 1, "the lease went on");
            ensure!(both_agree(Edge::Relay, &provider, &relay)? == 1, "the reservation went on");
        }
        Ok(voucher)
    }
}

fn is_whole(done: Downloaded) -> Result<()> {
    ensure!(done.bytes == LEN, "{} bytes", done.bytes);
    ensure!(done.sha256 == sha256_of_content(5, LEN), "other bytes came");
    Ok(())
}

fn lab(paid: bool) -> Result<Option<Lab>> {
    if !has("curl") {
        skip("kill -9 in the middle of a transfer", "curl is not installed")?;
        return Ok(None);
    }
    Ok(Some(if paid { Lab::paid()? } else { Lab::free()? }))
}

/// The newest voucher that was on the disk of who was killed, if anything was charged.
#[derive(Debug)]
struct Before {
    newest: StoredVoucher,
}

impl Before {
    /// Reads the ledger that the kill left behind.
    fn read(lab: &Lab, state: &str) -> Result<Option<Self>> {
        let books = lab.books(state)?;
        let lease = books.lease(Edge::Tenant)?;
        if !lab.is_paid() {
            return Ok(None);
        }
        Ok(Some(Self { newest: books.audit(&lease)? }))
    }

    /// What the peer said when the session ended, a tenant of what was acknowledged to it, a
    /// provider of what it had on disk, must be in the ledger of who was killed.
    fn covers_what(&self, peer: &Process) -> Result<()> {
        let event = peer.event(0, "account")?;
        let count = |key: &str| event[key].as_u64().context("no count");
        let (up, down) = (count("up")?, count("down")?);
        let newest = &self.newest;
        ensure!(newest.up >= up && newest.down >= down, "{newest:?} is behind {event}");
        Ok(())
    }
}

/// The window of the tenant's lease.
fn window(lab: &Lab) -> Result<u64> {
    let lease = lab.books("connect")?.lease(Edge::Tenant)?;
    Ok(Terms::parse(&lease.terms)?.window)
}

fn relay_is_killed(paid: bool) -> Result<()> {
    let Some(lab) = lab(paid)? else { return Ok(()) };
    let mut three = Three::start(lab)?;
    let download = three.download(false)?;
    let addr = three.relay.socket()?;
    three.relay.process.kill()?;
    let got = three.lab.path().join("file").metadata()?.len();
    ensure!(got < LEN, "the download was over before the relay was killed");
    if paid {
        let books = three.lab.books("relay")?;
        let lease = books.lease(Edge::Relay)?;
        ensure!(books.audit(&lease)?.amount.0 > 0, "it was paid before");
    }
    three.relay = three.lab.relay_at(addr)?;
    // The same download goes on: neither end of it was reset.
    is_whole(download.finish()?)?;
    for process in [&three.tenant.process, &three.provider.process] {
        ensure!(process.events("session").len() == 1, "the session is the same");
    }
    let voucher = three.stop()?;
    ensure!(voucher.down > LEN && voucher.down < LEN + 1_000, "{} bytes", voucher.down);
    Ok(())
}

#[test]
fn a_session_goes_on_when_a_killed_relay_is_back() -> Result<()> {
    relay_is_killed(false)
}

#[test]
fn a_session_goes_on_when_a_killed_relay_that_is_paid_is_back() -> Result<()> {
    relay_is_killed(true)
}

/// Stops all in order; the account went on from what was on disk `before`.
fn finish(mut three: Three, before: Option<&Before>) -> Result<()> {
    let after = three.stop()?;
    let Some(Before { newest }) = before else { return Ok(()) };
    ensure!(after.amount >= newest.amount && after.down > newest.down, "{newest:?}, {after:?}");
    ensure!(after.down + window(&three.lab)? > LEN, "{} bytes are paid", after.down);
    Ok(())
}

fn provider_is_killed(paid: bool) -> Result<()> {
    let Some(lab) = lab(paid)? else { return Ok(()) };
    let mut three = Three::start(lab)?;
    let download = three.download(false)?;
    three.provider.process.kill()?;
    let before = Before::read(&three.lab, "provide")?;
    three.provider = three.lab.provide(&three.relay, &[("web", three.web.addr())], "never")?;
    three.complete(download)?;
    if let Some(before) = &before {
        before.covers_what(&three.tenant.process)?;
    }
    finish(three, before.as_ref())
}

#[test]
fn curl_completes_after_the_provider_was_killed() -> Result<()> {
    provider_is_killed(false)
}

#[test]
fn curl_completes_and_the_account_goes_on_after_the_provider_was_killed() -> Result<()> {
    provider_is_killed(true)
}

fn tenant_is_killed(paid: bool) -> Result<()> {
    let Some(lab) = lab(paid)? else { return Ok(()) };
    let mut three = Three::start(lab)?;
    let download = three.download(false)?;
    three.tenant.process.kill()?;
    let before = Before::read(&three.lab, "connect")?;
    three.tenant = three.lab.connect_again(&three.provider.ticket, &three.tenant, "never")?;
    three.complete(download)?;
    if let Some(before) = &before {
        before.covers_what(&three.provider.process)?;
    }
    finish(three, before.as_ref())
}

#[test]
fn curl_completes_after_the_tenant_was_killed() -> Result<()> {
    tenant_is_killed(false)
}

#[test]
fn curl_completes_and_the_account_goes_on_after_the_tenant_was_killed() -> Result<()> {
    tenant_is_killed(true)
}

#[test]
fn a_provider_killed_again_and_again_loses_no_more_than_its_windows() -> Result<()> {
    let Some(lab) = lab(true)? else { return Ok(()) };
    let mut three = Three::start(lab)?;
    let (mut paid, mut before) = (0_u128, 0);
    for round in 1..=4_u64 {
        let mut download = three.download(true)?;
        download.wait_for_bytes(round * LEN / 6)?;
        three.provider.process.kill()?;
        let Before { newest } = Before::read(&three.lab, "provide")?.context("it is paid")?;
        ensure!(newest.amount.0 >= paid, "round {round}: the amount went back");
        ensure!(newest.down >= before, "round {round}: the count went back");
        (paid, before) = (newest.amount.0, newest.down);
        three.provider = three.lab.provide(&three.relay, &[("web", three.web.addr())], "never")?;
        ensure!(!download.ended_well()?, "round {round}: the download did not notice");
    }
    let page = tests::until("a page", || curl(three.tenant.port("web"), "6/1000").ok())?;
    ensure!(page.len() == 1_000);
    let last = three.stop()?;
    let file = three.lab.path().join("file").metadata()?.len();
    ensure!(last.down + 4 * window(&three.lab)? > file, "{} of {file} bytes are paid", last.down);
    Ok(())
}
