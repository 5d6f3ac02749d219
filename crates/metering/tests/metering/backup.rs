//! Ledgers that are restored from backups, and payees that make use of it: seeded schedules around
//! one lease, judged by all that was ever signed on it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sluice_metering::{
    Channel, Counts, Direction, Lie, Payee, PayeeEvent, Payer, PayerEvent, Permit, Purse,
    Resumption, Standing, Statement, StreamIndex, VoucherRecord, check_session, session_after,
};
use sluice_proto::wire::pay;
use sluice_proto::{Amount, amount_due};

use crate::support::{WINDOW, price, purse, terms};
use crate::world::Dice;

/// What a payee shows when a session begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// Its newest voucher.
    Newest,
    /// Nothing, and it gives the session a number that was there before if it can.
    Nothing,
    /// One of those that it was given before.
    Older,
    /// More than was ever signed, with a signature of its own making.
    Forged,
}

/// What a side's disk says of the lease.
#[derive(Debug, Clone, Default)]
struct Disk {
    newest: Option<VoucherRecord>,
    sessions: u64,
}

/// A lease, both its ledgers with their backups, and the truth.
struct Lab {
    dice: Dice,
    now: Instant,
    unix_ms: u64,
    purse: Purse,
    payer: Disk,
    payee: Disk,
    payer_backup: Disk,
    payee_backup: Disk,
    accounts: Option<(Payer, Payee)>,
    stream: StreamIndex,
    /// What a payee that forgets nothing could redeem.
    given: Vec<VoucherRecord>,
    /// All that was signed.
    signed: Vec<VoucherRecord>,
    /// What was truly delivered, both ways.
    delivered: Counts,
    /// The control: each side goes on from its own disk, whatever the other shows.
    blind: bool,
    has_lied: bool,
}

fn step(disk: &mut Disk, record: &VoucherRecord) {
    if record.exceeds(disk.newest.as_ref()) {
        disk.newest = Some(record.clone());
    }
}

impl Lab {
    fn new(seed: u64, blind: bool) -> Self {
        let mut lab = Self {
            dice: Dice::new(seed),
            now: Instant::now(),
            unix_ms: 1_700_000_000_000,
            purse: purse(1 << 60, 0),
            payer: Disk::default(),
            payee: Disk::default(),
            payer_backup: Disk::default(),
            payee_backup: Disk::default(),
            accounts: None,
            stream: StreamIndex(0),
            given: Vec::new(),
            signed: Vec::new(),
            delivered: Counts::default(),
            blind,
            has_lied: false,
        };
        lab.begin(Shows::Newest).expect("both begin with nothing");
        lab
    }

    fn channel(&self) -> Channel {
        self.purse.channel
    }

    fn shown(&mut self, shows: Shows) -> Option<pay::Voucher> {
        let newest = self.payee.newest.clone();
        match shows {
            Shows::Newest => newest.map(|v| v.voucher),
            Shows::Nothing => None,
            Shows::Older => {
                let count = self.given.len() as u64;
                let at = usize::try_from(self.dice.roll(count)).expect("an index");
                self.given.get(at).map(|v| v.voucher.clone())
            }
            Shows::Forged => {
                let key = sluice_proto::WalletKey::from_bytes([9; 32]).expect("a key");
                let forger = Purse { key, ..self.purse.clone() };
                let mut payer = Payer::new(terms(price()), Some(forger), 1, newest.as_ref());
                payer.handle_read(StreamIndex(0), WINDOW, self.now);
                match payer.poll_event() {
                    Some(PayerEvent::Persist { record, .. }) => Some(record.voucher),
                    other => panic!("it signs: {other:?}"),
                }
            }
        }
    }

