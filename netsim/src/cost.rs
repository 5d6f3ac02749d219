//! What vouchers cost: bytes on each edge, and time of a core.
//!
//! Bytes are those of the metering core's messages over lines without bad luck, each counted as if it
//! travelled in a packet of its own. Time is this process', in user and in kernel mode: both ends of
//! an edge sign, check, encode, and write to their ledgers on disk, with sync.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sluice_ledger::{ChannelRow, ChannelStatus, Edge, LeaseRow, Ledger, Role};
use sluice_metering::{
    Channel, Direction, Payee, PayeeEvent, Payer, PayerEvent, Payment, Permit, Purse, StreamIndex,
    Terms,
};
use sluice_proto::{
    Amount, ChannelKey, Domain, EthAddress, Keypair, LeaseId, Price, WINDOW_MAX, WINDOW_MIN,
    WalletKey,
};

use crate::figures::{Figure, Target};
use crate::metering::{self, Load};
use crate::paid::stored;
use crate::pool;

/// Windows whose bytes are looked at, and what vouchers may cost on each.
const WINDOWS: [(u64, f64); 4] =
    [(WINDOW_MIN, 0.5), (2 << 20, 0.15), (8 << 20, 0.15), (WINDOW_MAX, 0.15)];
/// Streams at a time.
const STREAMS: [u64; 4] = [1, 8, 64, 200];
/// Vouchers that are timed.
const VOUCHERS: u64 = 2000;
/// A gigabyte, as the tunnel's benchmark counts it.
const GB: f64 = 1e9;
/// The fastest line on which a voucher each quarter of the smallest window must stay cheap.
const LINE_BYTES_PER_S: f64 = 80e6 / 8.0;
/// What `/proc` counts in (`man 5 proc`: `USER_HZ`).
const TICK_S: f64 = 0.01;
/// Money enough.
const DEPOSIT: Amount = Amount(1 << 90);
/// Between a payer's wish to close and its refund, in seconds.
const PERIOD_S: u32 = 172_800;

/// Every load whose bytes are looked at.
fn loads() -> Vec<(Load, f64)> {
    let ways = [(false, false), (false, true), (true, true)];
    let load = |(window, most), streams, (is_up, is_relayed)| {
        (Load { window, streams, is_up, is_relayed }, most)
    };
    let of_window = |w| STREAMS.into_iter().flat_map(move |s| ways.map(|way| load(w, s, way)));
    WINDOWS.into_iter().flat_map(of_window).collect()
}

/// Measures bytes; a table, and the figures.
///
/// # Errors
/// When a schedule fails.
pub fn bytes() -> Result<(String, Vec<Figure>)> {
    let loads = loads();
    let costs = pool::run(&loads, |(load, _)| metering::cost(load), |_, _| {});
    let mut table = String::from("window KiB  streams  way             session %   relay %\n");
    let mut worst: Vec<(u64, f64, f64)> = Vec::new();
    for ((load, most), cost) in loads.iter().zip(costs) {
        let [session, relay] = cost?.map(|part| part * 100.0);
        let way = match (load.is_up, load.is_relayed) {
            (true, _) => "up, relayed",
            (false, true) => "down, relayed",
            (false, false) => "down, direct",
        };
        let (window, streams) = (load.window / 1024, load.streams);
        let _ =
            writeln!(table, "{window:>10}  {streams:>7}  {way:<14} {session:>9.4} {relay:>9.4}");
        match worst.iter_mut().find(|(w, ..)| *w == window) {
            Some((_, _, worst)) => *worst = worst.max(session).max(relay),
            None => worst.push((window, *most, session.max(relay))),
        }
    }
    let figure = |(window, most, cost)| {
        let name = format!("vouchers at a window of {window} KiB, of the payload");
        Figure::new(name, cost, "%", Target::AtMost(most))
    };
    Ok((table, worst.into_iter().map(figure).collect()))
}

