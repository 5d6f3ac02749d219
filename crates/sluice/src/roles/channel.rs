//! The money of one edge: opening a channel as a payer, checking one as a payee.

#![expect(clippy::disallowed_methods, reason = "the salt of a channel is drawn here")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use sluice_chain::{Chain, View};
use sluice_ledger::{ChannelRow, ChannelStatus, Ledger, RedemptionKind, RedemptionRow, Role};
use sluice_metering::{Channel, OnChain, Payment, Purse, Terms, Unfit, show_channel};
use sluice_proto::wire::pay;
use sluice_proto::{Amount, ChannelId, ChannelKey, EthAddress, PeerId, WalletKey};
use sluice_settlement::TopUpRule;

use crate::settle::Deposits;

/// Attempts to see a channel that the payer says it opened ..
const LOOKS: u32 = 10;
/// .. and the wait between them.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// This side cannot pay: that is not the other's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this side cannot pay")]
pub struct CannotPay;

/// What a role pays with, or is paid to.
#[derive(Debug, Clone)]
pub struct Money {
    /// The chain.
    pub chain: Chain,
    /// The wallet that signs here.
    pub wallet: WalletKey,
    /// Where earnings go; the wallet's own address unless set.
    pub payout: EthAddress,
    /// Seconds between a payer's wish to close and its refund.
    pub period_s: u32,
    /// Windows that are served on a deposit that is included but not final.
    pub unfinal_credit: u64,
    /// How often channels that are in use are looked at.
    pub look: Duration,
    /// When to add to deposits; `None`: never.
    pub top_up: Option<TopUpRule>,
    /// Between accounts that use up deposits and the task that tops them up.
    pub deposits: Deposits,
}

impl Money {
    /// The payment part of terms that this role offers.
    #[must_use]
    pub fn payment(&self) -> Payment {
        Payment {
            domain: self.chain.domain(),
            token: self.chain.token(),
            payee: self.wallet.address(),
            payout: self.payout,
            period_s: self.period_s,
        }
    }

    /// As a payer: the channel for these terms, opened with `deposit` unless the ledger has it.
    pub(crate) async fn purse(
        &self,
        ledger: &Ledger,
        terms: &Terms,
        known: Option<ChannelId>,
        deposit: Amount,
    ) -> Result<(Purse, ChannelKey, u64)> {
        let payment = terms.payment.context("the terms name a price but no chain")?;
        self.check_payment(&payment)?;
        if let Some(id) = known {
            let row = ledger.channel(id).await?.context("the ledger lost the lease's channel")?;
            return self.open(ledger, row, &payment).await;
        }
        if let Some(row) = self.unused(ledger, &payment, terms.payee).await? {
            return self.open(ledger, row, &payment).await;
        }
        ensure!(
            deposit.0 > 0,
            "the terms ask for payment: say how much to deposit with --deposit (token base units)"
        );
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(|e| anyhow::anyhow!("no random bytes: {e}"))?;
        let wallet = self.wallet.address();
        let key = ChannelKey {
            payer: wallet,
            signer: wallet,
            payee: payment.payee,
            payout: payment.payout,
            token: payment.token,
            salt,
        };
        let row = ChannelRow {
            id: key.id(&payment.domain),
            key,
            domain: payment.domain,
            deposit,
            role: Role::Payer,
            peer: terms.payee,
            status: ChannelStatus::Open,
            period_s: payment.period_s,
        };
        // Before the chain has it: nobody could ever get back a deposit whose salt is lost.
        ledger.put_channel(row.clone()).await?;
        self.open(ledger, row, &payment).await
    }

