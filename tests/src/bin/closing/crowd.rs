//! One payer with very many channels to one payee, and the payee's ledger with a voucher for each.

use anyhow::Result;
use bytes::Bytes;
use sluice_chain::Chain;
use sluice_ledger::{ChannelRow, ChannelStatus, Edge, LeaseRow, Ledger, Role, StoredVoucher};
use sluice_metering::{Payment, Terms};
use sluice_proto::eth::keccak256;
use sluice_proto::wire::pay;
use sluice_proto::{
    Amount, ChannelKey, EthAddress, Keypair, LeaseId, Price, Voucher, WINDOW_MIN, WalletKey,
};
use tempfile::TempDir;

/// What each channel is opened with, and what more each next voucher says.
const DEPOSIT: Amount = Amount(1_000_000_000_000);
const STEP: u128 = 1_000_000;
const PERIOD_S: u32 = 72 * 3600;

/// All of them.
#[derive(Debug)]
pub(crate) struct Crowd {
    pub(crate) payer: WalletKey,
    pub(crate) payee: WalletKey,
    pub(crate) ledger: Ledger,
    /// What each channel binds, and what its voucher says.
    pub(crate) channels: Vec<(ChannelKey, Amount)>,
    /// The tokens that there are.
    pub(crate) minted: Amount,
    chain: Chain,
    _dir: TempDir,
}

impl Crowd {
    /// Opens the channels and signs a voucher on each.
    pub(crate) async fn gather(chain: &Chain, count: usize) -> Result<Self> {
        let key = |seed| WalletKey::from_bytes([seed; 32]).expect("below the curve's order");
        let (dir, minted) = (tempfile::tempdir()?, Amount(DEPOSIT.0 * count as u128));
        let mut crowd = Self {
            payer: key(1),
            payee: key(2),
            ledger: Ledger::open(&dir.path().join("ledger.db"))?,
            channels: Vec::new(),
            minted,
            chain: chain.clone(),
            _dir: dir,
        };
        chain.fund_dev(crowd.payer.address(), minted).await?;
        chain.fund_dev(crowd.payee.address(), Amount(0)).await?;
        for number in 0..count as u64 {
            crowd.open(number).await?;
        }
        Ok(crowd)
    }

    /// Where the payee's money goes.
    pub(crate) fn payout(&self) -> EthAddress {
        EthAddress([0xAA; 20])
    }

    async fn open(&mut self, number: u64) -> Result<()> {
        let mut salt = [0; 32];
        salt[..8].copy_from_slice(&number.to_be_bytes());
        let payer = self.payer.address();
        let key = ChannelKey {
            payer,
            signer: payer,
            payee: self.payee.address(),
            payout: self.payout(),
            token: self.chain.token(),
            salt,
        };
        self.chain.open_channel(&self.payer, key, DEPOSIT, PERIOD_S).await?;
        let due = Amount(STEP * u128::from(number + 1));
        self.write_down(key, due).await?;
        self.channels.push((key, due));
        Ok(())
    }

    /// A voucher over `due` in the payee's ledger, on a lease of its own.
    async fn write_down(&self, key: ChannelKey, due: Amount) -> Result<()> {
        let node = |seed| Keypair::ed25519_from_bytes([seed; 32]).expect("any 32 bytes are a key");
        let (domain, payee) = (self.chain.domain(), node(8));
        let (id, peer) = (key.id(&domain), node(7).public().to_peer_id());
        let terms = Terms {
            lease: LeaseId(id.0),
            payer: peer,
            payee: payee.public().to_peer_id(),
            price: Price { up: 1 << 30, down: 1 << 30 },
            window: WINDOW_MIN,
            payment: Some(Payment {
                domain,
                token: key.token,
                payee: key.payee,
                payout: key.payout,
                period_s: PERIOD_S,
            }),
            starter_bytes: 0,
            idle_timeout_s: 600,
            expires_unix_s: u64::MAX / 2,
            rate_max: 1_000_000,
        };
        let signed = terms.sign(&payee);
        let row = ChannelRow {
            id,
            key,
            domain,
            deposit: DEPOSIT,
            role: Role::Payee,
            peer,
            status: ChannelStatus::Open,
            period_s: PERIOD_S,
        };
        self.ledger.put_channel(row).await?;
        let lease = LeaseRow {
            id: terms.lease,
            edge: Edge::Tenant,
            role: Role::Payee,
            peer,
            terms: signed.terms,
            terms_signature: signed.signature,
            channel: Some(id),
            base: Amount(0),
            sessions: 1,
            closed: false,
        };
        self.ledger.put_lease(lease).await?;
        let statement = Bytes::copy_from_slice(&id.0);
        let voucher = Voucher { channel: id, amount: due, statement: keccak256(&statement) };
        let signature = self.payer.sign(voucher.digest(&domain)).0;
        let copy = Bytes::copy_from_slice;
        let stored = StoredVoucher {
            lease: terms.lease,
            up: 0,
            down: u64::try_from(due.0)?,
            amount: due,
            voucher: pay::Voucher {
                statement,
                channel: copy(&id.0),
                amount: copy(&due.to_bytes()),
                signature: copy(&signature),
            },
            session: 1,
        };
        Ok(self.ledger.record_earned(stored).await?)
    }

    /// The payer starts to close each.
    pub(crate) async fn start_closes(&self) -> Result<()> {
        for (key, _) in &self.channels {
            self.chain.start_close(&self.payer, key).await?;
        }
        Ok(())
    }

    /// After the period the payer gets back the rest of each.
    pub(crate) async fn finish_closes(&self) -> Result<()> {
        self.chain.advance_dev(u64::from(PERIOD_S)).await?;
        for (key, _) in &self.channels {
            self.chain.finish_close(&self.payer, key).await?;
        }
        Ok(())
    }
}
