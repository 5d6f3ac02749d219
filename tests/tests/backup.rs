//! State directories that are copied, and restored from old backups, with the real binaries: nobody
//! pays or asks twice, both ledgers agree in the end, and of two processes with the same keys the
//! later one stands.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_ledger::{Edge, StoredVoucher};
use tests::{Books, Echo, Lab, Process, Provider, RelayRole, Tenant, both_agree, event_kind};

/// A tenant pays 2 base units a byte each way, so an echo costs 4.
const PER_BYTE: u128 = 4;
const CHUNK: usize = 32 * 1024;
/// Before the backup, after it, and after it was restored.
const BEFORE: usize = 300_000;
const AFTER: usize = 1_700_000;
const LATER: usize = 200_000;
/// Enough for several vouchers on a relay's edge, whose window is larger.
const MUCH: usize = 6_000_000;
/// What a session that breaks may leave unpaid: a window of the tenant's edge, at 2 base units a byte.
const OPEN: u128 = 2 * 512 * 1024;

/// A relay, a provider of an echo and a tenant.
struct Three {
    lab: Lab,
    echo: Echo,
    relay: RelayRole,
    provider: Provider,
    tenant: Tenant,
}

impl Three {
    fn start() -> Result<Self> {
        let (lab, echo) = (Lab::paid()?, Echo::start()?);
        let relay = lab.relay()?;
        let provider = lab.provide(&relay, &[("echo", echo.addr())], "never")?;
        let tenant = lab.connect(&provider.ticket, &["echo"], "never")?;
        Ok(Self { lab, echo, relay, provider, tenant })
    }

    fn talk(&self, bytes: usize) -> Result<()> {
        talk(self.tenant.port("echo"), bytes)
    }

    fn start_provider(&mut self) -> Result<()> {
        let services = [("echo", self.echo.addr())];
        self.provider = self.lab.provide(&self.relay, &services, "never")?;
        Ok(())
    }

    fn start_tenant(&mut self) -> Result<()> {
        let ticket = &self.provider.ticket;
        self.tenant = self.lab.connect_again(ticket, &self.tenant, "never")?;
        Ok(())
    }

    /// Copies a state directory, as `cp -a` does.
    fn copy(&self, from: &str, to: &str) -> Result<()> {
        copy(&self.lab.state(from), &self.lab.state(to))
    }

    /// Puts a backup in the place of a state directory.
    fn restore(&self, backup: &str, state: &str) -> Result<()> {
        fs::remove_dir_all(self.lab.state(state))?;
        self.copy(backup, state)
    }

    /// Stops all in order. Both ends of both edges must agree, on one lease each; the newest voucher
    /// of the tenant's.
    fn stop(&mut self) -> Result<StoredVoucher> {
        let all = [&mut self.tenant.process, &mut self.provider.process, &mut self.relay.process];
        all.into_iter().try_for_each(Process::stop)?;
        let books = ["connect", "provide", "relay"].map(|state| self.lab.books(state));
        let [tenant, provider, relay] = books;
        let (tenant, provider, relay) = (tenant?, provider?, relay?);
        ensure!(both_agree(Edge::Tenant, &tenant, &provider)? == 1, "the lease went on");
        ensure!(both_agree(Edge::Relay, &provider, &relay)? == 1, "the reservation went on");
        for books in [&tenant, &provider] {
            ensure!(books.leases(Edge::Tenant)?.len() == 1, "no other lease was made");
        }
        tenant.audit(&tenant.lease(Edge::Tenant)?)
    }

    fn verify(&self, state: &str) -> Result<Process> {
        let mut process = self.lab.run(state, &["ledger", "verify"])?;
        let status = process.wait()?;
        ensure!(status.success(), "the ledger does not hold{}", process.story());
        Ok(process)
    }
}

