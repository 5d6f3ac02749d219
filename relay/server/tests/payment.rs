//! A relay that charges: channels, vouchers, windows, starter bytes, over an embedded chain.

#![allow(clippy::wildcard_enum_match_arm, reason = "anything else fails the test")]

#[path = "payment/channels.rs"]
mod channels;
#[path = "support/client.rs"]
mod client;
#[cfg(unix)]
#[path = "../../../crates/ledger/tests/ledger/server.rs"]
mod server;

use std::time::Duration;

use bytes::Bytes;
use client::{Client, PATIENCE, some_keypair};
use server::PostgresServer;
use sluice_chain::Chain;
use sluice_ledger::{Health, Ledger, LedgerError, Server};
use sluice_metering::{Channel, HolderMeter, PayerEvent, Purse, Terms};
use sluice_proto::eth::BIND_EXPORTER_LABEL;
use sluice_proto::wire::control::{ReserveOffer, control::Kind};
use sluice_proto::wire::{code, pay};
use sluice_proto::{
    Amount, ChannelKey, EthAddress, FlowId, Keypair, Price, RelayBudget, WINDOW_MIN, WalletKey,
};
use sluice_relay::{AccountTotals, Relay, RelayConfig, RelayPayment};

const PRICE: Price = Price { up: 1 << 30, down: 2 << 30 };
const PERIOD_S: u32 = 48 * 3600;
const FRAME: u64 = 1419;
/// Beyond a window: 16 kbit/s, and what goes at once.
const TRICKLE_PER_S: f64 = 2_000.0;
const TRICKLE_BURST: f64 = 3_072.0;

fn wallet(n: u8) -> WalletKey {
    WalletKey::from_bytes([n; 32]).expect("a key")
}

/// A relay with its chain and ledger, and what it takes to start it again.
struct World {
    dir: tempfile::TempDir,
    chain: Chain,
    config: RelayConfig,
}

impl World {
    async fn new(starter_bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let ledger = Ledger::open(&dir.path().join("ledger.db")).expect("a ledger");
        Self::with(dir, ledger, starter_bytes).await
    }

    async fn with(dir: tempfile::TempDir, ledger: Ledger, starter_bytes: u64) -> Self {
        let chain = Chain::open_embedded(&dir.path().join("chain")).expect("a chain");
        let payment =
            RelayPayment::new(ledger, chain.clone(), wallet(1).address(), EthAddress([0xC0; 20]));
        let config = RelayConfig {
            threads: 2,
            price: PRICE,
            // The smallest window.
            rate_max: 1_000_000,
            starter_bytes,
            payment: Some(payment),
            ..RelayConfig::new(some_keypair(), "127.0.0.1:0".parse().expect("an address"))
        };
        for account in [wallet(2), wallet(3)] {
            chain.fund_dev(account.address(), Amount(1 << 40)).await.expect("funded");
        }
        Self { dir, chain, config }
    }

    async fn start(&self) -> Relay {
        Relay::start(self.config.clone()).await.expect("a relay")
    }

    /// The ledger is closed with its last handle: this opens it anew, as a new process would.
    async fn reopen(&mut self) {
        let payment = self.config.payment.take().expect("it charges");
        let (payee, payout) = (payment.payee, payment.payout);
        drop(payment);
        let path = self.dir.path().join("ledger.db");
        // The last task that held it may still be ending.
        let deadline = now() + PATIENCE;
        let ledger = loop {
            match Ledger::open(&path) {
                Ok(ledger) => break ledger,
                Err(error) => assert!(now() < deadline, "{error}"),
            }
            tokio::task::yield_now().await;
        };
        self.config.payment = Some(RelayPayment::new(ledger, self.chain.clone(), payee, payout));
    }

    fn key(&self, salt: u8) -> ChannelKey {
        ChannelKey {
            payer: wallet(2).address(),
            signer: wallet(3).address(),
            payee: wallet(1).address(),
            payout: EthAddress([0xC0; 20]),
            token: self.chain.token(),
            salt: [salt; 32],
        }
    }

