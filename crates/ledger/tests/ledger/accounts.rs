//! Vouchers, leases, channels and what a node remembers of strangers.

use proptest::prelude::*;
use sluice_ledger::{
    ChannelStatus, Edge, LINKS_MAX, LeaseRow, Ledger, LedgerError, RedemptionKind, RedemptionRow,
    Role, Starter, StarterMost, StoredVoucher,
};
use sluice_proto::{Amount, ChannelId, LeaseId};

use super::Place;
use crate::common::{LEASE, channel, lease, peer, voucher, worth};

async fn ledger(place: &Place) -> Ledger {
    let ledger = place.open().await;
    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("puts the lease");
    ledger
}

#[tokio::test]
async fn a_voucher_is_given_back_as_it_came_and_outlives_the_handle() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    ledger.record_earned(voucher(LEASE, 5)).await.expect("records");
    drop(ledger);
    let ledger = place.open().await;
    assert_eq!(ledger.newest_earned(LEASE).await, Ok(Some(voucher(LEASE, 5))));
    assert_eq!(ledger.newest_signed(LEASE).await, Ok(None), "the roles are apart");
}

#[tokio::test]
async fn a_repeat_is_fine_and_a_step_back_is_refused() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    for n in [3, 3, 4] {
        ledger.record_earned(voucher(LEASE, n)).await.expect("goes forward");
    }
    for back in [
        voucher(LEASE, 3),
        worth(LEASE, None, 9, 9, 3),
        worth(LEASE, None, 3, 9, 9),
        worth(LEASE, None, 9, 3, 4),
    ] {
        let refused = ledger.record_earned(back).await.expect_err("goes backwards");
        assert!(matches!(refused, LedgerError::NotHigher { held: Amount(4), .. }), "{refused}");
        assert!(!refused.is_fault());
    }
    assert_eq!(ledger.newest_earned(LEASE).await, Ok(Some(voucher(LEASE, 4))));
    let seqs: Vec<_> =
        ledger.vouchers(LEASE, Role::Payee).await.expect("reads").iter().map(|l| l.seq).collect();
    assert_eq!(seqs, [1, 2]);
}

#[tokio::test]
async fn at_price_zero_counts_rise_while_the_amount_stays() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    for n in 1..=3 {
        ledger.record_signed(worth(LEASE, None, n, 2 * n, 0)).await.expect("records");
    }
    let refused = ledger.record_signed(worth(LEASE, None, 3, 5, 0)).await;
    assert!(matches!(refused, Err(LedgerError::NotHigher { .. })));
    assert_eq!(ledger.vouchers(LEASE, Role::Payer).await.expect("reads").len(), 3);
}

#[tokio::test]
async fn a_voucher_of_the_same_worth_replaces_the_last_one() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    ledger.record_earned(voucher(LEASE, 3)).await.expect("records");
    let again = StoredVoucher { session: 2, ..voucher(LEASE, 3) };
    ledger.record_earned(again.clone()).await.expect("is worth the same");
    assert_eq!(ledger.newest_earned(LEASE).await, Ok(Some(again)));
    assert_eq!(ledger.vouchers(LEASE, Role::Payee).await.expect("reads").len(), 1);
}

#[tokio::test]
async fn a_voucher_that_is_not_what_was_said_of_it_is_refused() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let id = channel(Role::Payee).id;
    let row = LeaseRow { channel: Some(id), base: Amount(10), ..lease(LEASE, Role::Payee) };
    ledger.put_lease(row).await.expect("updates");
    let refused = |voucher| async { ledger.record_earned(voucher).await.expect_err("is refused") };

    let foreign = refused(voucher(LeaseId([9; 32]), 1)).await;
    assert_eq!(foreign, LedgerError::UnknownLease(LeaseId([9; 32])));
    let cheap = refused(worth(LEASE, Some(id), 1, 1, 9)).await;
    assert!(matches!(cheap, LedgerError::BelowBase { base: Amount(10), .. }));
    let other = refused(worth(LEASE, Some(ChannelId([0; 32])), 1, 1, 11)).await;
    assert_eq!(other, LedgerError::Mismatch { lease: LEASE, field: "channel" });
    let mut swapped = worth(LEASE, Some(id), 1, 1, 11);
    swapped.amount = Amount(12);
    assert_eq!(refused(swapped).await, LedgerError::Mismatch { lease: LEASE, field: "amount" });
    let huge = refused(worth(LEASE, Some(id), u64::MAX, 1, 11)).await;
    assert_eq!(huge, LedgerError::Range { field: "up" });

    let most = worth(LEASE, Some(id), 1, 1, u128::MAX);
    ledger.record_earned(most.clone()).await.expect("amounts fill 128 bits");
    assert_eq!(ledger.newest_earned(LEASE).await, Ok(Some(most)));
}

