//! A relay, a provider and a tenant as three processes, as a user starts them: web pages, an echo,
//! large and many downloads, clients that go away; the same bytes at both ends, the same accounts.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};
use sluice_ledger::Edge;
use tests::{
    Account, Curl, Echo, Lab, PATIENCE, Provider, Python, RelayRole, Tenant, Web, both_agree, curl,
    differs_at, event_kind, has, sha256_of_content, skip,
};

/// A large download: 1 GiB, less where nothing is optimized.
const LARGE: u64 = if cfg!(debug_assertions) { 128 << 20 } else { 1 << 30 };

/// The three of them.
struct Three {
    lab: Lab,
    relay: RelayRole,
    provider: Provider,
    tenant: Tenant,
}

impl Three {
    fn start(lab: Lab, services: &[(&str, SocketAddr)], direct: &str) -> Result<Self> {
        let relay = lab.relay()?;
        let provider = lab.provide(&relay, services, direct)?;
        let names: Vec<_> = services.iter().map(|(name, _)| *name).collect();
        let tenant = lab.connect(&provider.ticket, &names, direct)?;
        Ok(Self { lab, relay, provider, tenant })
    }

    /// Stops all in order and checks that both ends of each edge say the same; what they say.
    fn stop(mut self) -> Result<Account> {
        self.tenant.process.stop()?;
        self.provider.process.event(0, "session_ended")?;
        self.provider.process.stop()?;
        self.relay.process.stop()?;
        let ours = self.tenant.process.accounts()?.pop().context("the tenant told no account")?;
        let theirs = self.provider.process.accounts()?.pop().context("the provider told none")?;
        ensure!(
            (ours.up, ours.down, ours.amount) == (theirs.up, theirs.down, theirs.amount),
            "the tenant says {ours:?}, the provider {theirs:?}{}{}",
            self.tenant.process.story(),
            self.provider.process.story()
        );
        for process in [&self.tenant.process, &self.provider.process] {
            ensure!(process.events("lie").is_empty(), "{:?}", process.events("lie"));
        }
        if self.lab.is_paid() {
            let (tenant, provider) = (self.lab.books("connect")?, self.lab.books("provide")?);
            ensure!(both_agree(Edge::Tenant, &tenant, &provider)? == 1);
            let relay = self.lab.books("relay")?;
            ensure!(both_agree(Edge::Relay, &provider, &relay)? == 1);
        }
        Ok(ours)
    }
}

/// Whether the programs of these tests are there.
fn has_programs(what: &str) -> Result<bool> {
    for program in ["curl", "python3"] {
        if !has(program) {
            skip(what, &format!("{program} is not installed"))?;
            return Ok(false);
        }
    }
    Ok(true)
}

fn pages_from_python(lab: Lab) -> Result<()> {
    if !has_programs("python3 -m http.server through the tunnel")? {
        return Ok(());
    }
    let folder = lab.path().join("public");
    std::fs::create_dir(&folder)?;
    let sizes = [0_usize, 1, 1_000, 99_999, 3_000_000];
    for size in sizes {
        let mut bytes = vec![0; size];
        tests::content(size as u64, 0, &mut bytes);
        std::fs::write(folder.join(size.to_string()), bytes)?;
    }
    let web = Python::serve(&folder)?;
    let three = Three::start(lab, &[("web", web.addr())], "after_funding")?;
    let mut got = 0;
    for size in sizes {
        let path = size.to_string();
        let through = curl(three.tenant.port("web"), &path)?;
        ensure!(through.len() == size && differs_at(size as u64, 0, &through).is_none());
        ensure!(through == curl(web.addr(), &path)?, "the same comes without a tunnel");
        got += size as u64;
    }
    let missing = curl(three.tenant.port("web"), "none");
    ensure!(missing.is_err_and(|e| e.to_string().contains("404")));
    // Both learn each other's address: what is not over by then goes directly.
    three.tenant.process.wait_for(0, "a direct path", event_kind("path", "kind", "direct"))?;
    ensure!(curl(three.tenant.port("web"), "99999")?.len() == 99_999);
    let is_paid = three.lab.is_paid();
    let account = three.stop()?;
    ensure!(account.down > got + 99_999, "{account:?}: less than the files");
    ensure!(account.down < got + 120_000 + 6 * 1_000, "{account:?}: more than files and headers");
    ensure!(account.up > 6 * 50, "{account:?}: the requests went up");
    let due = u128::from(account.up + account.down) * 2;
    ensure!(account.amount == if is_paid { due } else { 0 }, "{account:?}");
    Ok(())
}

