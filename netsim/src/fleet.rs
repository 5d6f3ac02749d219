//! A fleet's ledger on a PostgreSQL server that is killed, with members that are stopped.
//!
//! Three processes, this program anew, share one ledger. Holders pay them over one channel each,
//! move from one to another in order and without a word, and write down what was acknowledged to
//! them; redeemers in all of them redeem the same channels. Meanwhile the server is killed again and
//! again, and a member is stopped until others overtake it. A trigger on the server, of which the
//! ledger knows nothing, notes each voucher that was really written: by whom, and in which epoch.
//!
//! The control takes the fences away, on the server as well, and must find two that write at a time.

mod bank;
mod crew;
mod holder;
mod member;
#[path = "../../crates/ledger/tests/ledger/server.rs"]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use sluice_ledger::{Ledger, Server};
use tokio_postgres::Client;

use crate::figures::{Figure, Target};
use crate::rng::Rng;

pub use member::MemberOptions;

use bank::Tx;
use crew::{Crew, Shape};
use holder::{Holder, Log};
use server::PostgresServer;

/// What is fenced is overtaken after this time without a renewal. On a busy machine a process may wait
/// for some seconds of it.
const HOLD: Duration = Duration::from_secs(5);
/// How long a member is stopped: others overtake it meanwhile.
const STOP: Duration = Duration::from_secs(9);
/// How long the server works between two kills, and how long it stays away.
const WORK: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(1800));
const AWAY: (Duration, Duration) = (Duration::from_millis(0), Duration::from_millis(1000));
/// How long a member that goes on is left alone with what it slept over.
const WAKE: Duration = Duration::from_secs(4);
/// Every so many kills a member is stopped.
const STOP_EVERY: u64 = 5;
/// Stops of the control, which kills nobody.
const CONTROL: u64 = 1;
/// What members are at may take so long to end once nobody asks for more.
const SETTLE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// How much is tried.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How often the server is killed.
    #[arg(long, default_value_t = 20)]
    pub kills: u64,
    /// Who redeems, over all members, and channels that are redeemed.
    #[arg(long, default_value_t = 64)]
    pub redeemers: u64,
    /// Processes that share the ledger.
    #[arg(long, default_value_t = 3)]
    pub members: usize,
    /// End with one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// What a run came to.
#[derive(Debug, Default)]
struct Outcome {
    logs: Vec<Log>,
    written: Vec<Written>,
    txs: Vec<Tx>,
    recorded: BTreeSet<u64>,
    newest: BTreeMap<u64, u64>,
    wasted: u64,
    late: u64,
    together: u64,
    kills: u64,
    stops: u64,
}

/// A voucher that the server really has, or had.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    channel: u64,
    epoch: i64,
    member: String,
    up: u64,
}

/// Tries it; `None`, and loudly, where PostgreSQL is not installed.
///
/// # Errors
/// When processes cannot be started, or nothing goes on.
pub fn run(program: &Path, options: &Options, tell: impl Fn(&str)) -> Result<Option<Vec<Figure>>> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build()?;
    let Some(server) = runtime.block_on(PostgresServer::start()) else { return Ok(None) };
    let shape = Shape {
        members: options.members,
        channels: options.redeemers,
        redeemers: options.redeemers,
        hold: HOLD,
    };
    let tried = runtime.block_on(trial(program, &server, "fleet", shape, options.kills, true))?;
    let control = runtime.block_on(trial(program, &server, "control", shape, 0, false))?;
    let mut figures = tried.figures(options, &tell);
    figures.push(Figure::new(
        "control: without fences, channels that two wrote or redeemed at a time",
        (control.owned_twice().len() as u64 + control.together + control.wasted) as f64,
        "",
        Target::AtLeast(1.0),
    ));
    Ok(Some(figures))
}

async fn trial(
    program: &Path,
    server: &PostgresServer,
    database: &str,
    shape: Shape,
    kills: u64,
    fenced: bool,
) -> Result<Outcome> {
    server.make_database(database).await;
    let url = server.url(database);
    let to = url.parse::<Server>()?.with_hold(HOLD);
    let ledger = Ledger::connect(&to, "founder").await?;
    for channel in 0..shape.channels {
        ledger.put_channel(member::row(channel)).await?;
    }
    drop(ledger);
    let client = server.client(database).await;
    client.batch_execute(AUDIT).await?;
    if !fenced {
        client.batch_execute(UNFENCE).await?;
    }
    let (crew, answers) = Crew::start(program, &url, shape)?;
    let over = Arc::new(AtomicBool::new(false));
    until(|| crew.is_ready()).await.context("the members do not start")?;
    let mut rng = Rng::new(kills + 1);
    let mut holders = Vec::new();
    for (channel, answers) in (0..).zip(answers) {
        let (crew, rng, over) = (crew.clone(), rng.split(), over.clone());
        let holder = Holder { crew, channel, answers, rng, log: Log::default() };
        holders.push(thread::spawn(move || holder.run(&over)));
    }
    let mut outcome = Outcome::default();
    let troubled = trouble(&crew, server, kills, fenced, &mut rng, &mut outcome).await;
    over.store(true, Ordering::Relaxed);
    for holder in holders {
        outcome.logs.push(holder.join().map_err(|_| anyhow::anyhow!("a holder panicked"))?);
    }
    for member in 0..crew.members() {
        crew.ask(member, "rest");
    }
    let rested = until(|| crew.is_resting()).await;
    crew.end();
    troubled?;
    rested.context("what was redeemed is not written down")?;
    let client = server.client(database).await;
    outcome.read(&crew, &client, shape.channels).await?;
    Ok(outcome)
}