#[tokio::test]
async fn the_chain_of_amounts_is_thinned_and_keeps_its_ends() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let total = 3 * LINKS_MAX;
    for n in 1..=total {
        let ledger = ledger.clone();
        // Not awaited one by one, so that they share syncs.
        let write = tokio::spawn(async move { ledger.record_earned(voucher(LEASE, n)).await });
        if n % 256 == 0 {
            write.await.expect("runs").expect("records");
        } else {
            tokio::task::yield_now().await;
        }
    }
    let links = ledger.vouchers(LEASE, Role::Payee).await.expect("reads");
    assert!(links.len() < usize::try_from(LINKS_MAX).expect("fits"));
    assert_eq!(links.first().map(|l| l.seq), Some(1));
    assert_eq!(links.last().map(|l| (l.seq, l.up)), Some((total, total)));
    assert!(links.is_sorted_by(|a, b| a.seq < b.seq && a.amount < b.amount));
}

#[tokio::test]
async fn the_dearest_voucher_of_a_channel_is_found_over_its_leases() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let id = channel(Role::Payee).id;
    for (n, base, amount) in [(1, 0, 10), (2, 10, 40), (3, 40, 40)] {
        let row = paid(n, base);
        ledger.end_leases_on(id, row.peer, row.id, 0).await.expect("ends the one before");
        ledger.put_lease(row.clone()).await.expect("puts the lease");
        ledger.record_earned(worth(row.id, Some(id), 1, 1, amount)).await.expect("records");
    }
    let newest = ledger.newest_on_channel(id, Role::Payee).await.expect("reads");
    assert_eq!(newest.map(|v| v.amount), Some(Amount(40)));
    assert_eq!(ledger.newest_on_channel(id, Role::Payer).await, Ok(None));
}

/// A lease on the channel that all of these share.
fn paid(n: u8, base: u128) -> LeaseRow {
    let (channel, base) = (Some(channel(Role::Payee).id), Amount(base));
    LeaseRow { channel, base, ..lease(LeaseId([n + 10; 32]), Role::Payee) }
}

