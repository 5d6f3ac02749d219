//! The provider's side: streams of a session become TCP connections to its own services.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use sluice_proto::ServiceName;
use sluice_proto::wire::{self, code, session::OpenService};
use sluice_transport::Clock;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::account::Account;
use crate::pump::{self, Ended, Pumped};

/// Longest preamble: a name of 32 bytes, with room for fields to come.
const PREAMBLE_MAX: usize = 128;
/// Time that a tenant has to say which service it wants, and that a service has to accept.
const OPEN_WAIT: Duration = Duration::from_secs(5);

/// The sockets that a provider declared, by name. Nothing else is ever dialled.
#[derive(Debug, Clone, Default)]
pub struct Services(BTreeMap<ServiceName, SocketAddr>);

impl Services {
    /// Declares one more; the address that had the name before, if any.
    pub fn insert(&mut self, name: ServiceName, addr: SocketAddr) -> Option<SocketAddr> {
        self.0.insert(name, addr)
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.0.keys()
    }

    /// Those of them that have one of these names.
    #[must_use]
    pub fn only(&self, names: &[ServiceName]) -> Self {
        let named = self.0.iter().filter(|(name, _)| names.contains(name));
        named.map(|(name, addr)| (name.clone(), *addr)).collect()
    }

    fn find(&self, name: &str) -> Option<(&ServiceName, SocketAddr)> {
        let name = ServiceName::parse(name).ok()?;
        self.0.get_key_value(&name).map(|(name, addr)| (name, *addr))
    }
}

impl FromIterator<(ServiceName, SocketAddr)> for Services {
    fn from_iter<T: IntoIterator<Item = (ServiceName, SocketAddr)>>(iter: T) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// Serves each stream that the tenant opens, until the session ends; then all its connections are
/// reset. The session's control stream must have been accepted before.
pub async fn serve(
    connection: Connection,
    services: Arc<Services>,
    account: Account,
) -> ConnectionError {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let (connection, services) = (connection.clone(), Arc::clone(&services));
                    let account = account.clone();
                    streams.spawn(async move {
                        let served = serve_stream(&connection, &services, &account, send, recv);
                        if let Err(error) = served.await {
                            tracing::debug!("a stream ended: {error}");
                        }
                    });
                }
                Err(error) => {
                    // The streams notice by themselves, and reset their connections.
                    while streams.join_next().await.is_some() {}
                    return error;
                }
            },
            Some(_) = streams.join_next() => {}
        }
    }
}

/// Why a stream was not served to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The tenant did not say which service it wants, in time or at all.
    #[error("the stream did not begin with the name of a service")]
    Preamble,
    /// The service was not declared.
    #[error("no service {0:?} was declared")]
    NoSuchService(String),
    /// The service's socket refused, or did not accept in time.
    #[error("service {name} at {addr} cannot be reached: {reason}")]
    Refused {
        /// Its name.
        name: ServiceName,
        /// Its socket.
        addr: SocketAddr,
        /// What the system said.
        reason: String,
    },
    /// It was connected, and ended other than by both sides closing it.
    #[error(transparent)]
    Ended(#[from] Ended),
}

impl OpenError {
    /// The code that the stream is reset with.
    const fn code(&self) -> u32 {
        match self {
            Self::Preamble => code::PROTOCOL,
            Self::NoSuchService(_) => code::NO_SUCH_SERVICE,
            Self::Refused { .. } => code::SERVICE_REFUSED,
            Self::Ended(_) => code::RESET,
        }
    }
}

/// Serves one stream: reads which service it is for, connects to that, and carries bytes until both
/// sides closed or either broke.
///
/// # Errors
/// How it ended, when not by both sides closing it. The stream was then reset with the code for the
/// reason, so that the tenant can tell.
pub async fn serve_stream(
    connection: &Connection,
    services: &Services,
    account: &Account,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<Pumped, OpenError> {
    let tcp = match open(services, account.clock(), &mut recv).await {
        Ok(tcp) => tcp,
        Err(error) => {
            pump::abort(&mut send, &mut recv, error.code());
            return Err(error);
        }
    };
    let (pumped, result) = pump::carry(tcp, connection, account, (send, recv), None).await;
    result?;
    Ok(pumped)
}

async fn open(
    services: &Services,
    clock: &Clock,
    recv: &mut RecvStream,
) -> Result<TcpStream, OpenError> {
    let preamble = clock.timeout(OPEN_WAIT, read_preamble(recv)).await.ok().flatten();
    let preamble = preamble.ok_or(OpenError::Preamble)?;
    let Some((name, addr)) = services.find(&preamble.service) else {
        return Err(OpenError::NoSuchService(wire::display_text(&preamble.service)));
    };
    let reason = match clock.timeout(OPEN_WAIT, TcpStream::connect(addr)).await {
        Ok(Ok(tcp)) => {
            // Without it small messages wait for acknowledgements; nothing else is lost.
            let _ = tcp.set_nodelay(true);
            return Ok(tcp);
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it did not accept in time".to_owned(),
    };
    Err(OpenError::Refused { name: name.clone(), addr, reason })
}

async fn read_preamble(recv: &mut RecvStream) -> Option<OpenService> {
    let mut len = [0; 2];
    recv.read_exact(&mut len).await.ok()?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > PREAMBLE_MAX {
        return None;
    }
    let mut message = vec![0; len];
    recv.read_exact(&mut message).await.ok()?;
    wire::decode(Bytes::from(message), PREAMBLE_MAX).ok()
}
