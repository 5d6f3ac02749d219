//! What a role tells the person or the script that started it.

use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use sluice_metering::{Resumption, VoucherRecord};
use sluice_proto::{Amount, ChannelId, LeaseId, PeerId, Price};
use sluice_transport::PathInfo;

use super::edge::Superseded;

/// Something worth telling.
#[derive(Debug, Clone)]
pub enum Report {
    /// A relay listens.
    RelayReady {
        /// `<peer id>@<address>`.
        address: String,
        /// Addresses of its mesh, if it has one, for others to begin with.
        mesh: Vec<String>,
    },
    /// A provider has a reservation and can be reached.
    ProviderReady {
        /// What a tenant needs.
        ticket: String,
        /// Its services.
        services: Vec<String>,
    },
    /// A provider can be reached through other relays than before.
    Reachable {
        /// What a new tenant needs.
        ticket: String,
        /// The relays, each `<peer id>@<address>`.
        relays: Vec<String>,
    },
    /// A provider has chosen its relays, or others than before.
    RelaysChosen {
        /// The relays, best first, each `<peer id>@<address>`.
        relays: Vec<String>,
    },
    /// A lease was won.
    Leased {
        /// Its id, in hexadecimal digits.
        lease: String,
        /// Its tenant.
        peer: PeerId,
        /// Token base units per GiB.
        price: Price,
    },
    /// The relays that carry a session's echoes, and so may carry the session.
    Warm {
        /// The other node.
        peer: PeerId,
        /// The relays, each `<peer id>@<address>`.
        relays: Vec<String>,
    },
    /// A tenant's local ports are open.
    TenantReady {
        /// `local=service`.
        map: Vec<String>,
        /// What the terms ask, both ways, per GiB.
        price: (u128, u128),
    },
    /// A session began.
    Session {
        /// The other node.
        peer: PeerId,
    },
    /// A session ended.
    SessionEnded {
        /// The other node.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// A session's path changed.
    Path {
        /// The other node.
        peer: PeerId,
        /// The path.
        path: PathInfo,
    },
    /// A relay's link changed.
    Link {
        /// The relay.
        relay: String,
        /// Where it stands.
        state: String,
    },
    /// A peer lied; nothing was paid for it.
    Lie {
        /// Who.
        peer: PeerId,
        /// What.
        what: String,
    },
    /// Another process with this node's keys started later, and stands: a copy of its state runs.
    Superseded {
        /// Who refuses this one.
        by: PeerId,
    },
    /// The other node showed vouchers that this node's ledger had lost; it goes on from there.
    Recovered {
        /// Who showed them.
        peer: PeerId,
        /// The lease.
        lease: LeaseId,
        /// What they come to: payload bytes towards the payee and from it.
        up: u64,
        /// See `up`.
        down: u64,
        /// Cumulative amount.
        amount: Amount,
    },
    /// Accounts, when a session or the role ends.
    Account {
        /// The other node.
        peer: PeerId,
        /// Payload bytes towards the payee and from it.
        up: u64,
        /// See `up`.
        down: u64,
        /// Cumulative amount.
        amount: u128,
    },
    /// The account with a relay, when the connection to it is lost or the role ends.
    Reservation {
        /// The relay.
        relay: String,
        /// Bytes of frames towards the relay and from it that it acknowledged to be paid.
        up: u64,
        /// See `up`.
        down: u64,
        /// What the newest voucher says, cumulative.
        amount: u128,
    },
    /// Vouchers of a channel were turned into tokens.
    Redeemed {
        /// Which channel's.
        channel: ChannelId,
        /// What went to the payout now.
        paid: Amount,
        /// Cumulative.
        redeemed: Amount,
        /// Its part of the transaction's fee, in wei.
        fee_wei: u128,
        /// The same in the token, where it is known what a coin is worth.
        fee: Option<Amount>,
        /// Why now.
        why: String,
        /// The transaction.
        tx: [u8; 32],
    },
    /// Vouchers that were asked for were not redeemed.
    Kept {
        /// Which channel's.
        channel: ChannelId,
        /// Why not.
        why: String,
    },
    /// A channel that pays this node is being closed by its payer, or is closed.
    ChannelEnds {
        /// Which.
        channel: ChannelId,
        /// From when the payer may be refunded, Unix seconds; `None`: it is closed.
        closes_at: Option<u64>,
        /// What is not redeemed yet.
        unredeemed: Amount,
    },
    /// A deposit grew.
    ToppedUp {
        /// Which channel's.
        channel: ChannelId,
        /// By how much.
        more: Amount,
        /// To how much.
        deposit: Amount,
        /// The transaction.
        tx: [u8; 32],
    },
    /// A channel whose opening the chain had undone is open again.
    Reopened {
        /// Which.
        channel: ChannelId,
        /// With how much.
        deposit: Amount,
        /// The transaction.
        tx: [u8; 32],
    },
    /// A deposit runs dry and may not grow.
    DepositSpent {
        /// Which channel's.
        channel: ChannelId,
        /// How much it is.
        deposit: Amount,
        /// How much it may be.
        deposit_max: Amount,
    },
    /// What was left of a channel came back.
    Refunded {
        /// Which channel's.
        channel: ChannelId,
        /// How much.
        refunded: Amount,
    },
    /// Channels could not be settled for now; it is tried again.
    SettlementFailed {
        /// Why.
        what: String,
    },
    /// The role is stopping.
    Stopping {
        /// What asked it to.
        why: &'static str,
    },
}

/// Prints reports for people, or one JSON object a line for scripts.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Fn(&Report) + Send + Sync>);

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reporter")
    }
}

