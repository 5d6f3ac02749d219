//! A role's ledger, read after the role ended.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sluice_ledger::{ChannelRow, Edge, LeaseRow, Ledger, Link, Role, StoredVoucher};
use sluice_metering::Terms;
use sluice_proto::{Amount, LeaseId, amount_due};
use tokio::runtime::Runtime;

/// An open ledger.
#[derive(Debug)]
pub struct Books {
    ledger: Ledger,
    runtime: Runtime,
}

impl Books {
    /// Opens the ledger in a state directory.
    ///
    /// # Errors
    /// When it does not open.
    pub fn open(state: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let path = state.join("ledger.db");
        ensure!(path.exists(), "{} has no ledger", state.display());
        let guard = runtime.enter();
        let ledger = Ledger::open(&path)?;
        drop(guard);
        Ok(Self { ledger, runtime })
    }

    /// Opens the ledger in a state directory to read it alone, also while its role runs.
    ///
    /// # Errors
    /// When it does not open.
    pub fn look(state: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let ledger = Ledger::open_read_only(&state.join("ledger.db"))?;
        drop(guard);
        Ok(Self { ledger, runtime })
    }

    /// Its channels.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn channels(&self) -> Result<Vec<ChannelRow>> {
        Ok(self.runtime.block_on(self.ledger.channels())?)
    }

    /// The newest voucher of a channel.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn newest_on(&self, channel: &ChannelRow) -> Result<Option<StoredVoucher>> {
        Ok(self.runtime.block_on(self.ledger.newest_on_channel(channel.id, channel.role))?)
    }

    /// Its leases on an edge.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn leases(&self, edge: Edge) -> Result<Vec<LeaseRow>> {
        let leases = self.runtime.block_on(self.ledger.leases())?;
        Ok(leases.into_iter().filter(|l| l.edge == edge).collect())
    }

    /// The one lease on an edge.
    ///
    /// # Errors
    /// When there is none, or another.
    pub fn lease(&self, edge: Edge) -> Result<LeaseRow> {
        let leases = self.leases(edge)?;
        ensure!(leases.len() == 1, "{} leases on the {edge:?} edge", leases.len());
        leases.into_iter().next().context("one lease")
    }

    /// The newest voucher of a lease: signed by a payer, earned by a payee.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn newest(&self, lease: &LeaseRow) -> Result<Option<StoredVoucher>> {
        self.runtime.block_on(async {
            Ok(match lease.role {
                Role::Payer => self.ledger.newest_signed(lease.id).await?,
                Role::Payee => self.ledger.newest_earned(lease.id).await?,
            })
        })
    }

    /// The amounts of a lease, oldest first.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn links(&self, lease: &LeaseRow) -> Result<Vec<Link>> {
        Ok(self.runtime.block_on(self.ledger.vouchers(lease.id, lease.role))?)
    }

    /// Checks that amounts only rise and are what the counts cost, and returns the newest voucher.
    ///
    /// # Errors
    /// With what does not hold.
    pub fn audit(&self, lease: &LeaseRow) -> Result<StoredVoucher> {
        let newest = self.newest(lease)?.context("a lease without a voucher")?;
        let terms = Terms::parse(&lease.terms)?;
        let links = self.links(lease)?;
        ensure!(links.is_sorted_by_key(|l| (l.amount, l.up, l.down)), "amounts went back");
        let last = links.last().context("no amounts")?;
        ensure!((last.up, last.down, last.amount) == (newest.up, newest.down, newest.amount));
        let due = amount_due(Amount(0), newest.up, newest.down, terms.price);
        ensure!(due == Some(newest.amount), "{} is not what the bytes cost", newest.amount);
        Ok(newest)
    }
}

/// Checks that payer and payee of an edge have the same newest voucher on each lease of it, which
/// orderly ends leave behind; how many leases that were.
///
/// # Errors
/// With what differs.
pub fn both_agree(edge: Edge, payer: &Books, payee: &Books) -> Result<usize> {
    let (mut count, ours) = (0, payer.leases(edge)?);
    for theirs in payee.leases(edge)?.iter().filter(|l| l.role == Role::Payee) {
        let id: LeaseId = theirs.id;
        let Some(ours) = ours.iter().find(|l| l.id == id) else { continue };
        let (signed, earned) = (payer.audit(ours)?, payee.audit(theirs)?);
        ensure!(
            (signed.up, signed.down, signed.amount) == (earned.up, earned.down, earned.amount),
            "signed for {} up, {} down: {}; earned for {} up, {} down: {}",
            signed.up,
            signed.down,
            signed.amount,
            earned.up,
            earned.down,
            earned.amount
        );
        count += 1;
    }
    Ok(count)
}