/// Time of a core for one voucher, both ends together.
#[derive(Debug, Clone, Copy)]
struct Time {
    /// Signing, checking, encoding.
    accounts_s: f64,
    /// The same with both ledgers.
    all_s: f64,
    /// From the payer's count to the payee's acknowledgement.
    elapsed_s: f64,
}

/// Measures time, with ledgers in `folder`; a table, and the figures. `tunnel_s_per_gb` is what the
/// tunnel itself takes for a gigabyte, as its benchmark prints it.
///
/// # Errors
/// When a ledger or an account fails.
pub fn time(folder: &Path, tunnel_s_per_gb: f64) -> Result<(String, Vec<Figure>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let dir = tempfile::tempdir_in(folder).context("failed to make a folder for ledgers")?;
    let without = runtime.block_on(Both::new(None)?.pay())?;
    let both = Both::new(Some((
        Ledger::open(&dir.path().join("payer.db"))?,
        Ledger::open(&dir.path().join("payee.db"))?,
    )))?;
    let with = runtime.block_on(async {
        both.put_leases().await?;
        both.pay().await
    })?;
    let time = Time { accounts_s: without.0, all_s: with.0, elapsed_s: with.1 };
    let per_gb = GB / (WINDOW_MAX / 4) as f64 * time.all_s;
    let per_s = LINE_BYTES_PER_S / (WINDOW_MIN / 4) as f64;
    let mut table = String::new();
    for (what, value, unit) in [
        ("signing, checking, encoding a voucher, both ends", time.accounts_s * 1e6, "us of a core"),
        ("the same, written to both ledgers", time.all_s * 1e6, "us of a core"),
        ("from count to acknowledgement, two syncs in it", time.elapsed_s * 1e6, "us"),
        ("vouchers a second at 80 Mbit/s, window 512 KiB", per_s, ""),
        ("vouchers of a gigabyte at the window of 16 MiB", per_gb * 1e3, "ms of a core"),
    ] {
        let _ = writeln!(table, "{what:<50} {value:>9.1} {unit}");
    }
    let figures = vec![
        Figure::new(
            "both ends' vouchers at 80 Mbit/s and 512 KiB, of a core",
            per_s * time.all_s * 100.0,
            "%",
            Target::AtMost(5.0),
        ),
        Figure::new(
            format!("vouchers at 16 MiB, of the tunnel's {tunnel_s_per_gb} s/GB"),
            per_gb / tunnel_s_per_gb * 100.0,
            "%",
            Target::AtMost(2.0),
        ),
    ];
    Ok((table, figures))
}

/// Both ends of an edge.
struct Both {
    payer: Payer,
    payee: Payee,
    ledgers: Option<(Ledger, Ledger)>,
    key: ChannelKey,
    purse: Purse,
    terms: Terms,
    node: Keypair,
}

impl Both {
    fn new(ledgers: Option<(Ledger, Ledger)>) -> Result<Self> {
        let node = |n| Keypair::ed25519_from_bytes([n; 32]).context("32 bytes are a key");
        let (tenant, provider) = (node(1)?, node(2)?);
        let domain = Domain { chain_id: 31_337, contract: EthAddress([1; 20]) };
        let wallet = WalletKey::from_bytes([7; 32]).context("nearly all numbers are keys")?;
        let signer = wallet.address();
        let [token, payee, payout] = [2, 3, 4].map(|n| EthAddress([n; 20]));
        let key = ChannelKey { payer: signer, signer, payee, payout, token, salt: [5; 32] };
        let id = key.id(&domain);
        let channel = Channel { id, domain, signer, deposit: DEPOSIT, base: Amount(0) };
        let purse = Purse { channel, key: wallet };
        let terms = Terms {
            lease: LeaseId([9; 32]),
            payer: tenant.public().to_peer_id(),
            payee: provider.public().to_peer_id(),
            price: Price { up: 1 << 30, down: 1 << 30 },
            window: WINDOW_MIN,
            payment: Some(Payment { domain, token, payee, payout, period_s: PERIOD_S }),
            starter_bytes: 0,
            idle_timeout_s: 600,
            expires_unix_s: u64::MAX >> 1,
            rate_max: 1_000_000_000,
        };
        let payer = Payer::new(terms.clone(), Some(purse.clone()), 1, None);
        let payee = Payee::new(terms.clone(), Some(channel), 1, None);
        Ok(Self { payer, payee, ledgers, key, purse, terms, node: provider })
    }