    async fn open(&self, salt: u8, deposit: u128, period_s: u32) -> ChannelKey {
        let key = self.key(salt);
        self.chain
            .open_channel(&wallet(2), key, Amount(deposit), period_s)
            .await
            .expect("the channel opens");
        key
    }

    fn binding(
        &self,
        client: &Client,
        key: &ChannelKey,
        signer: &WalletKey,
    ) -> pay::ChannelBinding {
        let mut exported = [0; 32];
        client
            .connection
            .export_keying_material(&mut exported, BIND_EXPORTER_LABEL, b"")
            .expect("keying material");
        let domain = self.chain.domain();
        let id = key.id(&domain);
        let digest = domain.bind_digest(id, &client.peer().to_bytes(), &exported);
        let copy = Bytes::copy_from_slice;
        pay::ChannelBinding {
            payer: copy(&key.payer.0),
            signer: copy(&key.signer.0),
            salt: copy(&key.salt),
            channel: copy(&id.0),
            signature: copy(&signer.sign(digest).0),
        }
    }

    fn purse(&self, key: &ChannelKey, deposit: u128) -> Purse {
        let domain = self.chain.domain();
        let channel = Channel {
            id: key.id(&domain),
            domain,
            signer: key.signer,
            deposit: Amount(deposit),
            base: Amount(0),
        };
        Purse { channel, key: wallet(3) }
    }
}

/// A holder that pays.
struct Payer {
    client: Client,
    meter: HolderMeter,
    deposit: u128,
    newest: Option<pay::Voucher>,
    sent: u64,
}

fn terms_of(offer: &ReserveOffer) -> Terms {
    Terms::open(offer.terms.as_ref().expect("terms")).expect("terms that hold")
}

#[expect(clippy::disallowed_methods, reason = "the meter takes the time from the test")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

impl Payer {
    async fn new(world: &World, relay: &Relay, salt: u8, deposit: u128) -> Self {
        let key = world.open(salt, deposit, PERIOD_S).await;
        let keypair = some_keypair();
        Self::resume(world, relay, &key, keypair, 1, deposit, None).await
    }

    async fn resume(
        world: &World,
        relay: &Relay,
        key: &ChannelKey,
        keypair: Keypair,
        incarnation: u64,
        deposit: u128,
        newest: Option<pay::Voucher>,
    ) -> Self {
        let mut client = Client::connect_as(relay, keypair, incarnation).await;
        client.settle();
        let offer = client.ask_terms().await;
        let terms = terms_of(&offer);
        let purse = world.purse(key, deposit);
        let presented = newest.clone().or_else(|| offer.newest.clone());
        let record = presented.map(|voucher| {
            sluice_metering::VoucherRecord::verify(&terms, Some(&purse.channel), &voucher)
                .expect("our own voucher")
        });
        let mut accept = client.acceptance(&offer);
        accept.channel = Some(world.binding(&client, key, &wallet(3)));
        accept.newest = newest.clone();
        client.accept(accept).await.expect("reserved");
        let meter = HolderMeter::new(
            terms,
            Some(purse),
            offer.starter_left,
            record.as_ref(),
            RelayBudget::new(0),
        );
        Self { client, meter, deposit, newest, sent: 0 }
    }

    /// Sends `count` frames to the tenant as far as they come through; how many bytes did.
    fn send(&mut self, flow: FlowId, tenant: &Client, count: usize) -> u64 {
        let budget = self.meter.budget().clone();
        let mut passed = 0;
        tenant.udp.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        for _ in 0..count {
            sluice_proto::RelayFlow::new(budget.clone()).count_sent(FRAME);
            self.client.send_data(flow, &[7; 1400]);
            self.sent += FRAME;
            let mut buffer = [0; 2048];
            if let Ok((len, _)) = tenant.udp.recv_from(&mut buffer) {
                passed += len as u64;
            } else {
                tenant.udp.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
            }
        }
        passed
    }

    /// Answers claims until the relay acknowledged a voucher for all that it claims.
    async fn pay(&mut self) {
        loop {
            let datagram = tokio::time::timeout(PATIENCE, self.client.connection.read_datagram())
                .await
                .expect("a claim or acknowledgement")
                .expect("the connection stands");
            self.meter.handle_datagram(&datagram, now());
            self.drain();
            if self.meter.is_settled() && self.meter.newest().is_some() {
                return;
            }
        }
    }

