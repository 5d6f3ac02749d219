//! What the ledger's tests share.

use bytes::Bytes;
use prost::Message;
use sluice_ledger::{ChannelRow, ChannelStatus, Edge, LeaseRow, Ledger, Role, StoredVoucher};
use sluice_proto::wire::pay;
use sluice_proto::{Amount, ChannelId, ChannelKey, Domain, EthAddress, Keypair, LeaseId, PeerId};

pub(crate) const LEASE: LeaseId = LeaseId([1; 32]);

pub(crate) fn peer(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32]).expect("a key").public().to_peer_id()
}

pub(crate) fn lease(id: LeaseId, role: Role) -> LeaseRow {
    let terms = pay::Terms {
        version: 1,
        lease: Bytes::copy_from_slice(&id.0),
        expires_unix_s: 1_000,
        ..pay::Terms::default()
    };
    LeaseRow {
        id,
        edge: Edge::Tenant,
        role,
        peer: peer(7),
        terms: terms.encode_to_vec().into(),
        terms_signature: Bytes::from_static(&[8; 64]),
        channel: None,
        base: Amount(0),
        sessions: 1,
        closed: false,
    }
}

pub(crate) fn channel(role: Role) -> ChannelRow {
    let key = ChannelKey {
        payer: EthAddress([1; 20]),
        signer: EthAddress([2; 20]),
        payee: EthAddress([3; 20]),
        payout: EthAddress([4; 20]),
        token: EthAddress([5; 20]),
        salt: [6; 32],
    };
    let domain = Domain { chain_id: 31_337, contract: EthAddress([9; 20]) };
    ChannelRow {
        id: key.id(&domain),
        key,
        domain,
        deposit: Amount(1 << 70),
        role,
        peer: peer(7),
        status: ChannelStatus::Open,
        period_s: 72 * 3600,
    }
}

/// A voucher whose three numbers are all `n`.
pub(crate) fn voucher(lease: LeaseId, n: u64) -> StoredVoucher {
    worth(lease, None, n, n, u128::from(n))
}

pub(crate) fn worth(
    lease: LeaseId,
    channel: Option<ChannelId>,
    up: u64,
    down: u64,
    amount: u128,
) -> StoredVoucher {
    let statement = pay::Statement {
        version: 1,
        lease: Bytes::copy_from_slice(&lease.0),
        up,
        down,
        session: 1,
        streams: Vec::new(),
    };
    StoredVoucher {
        lease,
        up,
        down,
        amount: Amount(amount),
        voucher: pay::Voucher {
            statement: statement.encode_to_vec().into(),
            channel: channel.map_or_else(Bytes::new, |c| Bytes::copy_from_slice(&c.0)),
            amount: Bytes::copy_from_slice(&Amount(amount).to_bytes()),
            signature: Bytes::from_static(&[3; 65]),
        },
        session: 1,
    }
}

/// What the fixtures of schema 1 were filled with.
pub(crate) async fn holds_what_schema_1_held(ledger: &Ledger) {
    assert_eq!(ledger.lease(LEASE).await, Ok(Some(lease(LEASE, Role::Payee))));
    assert_eq!(ledger.newest_earned(LEASE).await, Ok(Some(voucher(LEASE, 5))));
    assert_eq!(ledger.vouchers(LEASE, Role::Payee).await.expect("reads").len(), 2);
    let row = channel(Role::Payee);
    assert_eq!(ledger.channel(row.id).await, Ok(Some(row.clone())));
    assert_eq!(ledger.redemptions(row.id).await.expect("reads").len(), 1);
    assert_eq!(ledger.knock_timestamp(peer(7)).await, Ok(12));
    let given = ledger.starter_given(peer(7), "192.0.2.0/24".to_owned(), 3).await;
    assert_eq!(given.map(|g| g.in_month), Ok(1_000));
}