/// Waits until something holds.
async fn until(holds: impl Fn() -> bool) -> Result<()> {
    tokio::time::timeout(SETTLE, async {
        while !holds() {
            tokio::time::sleep(LOOK).await;
        }
    })
    .await?;
    Ok(())
}

/// Kills the server and stops members, or only the latter.
async fn trouble(
    crew: &Crew,
    server: &PostgresServer,
    kills: u64,
    fenced: bool,
    rng: &mut Rng,
    outcome: &mut Outcome,
) -> Result<()> {
    let rounds = if fenced { kills } else { CONTROL * STOP_EVERY };
    for round in 0..rounds {
        tokio::time::sleep(rng.span(WORK.0, WORK.1)).await;
        if fenced {
            server.kill();
            outcome.kills += 1;
            tokio::time::sleep(rng.span(AWAY.0, AWAY.1)).await;
            server.resume().await;
        }
        if round % STOP_EVERY == STOP_EVERY - 1 {
            let member = rng.below(crew.members() as u64) as usize;
            crew.stop(member)?;
            outcome.stops += 1;
            tokio::time::sleep(STOP).await;
            crew.go_on(member)?;
            tokio::time::sleep(WAKE).await;
        }
    }
    tokio::time::sleep(WORK.1).await;
    Ok(())
}

/// Notes each voucher that is written, in the transaction that writes it.
const AUDIT: &str = "
    CREATE TABLE sluice.audit (
        n BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        channel BYTEA NOT NULL, epoch BIGINT NOT NULL, member TEXT NOT NULL, up BIGINT NOT NULL
    );
    CREATE FUNCTION sluice.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO sluice.audit (channel, epoch, member, up)
            SELECT lease.channel, fence.epoch, current_setting('sluice.member'), NEW.up
            FROM sluice.lease JOIN sluice.fence ON fence.kind = 0 AND fence.id = lease.channel
            WHERE lease.n = NEW.lease;
        RETURN NEW;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE ON sluice.newest
        FOR EACH ROW EXECUTE FUNCTION sluice.note()";
/// Forgets who has what, and which taking it was.
const UNFENCE: &str = "
    CREATE FUNCTION sluice.unfence() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        NEW.epoch := 1;
        NEW.member := NULL;
        RETURN NEW;
    END $$;
    CREATE TRIGGER unfence BEFORE INSERT OR UPDATE ON sluice.fence
        FOR EACH ROW EXECUTE FUNCTION sluice.unfence()";

impl Outcome {
    /// Reads what the server has, and what the chain saw.
    async fn read(&mut self, crew: &Crew, client: &Client, channels: u64) -> Result<()> {
        let ids: BTreeMap<Vec<u8>, u64> =
            (0..channels).map(|n| (member::row(n).id.0.to_vec(), n)).collect();
        let rows = client
            .query("SELECT channel, epoch, member, up FROM sluice.audit ORDER BY n", &[])
            .await?;
        for row in rows {
            self.written.push(Written {
                channel: ids[row.get::<_, &[u8]>(0)],
                epoch: row.get(1),
                member: row.get(2),
                up: u64::try_from(row.get::<_, i64>(3))?,
            });
        }
        for row in client.query("SELECT channel, up FROM sluice.newest", &[]).await? {
            self.newest.insert(ids[row.get::<_, &[u8]>(0)], u64::try_from(row.get::<_, i64>(1))?);
        }
        for row in client.query("SELECT tx FROM sluice.redemption", &[]).await? {
            let tx: [u8; 32] = row.get::<_, Vec<u8>>(0).try_into().unwrap_or_default();
            self.recorded.insert(member::tx_number(&tx));
        }
        let bank = crew.bank.lock();
        self.txs = bank.log.clone();
        (self.wasted, self.late, self.together) = (bank.wasted, bank.late, bank.together);
        ensure!(!self.written.is_empty(), "nobody paid anything");
        Ok(())
    }