#[tokio::test]
async fn a_channel_pays_one_lease_at_a_time_and_the_next_one_from_there() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let channel = channel(Role::Payee).id;
    let (first, second) = (paid(1, 0), LeaseRow { peer: peer(8), ..paid(2, 0) });
    ledger.put_lease(first.clone()).await.expect("is the first");
    ledger.record_earned(worth(first.id, Some(channel), 1, 1, 10)).await.expect("records");
    let in_use = Err(LedgerError::ChannelInUse { channel, lease: first.id });
    assert_eq!(ledger.put_lease(second.clone()).await, in_use, "whoever binds it");
    assert_eq!(ledger.put_lease(paid(3, 10)).await, in_use, "its own peer too");
    ledger.put_lease(LeaseRow { sessions: 2, ..first.clone() }).await.expect("goes on itself");
    let bare = LeaseRow { channel: None, ..second.clone() };
    ledger.put_lease(bare).await.expect("without the channel");
    assert_eq!(ledger.put_lease(second.clone()).await, in_use, "nor may it be bound later");

    ledger.end_leases_on(channel, second.peer, second.id, 999).await.expect("nothing has ended");
    assert_eq!(ledger.put_lease(second.clone()).await, in_use);
    ledger.end_leases_on(channel, second.peer, second.id, 1_000).await.expect("has expired");
    let (lease, base, earned) = (second.id, Amount(0), Amount(10));
    let low = LedgerError::BaseTooLow { lease, base, earned };
    assert_eq!(ledger.put_lease(second.clone()).await, Err(low));
    // What comes until the next lease begins still counts.
    ledger.record_earned(worth(first.id, Some(channel), 2, 2, 20)).await.expect("nobody else does");
    let second = LeaseRow { base: Amount(20), ..second };
    ledger.put_lease(second.clone()).await.expect("from there");
    let late = ledger.record_earned(worth(first.id, Some(channel), 3, 3, 30)).await;
    assert_eq!(late, Err(LedgerError::Ended { lease: first.id, channel }));
    let refused = ledger.put_lease(LeaseRow { sessions: 2, ..first.clone() }).await;
    assert_eq!(refused, Err(LedgerError::ChannelInUse { channel, lease: second.id }));
    ledger.record_earned(worth(second.id, Some(channel), 1, 1, 21)).await.expect("counts on");
    for moved in [
        LeaseRow { channel: Some(ChannelId([0; 32])), ..second.clone() },
        LeaseRow { base: Amount(0), ..second.clone() },
    ] {
        let refused = ledger.put_lease(moved).await;
        assert!(matches!(refused, Err(LedgerError::Mismatch { .. })), "{refused:?}");
    }
    ledger.end_lease(second.id).await.expect("ends");
    ledger.put_lease(paid(3, 21)).await.expect("is free");
}

#[tokio::test]
async fn a_lease_is_found_until_it_is_closed_or_expired() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let newer = lease(LeaseId([2; 32]), Role::Payee);
    ledger.put_lease(newer.clone()).await.expect("puts");
    ledger.put_lease(LeaseRow { sessions: 2, ..newer.clone() }).await.expect("updates");
    let asked = peer(7);
    let found = ledger.lease_with(asked, Edge::Tenant, Role::Payee, 999).await.expect("reads");
    assert_eq!(found, Some(LeaseRow { sessions: 2, ..newer.clone() }));
    assert_eq!(ledger.lease_with(asked, Edge::Tenant, Role::Payee, 1_000).await, Ok(None));
    assert_eq!(ledger.lease_with(asked, Edge::Relay, Role::Payee, 0).await, Ok(None));
    assert_eq!(ledger.lease_with(asked, Edge::Tenant, Role::Payer, 0).await, Ok(None));
    assert_eq!(ledger.lease_with(peer(8), Edge::Tenant, Role::Payee, 0).await, Ok(None));

    let closed = LeaseRow { sessions: 2, closed: true, ..newer };
    ledger.put_lease(closed).await.expect("closes");
    let found = ledger.lease_with(asked, Edge::Tenant, Role::Payee, 0).await.expect("reads");
    assert_eq!(found, Some(lease(LEASE, Role::Payee)), "the older one is still open");
    assert_eq!(ledger.leases().await.expect("reads").len(), 2);
}

#[tokio::test]
async fn what_was_signed_of_a_lease_does_not_change() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let held = lease(LEASE, Role::Payee);
    let changes = [
        ("edge", LeaseRow { edge: Edge::Relay, ..held.clone() }),
        ("role", LeaseRow { role: Role::Payer, ..held.clone() }),
        ("peer", LeaseRow { peer: peer(9), ..held.clone() }),
        ("terms", LeaseRow { terms: vec![8, 1].into(), ..held.clone() }),
        ("sessions", LeaseRow { sessions: 0, ..held.clone() }),
    ];
    for (field, changed) in changes {
        let refused = ledger.put_lease(changed).await;
        assert_eq!(refused, Err(LedgerError::Mismatch { lease: LEASE, field }));
    }
    let nonsense = LeaseRow { id: LeaseId([4; 32]), terms: vec![0xFF; 9].into(), ..held };
    assert!(matches!(ledger.put_lease(nonsense).await, Err(LedgerError::Terms { .. })));
}

