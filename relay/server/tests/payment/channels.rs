//! A channel pays one reservation at a time, and the next one from there.

use prost::Message as _;
use sluice_chain::Redemption;
use sluice_ledger::StoredVoucher;
use sluice_proto::eth::keccak256;
use sluice_proto::{LeaseId, Voucher, WalletSignature, amount_due};

use super::*;

/// Asks for terms and accepts them with a channel; the reservation.
async fn reserve(
    world: &World,
    client: &mut Client,
    key: &ChannelKey,
    newest: Option<pay::Voucher>,
) -> Result<LeaseId, pay::Refusal> {
    let offer = client.ask_terms().await;
    let mut accept = client.acceptance(&offer);
    accept.channel = Some(world.binding(client, key, &wallet(3)));
    accept.newest = newest;
    client.accept(accept).await.map(|()| terms_of(&offer).lease)
}

/// A voucher that the holder signs for any counts, from 0.
fn signed(world: &World, key: &ChannelKey, lease: LeaseId, up: u64, down: u64) -> pay::Voucher {
    let statement = pay::Statement {
        version: 1,
        lease: Bytes::copy_from_slice(&lease.0),
        up,
        down,
        ..pay::Statement::default()
    };
    let statement = Bytes::from(statement.encode_to_vec());
    let amount = amount_due(Amount(0), up, down, PRICE).expect("fits");
    let domain = world.chain.domain();
    let channel = key.id(&domain);
    let voucher = Voucher { channel, amount, statement: keccak256(&statement) };
    pay::Voucher {
        statement,
        amount: Bytes::copy_from_slice(&amount.to_bytes()),
        channel: Bytes::copy_from_slice(&channel.0),
        signature: Bytes::copy_from_slice(&wallet(3).sign(voucher.digest(&domain)).0),
    }
}

async fn redeem(world: &World, key: &ChannelKey, voucher: &pay::Voucher) {
    let voucher = Redemption {
        key: *key,
        voucher: Voucher {
            channel: key.id(&world.chain.domain()),
            amount: Amount::parse(&voucher.amount).expect("an amount"),
            statement: keccak256(&voucher.statement),
        },
        signature: WalletSignature::parse(&voucher.signature).expect("a signature"),
    };
    world.chain.redeem(&wallet(2), &[voucher]).await.expect("redeems");
}

impl World {
    fn ledger(&self) -> &Ledger {
        &self.config.payment.as_ref().expect("it charges").ledger
    }

    /// The newest voucher of a reservation, and the reservation.
    async fn earned(&self, lease: LeaseId) -> StoredVoucher {
        self.ledger().newest_earned(lease).await.expect("reads").expect("one")
    }

    /// A ledger that knows what it knew before `lease` was paid beyond `until`.
    async fn forget(&mut self, key: &ChannelKey, place: &str, until: &StoredVoucher) {
        let row = self.ledger().lease(until.lease).await.expect("reads").expect("is known");
        let channel = self.ledger().channel(key.id(&self.chain.domain())).await;
        let channel = channel.expect("reads").expect("is known");
        let ledger = Ledger::open(&self.dir.path().join(place)).expect("a ledger");
        ledger.put_channel(channel).await.expect("puts");
        ledger.put_lease(row).await.expect("puts");
        ledger.record_earned(until.clone()).await.expect("records");
        self.config.payment.as_mut().expect("it charges").ledger = ledger;
    }
}