impl Reporter {
    /// Hands each report to `sink`.
    pub fn new(sink: impl Fn(&Report) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Writes to the log alone.
    #[must_use]
    pub fn logged() -> Self {
        Self::new(|report| {
            if let Report::Lie { .. } = report {
                tracing::warn!("{}", report.text());
            } else {
                tracing::info!("{}", report.text());
            }
        })
    }

    /// Prints to standard output.
    #[must_use]
    pub fn print(as_json: bool) -> Self {
        Self::new(move |report| {
            let line = if as_json { report.json().to_string() } else { report.text() };
            // A closed pipe is the reader's wish.
            let _ = writeln!(std::io::stdout().lock(), "{line}");
        })
    }

    /// Tells that an account goes on from what the other side showed, if that is more than `usual`
    /// bytes ahead.
    pub(crate) fn tell_resumed(&self, peer: PeerId, resumed: &Resumption, usual: u64) {
        let forgotten = resumed.forgotten().filter(|_| resumed.gap > usual);
        if let Some(VoucherRecord { lease, counts, amount, .. }) = forgotten {
            let (up, down, amount, lease) = (counts.up, counts.down, *amount, *lease);
            self.tell(&Report::Recovered { peer, lease, up, down, amount });
        }
    }

    /// Tells it.
    pub fn tell(&self, report: &Report) {
        (self.0)(report);
    }
}

impl Report {
    fn text(&self) -> String {
        match self {
            Self::RelayReady { address, mesh } => {
                let mut text = format!(
                    "Relay is up. Providers reach it with\n\n  sluice provide --relay {address} --expose web=tcp:127.0.0.1:8080\n"
                );
                if let Some(mesh) = mesh.first() {
                    text += &format!("\nIn the mesh it is\n\n  --bootstrap {mesh}\n");
                }
                text
            }
            Self::ProviderReady { ticket, services } => format!(
                "Reachable now; serving {}. Tenants connect with\n\n  sluice connect {ticket} --map 127.0.0.1:9000={}\n",
                services.join(", "),
                services.first().map_or("web", String::as_str)
            ),
            Self::Reachable { ticket, relays } => format!(
                "Reachable through {} now. New tenants connect with\n\n  sluice connect {ticket}\n",
                relays.join(", ")
            ),
            Self::RelaysChosen { relays } if relays.is_empty() => {
                "No relay is known that can be used".to_owned()
            }
            Self::RelaysChosen { relays } => format!("Chose {}", relays.join(", ")),
            Self::Leased { lease, peer, price } => format!(
                "Leased to {peer}: {} up, {} down per GiB, lease {}",
                price.up,
                price.down,
                lease.chars().take(16).collect::<String>()
            ),
            Self::Warm { peer, relays } if relays.is_empty() => {
                format!("No relay is ready for {peer}")
            }
            Self::Warm { peer, relays } => {
                format!("Relays ready for {peer}: {}", relays.join(", "))
            }
            Self::TenantReady { map, price } => {
                let price = match price {
                    (0, 0) => "free of charge".to_owned(),
                    (up, down) => format!("{down} per GiB down, {up} up"),
                };
                format!("Connected ({price}). Open: {}", map.join(", "))
            }
            Self::Session { peer } => format!("Session with {peer}"),
            Self::SessionEnded { peer, reason } => format!("Session with {peer} ended: {reason}"),
            Self::Path { peer, path } => {
                let tcp = if path.over_tcp { " over TCP" } else { "" };
                let PathInfo { kind, remote, reason, .. } = path;
                format!("Path to {peer}: {kind}{tcp} via {remote} ({reason})")
            }
            Self::Link { relay, state } => format!("Relay {relay}: {state}"),
            Self::Lie { peer, what } => format!("{peer} lied, and nothing was paid: {what}"),
            Self::Superseded { by } => Superseded { by: *by }.to_string(),
            Self::Recovered { peer, lease, up, down, amount } => format!(
                "{peer} showed a voucher over {amount} ({up} bytes up, {down} down) on lease {lease} that this ledger has lost, as one that was restored from a backup: the account goes on from there"
            ),
            Self::Account { peer, up, down, amount } => {
                format!("Account with {peer}: {down} bytes down, {up} up, {amount} in all")
            }
            Self::Reservation { relay, up, down, amount } => {
                format!("Account with relay {relay}: {down} bytes down, {up} up, {amount} in all")
            }
            Self::Redeemed { channel, paid, fee_wei, fee, why, tx, .. } => {
                let worth = fee.map(|fee| format!(", {fee} base units")).unwrap_or_default();
                let tx = hex::encode(tx);
                format!(
                    "Redeemed {paid} of channel {channel} ({why}); fee {fee_wei} wei{worth}; transaction 0x{tx}"
                )
            }
            Self::Kept { channel, why } => format!("Channel {channel} keeps its voucher: {why}"),
            Self::ChannelEnds { channel, closes_at: Some(at), unredeemed } => format!(
                "The payer is closing channel {channel}, from Unix second {at} on; {unredeemed} unredeemed"
            ),
            Self::ChannelEnds { channel, closes_at: None, unredeemed } => {
                format!(
                    "Channel {channel} is closed; {unredeemed} of its voucher were not redeemed"
                )
            }
            Self::ToppedUp { channel, more, deposit, .. } => {
                format!("Topped up channel {channel} by {more} to {deposit}")
            }
            Self::Reopened { channel, deposit, .. } => format!(
                "The chain had undone the opening of channel {channel}: it is open again with {deposit}"
            ),
            Self::DepositSpent { channel, deposit, deposit_max } => format!(
                "The deposit of {deposit} of channel {channel} runs dry, and {deposit_max} is the most that is allowed: run `sluice channel top-up`, or raise deposit_max"
            ),
            Self::Refunded { channel, refunded } => {
                format!("Channel {channel} is closed, and {refunded} came back")
            }
            Self::SettlementFailed { what } => {
                format!("Channels cannot be settled for now, and it is tried again: {what}")
            }
            Self::Stopping { why } => format!("{why}: finishing open accounts, then stopping"),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::RelayReady { address, mesh } => {
                json!({"event": "ready", "address": address, "mesh": mesh})
            }
            Self::ProviderReady { ticket, services } => {
                json!({"event": "ready", "ticket": ticket, "services": services})
            }
            Self::Reachable { ticket, relays } => {
                json!({"event": "reachable", "ticket": ticket, "relays": relays})
            }
            Self::RelaysChosen { relays } => json!({"event": "relays_chosen", "relays": relays}),
            Self::Leased { lease, peer, price } => json!({
                "event": "leased", "lease": lease, "peer": peer.to_string(),
                "price_up": price.up.to_string(), "price_down": price.down.to_string(),
            }),
            Self::Warm { peer, relays } => {
                json!({"event": "warm", "peer": peer.to_string(), "relays": relays})
            }
            Self::TenantReady { map, price } => json!({
                "event": "ready", "map": map,
                "price_up": price.0.to_string(), "price_down": price.1.to_string(),
            }),
            Self::Session { peer } => json!({"event": "session", "peer": peer.to_string()}),
            Self::SessionEnded { peer, reason } => {
                json!({"event": "session_ended", "peer": peer.to_string(), "reason": reason})
            }
            Self::Path { peer, path } => json!({
                "event": "path", "peer": peer.to_string(), "kind": path.kind.to_string(),
                "remote": path.remote.to_string(), "relay": path.relay.map(|r| r.to_string()),
                "rtt_ms": path.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
                 "over_tcp": path.over_tcp, "reason": path.reason.to_string(),
            }),
            Self::Link { relay, state } => json!({"event": "link", "relay": relay, "state": state}),
            Self::Lie { peer, what } => {
                json!({"event": "lie", "peer": peer.to_string(), "what": what})
            }
            Self::Superseded { by } => json!({"event": "superseded", "by": by.to_string()}),
            Self::Recovered { peer, lease, up, down, amount } => json!({
                "event": "recovered", "peer": peer.to_string(), "lease": lease.to_string(),
                "up": up, "down": down, "amount": amount.to_string(),
            }),
            Self::Account { peer, up, down, amount } => json!({
                "event": "account", "peer": peer.to_string(), "up": up, "down": down,
                "amount": amount.to_string(),
            }),
            Self::Reservation { relay, up, down, amount } => json!({
                "event": "reservation", "relay": relay, "up": up, "down": down,
                "amount": amount.to_string(),
            }),
            Self::Redeemed { channel, paid, redeemed, fee_wei, fee, why, tx } => json!({
                "event": "redeemed", "channel": channel.to_string(), "paid": paid.to_string(),
                "redeemed": redeemed.to_string(), "fee_wei": fee_wei.to_string(),
                "fee": fee.map(|fee| fee.to_string()), "why": why, "tx": transaction(tx),
            }),
            Self::Kept { channel, why } => {
                json!({"event": "kept", "channel": channel.to_string(), "why": why})
            }
            Self::ChannelEnds { channel, closes_at, unredeemed } => json!({
                "event": "channel_ends", "channel": channel.to_string(),
                "closes_at_unix_s": closes_at, "unredeemed": unredeemed.to_string(),
            }),
            Self::ToppedUp { channel, more, deposit, tx } => json!({
                "event": "topped_up", "channel": channel.to_string(), "more": more.to_string(),
                "deposit": deposit.to_string(), "tx": transaction(tx),
            }),
            Self::Reopened { channel, deposit, tx } => json!({
                "event": "reopened", "channel": channel.to_string(),
                "deposit": deposit.to_string(), "tx": transaction(tx),
            }),
            Self::DepositSpent { channel, deposit, deposit_max } => json!({
                "event": "deposit_spent", "channel": channel.to_string(),
                "deposit": deposit.to_string(), "deposit_max": deposit_max.to_string(),
            }),
            Self::Refunded { channel, refunded } => json!({
                "event": "refunded", "channel": channel.to_string(),
                "refunded": refunded.to_string(),
            }),
            Self::SettlementFailed { what } => {
                json!({"event": "settlement_failed", "message": what})
            }
            Self::Stopping { why } => json!({"event": "stopping", "why": why}),
        }
    }
}

/// A transaction's hash as it is written.
pub(crate) fn transaction(hash: &[u8; 32]) -> String {
    format!("0x{}", hex::encode(hash))
}