    /// A session begins, as the roles begin one.
    fn begin(&mut self, shows: Shows) -> Result<(), Lie> {
        self.accounts = None;
        let (terms, channel) = (terms(price()), self.channel());
        self.has_lied |= shows != Shows::Newest;
        let shown = self.shown(shows).filter(|_| !self.blind);
        let ours = self.payer.newest.clone();
        let resumed = Resumption::of(&terms, Some(&channel), ours, shown.as_ref())?;
        if let Some(forgotten) = resumed.forgotten() {
            step(&mut self.payer, forgotten);
        }
        let presented = resumed.newest.as_ref().map(|v| v.voucher.clone());
        let presented = presented.filter(|_| !self.blind);
        let held = self.payee.newest.clone();
        let earned = Resumption::of(&terms, Some(&channel), held, presented.as_ref());
        let earned = earned.unwrap_or_else(|lie| {
            // What a liar hid before crosses what was signed since: it drops that.
            assert!(shows != Shows::Newest || self.has_lied, "an honest payer's voucher: {lie}");
            resumed.clone()
        });
        if let Some(forgotten) = earned.forgotten() {
            step(&mut self.payee, forgotten);
            self.given.push(forgotten.clone());
        }
        self.unix_ms += 1 + self.dice.roll(1000);
        let session = if shows == Shows::Nothing && self.dice.roll(2) == 0 {
            self.payee.sessions
        } else {
            session_after(self.payee.sessions, earned.newest.as_ref(), self.unix_ms)
        };
        check_session(session, self.payer.sessions, resumed.newest.as_ref())?;
        (self.payer.sessions, self.payee.sessions) = (session, session);
        if shows == Shows::Newest && !self.blind {
            let worth = |v: &Resumption| v.newest.as_ref().map(|v| (v.counts, v.amount));
            assert_eq!(worth(&resumed), worth(&earned), "both go on from the same");
        }
        // A liar serves on by what it admitted, or nobody would pay it any more.
        let admitted = if shows == Shows::Newest { earned.newest } else { resumed.newest.clone() };
        let mut payee = Payee::new(terms.clone(), Some(channel), session, admitted);
        payee.handle_opened(self.stream);
        let purse = Some(self.purse.clone());
        let payer = Payer::new(terms, purse, session, resumed.newest.as_ref());
        self.accounts = Some((payer, payee));
        Ok(())
    }

    /// Some bytes flow, and are paid.
    fn flow(&mut self) {
        let up = self.dice.roll(3) == 0;
        let n = 1 + self.dice.roll(WINDOW / 2);
        self.now += Duration::from_millis(20);
        let Some((payer, payee)) = &mut self.accounts else { return };
        let direction = if up { Direction::Up } else { Direction::Down };
        let Permit::Granted(n) = payee.permit(self.stream, direction, n, self.now) else { return };
        if up {
            payer.handle_written(n, self.now);
            payee.handle_read(n, self.now);
            self.delivered.up += n;
            payee.flush(self.now);
        } else {
            payer.handle_read(self.stream, n, self.now);
            self.delivered.down += n;
        }
        self.settle();
    }

    /// All that both say arrives, and is on disk.
    fn settle(&mut self) {
        let Some((payer, payee)) = &mut self.accounts else { return };
        payer.flush(self.now);
        for _ in 0..4 {
            self.now += Duration::from_millis(20);
            while let Some(claim) = payee.poll_transmit(self.now) {
                payer.handle_datagram(&claim, self.now);
            }
            payer.handle_timeout(self.now);
            while let Some(event) = payer.poll_event() {
                match event {
                    PayerEvent::Persist { seq, record } => {
                        step(&mut self.payer, &record);
                        self.signed.push(record);
                        payer.handle_persisted(seq, self.now);
                    }
                    PayerEvent::Lie(evidence) => assert!(self.blind, "{:?}", evidence.lie),
                    PayerEvent::DepositExhausted { .. } => panic!("there is enough"),
                }
            }
            while let Some(voucher) = payer.poll_transmit(self.now) {
                payee.handle_datagram(&voucher, self.now);
            }
            while let Some(event) = payee.poll_event() {
                match event {
                    PayeeEvent::Persist { seq, record } => {
                        step(&mut self.payee, &record);
                        self.given.push(record);
                        payee.handle_durable(seq);
                    }
                    PayeeEvent::Stale | PayeeEvent::Writable => {}
                    PayeeEvent::Lie(evidence) => assert!(self.blind, "{:?}", evidence.lie),
                }
            }
        }
    }