    async fn put_leases(&self) -> Result<()> {
        let Some((payer, payee)) = &self.ledgers else { return Ok(()) };
        let signed = self.terms.sign(&self.node);
        let Channel { id, domain, deposit, .. } = self.purse.channel;
        for (ledger, role, peer) in
            [(payer, Role::Payer, self.terms.payee), (payee, Role::Payee, self.terms.payer)]
        {
            let (key, status, period_s) = (self.key, ChannelStatus::Open, PERIOD_S);
            let row = ChannelRow { id, key, domain, deposit, role, peer, status, period_s };
            ledger.put_channel(row).await?;
            let row = LeaseRow {
                id: self.terms.lease,
                edge: Edge::Tenant,
                role,
                peer,
                terms: signed.terms.clone(),
                terms_signature: signed.signature.clone(),
                channel: Some(id),
                base: Amount(0),
                sessions: 1,
                closed: false,
            };
            ledger.put_lease(row).await?;
        }
        Ok(())
    }

    /// Pays quarter window by quarter window: seconds of a core, and seconds, for each voucher.
    async fn pay(mut self) -> Result<(f64, f64)> {
        let (before, began) = (core_s()?, now());
        let stream = StreamIndex(0);
        self.payee.handle_opened(stream);
        for n in 1..=VOUCHERS {
            let quarter = WINDOW_MIN / 4;
            let permit = self.payee.permit(stream, Direction::Down, quarter, now());
            ensure!(permit == Permit::Granted(quarter), "the window is used up: {permit:?}");
            self.payer.handle_read(stream, quarter, now());
            self.settle().await?;
            ensure!(self.payee.vouchers() == n, "{} vouchers of {n}", self.payee.vouchers());
        }
        let (core, elapsed) = (core_s()? - before, began.elapsed().as_secs_f64());
        Ok((core / VOUCHERS as f64, elapsed / VOUCHERS as f64))
    }

    async fn settle(&mut self) -> Result<()> {
        loop {
            while let Some(event) = self.payer.poll_event() {
                let PayerEvent::Persist { seq, record } = event else {
                    anyhow::bail!("an honest payee: {event:?}");
                };
                if let Some((ledger, _)) = &self.ledgers {
                    ledger.record_signed(stored(&record)).await?;
                }
                self.payer.handle_persisted(seq, now());
            }
            while let Some(event) = self.payee.poll_event() {
                match event {
                    PayeeEvent::Persist { seq, record } => {
                        if let Some((_, ledger)) = &self.ledgers {
                            ledger.record_earned(stored(&record)).await?;
                        }
                        self.payee.handle_durable(seq);
                    }
                    PayeeEvent::Lie(evidence) => anyhow::bail!("{}", evidence.lie),
                    PayeeEvent::Stale | PayeeEvent::Writable => {}
                }
            }
            let out = self.payer.poll_transmit(now());
            let back = self.payee.poll_transmit(now());
            if out.is_none() && back.is_none() {
                return Ok(());
            }
            out.iter().for_each(|m| self.payee.handle_datagram(m, now()));
            back.iter().for_each(|m| self.payer.handle_datagram(m, now()));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}

/// What this process used of a core so far: fields 14 and 15 of its `stat`, after the name, which
/// may hold anything.
fn core_s() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("time is read from /proc")?;
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = |n: usize| -> Result<f64> {
        let text = rest.split_whitespace().nth(n - 3).context("stat is short")?;
        Ok(text.parse::<u64>()? as f64)
    };
    Ok((field(14)? + field(15)?) * TICK_S)
}
