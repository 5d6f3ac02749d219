//! One process of the fleet: what a relay does with the ledger, told and asked over its pipes.
//!
//! A line in, an answer out: `take`, `pay` and `leave` a channel. Beside that its redeemers ask the
//! chain, which is who started it, and send it transactions.

use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use parking_lot::Mutex;
use prost::Message;
use sluice_ledger::{
    ChannelRow, ChannelStatus, Duty, Edge, LeaseRow, Ledger, LedgerError, RedemptionKind,
    RedemptionRow, Role, Server, StoredVoucher,
};
use sluice_proto::wire::pay;
use sluice_proto::{Amount, ChannelKey, Domain, EthAddress, Keypair, LeaseId};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::rng::Rng;

/// In its environment: the server's URL.
pub(super) const URL: &str = "SLUICE_FLEET_URL";
/// How long after what failed since the server was away is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// A process of the fleet; the command starts it.
#[derive(Debug, Clone, Args)]
pub struct MemberOptions {
    /// Its name.
    #[arg(long)]
    name: String,
    /// How long the server keeps what it has when it does not write.
    #[arg(long)]
    hold_ms: u64,
    /// How many redeem at once.
    #[arg(long)]
    redeemers: u64,
    /// How many channels there are.
    #[arg(long)]
    channels: u64,
}

impl MemberOptions {
    pub(super) fn arguments(
        name: &str,
        hold: Duration,
        redeemers: u64,
        channels: u64,
    ) -> Vec<String> {
        vec![
            "fleet-member".to_owned(),
            format!("--name={name}"),
            format!("--hold-ms={}", hold.as_millis()),
            format!("--redeemers={redeemers}"),
            format!("--channels={channels}"),
        ]
    }

    /// Is the member, until its input ends.
    ///
    /// # Errors
    /// When the fleet cannot be joined.
    pub fn run(self) -> Result<ExitCode> {
        let url = std::env::var(URL).context("it is started by `netsim fleet`")?;
        let server = url.parse::<Server>()?.with_hold(Duration::from_millis(self.hold_ms));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let ledger = Ledger::connect(&server, &self.name).await?;
            self.serve(ledger).await
        })?;
        runtime.shutdown_background();
        Ok(ExitCode::SUCCESS)
    }

    async fn serve(&self, ledger: Ledger) -> Result<()> {
        let mut asked = lines();
        let answers = Answers::default();
        let seed = self.name.bytes().fold(1, |seed: u64, byte| seed * 31 + u64::from(byte));
        let rest = Arc::new(AtomicBool::new(false));
        let mut redeemers = JoinSet::new();
        for task in 0..self.redeemers {
            let (ledger, answers, rest) = (ledger.clone(), answers.clone(), rest.clone());
            let redeemer = Redeemer { ledger, task, answers, rest };
            let rng = Rng::new(seed.wrapping_add(task << 32));
            redeemers.spawn(redeemer.run(rng, self.channels));
        }
        say("ready")?;
        while let Some(line) = asked.recv().await {
            let words: Vec<&str> = line.split(' ').collect();
            match words.as_slice() {
                ["rest"] => {
                    rest.store(true, Ordering::Relaxed);
                    let mut redeemers = std::mem::take(&mut redeemers);
                    tokio::spawn(async move {
                        while redeemers.join_next().await.is_some() {}
                        say("resting").expect("somebody listens");
                    });
                }
                ["answer", task, number] => answers.give(task.parse()?, number.parse()?),
                [what, channel, rest @ ..] => {
                    let (channel, ledger) = (channel.parse()?, ledger.clone());
                    let number = rest.first().map(|n| n.parse()).transpose()?;
                    let what = (*what).to_owned();
                    tokio::spawn(async move {
                        let answer = answer(&ledger, &what, channel, number.unwrap_or(0)).await;
                        say(&answer).expect("somebody listens");
                    });
                }
                _ => bail!("what is {line:?}?"),
            }
        }
        Ok(())
    }
}

async fn answer(ledger: &Ledger, what: &str, channel: u64, number: u64) -> String {
    let done = match what {
        "take" => take(ledger, channel).await,
        "pay" => ledger.record_earned(voucher(channel, number)).await.map(|()| number),
        _ => ledger.let_go(lease_id(channel), Some(row(channel).id)).await.map(|()| 0),
    };
    match done {
        Ok(newest) => format!("did {what} {channel} {newest}"),
        Err(error) => format!("no {what} {channel} {number} {}", called(&error)),
    }
}

/// Takes a channel and gives its newest voucher.
async fn take(ledger: &Ledger, channel: u64) -> Result<u64, LedgerError> {
    ledger.put_lease(lease(channel)).await?;
    let newest = ledger.newest_earned(lease_id(channel)).await?;
    Ok(newest.map_or(0, |voucher| voucher.up))
}

fn called(error: &LedgerError) -> &'static str {
    if matches!(error, LedgerError::Fenced { .. }) {
        "fenced"
    } else if matches!(error, LedgerError::Owned { .. }) {
        "owned"
    } else if matches!(error, LedgerError::NotHigher { .. }) {
        "backwards"
    } else if error.is_passing() {
        "away"
    } else {
        tracing::error!("{error}");
        "failed"
    }
}