#[test]
fn pages_from_pythons_web_server_come_through_unchanged() -> Result<()> {
    pages_from_python(Lab::free()?)
}

#[test]
fn pages_from_pythons_web_server_come_through_unchanged_and_are_paid() -> Result<()> {
    pages_from_python(Lab::paid()?)
}

fn talk(tcp: &mut TcpStream, text: &[u8]) -> Result<()> {
    tcp.write_all(text)?;
    let mut back = vec![0; text.len()];
    tcp.read_exact(&mut back).context("no echo")?;
    ensure!(back == text, "another echo came back");
    Ok(())
}

fn interactive_echo(lab: Lab) -> Result<()> {
    let echo = Echo::start()?;
    let three = Three::start(lab, &[("echo", echo.addr())], "never")?;
    let mut tcp = TcpStream::connect(three.tenant.port("echo"))?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_nodelay(true)?;
    let mut sent = 0;
    for round in 0..200_u64 {
        let mut text = vec![0; (round * 7 % 1500) as usize + 1];
        tests::content(round, 0, &mut text);
        talk(&mut tcp, &text)?;
        sent += text.len() as u64;
    }
    // Much both ways at once, then the end of one direction, which the other outlives.
    let mut writer = tcp.try_clone()?;
    let much = 3_000_000;
    let writing = std::thread::spawn(move || -> Result<()> {
        let mut text = vec![0; much];
        tests::content(9, 0, &mut text);
        writer.write_all(&text)?;
        Ok(writer.shutdown(Shutdown::Write)?)
    });
    let mut back = Vec::new();
    tcp.read_to_end(&mut back)?;
    writing.join().expect("the writer does not panic")?;
    ensure!(back.len() == much && differs_at(9, 0, &back).is_none(), "{} bytes", back.len());
    sent += much as u64;
    let account = three.stop()?;
    ensure!((account.up, account.down) == (sent, sent), "{sent} bytes each way, but {account:?}");
    Ok(())
}

#[test]
fn an_interactive_echo_answers_at_once_and_ends_as_tcp_does() -> Result<()> {
    interactive_echo(Lab::free()?)
}

#[test]
fn an_interactive_echo_is_paid_both_ways() -> Result<()> {
    interactive_echo(Lab::paid()?)
}

#[test]
fn a_large_download_is_what_was_served() -> Result<()> {
    if !has_programs("a large download")? {
        return Ok(());
    }
    let web = Web::start()?;
    let three = Three::start(Lab::free()?, &[("web", web.addr())], "after_funding")?;
    let download = Curl::stream(three.tenant.port("web"), &format!("1/{LARGE}"))?.finish()?;
    ensure!(download.bytes == LARGE);
    ensure!(download.sha256 == sha256_of_content(1, LARGE), "other bytes came");
    let account = three.stop()?;
    ensure!(account.down == web.sent(), "{account:?}: {} were sent", web.sent());
    Ok(())
}

fn two_hundred_downloads(lab: Lab, len: u64) -> Result<()> {
    if !has_programs("200 downloads at once")? {
        return Ok(());
    }
    let web = Web::start()?;
    let folder = lab.path().join("downloads");
    std::fs::create_dir(&folder)?;
    let three = Three::start(lab, &[("web", web.addr())], "never")?;
    Curl::many(three.tenant.port("web"), 200, len, &folder)?.finish()?;
    for n in 1..=200_u64 {
        let bytes = std::fs::read(folder.join(n.to_string()))?;
        ensure!(bytes.len() as u64 == len, "{} bytes of download {n}", bytes.len());
        ensure!(differs_at(n, 0, &bytes).is_none(), "download {n} is another's");
    }
    let account = three.stop()?;
    ensure!(account.down == web.sent(), "{account:?}: {} were sent", web.sent());
    Ok(())
}