    /// How many pairs of signed vouchers contradict each other: counts that cross, or positions on a
    /// stream of a session that go back while the counts go on.
    fn contradictions(&self) -> usize {
        let mut found = 0;
        let mut sorted: Vec<_> = self.signed.iter().collect();
        sorted.sort_by_key(|v| (v.amount, v.counts.total()));
        found += sorted.windows(2).filter(|w| !w[1].counts.covers(w[0].counts)).count();
        let mut read: BTreeMap<(u64, StreamIndex), u64> = BTreeMap::new();
        for record in &sorted {
            let said = Statement::parse(&record.voucher.statement).expect("it was signed");
            for position in said.streams {
                let before = read.entry((said.session, position.stream)).or_default();
                found += usize::from(position.position < *before);
                *before = position.position.max(*before);
            }
        }
        found
    }

    /// How often a voucher was signed that its payee had to refuse: not above what was given before.
    fn repeats(&self) -> usize {
        let amounts: Vec<Amount> = self.signed.iter().map(|v| v.amount).collect();
        amounts.windows(2).filter(|w| w[1] <= w[0]).count()
    }

    fn owed(&self) -> Amount {
        let Counts { up, down } = self.delivered;
        amount_due(Amount(0), up, down, price()).expect("fits")
    }

    fn redeemable(&self) -> Amount {
        self.given.iter().map(|v| v.amount).max().unwrap_or_default()
    }
}

/// What an honest pair does, restoring this or that; gives how often somebody was behind.
fn honest(seed: u64, blind: bool) -> (Lab, usize) {
    let mut lab = Lab::new(seed, blind);
    let mut behind = 0;
    for _ in 0..40 {
        match lab.dice.roll(10) {
            0 => lab.payer_backup = lab.payer.clone(),
            1 => lab.payee_backup = lab.payee.clone(),
            kind @ 2..=4 => {
                let best = [&lab.payer, &lab.payee].map(|d| d.newest.clone());
                if kind != 3 {
                    lab.payer = lab.payer_backup.clone();
                }
                if kind != 2 {
                    lab.payee = lab.payee_backup.clone();
                }
                let left = [&lab.payer, &lab.payee].map(|d| d.newest.clone());
                behind += usize::from(left != best);
                lab.begin(Shows::Newest).expect("nobody lies");
                let max =
                    |of: &[Option<VoucherRecord>; 2]| of.iter().flatten().map(|v| v.amount).max();
                if !blind {
                    let now = [&lab.payer, &lab.payee].map(|d| d.newest.clone());
                    let expected = max(&left);
                    for newest in now {
                        assert_eq!(newest.map(|v| v.amount), expected, "the higher of both");
                    }
                    if kind != 4 {
                        assert_eq!(max(&left), max(&best), "one of them had forgotten nothing");
                    }
                }
            }
            _ => lab.flow(),
        }
        lab.settle();
        assert!(lab.redeemable() <= lab.owed(), "seed {seed}: more is paid than was delivered");
    }
    (lab, behind)
}

/// Whether both sides were restored at once, after which older vouchers come again by right.
#[test]
fn restored_ledgers_go_on_from_the_higher_of_both_and_nothing_is_paid_twice() {
    let mut behind = 0;
    for seed in 1..=1_000 {
        let (lab, times) = honest(seed, false);
        behind += times;
        assert_eq!(lab.payer.newest, lab.payee.newest, "seed {seed}: both ledgers agree");
    }
    assert!(behind > 1_000, "restored {behind} times to something older");
}

/// The control: without what the other side shows, restored ledgers sign what was signed before.
#[test]
fn without_reconciliation_restored_payers_contradict_themselves() {
    let (mut repeats, mut differ) = (0, 0);
    for seed in 1..=100 {
        let (lab, _) = honest(seed, true);
        repeats += lab.repeats();
        differ += usize::from(lab.payer.newest != lab.payee.newest);
    }
    assert!(repeats > 100 && differ > 10, "{repeats} repeats, {differ} ledgers differ");
}

#[test]
fn a_restored_payer_alone_never_signs_what_it_signed_before() {
    for seed in 1..=300 {
        let mut lab = Lab::new(seed, false);
        for _ in 0..30 {
            match lab.dice.roll(8) {
                0 => lab.payer_backup = lab.payer.clone(),
                1 => {
                    lab.payer = lab.payer_backup.clone();
                    lab.begin(Shows::Newest).expect("nobody lies");
                }
                _ => lab.flow(),
            }
        }
        assert_eq!(lab.contradictions(), 0, "seed {seed}");
        assert_eq!(lab.repeats(), 0, "seed {seed}");
        assert!(lab.redeemable() <= lab.owed(), "seed {seed}");
    }
}