async fn pay_a_little(relay: &Relay, payer: &mut Payer) {
    let (tenant, at_holder) = flow(relay, payer).await;
    payer.send(at_holder, &tenant, 120);
    payer.pay().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_pays_one_holder_pays_no_other() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let mut other = Client::connect(&relay).await;
    let refusal = reserve(&world, &mut other, &world.key(1), None).await.expect_err("is in use");
    assert_eq!(refusal.code, code::CHANNEL);
    assert!(refusal.message.contains("pays lease"), "{refusal:?}");
    assert_eq!(relay.stats().meters.len(), 1, "nothing is forwarded for it");
    // The control: with a channel of its own.
    let own = world.open(2, 1 << 30, PERIOD_S).await;
    reserve(&world, &mut other, &own, None).await.expect("reserved");
    drop(payer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_keys_on_one_channel_get_no_window_each() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let key = world.open(1, 1 << 30, PERIOD_S).await;
    let mut forwarded = 0;
    for _ in 0..3 {
        let keypair = some_keypair();
        let mut payer = Payer::resume(&world, &relay, &key, keypair, 1, 1 << 30, None).await;
        let (tenant, at_holder) = flow(&relay, &mut payer).await;
        payer.send(at_holder, &tenant, 450);
        let meters = relay.stats().meters;
        let meter = meters.iter().find(|m| m.holder == payer.client.peer()).expect("its account");
        forwarded += meter.counts.up;
        world.ledger().end_lease(meter.lease).await.expect("gives it up");
        payer.client.connection.close(0_u32.into(), b"");
        let gone = payer.client.peer();
        client::until("the account ends", || {
            relay.stats().meters.iter().all(|meter| meter.holder != gone)
        })
        .await;
    }
    // What is forgiven meanwhile is less than a frame or two.
    assert!(forwarded > WINDOW_MIN / 2 && forwarded <= WINDOW_MIN + 4 * FRAME, "{forwarded}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_reservation_counts_from_what_its_channel_paid_before() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let key = world.key(1);
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    pay_a_little(&relay, &mut payer).await;
    let first = relay.stats().meters[0].clone();
    world.ledger().end_lease(first.lease).await.expect("ends");
    // Whoever holds the channel's key, and under whatever name.
    for keypair in [payer.client.keypair.clone(), some_keypair()] {
        let mut client = Client::connect_as(&relay, keypair, 2).await;
        let lease = reserve(&world, &mut client, &key, None).await.expect("reserved");
        let row = world.ledger().lease(lease).await.expect("reads").expect("is known");
        assert_eq!((row.base, row.channel), (first.amount, Some(key.id(&world.chain.domain()))));
        assert_ne!(lease, first.lease);
        world.ledger().end_lease(lease).await.expect("ends");
    }
    // What was signed for once pays for nothing again.
    let mut again = Client::connect_as(&relay, some_keypair(), 1).await;
    let offer = again.ask_terms().await;
    let mut accept = again.acceptance(&offer);
    accept.channel = Some(world.binding(&again, &key, &wallet(3)));
    accept.newest = Some(signed(&world, &key, terms_of(&offer).lease, 5_000, 0));
    let refusal = again.accept(accept).await.expect_err("counts from 0");
    assert_eq!(refusal.code, code::PROTOCOL, "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_chain_says_was_redeemed_is_served_once_though_ledgers_forget() {
    let mut world = World::new(0).await;
    let relay = world.start().await;
    let key = world.key(1);
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let (tenant, at_holder) = flow(&relay, &mut payer).await;
    payer.send(at_holder, &tenant, 120);
    payer.pay().await;
    let lease = relay.stats().meters[0].lease;
    let early = world.earned(lease).await;
    payer.send(at_holder, &tenant, 120);
    payer.pay().await;
    let late = world.earned(lease).await;
    assert!(late.amount > early.amount);
    redeem(&world, &key, &late.voucher).await;
    relay.stop().await;

    // A holder that has its newest voucher shows it, and goes on.
    world.forget(&key, "one.db", &early).await;
    let relay = world.start().await;
    let mut holder = Client::connect_as(&relay, payer.client.keypair.clone(), 2).await;
    let newest = Some(late.voucher.clone());
    let same = reserve(&world, &mut holder, &key, newest).await.expect("goes on");
    assert_eq!((same, relay.stats().meters[0].amount), (lease, late.amount));
    relay.stop().await;

    // One that has not would be served again what it paid for: its reservation ends, and the next
    // one begins where the chain is.
    world.forget(&key, "two.db", &early).await;
    let relay = world.start().await;
    let mut holder = Client::connect_as(&relay, payer.client.keypair.clone(), 3).await;
    let refusal = reserve(&world, &mut holder, &key, None).await.expect_err("both forgot");
    assert_eq!(refusal.code, code::CHANNEL);
    assert!(refusal.message.contains("was redeemed"), "{refusal:?}");
    let next = reserve(&world, &mut holder, &key, None).await.expect("another");
    assert_ne!(next, lease);
    assert_eq!(relay.stats().meters[0].amount, late.amount);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_whose_channel_ends_makes_room_for_another() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    let before = relay.stats().meters[0].lease;
    world.chain.start_close(&wallet(2), &world.key(1)).await.expect("a close begins");
    let own = world.open(2, 1 << 30, PERIOD_S).await;
    let mut holder = Client::connect_as(&relay, payer.client.keypair.clone(), 2).await;
    let next = reserve(&world, &mut holder, &own, None).await.expect("reserved");
    assert_ne!(next, before);
    assert!(world.ledger().lease(before).await.expect("reads").expect("is known").closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_whose_counts_cross_makes_room_for_another() {
    let world = World::new(0).await;
    let relay = world.start().await;
    let key = world.key(1);
    let mut payer = Payer::new(&world, &relay, 1, 1 << 30).await;
    pay_a_little(&relay, &mut payer).await;
    let before = relay.stats().meters[0].clone();
    let crossed = signed(&world, &key, before.lease, before.paid.up - 1, before.paid.down + 9_999);
    let mut holder = Client::connect_as(&relay, payer.client.keypair.clone(), 2).await;
    let refusal = reserve(&world, &mut holder, &key, Some(crossed)).await.expect_err("crosses");
    assert!(refusal.message.contains("go back behind"), "{refusal:?}");
    let next = reserve(&world, &mut holder, &key, None).await.expect("another");
    assert_ne!(next, before.lease);
    assert_eq!(relay.stats().meters[0].amount, before.amount);
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_whose_account_does_not_begin_is_let_go() {
    let Some((_server, place, ledger)) = fleet("relay").await else { return };
    let world = World::with(tempfile::tempdir().expect("a folder"), ledger, 0).await;
    let relay = world.start().await;
    let other = Ledger::connect(&place, "other").await.expect("joins");
    let key = world.open(1, 1 << 30, PERIOD_S).await;
    let mut client = Client::connect(&relay).await;
    let nonsense = signed(&world, &key, LeaseId([9; 32]), 1, 1);
    let refusal = reserve(&world, &mut client, &key, Some(nonsense)).await;
    assert_eq!(refusal.expect_err("is of another lease").code, code::PROTOCOL);
    other.take_channel(key.id(&world.chain.domain())).await.expect("nobody has it");
}
