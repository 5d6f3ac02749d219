//! What the operator may look at.

use std::sync::atomic::Ordering;

use sluice_proto::{FlowId, LeaseId, PeerId};

use super::Admission;
use crate::account::AccountTotals;
use crate::flow::Side;
use crate::table::Entry;

/// One flow's counts: frame bytes that were forwarded, headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowStats {
    /// Who opened it.
    pub tenant: PeerId,
    /// Who pays for it.
    pub holder: PeerId,
    /// Its number at the tenant.
    pub tenant_flow: FlowId,
    /// Its number at the holder.
    pub holder_flow: FlowId,
    /// Bytes from the tenant to the holder.
    pub to_holder: u64,
    /// Bytes from the holder to the tenant.
    pub to_tenant: u64,
    /// Whether the holder agreed to it.
    pub open: bool,
}

/// One reservation's counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReservationStats {
    /// Who holds it.
    pub holder: PeerId,
    /// Its id.
    pub lease: LeaseId,
    /// Frame bytes so far.
    pub totals: AccountTotals,
    /// Billed bytes that may be reached.
    pub limit: u64,
    /// Whether the limit held something back.
    pub unpaid: bool,
}

impl Admission {
    /// Every flow, by its number at the tenant.
    #[must_use]
    pub fn flow_stats(&self) -> Vec<FlowStats> {
        self.peers_of
            .iter()
            .filter_map(|(number, (tenant, holder))| match self.forwarder.table.find(*number)? {
                Entry::Flow(flow, Side::Tenant) => Some(FlowStats {
                    tenant: *tenant,
                    holder: *holder,
                    tenant_flow: flow.tenant.number,
                    holder_flow: flow.holder.number,
                    to_holder: flow.tenant.forwarded.load(Ordering::Relaxed),
                    to_tenant: flow.holder.forwarded.load(Ordering::Relaxed),
                    open: flow.is_open(),
                }),
                Entry::Flow(..) | Entry::Own(_) | Entry::Loopback(_) => None,
            })
            .collect()
    }

    /// Every reservation, by its holder.
    #[must_use]
    pub fn reservation_stats(&self) -> Vec<ReservationStats> {
        self.clients
            .iter()
            .filter_map(|(peer, client)| {
                let account = &client.reservation.as_ref()?.account;
                Some(ReservationStats {
                    holder: *peer,
                    lease: account.lease(),
                    totals: account.totals(),
                    limit: account.limit(),
                    unpaid: account.is_unpaid(),
                })
            })
            .collect()
    }

    /// Clients that are here, connected or not.
    #[must_use]
    pub fn legs(&self) -> usize {
        self.clients.len()
    }
}
