//! On a server: members, fences, migrations, a server that goes away.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use sluice_ledger::{
    Duty, Health, LeaseRow, Ledger, LedgerError, Role, Server, ServerMark, StarterMost,
};
use sluice_proto::{Amount, EthAddress};
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::common::{LEASE, channel, holds_what_schema_1_held, lease, peer, voucher, worth};
use crate::server::PostgresServer;
use crate::way::Way;

/// The server of those tests that run at a time.
static SERVER: Mutex<Weak<PostgresServer>> = Mutex::const_new(Weak::new());
static DATABASES: AtomicU32 = AtomicU32::new(0);
/// Long enough for whoever writes, short enough to wait for.
const HOLD: Duration = Duration::from_secs(1);

thread_local! {
    /// A test that asks more than once does not have it started more than once.
    static KEPT: RefCell<Option<Arc<PostgresServer>>> = const { RefCell::new(None) };
}

/// A database of a test's own.
pub(crate) struct Place {
    server: Arc<PostgresServer>,
    database: String,
}

impl Place {
    pub(crate) async fn new() -> Option<Self> {
        let mut shared = SERVER.lock().await;
        let server = match shared.upgrade() {
            Some(server) => server,
            None => Arc::new(PostgresServer::start().await?),
        };
        *shared = Arc::downgrade(&server);
        drop(shared);
        KEPT.set(Some(server.clone()));
        Self::on(server).await
    }

    /// On a server that nobody else uses.
    async fn alone() -> Option<Self> {
        Self::on(Arc::new(PostgresServer::start().await?)).await
    }

    async fn on(server: Arc<PostgresServer>) -> Option<Self> {
        let database = format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        server.make_database(&database).await;
        Some(Self { server, database })
    }

    fn server(&self) -> Server {
        self.server.url(&self.database).parse::<Server>().expect("a URL").with_hold(HOLD)
    }

    pub(crate) async fn open(&self) -> Ledger {
        self.join("one").await
    }

    async fn join(&self, member: &str) -> Ledger {
        Ledger::connect(&self.server(), member).await.expect("joins")
    }

    async fn client(&self) -> Client {
        self.server.client(&self.database).await
    }
}

fn paid_lease() -> LeaseRow {
    LeaseRow { channel: Some(channel(Role::Payee).id), ..lease(LEASE, Role::Payee) }
}