/// Sends bytes to an echo, and waits until all came back.
fn talk(port: SocketAddr, bytes: usize) -> Result<()> {
    let mut stream = TcpStream::connect(port)?;
    stream.set_read_timeout(Some(tests::PATIENCE))?;
    let (out, mut back) = (vec![7; CHUNK], vec![0; CHUNK]);
    let mut left = bytes;
    while left > 0 {
        let n = left.min(CHUNK);
        stream.write_all(&out[..n])?;
        stream.read_exact(&mut back[..n])?;
        left -= n;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// What all the echoes cost.
fn cost(bytes: usize) -> u128 {
    bytes as u128 * PER_BYTE
}

fn number(event: &Value, key: &str) -> Result<u128> {
    Ok(event[key].as_str().with_context(|| format!("{key} in {event}"))?.parse()?)
}

fn newest(books: &Books) -> Result<StoredVoucher> {
    books.audit(&books.lease(Edge::Tenant)?)
}

#[test]
fn a_tenant_restored_from_an_old_backup_goes_on_where_it_was_and_pays_nothing_twice() -> Result<()>
{
    let mut three = Three::start()?;
    three.talk(BEFORE)?;
    three.copy("connect", "backup")?;
    three.talk(AFTER)?;
    three.tenant.process.stop()?;
    let forgotten = newest(&three.lab.books("connect")?)?;
    ensure!(forgotten.amount.0 == cost(BEFORE + AFTER), "{forgotten:?}");
    three.restore("backup", "connect")?;
    let held = newest(&three.lab.books("connect")?)?;
    ensure!(held.amount < forgotten.amount, "the backup is no older");

    let found = three.verify("connect")?.event(0, "recovery")?;
    ensure!(found["in_doubt"] == 1 && found["begun"] == false, "{found}");

    three.start_tenant()?;
    let recovered = three.tenant.process.event(0, "recovered")?;
    ensure!(number(&recovered, "amount")? == forgotten.amount.0, "{recovered}");
    ensure!(three.tenant.process.errors().contains("in doubt"), "it says that it is a backup");
    three.talk(LATER)?;
    let found = three.verify("connect")?.event(0, "recovery")?;
    ensure!(found["in_doubt"] == 0 && found["begun"] == true, "{found}");
    let paid = three.stop()?;
    ensure!(paid.amount.0 == cost(BEFORE + AFTER + LATER), "{paid:?}");
    Ok(())
}

#[test]
fn a_provider_restored_from_an_old_backup_is_shown_what_it_earned_and_asks_for_nothing_twice()
-> Result<()> {
    let mut three = Three::start()?;
    three.talk(BEFORE)?;
    three.copy("provide", "backup")?;
    three.talk(AFTER)?;
    three.tenant.process.stop()?;
    three.provider.process.stop()?;
    let lost = newest(&three.lab.books("provide")?)?;
    ensure!(lost.amount.0 == cost(BEFORE + AFTER), "{lost:?}");
    three.restore("backup", "provide")?;

    // Closing now would give back to the tenant what it paid after the backup.
    let books = three.lab.books("provide")?;
    let channel = books.lease(Edge::Tenant)?.channel.context("it is paid")?.to_string();
    drop(books);
    let mut close = three.lab.run("provide", &["channel", "close", &channel])?;
    ensure!(!close.wait()?.success(), "it was closed{}", close.story());
    for word in ["may be lost", "restored backup", "--accept-loss"] {
        ensure!(close.errors().contains(word), "{word:?} is not in {}", close.errors());
    }

    three.start_provider()?;
    // Towards its relay it is the payer.
    three.provider.process.event(0, "recovered")?;
    three.start_tenant()?;
    let amount = lost.amount.to_string();
    let recovered = event_kind("recovered", "amount", &amount);
    three.provider.process.wait_for(0, "what the tenant showed", recovered)?;
    three.talk(LATER)?;
    let paid = three.stop()?;
    ensure!(paid.amount.0 == cost(BEFORE + AFTER + LATER), "{paid:?}");
    let found = three.verify("provide")?.event(0, "recovery")?;
    ensure!(found["in_doubt"] == 0, "{found}");
    Ok(())
}

#[test]
fn a_relay_restored_from_an_old_backup_is_shown_what_it_earned() -> Result<()> {
    let mut three = Three::start()?;
    three.talk(MUCH)?;
    three.copy("relay", "backup")?;
    three.talk(MUCH)?;
    let addr = three.relay.socket()?;
    three.relay.process.kill()?;
    let lease = |books: &Books| books.audit(&books.lease(Edge::Relay)?);
    let lost = lease(&three.lab.books("relay")?)?;
    three.restore("backup", "relay")?;
    ensure!(lease(&three.lab.books("relay")?)?.amount < lost.amount, "the backup is no older");
    three.relay = three.lab.relay_at(addr)?;
    tests::until("the session goes on", || three.talk(LATER).ok())?;
    three.stop()?;
    let (relay, provider) = (three.lab.books("relay")?, three.lab.books("provide")?);
    ensure!(lease(&relay)?.amount > lost.amount, "what was paid before is there again");
    ensure!(lease(&relay)?.amount == lease(&provider)?.amount);
    Ok(())
}

#[test]
fn when_both_ends_forgot_they_go_on_from_what_is_remembered_best() -> Result<()> {
    let mut three = Three::start()?;
    three.talk(BEFORE)?;
    three.copy("provide", "provide-backup")?;
    three.talk(LATER)?;
    three.copy("connect", "connect-backup")?;
    three.talk(AFTER)?;
    three.tenant.process.stop()?;
    three.provider.process.stop()?;
    three.restore("provide-backup", "provide")?;
    three.restore("connect-backup", "connect")?;
    let best = newest(&three.lab.books("connect")?)?.amount.0;
    three.start_provider()?;
    three.start_tenant()?;
    three.talk(LATER)?;
    let paid = three.stop()?;
    ensure!(paid.amount.0 == best + cost(LATER), "{best}, {paid:?}");
    Ok(())
}

#[test]
fn ledgers_that_are_gone_are_made_again_from_what_the_other_side_shows() -> Result<()> {
    for who in ["connect", "provide"] {
        let mut three = Three::start()?;
        three.talk(BEFORE)?;
        three.tenant.process.stop()?;
        three.provider.process.stop()?;
        for file in fs::read_dir(three.lab.state(who))? {
            let path = file?.path();
            if path.to_string_lossy().contains("ledger.db") {
                fs::remove_file(path)?;
            }
        }
        three.start_provider()?;
        three.start_tenant()?;
        three.talk(LATER)?;
        let paid = three.stop().with_context(|| format!("without the ledger of {who}"))?;
        ensure!(paid.amount.0 == cost(BEFORE + LATER), "without {who}'s: {paid:?}");
        // No second deposit was paid in.
        let mut list = three.lab.run(who, &["channel", "list"])?;
        ensure!(list.wait()?.success(), "{}", list.story());
        let payer = list.events("channel").iter().filter(|c| c["side"] == "payer").count();
        ensure!(payer == 1, "{who} pays from {payer} channels");
    }
    Ok(())
}

#[test]
fn of_two_tenants_with_the_same_keys_the_later_one_stands() -> Result<()> {
    let mut three = Three::start()?;
    three.talk(BEFORE)?;
    three.copy("connect", "copy")?;
    let (ticket, map) = (three.provider.ticket.clone(), "127.0.0.1:0=echo");
    let args = ["connect", &ticket, "--direct", "never", "--map", map];
    let mut copy = three.lab.run("copy", &args)?;
    let ready = copy.event(0, "ready")?;
    let port = ready["map"][0].as_str().and_then(|m| m.split_once('=')).context("no port")?.0;
    talk(port.parse()?, LATER)?;
    // The first one is told, and stays out while the later one lasts.
    three.tenant.process.event(0, "superseded")?;
    ensure!(copy.events("superseded").is_empty(), "the later one stands");
    talk(port.parse()?, LATER)?;
    copy.stop()?;
    tests::until("the first one takes over", || three.talk(LATER).ok())?;
    let paid = three.stop()?;
    ensure!(paid.amount.0 + OPEN >= cost(BEFORE + 3 * LATER), "{paid:?}");
    Ok(())
}

#[test]
fn of_two_providers_with_the_same_keys_the_later_one_stands() -> Result<()> {
    let mut three = Three::start()?;
    three.talk(BEFORE)?;
    three.copy("provide", "copy")?;
    let expose = format!("echo=tcp:{}", three.echo.addr());
    let relay = three.relay.address.clone();
    let args = ["provide", "--direct", "never", "--relay", &relay, "--expose", &expose];
    let mut copy = three.lab.run("copy", &args)?;
    copy.event(0, "ready")?;
    three.provider.process.event(0, "superseded")?;
    tests::until("the tenant finds the later one", || three.talk(LATER).ok())?;
    ensure!(copy.events("superseded").is_empty(), "the later one stands");
    copy.stop()?;
    tests::until("the first one takes over", || three.talk(LATER).ok())?;
    let paid = three.stop()?;
    ensure!(paid.amount.0 + 2 * OPEN >= cost(BEFORE + 2 * LATER), "{paid:?}");
    Ok(())
}

#[test]
fn a_second_process_is_refused_whatever_leads_to_the_directory() -> Result<()> {
    let three = Three::start()?;
    let (state, link) = (three.lab.state("connect"), three.lab.state("link"));
    std::os::unix::fs::symlink(&state, &link)?;
    let args = ["connect", &three.provider.ticket, "--map", "127.0.0.1:0=echo"];
    for path in ["connect", "link", "relay/../link/."] {
        let mut second = three.lab.run(path, &args)?;
        ensure!(!second.wait()?.success(), "{path}: both run{}", second.story());
        let holder = format!("in use by sluice connect, process {}", three.tenant.process.pid());
        ensure!(second.errors().contains(&holder), "{path}: {}", second.errors());
    }
    Ok(())
}

#[test]
fn the_lock_of_a_killed_process_is_no_obstacle() -> Result<()> {
    let mut three = Three::start()?;
    three.talk(BEFORE)?;
    three.tenant.process.kill()?;
    three.start_tenant()?;
    ensure!(three.tenant.process.events("recovered").is_empty(), "a crash is no backup");
    ensure!(!three.tenant.process.errors().contains("in doubt"), "nothing is in doubt");
    three.talk(LATER)?;
    three.stop().map(drop)
}
