//! What `sluice connect` is given: a ticket, or a lease.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use sluice_proto::Ticket;
use sluice_proto::market::{MARKET_MESSAGE_MAX, SignedLease};

use crate::roles::{LeaseError, LeaseState, LeaseUnfit, Leases};

/// What every ticket begins with.
const TICKET: &str = "sluice1";
/// Longest file that is read: the largest lease and two pairs of signatures.
const FILE_MAX: u64 = 2 * MARKET_MESSAGE_MAX as u64;

/// A right to connect.
#[derive(Debug, Clone)]
pub(crate) enum Right {
    /// The provider says the terms.
    Ticket(Ticket),
    /// Both signed them.
    Lease(Arc<SignedLease>),
}

impl Right {
    /// Reads `text`: a ticket, the beginning of the id of a lease that is kept in the state directory
    /// `dir`, or a lease's file. Nothing is made or changed.
    ///
    /// # Errors
    /// When it is none of them, or its time is over.
    pub(crate) fn find(text: &str, dir: &Path, now_unix_s: u64) -> Result<Self> {
        let text = text.trim();
        if text.starts_with(TICKET) {
            return Ok(Self::Ticket(Ticket::decode(text, now_unix_s)?));
        }
        let leases = Leases::open(dir)?;
        match leases.find(text) {
            Ok(lease) => {
                if let Some(LeaseState::Ended(_)) = leases.state(lease.lease().lease, now_unix_s) {
                    bail!(LeaseUnfit::Ended);
                }
                Ok(Self::Lease(lease))
            }
            Err(LeaseError::NotAnId(_)) if !Path::new(text).is_file() => bail!(
                "{text:?} is not a ticket, which begins with {TICKET:?}, nor the id of a lease \
                 (`sluice leases` shows them), nor a file"
            ),
            Err(error) if !Path::new(text).is_file() => Err(error.into()),
            Err(_) => {
                let lease =
                    read(Path::new(text)).with_context(|| format!("{text} holds no lease"))?;
                Ok(Self::Lease(Arc::new(lease)))
            }
        }
    }
}

fn read(path: &Path) -> Result<SignedLease> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(SignedLease::open(&Bytes::from(bytes))?)
}
