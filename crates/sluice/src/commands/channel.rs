//! `sluice channel`.

use anyhow::{Result, bail, ensure};
use serde_json::json;
use sluice_chain::{ChannelState, View};
use sluice_ledger::{ChannelRow, ChannelStatus, Ledger, RedemptionKind, RedemptionRow, Role};
use sluice_proto::{Amount, ChannelId};
use sluice_settlement::is_refund_due;

use super::redeem::hash;
use super::{chain, find, free, head, key_of, open_ledger, place, read_ledger, settler, short};
use super::{table, tell};
use crate::app::print;
use crate::cli::{ChannelCommand, StateArgs};
use crate::config::{ChainKind, Config};
use crate::settle::{Settler, finish_close, follow, held_of};
use crate::state::State;

pub(crate) async fn channel(config: &Config, command: &ChannelCommand, json: bool) -> Result<()> {
    match command {
        ChannelCommand::List { state } => list(config, state, json).await,
        ChannelCommand::TopUp { channel, amount, state } => {
            let desk = Desk::open(config, state, channel, "top up").await?;
            desk.top_up(config, Amount(*amount), json).await
        }
        ChannelCommand::Close { channel, accept_loss, state } => {
            let desk = Desk::open(config, state, channel, "close a channel").await?;
            desk.close(config, *accept_loss, json).await
        }
    }
}

async fn list(config: &Config, args: &StateArgs, json: bool) -> Result<()> {
    let dir = place(config, args)?;
    let ledger = read_ledger(config, args, &dir).await?;
    let rows = ledger.channels().await?;
    let chain = match config.chain.kind {
        ChainKind::None => None,
        ChainKind::Embedded | ChainKind::Rpc => match chain(config, &dir).await {
            Ok(chain) => Some(chain),
            Err(error) => {
                tracing::warn!("only what the ledger says is shown: {error:#}");
                None
            }
        },
    };
    let names = ["channel", "side", "peer", "status", "deposit", "vouchers", "redeemed", "left"];
    let mut lines = vec![head(names)];
    for row in &rows {
        let state = match chain.as_ref().filter(|chain| chain.domain() == row.domain) {
            Some(chain) => chain.channel(&row.key, View::Latest).await?,
            None => None,
        };
        let newest = ledger.newest_on_channel(row.id, row.role).await?;
        let vouchers = newest.map_or(Amount(0), |v| v.amount);
        let deposit = state.map_or(row.deposit, |s| s.deposit);
        let left = deposit.0.saturating_sub(vouchers.0);
        if json {
            let line = json!({
                "event": "channel", "channel": row.id.to_string(), "side": side(row.role),
                "peer": row.peer.to_string(), "status": status(row, state.as_ref()),
                "chain_id": row.domain.chain_id, "contract": row.domain.contract.to_string(),
                "payer": row.key.payer.to_string(), "signer": row.key.signer.to_string(),
                "payee": row.key.payee.to_string(), "payout": row.key.payout.to_string(),
                "token": row.key.token.to_string(), "deposit": deposit.to_string(),
                "vouchers": vouchers.to_string(), "left": left.to_string(),
                "redeemed": state.map(|s| s.redeemed.to_string()), "period_s": row.period_s,
                "closes_at_unix_s": state.and_then(|s| s.closing_at_unix_s),
            });
            print(&line.to_string());
        }
        lines.push(vec![
            short(&row.id),
            side(row.role).to_owned(),
            short(&row.peer),
            status(row, state.as_ref()),
            deposit.to_string(),
            vouchers.to_string(),
            state.map_or_else(|| "-".to_owned(), |s| s.redeemed.to_string()),
            left.to_string(),
        ]);
    }
    if !json {
        print(&if rows.is_empty() { "No channels.".to_owned() } else { table(&lines) });
    }
    Ok(())
}

pub(super) fn side(role: Role) -> &'static str {
    match role {
        Role::Payer => "payer",
        Role::Payee => "payee",
    }
}

fn status(row: &ChannelRow, state: Option<&ChannelState>) -> String {
    let known = match row.status {
        ChannelStatus::Open => "open",
        ChannelStatus::Closing => "closing",
        ChannelStatus::Closed => "closed",
    };
    match state {
        Some(ChannelState { closed: true, .. }) => "closed",
        Some(ChannelState { closing_at_unix_s: Some(_), .. }) => "closing",
        Some(ChannelState { .. }) => "open",
        None => known,
    }
    .to_owned()
}