    /// A channel to this payee that nothing was paid from and no lease names: left by a start that
    /// was cut off.
    async fn unused(
        &self,
        ledger: &Ledger,
        payment: &Payment,
        peer: PeerId,
    ) -> Result<Option<ChannelRow>> {
        let leases = ledger.leases().await?;
        for row in ledger.channels().await? {
            let key = &row.key;
            let fits = row.role == Role::Payer
                && row.status == ChannelStatus::Open
                && (row.peer, row.domain) == (peer, payment.domain)
                && (key.payee, key.payout, key.token)
                    == (payment.payee, payment.payout, payment.token)
                && (key.payer, key.signer) == (self.wallet.address(), self.wallet.address())
                && row.period_s >= payment.period_s;
            if fits
                && leases.iter().all(|lease| lease.channel != Some(row.id))
                && ledger.newest_on_channel(row.id, Role::Payer).await?.is_none()
            {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Sees that a channel of the ledger is open on the chain: one whose opening was never sent, or
    /// was undone with its block, is opened (again) with the same key, so that its vouchers hold.
    async fn open(
        &self,
        ledger: &Ledger,
        row: ChannelRow,
        payment: &Payment,
    ) -> Result<(Purse, ChannelKey, u64)> {
        let id = row.id;
        let _alone = self.deposits.opening().await;
        let state = self.chain.channel(&row.key, View::Latest).await?;
        if let Some(state) = state {
            ensure!(
                !state.closed && state.closing_at_unix_s.is_none(),
                "channel {id} is closed on the chain: this lease can't go on; remove it by starting with a new state directory, or wait for it to expire"
            );
            let deposit = self.refill(ledger, &row, state.deposit).await?;
            return Ok((self.purse_of(id, payment, deposit), row.key, 0));
        }
        let receipt = self
            .chain
            .open_channel(&self.wallet, row.key, row.deposit, row.period_s)
            .await
            .context("failed to open the payment channel")?;
        let at_unix_s = self.chain.now_unix_s().await.unwrap_or_default();
        ledger
            .record_redemption(RedemptionRow {
                channel: id,
                kind: RedemptionKind::Open,
                amount: row.deposit,
                tx: receipt.hash,
                gas: receipt.gas,
                at_unix_s,
            })
            .await?;
        Ok((self.purse_of(id, payment, row.deposit), row.key, receipt.gas))
    }

    /// As a payer whose ledger has lost a lease: the channel that its payee shows for it, once the
    /// chain says that this wallet opened it. `None` where nothing was ever paid. No second channel
    /// is opened for a lease that one pays already: its deposit would be out of reach.
    pub(crate) async fn remembered(
        &self,
        ledger: &Ledger,
        terms: &Terms,
        shown: Option<&pay::ChannelBinding>,
        was_paid: bool,
    ) -> Result<Option<ChannelId>> {
        let payment = terms.payment.context("the terms name a price but no chain")?;
        self.check_payment(&payment)?;
        let Some(shown) = shown else {
            ensure!(
                !was_paid,
                "the payee shows a voucher on lease {}, which this ledger does not know, but not \
                 the channel that pays it",
                terms.lease
            );
            return Ok(None);
        };
        let (id, key) = payment.channel_shown(shown)?;
        let wallet = self.wallet.address();
        ensure!(
            key.payer == wallet && key.signer == wallet,
            "the payee says that lease {}, which this ledger does not know, is paid from a channel \
             that wallet {wallet} did not open",
            terms.lease
        );
        let state = self.chain.channel(&key, View::Latest).await?;
        let state = state.filter(|s| !s.closed && s.closing_at_unix_s.is_none());
        let state = state.with_context(|| {
            format!("lease {}, which this ledger does not know, was paid from channel {id}, which is not open any more", terms.lease)
        })?;
        ledger
            .put_channel(ChannelRow {
                id,
                key,
                domain: payment.domain,
                deposit: state.deposit,
                role: Role::Payer,
                peer: terms.payee,
                status: ChannelStatus::Open,
                period_s: state.period_s,
            })
            .await?;
        Ok(Some(id))
    }

    /// Tops up a channel that is to be used again and runs dry; gives its deposit.
    async fn refill(&self, ledger: &Ledger, row: &ChannelRow, deposit: Amount) -> Result<Amount> {
        let signed = ledger.newest_on_channel(row.id, Role::Payer).await?;
        let signed = signed.map_or(Amount(0), |voucher| voucher.amount);
        let rule = self.top_up.and_then(|rule| rule.decide(deposit, signed, Amount(0)));
        let Some(more) = rule else { return Ok(deposit) };
        let receipt = self
            .chain
            .top_up(&self.wallet, &row.key, more)
            .await
            .with_context(|| format!("failed to top up channel {}", row.id))?;
        let deposit = Amount(deposit.0.saturating_add(more.0));
        ledger.put_channel(ChannelRow { deposit, ..row.clone() }).await?;
        let at_unix_s = self.chain.now_unix_s().await.unwrap_or_default();
        let (channel, tx, gas) = (row.id, receipt.hash, receipt.gas);
        let kind = RedemptionKind::TopUp;
        ledger
            .record_redemption(RedemptionRow { channel, kind, amount: more, tx, gas, at_unix_s })
            .await?;
        Ok(deposit)
    }

    fn purse_of(&self, id: ChannelId, payment: &Payment, deposit: Amount) -> Purse {
        let (domain, signer) = (payment.domain, self.wallet.address());
        let channel = Channel { id, domain, signer, deposit, base: Amount(0) };
        Purse { channel, key: self.wallet.clone() }
    }

    fn check_payment(&self, payment: &Payment) -> Result<()> {
        let ours = self.chain.domain();
        ensure!(
            payment.domain == ours,
            "the terms are paid on chain {} at contract {}, but [chain] here is chain {} at {}",
            payment.domain.chain_id,
            payment.domain.contract,
            ours.chain_id,
            ours.contract
        );
        ensure!(
            payment.token == self.chain.token(),
            "the terms are paid in token {}, but [chain] token here is {}",
            payment.token,
            self.chain.token()
        );
        Ok(())
    }

    /// As a payee: whether what these terms come to can be redeemed from here.
    pub(crate) fn can_earn(&self, payment: &Payment) -> Result<()> {
        self.check_payment(payment)?;
        let wallet = self.wallet.address();
        ensure!(
            payment.payee == wallet,
            "the terms are paid to wallet {}, but the one here is {wallet}",
            payment.payee
        );
        Ok(())
    }

    /// As a payee: a channel as the chain has it, if it can pay under these terms; `None` when the
    /// chain lacks it.
    pub(crate) async fn on_chain(
        &self,
        key: &ChannelKey,
        payment: &Payment,
    ) -> Result<Option<OnChain>> {
        let Some(latest) = self.chain.channel(key, View::Latest).await? else { return Ok(None) };
        let settled = self.chain.channel(key, View::Final).await?;
        let chain = OnChain {
            deposit: latest.deposit,
            settled: settled.map_or(Amount(0), |settled| settled.deposit),
            redeemed: latest.redeemed,
            period_s: latest.period_s,
            closing: latest.closing_at_unix_s.is_some(),
            closed: latest.closed,
        };
        chain.check(key.id(&self.chain.domain()), payment)?;
        Ok(Some(chain))
    }

    /// As a payee: the channel that a payer bound to this session, checked on the chain.
    pub(crate) async fn check_binding(
        &self,
        terms: &Terms,
        binding: &pay::ChannelBinding,
        payer: &PeerId,
        exporter: &[u8; 32],
    ) -> Result<(Channel, ChannelRow, OnChain)> {
        let payment = terms.payment.context("the terms name a price but no chain")?;
        let (id, key) = payment.channel_bound(binding, payer, exporter)?;
        let mut chain = self.on_chain(&key, &payment).await?;
        for _ in 1..LOOKS {
            if chain.is_some() {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            chain = self.on_chain(&key, &payment).await?;
        }
        let chain = chain.ok_or(Unfit::Missing(id))?;
        let deposit = terms.usable(chain.deposit, chain.settled, self.unfinal_credit);
        let (domain, signer) = (payment.domain, key.signer);
        let channel = Channel { id, domain, signer, deposit, base: Amount(0) };
        let row = ChannelRow {
            id,
            key,
            domain,
            deposit: chain.deposit,
            role: Role::Payee,
            peer: *payer,
            status: ChannelStatus::Open,
            period_s: chain.period_s,
        };
        Ok((channel, row, chain))
    }
}

/// The payer's proof that a channel pays for this session.
pub(crate) fn bind(
    purse: &Purse,
    key: &ChannelKey,
    peer: &PeerId,
    exporter: &[u8; 32],
) -> pay::ChannelBinding {
    let digest = purse.channel.domain.bind_digest(purse.channel.id, &peer.to_bytes(), exporter);
    let signature = Bytes::copy_from_slice(&purse.key.sign(digest).0);
    pay::ChannelBinding { signature, ..show_channel(purse.channel.id, key) }
}
