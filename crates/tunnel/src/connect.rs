//! The tenant's side: local TCP connections become streams of a session.

use std::io;
use std::time::Duration;

use quinn::Connection;
use sluice_proto::ServiceName;
use sluice_proto::wire::{self, session::OpenService};
use sluice_transport::Clock;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::account::Account;
use crate::pump::{self, Ended, Pumped};
use crate::tcp;

/// How long a new connection waits for a session that is not up, before it is reset.
const SESSION_WAIT: Duration = Duration::from_secs(10);
/// Pause after the system refused to accept (usually: too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A session to forward through.
#[derive(Debug, Clone)]
pub struct Link {
    /// Its connection.
    pub connection: Connection,
    /// Its account.
    pub account: Account,
}

/// Why a connection was not forwarded to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// No session was up in time.
    #[error("no session to the provider is up")]
    NoSession,
    /// It ended, other than by both sides closing it.
    #[error(transparent)]
    Ended(#[from] Ended),
}

/// Accepts local connections and forwards each to `service`, through whatever session `link` holds
/// when it comes. Connections that come while none is up wait for it up to 10 s.
///
/// Ends only when `link`'s sender is dropped.
pub async fn listen(
    listener: TcpListener,
    service: ServiceName,
    clock: Clock,
    mut link: watch::Receiver<Option<Link>>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => {
                    let (service, link, clock) = (service.clone(), link.clone(), clock.clone());
                    connections.spawn(async move {
                        if let Err(error) = accept(tcp, &service, &clock, link).await {
                            tracing::debug!("connection from {from} to {service}: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("a local connection could not be accepted: {error}");
                    clock.sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = closed(&mut link) => return,
        }
    }
}

async fn closed(link: &mut watch::Receiver<Option<Link>>) {
    while link.changed().await.is_ok() {}
}

async fn accept(
    tcp: TcpStream,
    service: &ServiceName,
    clock: &Clock,
    mut link: watch::Receiver<Option<Link>>,
) -> Result<Pumped, ForwardError> {
    let up = clock.timeout(SESSION_WAIT, link.wait_for(Option::is_some)).await;
    let Some(link) = up.ok().and_then(Result::ok).and_then(|link| link.clone()) else {
        tcp::reset(tcp);
        return Err(ForwardError::NoSession);
    };
    forward(tcp, service, &link).await
}

/// Forwards one local connection to `service`: opens a stream at once, sends the preamble together
/// with what the program has sent by now, and carries bytes until both sides closed or either broke.
///
/// # Errors
/// How the connection ended, when not by both sides closing it. The local connection was then reset.
pub async fn forward(
    tcp: TcpStream,
    service: &ServiceName,
    link: &Link,
) -> Result<Pumped, ForwardError> {
    let _: io::Result<()> = tcp.set_nodelay(true);
    let streams = match link.connection.open_bi().await {
        Ok(streams) => streams,
        Err(error) => {
            tcp::reset(tcp);
            return Err(Ended::Session(error).into());
        }
    };
    let preamble = wire::prefixed(&OpenService { service: service.as_str().to_owned() });
    let (pumped, result) =
        pump::carry(tcp, &link.connection, &link.account, streams, Some(preamble)).await;
    result.map_err(ForwardError::from)?;
    Ok(pumped)
}