    /// Vouchers that were acknowledged and are not there, or were not written by who acknowledged.
    fn lost(&self) -> Vec<String> {
        let written: BTreeSet<(u64, String, u64)> =
            self.written.iter().map(|w| (w.channel, w.member.clone(), w.up)).collect();
        let mut lost = Vec::new();
        for (channel, log) in (0..).zip(&self.logs) {
            let newest = self.newest.get(&channel).copied().unwrap_or(0);
            for (member, n) in &log.acked {
                let by = format!("relay-{member}");
                if *n > newest || !written.contains(&(channel, by, *n)) {
                    lost.push(format!("channel {channel}: relay-{member} acknowledged {n}"));
                }
            }
        }
        lost
    }

    /// Vouchers that were written below an earlier one, or in an epoch that was over.
    fn backwards(&self) -> Vec<String> {
        let mut newest: BTreeMap<u64, &Written> = BTreeMap::new();
        let mut found = Vec::new();
        for written in &self.written {
            if let Some(before) = newest.insert(written.channel, written)
                && (written.up < before.up || written.epoch < before.epoch)
            {
                found.push(format!("{written:?} came after {before:?}"));
            }
        }
        found
    }

    /// Channels that two members wrote in one epoch.
    fn owned_twice(&self) -> Vec<String> {
        let mut owners: BTreeMap<(u64, i64), BTreeSet<&str>> = BTreeMap::new();
        for written in &self.written {
            owners.entry((written.channel, written.epoch)).or_default().insert(&written.member);
        }
        let twice = owners.into_iter().filter(|(_, members)| members.len() > 1);
        twice.map(|(at, members)| format!("channel and epoch {at:?}: {members:?}")).collect()
    }

    /// How often a channel went from one member to another.
    fn moves(&self) -> u64 {
        let mut last: BTreeMap<u64, &str> = BTreeMap::new();
        let mut moves = 0;
        for written in &self.written {
            let before = last.insert(written.channel, &written.member);
            moves += u64::from(before.is_some_and(|before| before != written.member));
        }
        moves
    }

    /// What was paid beyond the newest voucher, and transactions that the ledger does not have.
    fn misbooked(&self) -> Vec<String> {
        let mut paid: BTreeMap<u64, u64> = BTreeMap::new();
        for tx in &self.txs {
            *paid.entry(tx.channel).or_default() += tx.paid;
        }
        let mut found = Vec::new();
        for (channel, paid) in paid {
            let newest = self.newest.get(&channel).copied().unwrap_or(0);
            if paid > newest {
                found.push(format!("channel {channel}: {paid} was paid, {newest} was earned"));
            }
        }
        let missing = self.txs.iter().filter(|tx| !self.recorded.contains(&tx.number));
        found.extend(missing.map(|tx| format!("{tx:?} is not in the ledger")));
        found
    }

    fn figures(&self, options: &Options, tell: &impl Fn(&str)) -> Vec<Figure> {
        let sum = |count: fn(&Log) -> u64| self.logs.iter().map(count).sum::<u64>() as f64;
        let mut figures = vec![
            Figure::new("processes", options.members as f64, "", Target::AtLeast(3.0)),
            Figure::new("redeemers at once", options.redeemers as f64, "", Target::AtLeast(64.0)),
            Figure::new("SIGKILLs of the server", self.kills as f64, "", Target::AtLeast(20.0)),
            Figure::new("processes stopped and overtaken", self.stops as f64, "", Target::None),
            Figure::new("vouchers acknowledged", sum(|l| l.acked.len() as u64), "", Target::None),
            Figure::new("refused while the server was away", sum(|l| l.away), "", Target::None),
            Figure::new("channels that went to another", self.moves() as f64, "", Target::None),
            Figure::new("fenced off", sum(|l| l.fenced), "", Target::AtLeast(1.0)),
            Figure::new("redemptions", self.txs.len() as f64, "", Target::AtLeast(1.0)),
            Figure::new("sent late by a stopped process", self.late as f64, "", Target::None),
        ];
        let together = vec![String::new(); usize::try_from(self.together).unwrap_or(usize::MAX)];
        let wasted = vec![String::new(); usize::try_from(self.wasted).unwrap_or(usize::MAX)];
        for (name, found) in [
            ("acknowledged vouchers lost", self.lost()),
            ("vouchers written backwards", self.backwards()),
            ("channels owned by two at a time", self.owned_twice()),
            ("channels redeemed by two at a time", together),
            ("transactions that redeemed nothing new", wasted),
            ("paid twice, or not written down", self.misbooked()),
        ] {
            for what in found.iter().filter(|what| !what.is_empty()) {
                tell(&format!("FAILED: {name}: {what}"));
            }
            figures.push(Figure::new(name, found.len() as f64, "", Target::AtMost(0.0)));
        }
        let forgotten = sum(|l| l.forgotten);
        figures.push(Figure::new("begun below what was known", forgotten, "", Target::AtMost(0.0)));
        let failed = sum(|l| l.failed);
        figures.push(Figure::new("refused for no reason", failed, "", Target::AtMost(0.0)));
        figures
    }
}
