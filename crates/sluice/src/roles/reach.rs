//! The way to a provider: through whichever of its relays leads there first.

use std::time::Duration;

use anyhow::{Result, bail};
use sluice_proto::Ticket;
use sluice_proto::wire::code;
use sluice_transport::{ConnectError, Node, RelayLink, Session};
use tokio::task::{JoinError, JoinSet};

use super::edge::Superseded;

/// Another relay is tried beside one that has not led to the provider within this ..
const LATE: Duration = Duration::from_millis(1500);
/// .. or is not connected itself within this.
const LATE_LINK: Duration = Duration::from_millis(300);

/// Opens a session to the ticket's provider: knocks at the best relay, and at the next one whenever the
/// last is late or fails.
///
/// # Errors
/// [`Superseded`] when a relay serves another process with this node's keys; else what each relay said.
pub(crate) async fn reach(
    node: &Node,
    ticket: &Ticket,
    mut links: Vec<RelayLink>,
) -> Result<Session> {
    links.sort_by_key(|link| (!link.is_up(), !link.forwards(), link.rtt()));
    let all = links.clone();
    let mut links = links.into_iter();
    let mut attempts = JoinSet::new();
    let mut failures = Vec::new();
    loop {
        let next = links.next();
        if next.is_none() && attempts.is_empty() {
            break;
        }
        if let Some(link) = next.clone() {
            let (node, ticket) = (node.clone(), ticket.clone());
            attempts.spawn(async move { node.connect(&ticket, &link).await });
        }
        let Some(done) = next_done(node, &mut attempts, next).await else { continue };
        match done {
            Some(Ok(Ok(session))) => {
                close_late(attempts).await;
                return Ok(session);
            }
            Some(Ok(Err(error))) => failures.push(error.to_string()),
            Some(Err(error)) => failures.push(error.to_string()),
            None => {}
        }
    }
    if let Some(link) = all.iter().find(|link| link.is_superseded()) {
        bail!(Superseded { by: link.relay().peer });
    }
    bail!("failed to reach the provider: {}", failures.join("; "))
}

/// The next attempt that is over; `None` once the last one, through `link`, is late.
async fn next_done(
    node: &Node,
    attempts: &mut JoinSet<Result<Session, ConnectError>>,
    link: Option<RelayLink>,
) -> Option<Option<Result<Result<Session, ConnectError>, JoinError>>> {
    let Some(link) = link else { return Some(attempts.join_next().await) };
    if let Ok(done) = node.clock().timeout(LATE_LINK, attempts.join_next()).await {
        return Some(done);
    }
    if !link.is_up() {
        return None;
    }
    node.clock().timeout(LATE, attempts.join_next()).await.ok()
}

/// Ends what is no longer wanted, and the sessions that came of it meanwhile.
async fn close_late(mut attempts: JoinSet<Result<Session, ConnectError>>) {
    attempts.abort_all();
    while let Some(done) = attempts.join_next().await {
        if let Ok(Ok(session)) = done {
            session.close(code::OK, "another relay was faster");
        }
    }
}