#[test]
fn two_hundred_downloads_at_once_are_each_their_own() -> Result<()> {
    two_hundred_downloads(Lab::free()?, 256 << 10)
}

#[test]
fn two_hundred_downloads_at_once_are_paid() -> Result<()> {
    two_hundred_downloads(Lab::paid()?, 48 << 10)
}

fn client_that_goes_away(lab: Lab) -> Result<()> {
    if !has_programs("a client that goes away")? {
        return Ok(());
    }
    let web = Web::start()?;
    let three = Three::start(lab, &[("web", web.addr())], "never")?;
    let len = 8 << 20;
    let other = Curl::stream(three.tenant.port("web"), &format!("2/{len}"))?;
    for _ in 0..5 {
        let mut tcp = TcpStream::connect(three.tenant.port("web"))?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        write!(tcp, "GET /1/{} HTTP/1.1\r\n\r\n", 1_u64 << 40)?;
        tcp.read_exact(&mut vec![0; 300_000])?;
        // Unread bytes make this a reset, as when a browser is closed.
        drop(tcp);
    }
    let other = other.finish()?;
    ensure!(other.bytes == len && other.sha256 == sha256_of_content(2, len));
    let later = curl(three.tenant.port("web"), "3/1000000")?;
    ensure!(later.len() == 1_000_000 && differs_at(3, 0, &later).is_none());
    let account = three.stop()?;
    ensure!(account.down > len + 1_000_000 + 5 * 300_000, "{account:?}");
    ensure!(account.down <= web.sent(), "{account:?}: only {} were sent", web.sent());
    Ok(())
}

#[test]
fn a_client_that_goes_away_midway_disturbs_nobody() -> Result<()> {
    client_that_goes_away(Lab::free()?)
}

#[test]
fn a_client_that_goes_away_midway_disturbs_nobody_who_pays() -> Result<()> {
    client_that_goes_away(Lab::paid()?)
}

#[test]
fn a_stop_in_the_middle_of_a_download_leaves_equal_accounts() -> Result<()> {
    if !has_programs("a stop in the middle of a download")? {
        return Ok(());
    }
    let web = Web::start()?;
    let three = Three::start(Lab::paid()?, &[("web", web.addr())], "never")?;
    let file = three.lab.path().join("file");
    let mut endless = Curl::to_file(three.tenant.port("web"), "1/1099511627776", &file, false)?;
    let got = endless.wait_for_bytes(3_000_000)?;
    let account = three.stop()?;
    ensure!(!endless.ended_well()?, "curl was told that the download is whole");
    ensure!(account.down >= got, "{got} bytes came, {account:?}");
    ensure!(account.down <= web.sent(), "{account:?}: only {} were sent", web.sent());
    Ok(())
}

#[test]
fn a_provider_that_stops_first_is_paid_for_what_it_served() -> Result<()> {
    if !has_programs("a provider that stops first")? {
        return Ok(());
    }
    let web = Web::start()?;
    let mut three = Three::start(Lab::paid()?, &[("web", web.addr())], "never")?;
    let page = curl(three.tenant.port("web"), "3/1000000")?;
    ensure!(page.len() == 1_000_000 && differs_at(3, 0, &page).is_none());
    three.provider.process.stop()?;
    three.tenant.process.event(0, "session_ended")?;
    three.tenant.process.stop()?;
    let (tenant, provider) = (three.lab.books("connect")?, three.lab.books("provide")?);
    ensure!(both_agree(Edge::Tenant, &tenant, &provider)? == 1);
    let paid = provider.audit(&provider.lease(Edge::Tenant)?)?;
    ensure!(paid.down == web.sent() && paid.up > 0, "{paid:?}: {} were sent", web.sent());
    let told = three.provider.process.accounts()?.pop().context("the provider told no account")?;
    ensure!((told.up, told.down) == (paid.up, paid.down), "{told:?}, {paid:?}");
    Ok(())
}
