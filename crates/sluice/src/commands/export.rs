//! A ledger written out, and read again by a watchtower.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sluice_ledger::{ChannelStatus, Edge, Ledger, RedemptionKind};
use sluice_proto::eth::keccak256;
use sluice_proto::{Amount, ChannelId, ChannelKey, Domain, EthAddress, Voucher, WalletSignature};

use super::channel::side;
use super::redeem::hash;
use crate::settle::Held;

/// The only form that is known.
const VERSION: u32 = 1;

/// All of a ledger. Amounts are decimal text, since they exceed what JSON's readers keep exact;
/// bytes are hexadecimal.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Export {
    sluice_ledger: u32,
    pub(super) channels: Vec<ChannelOut>,
    #[serde(default)]
    pub(super) leases: Vec<LeaseOut>,
    #[serde(default)]
    pub(super) transactions: Vec<TransactionOut>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ChannelOut {
    id: String,
    chain_id: u64,
    contract: String,
    payer: String,
    signer: String,
    payee: String,
    payout: String,
    token: String,
    salt: String,
    deposit: String,
    side: String,
    peer: String,
    status: String,
    period_s: u32,
    voucher: Option<VoucherOut>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct VoucherOut {
    amount: String,
    statement: String,
    signature: String,
    #[serde(default)]
    encoded_statement: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaseOut {
    pub(super) id: String,
    pub(super) edge: String,
    pub(super) side: String,
    pub(super) peer: String,
    pub(super) channel: Option<String>,
    base: String,
    sessions: u64,
    closed: bool,
    terms: String,
    terms_signature: String,
    pub(super) vouchers: Vec<LinkOut>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LinkOut {
    pub(super) seq: u64,
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) amount: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TransactionOut {
    channel: String,
    kind: String,
    amount: String,
    tx: String,
    gas: u64,
    at_unix_s: u64,
}

pub(super) fn edge(edge: Edge) -> &'static str {
    match edge {
        Edge::Tenant => "tenant",
        Edge::Relay => "relay",
    }
}

fn kind(kind: RedemptionKind) -> &'static str {
    match kind {
        RedemptionKind::Open => "open",
        RedemptionKind::TopUp => "top_up",
        RedemptionKind::Redeem => "redeem",
        RedemptionKind::Close => "close",
        RedemptionKind::StartClose => "start_close",
        RedemptionKind::FinishClose => "finish_close",
    }
}

fn digits(bytes: &[u8]) -> String {
    format!("0x{}", hex::encode(bytes))
}

impl Export {
    /// All that a ledger holds.
    pub(super) async fn of(ledger: &Ledger) -> Result<Self> {
        let (mut channels, mut transactions) = (Vec::new(), Vec::new());
        for row in ledger.channels().await? {
            let newest = ledger.newest_on_channel(row.id, row.role).await?;
            channels.push(ChannelOut {
                id: row.id.to_string(),
                chain_id: row.domain.chain_id,
                contract: row.domain.contract.to_string(),
                payer: row.key.payer.to_string(),
                signer: row.key.signer.to_string(),
                payee: row.key.payee.to_string(),
                payout: row.key.payout.to_string(),
                token: row.key.token.to_string(),
                salt: digits(&row.key.salt),
                deposit: row.deposit.to_string(),
                side: side(row.role).to_owned(),
                peer: row.peer.to_string(),
                status: match row.status {
                    ChannelStatus::Open => "open",
                    ChannelStatus::Closing => "closing",
                    ChannelStatus::Closed => "closed",
                }
                .to_owned(),
                period_s: row.period_s,
                voucher: newest.map(|newest| VoucherOut {
                    amount: newest.amount.to_string(),
                    statement: digits(&keccak256(&newest.voucher.statement)),
                    signature: digits(&newest.voucher.signature),
                    encoded_statement: digits(&newest.voucher.statement),
                }),
            });
            for done in ledger.redemptions(row.id).await? {
                transactions.push(TransactionOut {
                    channel: done.channel.to_string(),
                    kind: kind(done.kind).to_owned(),
                    amount: done.amount.to_string(),
                    tx: hash(&done.tx),
                    gas: done.gas,
                    at_unix_s: done.at_unix_s,
                });
            }
        }
        let leases = Self::leases(ledger).await?;
        Ok(Self { sluice_ledger: VERSION, channels, leases, transactions })
    }

    async fn leases(ledger: &Ledger) -> Result<Vec<LeaseOut>> {
        let mut leases = Vec::new();
        for row in ledger.leases().await? {
            let links = ledger.vouchers(row.id, row.role).await?;
            leases.push(LeaseOut {
                id: row.id.to_string(),
                edge: edge(row.edge).to_owned(),
                side: side(row.role).to_owned(),
                peer: row.peer.to_string(),
                channel: row.channel.map(|id| id.to_string()),
                base: row.base.to_string(),
                sessions: row.sessions,
                closed: row.closed,
                terms: digits(&row.terms),
                terms_signature: digits(&row.terms_signature),
                vouchers: links
                    .iter()
                    .map(|link| LinkOut {
                        seq: link.seq,
                        up: link.up,
                        down: link.down,
                        amount: link.amount.to_string(),
                    })
                    .collect(),
            });
        }
        Ok(leases)
    }

    /// One table. No field can hold a comma or a quote.
    pub(super) fn csv(&self, table: &str) -> String {
        let rows: Vec<String> = match table {
            "channels" => self.channels.iter().map(ChannelOut::csv).collect(),
            "transactions" => self.transactions.iter().map(TransactionOut::csv).collect(),
            _ => self.leases.iter().flat_map(LeaseOut::csv).collect(),
        };
        let head = match table {
            "channels" => {
                "channel,chain_id,contract,side,peer,status,deposit,voucher,payer,payee,payout,token"
            }
            "transactions" => "channel,kind,amount,tx,gas,at_unix_s",
            _ => "lease,edge,side,peer,channel,seq,up,down,amount",
        };
        [head.to_owned()].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
    }

    /// Reads a file of `sluice ledger export`: the vouchers that somebody is paid by.
    pub(super) fn read(text: &str) -> Result<Vec<Held>> {
        let export: Self = serde_json::from_str(text)
            .context("it is not a ledger as `sluice ledger export --format json` writes it")?;
        ensure!(
            export.sluice_ledger == VERSION,
            "sluice_ledger: it is of version {}, and this Sluice reads version {VERSION}",
            export.sluice_ledger
        );
        let earned = export.channels.iter().enumerate().filter(|(_, c)| c.side == "payee");
        let held = earned.filter_map(|(i, channel)| {
            let voucher = channel.voucher.as_ref()?;
            Some(channel.held(voucher).with_context(|| format!("channels[{i}]")))
        });
        held.collect()
    }
}

impl ChannelOut {
    fn csv(&self) -> String {
        let voucher = self.voucher.as_ref().map_or("0", |voucher| &voucher.amount);
        let chain_id = self.chain_id.to_string();
        [
            &self.id,
            &chain_id,
            &self.contract,
            &self.side,
            &self.peer,
            &self.status,
            &self.deposit,
            voucher,
            &self.payer,
            &self.payee,
            &self.payout,
            &self.token,
        ]
        .join(",")
    }

    /// The voucher, checked: its channel's id follows from the key, and the signer signed it.
    fn held(&self, voucher: &VoucherOut) -> Result<Held> {
        let key = ChannelKey {
            payer: address("payer", &self.payer)?,
            signer: address("signer", &self.signer)?,
            payee: address("payee", &self.payee)?,
            payout: address("payout", &self.payout)?,
            token: address("token", &self.token)?,
            salt: fixed("salt", &self.salt)?,
        };
        let contract = address("contract", &self.contract)?;
        let domain = Domain { chain_id: self.chain_id, contract };
        let id = ChannelId(fixed("id", &self.id)?);
        ensure!(key.id(&domain) == id, "id: it does not follow from the channel's other fields");
        let amount = voucher.amount.parse().map(Amount);
        let signature = WalletSignature(fixed("voucher.signature", &voucher.signature)?);
        let peer = self.peer.parse().ok();
        let voucher = Voucher {
            channel: id,
            amount: amount.with_context(|| format!("voucher.amount: {:?}", voucher.amount))?,
            statement: fixed("voucher.statement", &voucher.statement)?,
        };
        let found = signature.recover(voucher.digest(&domain));
        ensure!(
            found == Some(key.signer),
            "voucher.signature: it is not by the channel's signer {}",
            key.signer
        );
        Ok(Held { key, domain, peer, voucher, signature })
    }
}

impl LeaseOut {
    fn csv(&self) -> impl Iterator<Item = String> + '_ {
        self.vouchers.iter().map(|link| {
            let channel = self.channel.as_deref().unwrap_or_default();
            let LinkOut { seq, up, down, amount } = link;
            format!(
                "{},{},{},{},{channel},{seq},{up},{down},{amount}",
                self.id, self.edge, self.side, self.peer
            )
        })
    }
}

impl TransactionOut {
    fn csv(&self) -> String {
        let Self { channel, kind, amount, tx, gas, at_unix_s } = self;
        format!("{channel},{kind},{amount},{tx},{gas},{at_unix_s}")
    }
}

fn address(field: &str, text: &str) -> Result<EthAddress> {
    fixed(field, text).map(EthAddress)
}

fn fixed<const N: usize>(field: &str, text: &str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let digits = text.strip_prefix("0x").unwrap_or(text);
    hex::decode_to_slice(digits, &mut bytes)
        .with_context(|| format!("{field}: {text:?} is not 0x and {} hexadecimal digits", 2 * N))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fed::feed;

    #[test]
    fn exports() {
        let genuine =
            format!(r#"{{"sluice_ledger":{VERSION},"channels":[],"leases":[],"transactions":[]}}"#);
        assert!(Export::read(&genuine).is_ok(), "the seed is not genuine");
        feed!(genuine, |text: &str| drop(Export::read(text)));
    }
}