#[tokio::test]
async fn a_channel_and_what_was_done_to_it_are_remembered() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let mut row = channel(Role::Payer);
    let redemption = RedemptionRow {
        channel: row.id,
        kind: RedemptionKind::Open,
        amount: row.deposit,
        tx: [1; 32],
        gas: 90_000,
        at_unix_s: 5,
    };
    assert_eq!(
        ledger.record_redemption(redemption.clone()).await,
        Err(LedgerError::UnknownChannel(row.id))
    );
    ledger.put_channel(row.clone()).await.expect("puts");
    assert_eq!(ledger.channel_with(peer(7), Role::Payer).await, Ok(Some(row.clone())));
    assert_eq!(ledger.channel_with(peer(7), Role::Payee).await, Ok(None));
    let close = RedemptionRow { kind: RedemptionKind::Close, tx: [2; 32], ..redemption.clone() };
    for done in [&redemption, &redemption, &close] {
        ledger.record_redemption(done.clone()).await.expect("records");
    }
    assert_eq!(ledger.redemptions(row.id).await, Ok(vec![redemption, close]));
    row.status = ChannelStatus::Closed;
    ledger.put_channel(row.clone()).await.expect("updates");
    assert_eq!(ledger.channel_with(peer(7), Role::Payer).await, Ok(None));
    assert_eq!(ledger.channel(row.id).await, Ok(Some(row.clone())));
    assert_eq!(ledger.channels().await, Ok(vec![row]));
}

const MOST: StarterMost = StarterMost { to_one: 100, in_month: 250 };

fn home() -> String {
    "192.0.2.0/24".to_owned()
}

#[tokio::test]
async fn starter_bytes_are_promised_once_by_node_by_prefix_and_by_month() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let promise = async |seed, prefix: &str, month| {
        let promised = ledger.promise_starter(peer(seed), prefix.to_owned(), month, MOST, None);
        promised.await.expect("promises")
    };
    let first = promise(1, &home(), 1).await;
    assert_eq!(first.bytes, 100);
    assert_eq!(promise(2, &home(), 1).await.bytes, 0, "its prefix has all");
    // Said again, and late: it counts once.
    for left in [60, 70, 60] {
        ledger.record_starter(first.clone(), 1, left).await.expect("records");
    }
    let given = ledger.starter_given(peer(1), home(), 1).await.expect("reads");
    assert_eq!(given, Starter { to_peer: 100, to_prefix: 100, in_month: 100 });
    ledger.return_starter(first.clone(), 1, 50).await.expect("returns");
    for _ in 0..2 {
        ledger.record_starter(first.clone(), 1, 0).await.expect("is over");
        ledger.return_starter(first.clone(), 1, 0).await.expect("is over");
    }
    let given = ledger.starter_given(peer(1), home(), 2).await.expect("reads");
    assert_eq!(given, Starter { to_peer: 50, to_prefix: 50, in_month: 0 });
    let second = promise(2, &home(), 1).await;
    assert_eq!(second.bytes, 50, "what was returned");
    let replaced = Some((second, 20));
    let again = ledger.promise_starter(peer(2), home(), 1, MOST, replaced).await.expect("promises");
    assert_eq!(again.bytes, 20);
    assert_eq!(promise(3, "198.51.100.0/24", 1).await.bytes, 100);
    assert_eq!(promise(4, "203.0.113.0/24", 1).await.bytes, 50, "the month is over");
    // A promise that nobody used up lasts into the next month.
    assert_eq!(promise(5, "2001:db8::/48", 2).await.bytes, 80);
    let wide = StarterMost { to_one: u64::MAX, in_month: u64::MAX };
    let all = ledger.promise_starter(peer(6), "2001:db8:1::/48".to_owned(), 1, wide, None).await;
    assert!(all.is_ok_and(|all| all.bytes > 1 << 62), "sums stay within 63 bits");
    ledger.starter_given(peer(6), home(), 1).await.expect("reads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_ask_at_once_only_as_many_are_promised_starter_bytes_as_there_are() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let asking = (1..=20).map(|seed| {
        let (ledger, prefix) = (ledger.clone(), format!("192.0.{seed}.0/24"));
        tokio::spawn(async move { ledger.promise_starter(peer(seed), prefix, 1, MOST, None).await })
    });
    let mut promised = Vec::new();
    for asked in asking.collect::<Vec<_>>() {
        promised.push(asked.await.expect("ends").expect("promises").bytes);
    }
    promised.sort_unstable();
    assert_eq!(promised[17..], [50, 100, 100]);
    assert!(promised[..17].iter().all(|bytes| *bytes == 0));
    // As the next process of this name does, whose accounts are all closed.
    ledger.return_all_starter().await.expect("returns");
    let given = ledger.starter_given(peer(1), home(), 1).await.expect("reads");
    assert_eq!(given, Starter::default());
}

