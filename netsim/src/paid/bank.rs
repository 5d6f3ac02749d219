//! A chain, wallets and ledgers, all in one folder that goes with them.

use std::path::Path;

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_chain::{Chain, Redemption};
use sluice_ledger::{ChannelRow, ChannelStatus, Ledger, Role, StoredVoucher};
use sluice_metering::{Channel, Counts, Payment, Purse, VoucherRecord};
use sluice_proto::eth::{Voucher, keccak256};
use sluice_proto::wire::pay::ChannelBinding;
use sluice_proto::{Amount, ChannelKey, PeerId, WalletKey, WalletSignature};
use sluice_relay::{RelayConfig, RelayPayment};
use tempfile::TempDir;

use crate::rng::Rng;

/// Seconds between a payer's wish to close and its refund: the least that payees accept.
const PERIOD_S: u32 = 48 * 3600;
/// Memory that looks like a disk: what is on it need not outlive the run.
const MEMORY: &str = "/dev/shm";

/// Where the money of a run lives.
#[derive(Debug)]
pub struct Bank {
    dir: TempDir,
    chain: Chain,
    rng: Rng,
}

/// A channel with all that its payer needs to spend from it.
#[derive(Debug, Clone)]
pub struct Purser {
    /// Names the channel.
    pub key: ChannelKey,
    /// Spends from it.
    pub purse: Purse,
    payee: WalletKey,
}

impl Bank {
    /// A chain with nobody on it.
    ///
    /// # Errors
    /// When the folder or the chain cannot be made.
    pub fn open(rng: Rng) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("netsim-");
        let dir = match Path::new(MEMORY).is_dir() {
            true => builder.tempdir_in(MEMORY)?,
            false => builder.tempdir()?,
        };
        let chain = Chain::open_embedded(&dir.path().join("chain"))?;
        Ok(Self { dir, chain, rng })
    }

    /// Opens somebody's ledger.
    ///
    /// # Errors
    /// When it is open already, or cannot be made.
    pub fn ledger(&self, name: &str) -> Result<Ledger> {
        let path = self.dir.path().join(format!("{name}.db"));
        Ledger::open(&path).with_context(|| format!("failed to open the ledger of {name}"))
    }

    /// A new wallet.
    ///
    /// # Panics
    /// Once in 2^128 times.
    pub fn wallet(&mut self) -> WalletKey {
        WalletKey::from_bytes(self.rng.bytes()).expect("nearly all numbers are keys")
    }

    /// What `payee` says in its terms of how it is paid.
    #[must_use]
    pub fn payment(&self, payee: &WalletKey) -> Payment {
        Payment {
            domain: self.chain.domain(),
            token: self.chain.token(),
            payee: payee.address(),
            payout: payee.address(),
            period_s: PERIOD_S,
        }
    }

    /// A relay is paid from now on, to `wallet`, with `ledger`.
    pub fn charge(&self, config: &mut RelayConfig, wallet: &WalletKey, ledger: Ledger) {
        let (payee, payout) = (wallet.address(), wallet.address());
        let payment = RelayPayment::new(ledger, self.chain.clone(), payee, payout);
        config.payment = Some(RelayPayment { period_s: PERIOD_S, ..payment });
    }

    /// Opens a channel from a fresh wallet to `payee`.
    ///
    /// # Errors
    /// When the chain refuses.
    pub async fn channel(&mut self, payee: &WalletKey, deposit: Amount) -> Result<Purser> {
        let payer = self.wallet();
        self.chain.fund_dev(payer.address(), deposit).await?;
        let key = ChannelKey {
            payer: payer.address(),
            signer: payer.address(),
            payee: payee.address(),
            payout: payee.address(),
            token: self.chain.token(),
            salt: self.rng.bytes(),
        };
        self.chain.open_channel(&payer, key, deposit, PERIOD_S).await?;
        let domain = self.chain.domain();
        let id = key.id(&domain);
        let channel = Channel { id, domain, signer: key.signer, deposit, base: Amount(0) };
        Ok(Purser { key, purse: Purse { channel, key: payer }, payee: payee.clone() })
    }

    /// The payee redeems the newest voucher that it earned; what the chain paid it in all.
    ///
    /// # Errors
    /// When the chain refuses.
    pub async fn redeem(&self, purser: &Purser, newest: Option<&StoredVoucher>) -> Result<Amount> {
        let payee = &purser.payee;
        self.chain.fund_dev(payee.address(), Amount(0)).await?;
        if let Some(newest) = newest {
            let voucher = Voucher {
                channel: purser.purse.channel.id,
                amount: newest.amount,
                statement: keccak256(&newest.voucher.statement),
            };
            let signature = WalletSignature::parse(&newest.voucher.signature)?;
            let redemption = Redemption { key: purser.key, voucher, signature };
            self.chain.redeem(payee, &[redemption]).await.context("a voucher did not pay")?;
        }
        Ok(self.chain.token_balance(payee.address()).await?)
    }
}

impl Purser {
    /// Whom the channel pays.
    pub(crate) const fn payee(&self) -> &WalletKey {
        &self.payee
    }

    /// The proof that the channel pays for what goes over a connection.
    #[must_use]
    pub fn bind(&self, payer: &PeerId, exporter: &[u8; 32]) -> ChannelBinding {
        let channel = &self.purse.channel;
        let digest = channel.domain.bind_digest(channel.id, &payer.to_bytes(), exporter);
        let copy = Bytes::copy_from_slice;
        ChannelBinding {
            payer: copy(&self.key.payer.0),
            signer: copy(&self.key.signer.0),
            salt: copy(&self.key.salt),
            channel: copy(&channel.id.0),
            signature: copy(&self.purse.key.sign(digest).0),
        }
    }

    /// What a ledger keeps of the channel.
    #[must_use]
    pub const fn row(&self, role: Role, peer: PeerId) -> ChannelRow {
        ChannelRow {
            id: self.purse.channel.id,
            key: self.key,
            domain: self.purse.channel.domain,
            deposit: self.purse.channel.deposit,
            role,
            peer,
            status: ChannelStatus::Open,
            period_s: PERIOD_S,
        }
    }
}

/// Metering's record as a ledger's row.
pub(crate) fn stored(record: &VoucherRecord) -> StoredVoucher {
    StoredVoucher {
        lease: record.lease,
        up: record.counts.up,
        down: record.counts.down,
        amount: record.amount,
        voucher: record.voucher.clone(),
        session: record.session,
    }
}

/// A ledger's row as metering's record.
pub(super) fn record(row: StoredVoucher) -> VoucherRecord {
    VoucherRecord {
        lease: row.lease,
        session: row.session,
        counts: Counts { up: row.up, down: row.down },
        amount: row.amount,
        voucher: row.voucher,
    }
}