/// Asks until a process whose hold time is over can be overtaken.
async fn overtake(ledger: &Ledger) {
    loop {
        match ledger.put_lease(paid_lease()).await {
            Ok(()) => return,
            Err(LedgerError::Owned { .. }) => tokio::time::sleep(HOLD / 10).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_channel_belongs_to_one_process_until_that_lets_go() {
    let Some(place) = Place::new().await else { return };
    let (one, two) = (place.join("one").await, place.join("two").await);
    let id = channel(Role::Payee).id;
    one.put_lease(paid_lease()).await.expect("takes it");
    let what = format!("channel {id}");
    let owned = LedgerError::Owned { what, by: "one".to_owned() };
    assert_eq!(two.take_channel(id).await, Err(owned.clone()));
    assert_eq!(two.put_lease(paid_lease()).await, Err(owned));
    let fenced = LedgerError::Fenced { what: format!("channel {id}"), by: "one".to_owned() };
    assert_eq!(two.record_earned(worth(LEASE, Some(id), 1, 1, 1)).await, Err(fenced));
    one.record_earned(worth(LEASE, Some(id), 1, 1, 1)).await.expect("is its own");
    one.let_go(LEASE, Some(id)).await.expect("lets go");
    let late = one.record_earned(worth(LEASE, Some(id), 3, 3, 3)).await;
    assert!(matches!(late, Err(LedgerError::Fenced { .. })), "who let go writes no more: {late:?}");
    two.put_lease(paid_lease()).await.expect("is free");
    let newest = two.newest_on_channel(id, Role::Payee).await.expect("reads");
    assert_eq!(newest.map(|v| v.amount), Some(Amount(1)), "it goes on from there");
    two.record_earned(worth(LEASE, Some(id), 2, 2, 2)).await.expect("is its own");
}

#[tokio::test]
async fn a_process_that_was_overtaken_is_fenced_off_until_it_begins_anew() {
    let Some(place) = Place::new().await else { return };
    let (one, two) = (place.join("one").await, place.join("two").await);
    let id = channel(Role::Payee).id;
    one.put_lease(paid_lease()).await.expect("takes it");
    one.record_earned(worth(LEASE, Some(id), 1, 1, 1)).await.expect("is its own");
    // As if it had slept: the server says when its time is over.
    let sql = "UPDATE sluice.member SET held_until = '-infinity' WHERE name = 'one'";
    let client = place.client().await;
    loop {
        client.batch_execute(sql).await.expect("lapses");
        if two.put_lease(paid_lease()).await.is_ok() {
            break;
        }
    }
    for _ in 0..2 {
        let refused = one.record_earned(worth(LEASE, Some(id), 2, 2, 2)).await;
        let what = format!("channel {id}");
        assert_eq!(refused, Err(LedgerError::Fenced { what, by: "two".to_owned() }));
    }
    two.record_earned(worth(LEASE, Some(id), 3, 3, 3)).await.expect("has it");
    assert!(matches!(one.put_lease(paid_lease()).await, Err(LedgerError::Owned { .. })));
    two.let_go(LEASE, Some(id)).await.expect("lets go");
    one.put_lease(paid_lease()).await.expect("begins anew");
    let newest = one.newest_earned(LEASE).await.expect("reads");
    assert_eq!(newest.map(|v| v.amount), Some(Amount(3)));
}

#[tokio::test]
async fn what_a_process_had_that_is_gone_is_taken_when_its_time_is_over() {
    let Some(place) = Place::new().await else { return };
    let (one, two) = (place.join("one").await, place.join("two").await);
    one.put_lease(paid_lease()).await.expect("takes it");
    drop(one);
    overtake(&two).await;
}

#[tokio::test]
async fn the_next_process_of_a_name_goes_on_at_once_and_a_second_one_is_refused() {
    let Some(place) = Place::new().await else { return };
    let one = place.join("one").await;
    one.put_lease(paid_lease()).await.expect("takes it");
    let refused = Ledger::connect(&place.server().with_hold(HOLD * 60), "one").await;
    let error = refused.expect_err("is refused");
    let LedgerError::Locked { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(*holder, format!("process {}", std::process::id()));
    drop(one);
    let again = place.join("one").await;
    again.put_lease(paid_lease()).await.expect("was its own");
}

#[tokio::test]
async fn a_process_whose_name_was_taken_writes_no_more() {
    let Some(place) = Place::new().await else { return };
    let one = place.join("one").await;
    one.put_lease(lease(LEASE, Role::Payee)).await.expect("puts");
    let client = place.client().await;
    let sql = "UPDATE sluice.turn SET incarnation = incarnation + 1";
    client.batch_execute(sql).await.expect("takes its name");
    let refused = one.record_earned(voucher(LEASE, 1)).await.expect_err("is refused");
    assert_eq!(refused, LedgerError::Superseded { member: "one".to_owned() });
    assert!(refused.is_fault());
    assert_eq!(one.newest_earned(LEASE).await, Ok(None));
}

#[tokio::test]
async fn a_duty_is_one_tasks_alone() {
    let Some(place) = Place::new().await else { return };
    let (one, two) = (place.join("one").await, place.join("two").await);
    for duty in [Duty::Redeem(channel(Role::Payee).id), Duty::Spend(EthAddress([7; 20]))] {
        assert_eq!(one.take_duty(duty).await, Ok(true));
        assert_eq!(one.take_duty(duty).await, Ok(false), "another task of the same process");
        assert_eq!(two.take_duty(duty).await, Ok(false));
        two.leave_duty(duty).await.expect("is not its to leave");
        assert_eq!(two.take_duty(duty).await, Ok(false));
        one.leave_duty(duty).await.expect("leaves");
        assert_eq!(two.take_duty(duty).await, Ok(true));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_never_promise_the_same_starter_bytes() {
    let Some(place) = Place::new().await else { return };
    let (one, two) = (place.join("one").await, place.join("two").await);
    let most = StarterMost { to_one: 10, in_month: 100 };
    for round in 0..10 {
        let asking = [&one, &two].map(|ledger| {
            let (ledger, prefix) = (ledger.clone(), format!("192.0.{round}.0/24"));
            tokio::spawn(async move {
                ledger.promise_starter(peer(7), prefix, 1, most, None).await.expect("promises")
            })
        });
        let [first, second] = asking;
        let promised = [first.await.expect("ends"), second.await.expect("ends")];
        assert_eq!(promised[0].bytes + promised[1].bytes, 10, "round {round}");
        for (ledger, promise) in [&one, &two].into_iter().zip(promised) {
            let left = promise.bytes;
            ledger.return_starter(promise, 1, left).await.expect("returns");
        }
    }
    let held = one.promise_starter(peer(8), "192.0.2.0/24".to_owned(), 1, most, None).await;
    assert_eq!(held.map(|promise| promise.bytes), Ok(10));
    // The other one starts anew: what this one promised stays promised.
    two.return_all_starter().await.expect("returns its own");
    let none = two.promise_starter(peer(9), "192.0.2.0/24".to_owned(), 1, most, None).await;
    assert_eq!(none.map(|promise| promise.bytes), Ok(0));
}

#[tokio::test]
async fn each_member_finds_its_own_lease_with_a_peer() {
    let Some(place) = Place::new().await else { return };
    let (one, two) = (place.join("one").await, place.join("two").await);
    let row = lease(LEASE, Role::Payee);
    one.put_lease(row.clone()).await.expect("puts");
    let (peer, edge) = (row.peer, row.edge);
    assert_eq!(one.lease_with(peer, edge, Role::Payee, 0).await, Ok(Some(row)));
    assert_eq!(two.lease_with(peer, edge, Role::Payee, 0).await, Ok(None));
    assert_eq!(two.leases().await.expect("reads").len(), 1, "all see all");
}

#[tokio::test]
async fn while_the_server_is_away_nothing_is_accepted_and_then_it_goes_on() {
    let Some(place) = Place::alone().await else { return };
    let ledger = place.open().await;
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts");
    ledger.record_earned(voucher(LEASE, 1)).await.expect("records");
    place.server.kill();
    let away = ledger.record_earned(voucher(LEASE, 2)).await.expect_err("is away");
    assert!(matches!(&away, LedgerError::Server { .. }), "{away}");
    assert!(away.is_fault() && away.is_passing());
    assert!(matches!(ledger.health(), Health::Away { .. }));
    assert!(ledger.newest_earned(LEASE).await.is_err());
    let refused = Ledger::connect(&place.server(), "two").await.expect_err("is away");
    assert!(refused.to_string().contains("check that PostgreSQL runs there"), "{refused}");
    place.server.resume().await;
    let newest = ledger.newest_earned(LEASE).await.expect("reads");
    assert!(newest.is_some_and(|v| v.up >= 1), "what was accepted is there");
    ledger.record_earned(voucher(LEASE, 2)).await.expect("goes on");
    assert_eq!(ledger.health(), Health::Good);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_nothing_is_called_away_and_given_up() {
    let Some(place) = Place::new().await else { return };
    let way = Way::to(&place.server.url(&place.database)).await;
    let server: Server = way.url(&place.database).parse().expect("a URL");
    // Renewals would dial, too.
    let server = server.with_hold(Duration::from_secs(3600));
    let ledger = Ledger::connect(&server, "one").await.expect("joins");
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts");
    way.cut_at_commit();
    let write = |up| {
        let ledger = ledger.clone();
        tokio::spawn(async move { ledger.record_earned(voucher(LEASE, up)).await })
    };
    let first = write(1);
    while ledger.health() == Health::Good {
        tokio::time::sleep(HOLD / 10).await;
    }
    assert!(matches!(ledger.health(), Health::Away { .. }));
    assert!(!first.is_finished(), "it was given up before it was called away");
    let (first, second) = tokio::join!(first, write(2));
    for outcome in [first, second] {
        let away = outcome.expect("ends").expect_err("is away");
        assert!(matches!(&away, LedgerError::Server { .. }), "{away}");
    }
    // Each waits for as long as an answer may take: the outcome is asked for once, and a second time if
    // a moment is left.
    let dialled = way.dialled_in_vain();
    assert!((1..=2).contains(&dialled), "{dialled} connections");
    let refused = Ledger::connect(&server, "two").await.expect_err("is away");
    assert!(matches!(&refused, LedgerError::Server { .. }), "{refused}");
    way.mend();
    let newest = ledger.newest_earned(LEASE).await.expect("reads");
    assert!(newest.is_some_and(|v| v.up == 1), "what was never answered is there");
    ledger.record_earned(voucher(LEASE, 1)).await.expect("is the same");
    ledger.record_earned(voucher(LEASE, 2)).await.expect("goes on");
    assert_eq!(ledger.health(), Health::Good);
}

async fn stand(ledger: &Ledger) -> ServerMark {
    ledger.server_mark().await.expect("reads").expect("it is on a server")
}

#[tokio::test]
async fn a_server_that_was_killed_is_the_same_one_and_tables_made_anew_or_elsewhere_are_not() {
    let Some(place) = Place::alone().await else { return };
    let ledger = place.open().await;
    let before = stand(&ledger).await;
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts");
    place.server.kill();
    place.server.resume().await;
    let after = stand(&ledger).await;
    assert_eq!(after.differs(&before), None);
    assert!(before.differs(&after).is_some(), "what was written shows");
    drop(ledger);
    place.client().await.batch_execute("DROP SCHEMA sluice CASCADE").await.expect("drops");
    assert!(stand(&place.open().await).await.differs(&after).is_some(), "made anew");
    let Some(elsewhere) = Place::new().await else { return };
    assert!(stand(&elsewhere.open().await).await.differs(&after).is_some(), "another server");
}

#[tokio::test]
async fn a_ledger_of_schema_1_opens_with_all_that_it_holds() {
    let Some(place) = Place::new().await else { return };
    let client = place.client().await;
    client.batch_execute(include_str!("../fixtures/postgres_v1.sql")).await.expect("loads");
    let ledger = place.open().await;
    holds_what_schema_1_held(&ledger).await;
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("was its own");
    ledger.record_earned(voucher(LEASE, 6)).await.expect("goes on");
}

#[tokio::test]
async fn a_newer_schema_and_anothers_tables_are_refused_and_left_as_they_were() {
    let Some(place) = Place::new().await else { return };
    drop(place.open().await);
    let client = place.client().await;
    client.batch_execute("UPDATE sluice.version SET number = 3").await.expect("updates");
    for refused in [
        Ledger::connect(&place.server(), "one").await,
        Ledger::connect_read_only(&place.server()).await,
    ] {
        let error = refused.expect_err("is newer");
        assert!(matches!(error, LedgerError::Newer { found: 3, known: 2, .. }), "{error}");
    }
    client
        .batch_execute(
            "DROP SCHEMA sluice CASCADE; CREATE SCHEMA sluice; CREATE TABLE sluice.photos ()",
        )
        .await
        .expect("is another's");
    let foreign = Ledger::connect(&place.server(), "one").await.expect_err("is another's");
    assert!(matches!(foreign, LedgerError::Foreign { .. }), "{foreign}");
}

#[tokio::test]
async fn a_reader_sees_all_changes_nothing_and_makes_no_ledger() {
    let Some(place) = Place::new().await else { return };
    let none = Ledger::connect_read_only(&place.server()).await.expect_err("is none");
    assert!(matches!(none, LedgerError::Foreign { .. }), "{none}");
    let ledger = place.open().await;
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts");
    let reader = Ledger::connect_read_only(&place.server()).await.expect("opens");
    ledger.record_earned(voucher(LEASE, 5)).await.expect("records");
    assert_eq!(reader.newest_earned(LEASE).await, Ok(Some(voucher(LEASE, 5))));
    let refused = reader.record_earned(voucher(LEASE, 6)).await.expect_err("is refused");
    assert!(matches!(refused, LedgerError::ReadOnly { .. }), "{refused}");
}

#[tokio::test]
async fn two_that_start_at_once_make_one_ledger() {
    let Some(place) = Place::new().await else { return };
    let (one, two) = tokio::join!(place.join("one"), place.join("two"));
    one.put_lease(lease(LEASE, Role::Payee)).await.expect("puts");
    assert_eq!(two.leases().await.expect("reads").len(), 1);
}