/// A channel to act on.
struct Desk {
    state: State,
    ledger: Ledger,
    row: ChannelRow,
}

impl Desk {
    async fn open(config: &Config, args: &StateArgs, channel: &str, to: &str) -> Result<Self> {
        let dir = place(config, args)?;
        free(&dir, config, to)?;
        let (state, ledger) = open_ledger(config, args, &dir, "channel").await?;
        let row = find(&ledger, channel).await?;
        Ok(Self { state, ledger, row })
    }

    /// The channel on the chain, and somebody who may act on it.
    async fn on_chain(&self, config: &Config) -> Result<(Settler, ChannelState)> {
        let (dir, row) = (self.state.dir(), &self.row);
        let (role, account) = match row.role {
            Role::Payer => ("payer", row.key.payer),
            Role::Payee => ("payee", row.key.payee),
        };
        let chain = chain(config, dir).await?;
        ensure!(
            chain.domain() == row.domain,
            "channel {} is on chain {} at {}, but [chain] is chain {} at {}",
            row.id,
            row.domain.chain_id,
            row.domain.contract,
            chain.domain().chain_id,
            chain.domain().contract
        );
        let state = chain.channel(&row.key, View::Latest).await?;
        let Some(state) = state else { bail!("channel {} is not on the chain", row.id) };
        ensure!(!state.closed, "channel {} is closed already", row.id);
        let wallet = key_of(config, dir, role, account)?;
        Ok((settler(config, chain, wallet).await?, state))
    }

    async fn record(&self, settler: &Settler, kind: RedemptionKind, amount: Amount, tx: &Tx) {
        let at_unix_s = settler.chain.now_unix_s().await.unwrap_or_default();
        let (channel, hash, gas) = (self.row.id, tx.hash, tx.gas);
        let row = RedemptionRow { channel, kind, amount, tx: hash, gas, at_unix_s };
        if let Err(error) = self.ledger.record_redemption(row).await {
            tracing::warn!("{error}: a transaction was not written down");
        }
        // What the chain says now, so that the list is right at once.
        if let Ok(Some(state)) = settler.chain.channel(&self.row.key, View::Latest).await {
            let settled = settler.chain.channel(&self.row.key, View::Final).await;
            let is_over = settled.is_ok_and(|s| s.is_some_and(|s| s.closed));
            follow(&self.ledger, channel, &state, is_over).await;
        }
    }

    async fn top_up(&self, config: &Config, more: Amount, json: bool) -> Result<()> {
        let id = self.row.id;
        ensure!(more.0 > 0, "the amount to add must be above 0");
        ensure!(
            self.row.role == Role::Payer,
            "channel {id} pays this node: it is its payer who tops it up"
        );
        let (settler, state) = self.on_chain(config).await?;
        ensure!(state.closing_at_unix_s.is_none(), "channel {id} is being closed");
        let receipt = settler.chain.top_up(&settler.wallet, &self.row.key, more).await?;
        let tx = Tx { hash: receipt.hash, gas: receipt.gas };
        self.record(&settler, RedemptionKind::TopUp, more, &tx).await;
        let deposit = Amount(state.deposit.0.saturating_add(more.0));
        tell(
            json,
            || {
                json!({
                    "event": "topped_up", "channel": id.to_string(), "more": more.to_string(),
                    "deposit": deposit.to_string(), "tx": hash(&tx.hash),
                })
            },
            || format!("Topped up channel {id} by {more} to {deposit}."),
        );
        Ok(())
    }

    async fn close(&self, config: &Config, accept_loss: bool, json: bool) -> Result<()> {
        let (settler, state) = self.on_chain(config).await?;
        match self.row.role {
            Role::Payee => {
                // Another process of the fleet may be earning on it at this moment.
                self.ledger.take_channel(self.row.id).await?;
                if !accept_loss {
                    self.ensure_newest(&state).await?;
                }
                self.close_as_payee(&settler, &state, json).await
            }
            Role::Payer => self.close_as_payer(&settler, &state, json).await,
        }
    }