#[test]
fn a_payee_that_hides_or_forges_from_a_restored_payer_gains_nothing() {
    let (mut hidden, mut forged, mut old_sessions) = (0, 0, 0);
    for seed in 1..=300 {
        let mut lab = Lab::new(seed, false);
        for _ in 0..40 {
            match lab.dice.roll(10) {
                0 => lab.payer_backup = lab.payer.clone(),
                1 | 2 => {
                    lab.payer = lab.payer_backup.clone();
                    let shows = [Shows::Newest, Shows::Nothing, Shows::Older, Shows::Forged];
                    let kind = usize::try_from(lab.dice.roll(4)).expect("an index");
                    match (shows[kind], lab.begin(shows[kind])) {
                        (Shows::Forged, Err(Lie::WrongSigner { .. })) => forged += 1,
                        (Shows::Forged, other) => panic!("seed {seed}: {other:?}"),
                        (Shows::Nothing, Err(Lie::OldSession { .. })) => old_sessions += 1,
                        // What it hid before crosses what was signed since.
                        (_, Err(Lie::Backwards { .. })) => {}
                        (Shows::Newest, Ok(())) => {}
                        (_, Ok(())) => hidden += 1,
                        (shows, Err(lie)) => panic!("seed {seed}: {shows:?}: {lie}"),
                    }
                }
                _ => lab.flow(),
            }
            assert!(lab.redeemable() <= lab.owed(), "seed {seed}: it was paid too much");
        }
    }
    assert!(hidden > 200 && forged > 200 && old_sessions > 50, "{hidden} {forged} {old_sessions}");
}

fn record(lab: &mut Lab, n: u64) -> VoucherRecord {
    let (payer, payee) = lab.accounts.as_mut().expect("a session");
    assert_eq!(payee.permit(lab.stream, Direction::Down, n, lab.now), Permit::Granted(n));
    payer.handle_read(lab.stream, n, lab.now);
    lab.delivered.down += n;
    lab.settle();
    lab.signed.last().expect("it was paid").clone()
}

#[test]
fn each_side_learns_how_it_stands_to_the_other() {
    let mut lab = Lab::new(1, false);
    let (older, newer) = (record(&mut lab, 1000), record(&mut lab, 500));
    let (terms, channel) = (terms(price()), lab.channel());
    let of = |ours: Option<&VoucherRecord>, shown: Option<&VoucherRecord>| {
        let shown = shown.map(|v| &v.voucher);
        Resumption::of(&terms, Some(&channel), ours.cloned(), shown).expect("holds")
    };
    let even = of(Some(&newer), Some(&newer));
    assert_eq!((even.standing, even.gap, even.forgotten()), (Standing::Even, 0, None));
    let behind = of(Some(&older), Some(&newer));
    assert_eq!((behind.standing, behind.gap), (Standing::Behind, 500));
    assert_eq!(behind.forgotten(), Some(&newer));
    let ahead = of(Some(&newer), Some(&older));
    assert_eq!((ahead.standing, ahead.gap, ahead.forgotten()), (Standing::Ahead, 500, None));
    assert_eq!(ahead.newest.as_ref(), Some(&newer));
    assert_eq!(of(None, Some(&newer)).standing, Standing::Behind);
    assert_eq!(of(Some(&newer), None).standing, Standing::Ahead);
    assert_eq!(of(None, None), Resumption { newest: None, standing: Standing::Even, gap: 0 });
}

#[test]
fn a_session_has_a_number_above_those_that_either_side_remembers() {
    let mut lab = Lab::new(1, false);
    let newest = record(&mut lab, 1000);
    assert_eq!(session_after(4, None, 0), 5);
    assert_eq!(session_after(4, None, 1_000), 1_000);
    assert_eq!(session_after(4, Some(&newest), 0), newest.session + 1);
    assert_eq!(session_after(u64::MAX, None, 0), u64::MAX);
    assert_eq!(check_session(newest.session + 1, 3, Some(&newest)), Ok(()));
    let (found, last) = (newest.session, newest.session);
    assert_eq!(check_session(found, 3, Some(&newest)), Err(Lie::OldSession { last, found }));
    assert_eq!(check_session(3, 3, None), Err(Lie::OldSession { last: 3, found: 3 }));
}
