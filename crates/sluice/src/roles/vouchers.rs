//! Between an account and the ledger: vouchers that are to be made durable, and lies that are told.

use std::time::Duration;

use sluice_ledger::{Ledger, LedgerError, Role, StoredVoucher};
use sluice_metering::Evidence;
use sluice_proto::PeerId;
use sluice_tunnel::Persist;
use tokio::sync::mpsc;

use super::edge::stored;
use super::report::{Report, Reporter};

/// At price 0 counts are written down this often at most.
const FREE_RECORDS: Duration = Duration::from_millis(500);
/// A ledger that cannot be written for now, since its disk is full or its server away, is tried again
/// after this.
pub(crate) const LEDGER_AGAIN: Duration = Duration::from_millis(500);

/// Makes vouchers durable; of those that wait, only the newest matters.
pub(crate) async fn keep_vouchers(
    ledger: Ledger,
    role: Role,
    mut kept: mpsc::UnboundedReceiver<Persist>,
) {
    // At price 0 counts are for the record: nobody waits for the disk.
    let mut free: Option<StoredVoucher> = None;
    let mut tick = tokio::time::interval(FREE_RECORDS);
    loop {
        let persist = tokio::select! {
            biased;
            persist = kept.recv() => match persist {
                Some(persist) => newest(persist, &mut kept),
                None => break,
            },
            _ = tick.tick(), if free.is_some() => {
                write_free(&ledger, role, free.take()).await;
                continue;
            }
        };
        let row = stored(&persist.record);
        if row.voucher.signature.is_empty() {
            persist.done(true);
            free = Some(row);
            continue;
        }
        keep(&ledger, role, persist, &mut kept).await;
    }
    write_free(&ledger, role, free).await;
}

fn newest(mut persist: Persist, kept: &mut mpsc::UnboundedReceiver<Persist>) -> Persist {
    while let Ok(newer) = kept.try_recv() {
        persist = newer;
    }
    persist
}

/// Writes a voucher. While the ledger cannot be written for now it is tried again, or the one that took
/// its place: until then it neither counts nor is sent, so that the window stops the traffic by itself.
/// Once the account is gone it is given up: the other side shows it when the lease goes on.
async fn keep(
    ledger: &Ledger,
    role: Role,
    mut persist: Persist,
    kept: &mut mpsc::UnboundedReceiver<Persist>,
) {
    let mut is_told = false;
    loop {
        let error = match record(ledger, role, stored(&persist.record)).await {
            Ok(()) => return persist.done(true),
            Err(error) => error,
        };
        if !error.is_passing() {
            tracing::error!("{error}: nothing more is signed or sold on this lease");
            return persist.done(false);
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::error!("{error}");
        }
        if kept.is_closed() && kept.is_empty() {
            return;
        }
        tokio::time::sleep(LEDGER_AGAIN).await;
        persist = newest(persist, kept);
    }
}

async fn write_free(ledger: &Ledger, role: Role, row: Option<StoredVoucher>) {
    let Some(row) = row else { return };
    if let Err(error) = record(ledger, role, row).await {
        tracing::warn!("{error}: the counts of a free lease were not written down");
    }
}

async fn record(ledger: &Ledger, role: Role, row: StoredVoucher) -> Result<(), LedgerError> {
    match role {
        Role::Payer => ledger.record_signed(row).await,
        Role::Payee => ledger.record_earned(row).await,
    }
}

/// Reports the lies that a peer tells.
pub(crate) async fn tell_lies(
    report: Reporter,
    peer: PeerId,
    mut told: mpsc::UnboundedReceiver<Evidence>,
) {
    while let Some(evidence) = told.recv().await {
        report.tell(&Report::Lie { peer, what: evidence.lie.to_string() });
    }
}