    /// Answers what comes next.
    async fn answer(&mut self) {
        let datagram = tokio::time::timeout(PATIENCE, self.client.connection.read_datagram());
        let datagram = datagram.await.expect("a claim").expect("the connection stands");
        self.meter.handle_datagram(&datagram, now());
        self.drain();
    }

    fn drain(&mut self) {
        self.meter.flush(now());
        while let Some(event) = self.meter.poll_event() {
            match event {
                PayerEvent::Persist { seq, record } => {
                    self.newest = Some(record.voucher);
                    self.meter.handle_persisted(seq, now());
                }
                other => panic!("{other:?}"),
            }
        }
        while let Some(datagram) = self.meter.poll_transmit(now()) {
            self.client.connection.send_datagram(datagram).expect("sent");
        }
    }
}

async fn flow(relay: &Relay, payer: &mut Payer) -> (Client, FlowId) {
    let mut tenant = Client::settled(relay).await;
    let (_, at_holder) = tenant.open_flow(&mut payer.client).await;
    (tenant, at_holder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_never_pays_gets_one_window_and_a_trickle() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    payer.send(at_holder, &tenant, 600);
    let totals = relay.stats().reservations[0].totals;
    assert_eq!(totals.up, WINDOW_MIN / FRAME * FRAME);
    assert!(totals.unbilled < 20_000, "{totals:?}");
    let Kind::Unpaid(unpaid) = payer.client.hear().await else { panic!("not told") };
    assert_eq!((unpaid.flow, unpaid.unpaid), (at_holder.0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vouchers_raise_the_limit_once_they_are_in_the_ledger() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    let mut passed = 0;
    for _ in 0..12 {
        // A third of the window, then a payment.
        passed += payer.send(at_holder, &tenant, 120);
        payer.pay().await;
    }
    assert_eq!(passed, 12 * 120 * FRAME, "nothing was held back");
    let meter = relay.stats().meters[0].clone();
    assert!(meter.paid.up > 2 * WINDOW_MIN && meter.unpaid_max <= WINDOW_MIN, "{meter:?}");
    assert_eq!(meter.amount, Amount(u128::from(meter.paid.up)));
    let ledger = &world.config.payment.as_ref().expect("it charges").ledger;
    let newest = ledger.newest_earned(meter.lease).await.expect("read").expect("one");
    assert_eq!((newest.amount, newest.up), (meter.amount, meter.paid.up));
}

/// A fleet's server, and a member's ledger on it.
#[cfg(unix)]
async fn fleet(member: &str) -> Option<(PostgresServer, Server, Ledger)> {
    let server = PostgresServer::start().await?;
    server.make_database("fleet").await;
    let place = server.url("fleet").parse::<Server>().expect("a URL");
    let ledger = Ledger::connect(&place, member).await.expect("joins");
    Some((server, place, ledger))
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_ledgers_server_is_away_no_voucher_counts_and_then_each_does() {
    let Some((server, _, ledger)) = fleet("relay").await else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::with(folder, ledger.clone(), 0).await;
    let relay = world.start().await;
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    payer.send(at_holder, &tenant, 120);
    payer.pay().await;
    let before = relay.stats().meters[0].clone();
    assert!(before.is_settled && before.paid.up > 0, "{before:?}");

    server.kill();
    payer.send(at_holder, &tenant, 600);
    payer.answer().await;
    let deadline = now() + PATIENCE;
    while ledger.health() == Health::Good {
        assert!(now() < deadline, "the voucher does not reach the ledger");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let away = relay.stats().meters[0].clone();
    assert_eq!((away.paid, away.vouchers), (before.paid, before.vouchers));
    assert!(away.unpaid > 0 && away.unpaid_max <= WINDOW_MIN, "{away:?}");

    server.resume().await;
    payer.pay().await;
    payer.send(at_holder, &tenant, 120);
    payer.pay().await;
    let after = relay.stats().meters[0].clone();
    assert!(after.paid.up > away.counts.up && after.unpaid_max <= WINDOW_MIN, "{after:?}");
    let newest = ledger.newest_earned(after.lease).await.expect("read").expect("one");
    assert_eq!((newest.amount, newest.up), (after.amount, after.paid.up));
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_another_relay_of_the_fleet_has_is_refused_until_that_lets_go() {
    let Some((_server, place, ledger)) = fleet("relay").await else { return };
    let world = World::with(tempfile::tempdir().expect("a folder"), ledger, 0).await;
    let relay = world.start().await;
    let other = Ledger::connect(&place, "other").await.expect("joins");
    let key = world.open(1, 1 << 30, PERIOD_S).await;
    let id = key.id(&world.chain.domain());
    other.take_channel(id).await.expect("is free");
    let mut client = Client::connect(&relay).await;
    let offer = client.ask_terms().await;
    let mut accept = client.acceptance(&offer);
    accept.channel = Some(world.binding(&client, &key, &wallet(3)));
    let refusal = client.accept(accept).await.expect_err("is another's");
    assert_eq!(refusal.code, code::CHANNEL);
    assert!(refusal.message.contains("in use at another relay"), "{refusal:?}");
    other.let_go(terms_of(&offer).lease, Some(id)).await.expect("lets go");
    let offer = client.ask_terms().await;
    let mut accept = client.acceptance(&offer);
    accept.channel = Some(world.binding(&client, &key, &wallet(3)));
    client.accept(accept).await.expect("is free");
    let refused = other.take_channel(id).await.expect_err("is the relay's");
    assert!(matches!(refused, LedgerError::Owned { .. }), "{refused}");
    drop(client);
    relay.drain(Duration::from_millis(100)).await;
    let deadline = now() + PATIENCE;
    while other.take_channel(id).await.is_err() {
        assert!(now() < deadline, "the relay does not let go");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voucher_with_a_wrong_signature_raises_nothing() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    let mut forger = world.purse(&world.key(1), 1 << 30);
    forger.key = wallet(9);
    payer.meter.handle_purse(forger, now());
    payer.send(at_holder, &tenant, 200);
    let claim = tokio::time::timeout(PATIENCE, payer.client.connection.read_datagram());
    payer.meter.handle_datagram(&claim.await.expect("a claim").expect("stands"), now());
    payer.drain();
    payer.send(at_holder, &tenant, 400);
    let stats = relay.stats();
    assert_eq!((stats.meters[0].vouchers, stats.meters[0].paid.up), (0, 0));
    assert_eq!(stats.reservations[0].totals.up, WINDOW_MIN / FRAME * FRAME);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_that_do_not_pay_are_refused_by_name() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let good = world.open(1, 1 << 30, PERIOD_S).await;
    let unopened = world.key(2);
    let other_token = ChannelKey { token: EthAddress([1; 20]), ..good };
    let closing = world.open(4, 1 << 30, PERIOD_S).await;
    world.chain.start_close(&wallet(2), &closing).await.expect("a close begins");
    let mut client = Client::connect(&relay).await;
    let cases = [
        (None, "show a channel to payee"),
        (Some((unopened, 3)), "is not on the chain"),
        (Some((other_token, 3)), "the channel is not one of payee"),
        (Some((closing, 3)), "is being closed"),
        (Some((good, 9)), "the channel binding is not signed by"),
    ];
    for (channel, words) in cases {
        let offer = client.ask_terms().await;
        let mut accept = client.acceptance(&offer);
        accept.channel = channel.map(|(key, n)| world.binding(&client, &key, &wallet(n)));
        let refusal = client.accept(accept).await.expect_err(words);
        assert_eq!(refusal.code, code::CHANNEL);
        assert!(refusal.message.contains(words), "{}", refusal.message);
    }
    // A binding made for another connection.
    let other = Client::connect(&relay).await;
    let offer = client.ask_terms().await;
    let mut accept = client.acceptance(&offer);
    accept.channel = Some(world.binding(&other, &good, &wallet(3)));
    assert_eq!(client.accept(accept).await.expect_err("bound elsewhere").code, code::CHANNEL);
    // A wrong signature under the terms.
    let offer = client.ask_terms().await;
    let mut accept = client.acceptance(&offer);
    accept.signature = other.acceptance(&offer).signature;
    assert_eq!(client.accept(accept).await.expect_err("not signed").code, code::PROTOCOL);
    // The control.
    let offer = client.ask_terms().await;
    let mut accept = client.acceptance(&offer);
    accept.channel = Some(world.binding(&client, &good, &wallet(3)));
    client.accept(accept).await.expect("reserved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_asks_for_a_longer_period_says_so() {
    let mut world = World::new(0).await;
    world.config.payment.as_mut().expect("it charges").period_s = PERIOD_S + 1;
    let relay = world.start().await;
    let key = world.open(1, 1 << 30, PERIOD_S).await;
    let mut client = Client::connect(&relay).await;
    let offer = client.ask_terms().await;
    let mut accept = client.acceptance(&offer);
    accept.channel = Some(world.binding(&client, &key, &wallet(3)));
    let refusal = client.accept(accept).await.expect_err("too short");
    assert!(refusal.message.contains("asks for 172801 s or more"), "{}", refusal.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_go_on_after_the_relay_restarts() {
    let mut world = World::new(0).await;
    let relay = world.start().await;
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    for _ in 0..4 {
        payer.send(at_holder, &tenant, 120);
        payer.pay().await;
    }
    let before = relay.stats().meters[0].clone();
    relay.stop().await;
    world.reopen().await;
    let relay = world.start().await;
    let keypair = payer.client.keypair.clone();
    let newest = payer.newest.clone();
    let key = world.key(1);
    let mut payer = Payer::resume(&world, &relay, &key, keypair, 1, payer.deposit, newest).await;
    let resumed = relay.stats().meters[0].clone();
    assert_eq!((resumed.lease, resumed.amount), (before.lease, before.amount));
    assert_eq!((resumed.counts, resumed.unpaid), (before.paid, 0));
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    for _ in 0..4 {
        assert_eq!(payer.send(at_holder, &tenant, 120), 120 * FRAME);
        payer.pay().await;
    }
    let after = relay.stats().meters[0].clone();
    assert!(after.paid.up > before.paid.up && after.amount > before.amount);
    assert_eq!(after.amount, Amount(u128::from(after.paid.up)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coming_back_does_not_renew_the_window() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let key = world.key(1);
    let keypair = payer.client.keypair.clone();
    let begin = now();
    let mut totals = AccountTotals::default();
    for incarnation in 2..5 {
        let (tenant, at_holder) = flow(&relay, &mut payer).await;
        payer.send(at_holder, &tenant, 450);
        totals = relay.stats().reservations[0].totals;
        let again = keypair.clone();
        payer = Payer::resume(&world, &relay, &key, again, incarnation, 1 << 30, None).await;
    }
    // What is forgiven comes out of the trickle.
    let seconds = begin.elapsed().as_secs_f64();
    let most = WINDOW_MIN as f64 + TRICKLE_BURST + TRICKLE_PER_S * seconds;
    assert!((totals.up + totals.unbilled) as f64 <= most, "{totals:?} in {seconds} s");
    let forgiven = totals.up.saturating_sub(WINDOW_MIN) as f64;
    assert!(forgiven <= TRICKLE_PER_S / 8.0 * seconds, "{totals:?} in {seconds} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_while_terms_are_accepted_clears_no_debt() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let (key, keypair) = (world.key(1), payer.client.keypair.clone());
    let begin = now();
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    payer.send(at_holder, &tenant, 450);
    drop(payer);
    // Sooner and later, since it is not seen from outside how far the relay has come.
    for breaks in 0..16 {
        let mut client = Client::connect_as(&relay, keypair.clone(), 2 + breaks).await;
        let offer = client.ask_terms().await;
        let mut accept = client.acceptance(&offer);
        accept.channel = Some(world.binding(&client, &key, &wallet(3)));
        client.say(Kind::Accept(accept)).await;
        let later = Duration::from_micros(500 * breaks);
        let _ = tokio::time::timeout(later, client.connection.closed()).await;
    }
    let mut payer = Payer::resume(&world, &relay, &key, keypair, 20, 1 << 30, None).await;
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    payer.send(at_holder, &tenant, 450);
    let up = relay.stats().reservations[0].totals.up;
    let forgiven = TRICKLE_PER_S / 8.0 * begin.elapsed().as_secs_f64();
    assert!(up as f64 <= WINDOW_MIN as f64 + forgiven, "{up} in {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debt_of_a_whole_window_locks_nobody_out_who_pays() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let key = world.key(1);
    let keypair = payer.client.keypair.clone();
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    payer.send(at_holder, &tenant, 450);
    let mut payer = Payer::resume(&world, &relay, &key, keypair, 2, 1 << 30, None).await;
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    let deadline = now() + 3 * PATIENCE;
    while relay.stats().meters[0].paid.up < 2 * WINDOW_MIN {
        assert!(now() < deadline, "{:?}", relay.stats().meters);
        payer.send(at_holder, &tenant, 100);
        let connection = payer.client.connection.clone();
        let heard = || tokio::time::timeout(Duration::from_millis(50), connection.read_datagram());
        while let Ok(claim) = heard().await {
            payer.meter.handle_datagram(&claim.expect("the connection stands"), now());
            payer.drain();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starter_bytes_are_given_once_per_node_and_prefix() {
    const STARTER: u64 = 1 << 20;
    let world = World::new(STARTER).await;
    let relay = world.start().await;
    let mut first = Client::settled(&relay).await;
    let offer = first.ask_terms().await;
    assert_eq!(offer.starter_left, STARTER);
    let accept = first.acceptance(&offer);
    first.accept(accept).await.expect("reserved without a channel");
    let mut second = Client::connect(&relay).await;
    let offer = second.ask_terms().await;
    assert_eq!(offer.starter_left, 0, "promised to the same prefix");
    let accept = second.acceptance(&offer);
    assert_eq!(second.accept(accept).await.expect_err("no channel").code, code::CHANNEL);
    let mut tenant = Client::settled(&relay).await;
    let (_, at_holder) = tenant.open_flow(&mut first).await;
    tenant.udp.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    let mut buffer = [0; 2048];
    for _ in 0..1300 {
        first.send_data(at_holder, &[7; 1400]);
        if tenant.udp.recv_from(&mut buffer).is_err() {
            tenant.udp.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
        }
    }
    let up = relay.stats().reservations[0].totals.up;
    assert_eq!(up, (STARTER + WINDOW_MIN) / FRAME * FRAME);
    // What was used is remembered, and with it that nothing is left.
    let mut again = Client::connect_as(&relay, first.keypair.clone(), 2).await;
    let deadline = now() + PATIENCE;
    while again.ask_terms().await.starter_left >= STARTER / 8 {
        again.say(Kind::Refusal(pay::Refusal::default())).await;
        assert!(now() < deadline, "it is not written down");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_accept_at_once_one_of_a_prefix_begins_on_starter_bytes() {
    let world = World::new(1 << 20).await;
    let relay = world.start().await;
    let mut ready = Vec::new();
    for _ in 0..8 {
        let mut client = Client::connect(&relay).await;
        let offer = client.ask_terms().await;
        assert_eq!(offer.starter_left, 1 << 20, "nobody has accepted yet");
        let accept = client.acceptance(&offer);
        ready.push((client, accept));
    }
    let accepting = ready.into_iter().map(|(mut client, accept)| {
        tokio::spawn(async move {
            let accepted = client.accept(accept).await;
            (client, accepted)
        })
    });
    let (mut begun, mut clients) = (0, Vec::new());
    for accepted in accepting.collect::<Vec<_>>() {
        let (client, accepted) = accepted.await.expect("ends");
        match accepted {
            Ok(()) => begun += 1,
            Err(refusal) => assert_eq!(refusal.code, code::CHANNEL),
        }
        clients.push(client);
    }
    assert_eq!(begun, 1, "each was given what there is for all");
    assert_eq!(relay.stats().meters.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_without_a_wallet_is_refused() {
    let config = RelayConfig {
        price: PRICE,
        ..RelayConfig::new(some_keypair(), "127.0.0.1:0".parse().expect("an address"))
    };
    let error = Relay::start(config).await.expect_err("no wallet");
    assert!(error.to_string().contains("`price` in [relay]"), "{error}");
}