#[tokio::test]
async fn a_knock_is_accepted_once() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    assert_eq!(ledger.knock_timestamp(peer(1)).await, Ok(0));
    ledger.record_knock(peer(1), 10).await.expect("is the first");
    assert_eq!(ledger.record_knock(peer(1), 10).await, Err(LedgerError::StaleKnock));
    ledger.record_knock(peer(1), 11).await.expect("is later");
    ledger.record_knock(peer(2), 5).await.expect("another's clock is its own");
    assert_eq!(ledger.knock_timestamp(peer(1)).await, Ok(11));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_tenants_at_once_each_keep_their_own() {
    let Some(place) = Place::new().await else { return };
    let ledger = ledger(&place).await;
    let tenants = (0..100_u8).map(|n| {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            let id = LeaseId([n + 100; 32]);
            ledger.put_lease(lease(id, Role::Payee)).await.expect("puts");
            for i in 1..=10 {
                ledger.record_earned(voucher(id, i + u64::from(n))).await.expect("records");
            }
        })
    });
    for tenant in tenants.collect::<Vec<_>>() {
        tenant.await.expect("runs");
    }
    for n in 0..100_u8 {
        let newest = ledger.newest_earned(LeaseId([n + 100; 32])).await.expect("reads");
        assert_eq!(newest.map(|v| v.up), Some(10 + u64::from(n)));
    }
}

/// What the ledger must do, as simply as can be said.
#[derive(Default)]
struct Model {
    newest: Option<(u128, u64, u64)>,
}

impl Model {
    fn accepts(&mut self, (amount, up, down): (u128, u64, u64)) -> bool {
        let rises = self.newest.is_none_or(|(a, u, d)| amount >= a && up >= u && down >= d);
        if rises {
            self.newest = Some((amount, up, down));
        }
        rises
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn accounts_never_fall_whatever_is_offered_and_whenever_it_is_reopened(
        offers in prop::collection::vec(((0_u128..8, 0_u64..8, 0_u64..8), prop::bool::weighted(0.1)), 1..40),
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().expect("builds").block_on(async {
            let Some(place) = Place::new().await else { return };
            let mut ledger = ledger(&place).await;
            let mut model = Model::default();
            for ((amount, up, down), reopen) in offers {
                let accepted =
                    ledger.record_earned(worth(LEASE, None, up, down, amount)).await.is_ok();
                assert_eq!(accepted, model.accepts((amount, up, down)));
                if reopen {
                    drop(ledger);
                    ledger = place.open().await;
                    ledger.put_lease(lease(LEASE, Role::Payee)).await.expect("takes it again");
                }
                let newest = ledger.newest_earned(LEASE).await.expect("reads");
                assert_eq!(newest.map(|v| (v.amount.0, v.up, v.down)), model.newest);
            }
            let links = ledger.vouchers(LEASE, Role::Payee).await.expect("reads");
            assert!(links.is_sorted_by(|a, b| {
                a.seq < b.seq && a.amount <= b.amount && a.up <= b.up && a.down <= b.down
            }));
        });
    }
}