    /// What is closed is paid at what the ledger holds, and the rest goes back to the payer: not to be
    /// done on the word of a ledger that may have lost its newest voucher.
    async fn ensure_newest(&self, state: &ChannelState) -> Result<()> {
        let id = self.row.id;
        let held = self.ledger.newest_on_channel(id, Role::Payee).await?;
        let held = held.map_or(Amount(0), |newest| newest.amount);
        let what_to_do = "run the role until the payer has come back and shown its newest voucher, or \
                          add --accept-loss to be paid what this ledger holds, and no more";
        ensure!(
            held >= state.redeemed,
            "channel {id}: {} was redeemed already, but this ledger holds a voucher over {held} only, \
             so it has lost newer ones: {what_to_do}",
            state.redeemed
        );
        let recovery = self.state.recovery();
        let Some(found) = recovery.found() else { return Ok(()) };
        let leases = self.ledger.leases().await?;
        let mut of_channel = leases.iter().filter(|lease| lease.channel == Some(id));
        ensure!(
            of_channel.all(|lease| !recovery.doubts(lease.id)),
            "channel {id}: newer vouchers than the one over {held} may be lost, since the state \
             directory was found changed ({}): {what_to_do}",
            found.why
        );
        Ok(())
    }

    async fn close_as_payee(
        &self,
        settler: &Settler,
        state: &ChannelState,
        json: bool,
    ) -> Result<()> {
        let held = held_of(&self.ledger, &self.row).await?;
        let held = held.filter(|held| held.voucher.amount > state.redeemed);
        let voucher = held.map(|held| (held.voucher, held.signature));
        let (chain, wallet) = (&settler.chain, &settler.wallet);
        let receipt = chain.close_by_payee(wallet, &self.row.key, voucher, wallet).await?;
        let amount = held.map_or(state.redeemed, |held| held.voucher.amount);
        let tx = Tx { hash: receipt.hash, gas: receipt.gas };
        self.record(settler, RedemptionKind::Close, amount, &tx).await;
        tell_closed(self.row.id, receipt.paid(), receipt.refunded(), &tx, json);
        Ok(())
    }

    async fn close_as_payer(
        &self,
        settler: &Settler,
        state: &ChannelState,
        json: bool,
    ) -> Result<()> {
        let id = self.row.id;
        let now = settler.chain.now_unix_s().await?;
        if is_refund_due(&state.slot(), now) {
            let refunded = finish_close(settler, &self.ledger, &self.row).await?;
            tell(
                json,
                || {
                    json!({
                        "event": "refunded", "channel": id.to_string(),
                        "refunded": refunded.to_string(),
                    })
                },
                || format!("Channel {id} is closed, and {refunded} came back."),
            );
            return Ok(());
        }
        if let Some(at) = state.closing_at_unix_s {
            tell_closing(id, at, now, json);
            return Ok(());
        }
        let receipt = settler.chain.start_close(&settler.wallet, &self.row.key).await?;
        let tx = Tx { hash: receipt.hash, gas: receipt.gas };
        self.record(settler, RedemptionKind::StartClose, Amount(0), &tx).await;
        let state = settler.chain.channel(&self.row.key, View::Latest).await?;
        let at = state.and_then(|s| s.closing_at_unix_s).unwrap_or_default();
        tell_closing(id, at, now, json);
        Ok(())
    }
}

/// What a transaction is remembered by.
struct Tx {
    hash: [u8; 32],
    gas: u64,
}

fn tell_closed(id: ChannelId, paid: Amount, refunded: Amount, tx: &Tx, json: bool) {
    tell(
        json,
        || {
            json!({
                "event": "closed", "channel": id.to_string(), "paid": paid.to_string(),
                "refunded": refunded.to_string(), "tx": hash(&tx.hash),
            })
        },
        || format!("Channel {id} is closed: {paid} paid, {refunded} refunded to the payer."),
    );
}

fn tell_closing(id: ChannelId, at: u64, now: u64, json: bool) {
    let hours = at.saturating_sub(now).div_ceil(3600);
    tell(
        json,
        || json!({"event": "closing", "channel": id.to_string(), "closes_at_unix_s": at}),
        || {
            format!(
                "Channel {id} is closing: in {hours} h what is left can be had back. A running role \
                 gets it by itself; else run this command again then."
            )
        },
    );
}