/// One that redeems.
struct Redeemer {
    ledger: Ledger,
    task: u64,
    answers: Answers,
    rest: Arc<AtomicBool>,
}

impl Redeemer {
    async fn run(self, mut rng: Rng, channels: u64) {
        let mut heard = self.answers.listen(self.task);
        while !self.rest.load(Ordering::Relaxed) {
            let pause = rng.span(Duration::from_millis(20), Duration::from_millis(80));
            tokio::time::sleep(pause).await;
            let channel = rng.below(channels);
            let duty = Duty::Redeem(row(channel).id);
            ask(&format!("begin {}", self.task), &mut heard).await;
            if self.ledger.take_duty(duty).await != Ok(true) {
                continue;
            }
            self.redeem(channel, &mut heard).await;
            while self.ledger.leave_duty(duty).await.is_err() {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Looks at the chain, sends what pays something, and writes it down.
    async fn redeem(&self, channel: u64, heard: &mut mpsc::UnboundedReceiver<u64>) {
        let task = self.task;
        let redeemed = ask(&format!("look {channel} {task}"), heard).await;
        let newest = self.ledger.newest_on_channel(row(channel).id, Role::Payee).await;
        if let Ok(Some(newest)) = newest
            && newest.up > redeemed
        {
            let tx = ask(&format!("send {channel} {task} {}", newest.up), heard).await;
            let done = redemption(channel, newest.amount, tx);
            while self.ledger.record_redemption(done.clone()).await.is_err() {
                tokio::time::sleep(AGAIN).await;
            }
        }
        ask(&format!("end {channel} {task}"), heard).await;
    }
}

async fn ask(question: &str, heard: &mut mpsc::UnboundedReceiver<u64>) -> u64 {
    say(question).expect("somebody listens");
    heard.recv().await.expect("who asks is answered")
}

/// Who waits for which answer.
#[derive(Debug, Clone, Default)]
struct Answers(Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<u64>>>>);

impl Answers {
    fn listen(&self, task: u64) -> mpsc::UnboundedReceiver<u64> {
        let (give, heard) = mpsc::unbounded_channel();
        self.0.lock().insert(task, give);
        heard
    }

    fn give(&self, task: u64, number: u64) {
        if let Some(waits) = self.0.lock().get(&task) {
            let _ = waits.send(number);
        }
    }
}

fn lines() -> mpsc::UnboundedReceiver<String> {
    let (give, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            let Ok(line) = line else { return };
            if give.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}

fn lease_id(channel: u64) -> LeaseId {
    LeaseId(numbered(1, channel))
}

fn numbered(kind: u8, number: u64) -> [u8; 32] {
    let mut bytes = [kind; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn peer() -> sluice_proto::PeerId {
    Keypair::ed25519_from_bytes([7; 32]).expect("a key").public().to_peer_id()
}

/// The channel of a number.
pub(super) fn row(number: u64) -> ChannelRow {
    let key = ChannelKey {
        payer: EthAddress([1; 20]),
        signer: EthAddress([2; 20]),
        payee: EthAddress([3; 20]),
        payout: EthAddress([4; 20]),
        token: EthAddress([5; 20]),
        salt: numbered(2, number),
    };
    let domain = Domain { chain_id: 31_337, contract: EthAddress([9; 20]) };
    ChannelRow {
        id: key.id(&domain),
        key,
        domain,
        deposit: Amount(u128::MAX >> 1),
        role: Role::Payee,
        peer: peer(),
        status: ChannelStatus::Open,
        period_s: 72 * 3600,
    }
}

fn lease(channel: u64) -> LeaseRow {
    let terms = pay::Terms { version: 1, expires_unix_s: 1_000, ..pay::Terms::default() };
    LeaseRow {
        id: lease_id(channel),
        edge: Edge::Relay,
        role: Role::Payee,
        peer: peer(),
        terms: terms.encode_to_vec().into(),
        terms_signature: Bytes::from_static(&[8; 64]),
        channel: Some(row(channel).id),
        base: Amount(0),
        sessions: 1,
        closed: false,
    }
}

/// Voucher number `n` of a channel, whose counts and amount are `n` too.
fn voucher(channel: u64, n: u64) -> StoredVoucher {
    let lease = lease_id(channel);
    let statement = pay::Statement {
        version: 1,
        lease: Bytes::copy_from_slice(&lease.0),
        up: n,
        down: n,
        session: 1,
        streams: Vec::new(),
    };
    let amount = Amount(n.into());
    let voucher = pay::Voucher {
        statement: statement.encode_to_vec().into(),
        channel: Bytes::copy_from_slice(&row(channel).id.0),
        amount: Bytes::copy_from_slice(&amount.to_bytes()),
        signature: Bytes::from_static(&[3; 65]),
    };
    StoredVoucher { lease, up: n, down: n, amount, voucher, session: 1 }
}

fn redemption(channel: u64, amount: Amount, tx: u64) -> RedemptionRow {
    RedemptionRow {
        channel: row(channel).id,
        kind: RedemptionKind::Redeem,
        amount,
        tx: numbered(3, tx),
        gas: 60_000,
        at_unix_s: 0,
    }
}

/// The number of a transaction that [`redemption`] wrote down.
pub(super) fn tx_number(tx: &[u8; 32]) -> u64 {
    u64::from_be_bytes(tx[..8].try_into().expect("eight bytes"))
}
