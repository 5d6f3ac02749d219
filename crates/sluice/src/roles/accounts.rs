//! The accounts that a provider keeps beyond their sessions, and what payers left unpaid.

use std::collections::HashMap;

use sluice_metering::VoucherRecord;
use sluice_proto::{EthAddress, LeaseId, PeerId};
use sluice_tunnel::Account;

/// Leases whose accounts are kept; beyond, those without a session go.
const LEASES_MAX: usize = 10_000;
/// Nodes and wallets whose losses are remembered.
const DEBTORS_MAX: usize = 65_536;

/// Of whom a loss is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Debtor {
    Node(PeerId),
    Wallet(EthAddress),
}

/// The newest account of a lease.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) account: Account,
    pub(crate) peer: PeerId,
    /// Who paid the deposit of its channel.
    pub(crate) wallet: Option<EthAddress>,
}

/// A provider's accounts, by lease. What a node or a wallet left unpaid under one lease counts against
/// what may be lost under its next ones: a new lease, a new key or a new channel is no new allowance.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    kept: HashMap<LeaseId, Kept>,
    /// Under leases whose accounts are not kept any more.
    lost: HashMap<Debtor, u64>,
}

impl Accounts {
    /// The newest voucher of a lease.
    pub(crate) fn newest(&self, lease: LeaseId) -> Option<VoucherRecord> {
        self.get(lease).and_then(Account::newest)
    }

    /// The account of a lease.
    pub(crate) fn get(&self, lease: LeaseId) -> Option<&Account> {
        self.kept.get(&lease).map(|kept| &kept.account)
    }

    /// What a node, or those with its wallet, left unpaid under leases other than `lease`. The node has
    /// no other lease any more, so that what is open there counts too.
    pub(crate) fn losses(&self, lease: LeaseId, peer: PeerId, wallet: Option<EthAddress>) -> u64 {
        let lost = |debtor| self.lost.get(&debtor).copied().unwrap_or(0);
        let mut of_node = lost(Debtor::Node(peer));
        let mut of_wallet = wallet.map_or(0, |wallet| lost(Debtor::Wallet(wallet)));
        for (_, kept) in self.kept.iter().filter(|(id, _)| **id != lease) {
            let losses = kept.account.losses();
            if kept.peer == peer {
                of_node = of_node.saturating_add(losses.lost).saturating_add(losses.open);
            }
            if wallet.is_some() && kept.wallet == wallet {
                of_wallet = of_wallet.saturating_add(losses.lost);
            }
        }
        of_node.max(of_wallet)
    }

    /// Keeps the newest account of a lease; those of the node's other leases go.
    pub(crate) fn keep(&mut self, lease: LeaseId, kept: Kept, is_live: impl Fn(&Account) -> bool) {
        let is_full = self.kept.len() >= LEASES_MAX;
        let peer = kept.peer;
        let goes = |id: &LeaseId, old: &mut Kept| {
            *id != lease && (old.peer == peer || is_full && !is_live(&old.account))
        };
        let gone: Vec<_> = self.kept.extract_if(goes).map(|(_, gone)| gone).collect();
        for gone in gone {
            self.remember(&gone);
        }
        self.kept.insert(lease, kept);
    }

    fn remember(&mut self, gone: &Kept) {
        let losses = gone.account.losses();
        let lost = losses.lost.saturating_add(losses.open);
        let debtors = [Some(Debtor::Node(gone.peer)), gone.wallet.map(Debtor::Wallet)];
        for debtor in debtors.into_iter().flatten().filter(|_| lost > 0) {
            if self.lost.len() < DEBTORS_MAX || self.lost.contains_key(&debtor) {
                let before = self.lost.entry(debtor).or_default();
                *before = before.saturating_add(lost);
            }
        }
    }
}
