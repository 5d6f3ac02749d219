//! Where the server is, from its URL.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

/// How long a member that does not write keeps what it has: some missed renewals, and a server that is
/// started anew, are no reason to overtake it.
pub const HOLD_DEFAULT: Duration = Duration::from_secs(10);
/// Bounds of the hold time.
const HOLD_MIN: Duration = Duration::from_millis(500);
const HOLD_MAX: Duration = Duration::from_secs(3600);
/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Data that is not acknowledged for so long was sent to nobody.
const UNANSWERED_MAX: Duration = Duration::from_secs(10);
const PORT_DEFAULT: u16 = 5432;

/// A PostgreSQL server and the database on it, with the user and the password, which are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    config: tokio_postgres::Config,
    shown: String,
    hold: Duration,
}

/// Why a URL names no server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// It is not a URL of PostgreSQL's.
    #[error(
        "it is not the URL of a PostgreSQL server: write one such as \
         \"postgres://user@192.0.2.1:5432/sluice\", with %XX for special characters"
    )]
    Url,
    /// It names no user, no host or no database.
    #[error(
        "the URL names no {0}: write it whole, such as \"postgres://user@192.0.2.1:5432/sluice\""
    )]
    Missing(&'static str),
    /// It names several servers.
    #[error("the URL names several servers: write the one that is written to")]
    Several,
    /// The way there would show vouchers and password to others.
    #[error(
        "the way to the server is not encrypted: use one on this machine or a tunnel to it, or, on a \
         network that nobody else reads, add ?sslmode=disable"
    )]
    Open,
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(url: &str) -> Result<Self, ServerError> {
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(ServerError::Url);
        }
        // What it says of the error may repeat a part of the password.
        let mut config: tokio_postgres::Config = url.parse().map_err(|_| ServerError::Url)?;
        if config.get_user().is_none_or(str::is_empty) {
            return Err(ServerError::Missing("user"));
        }
        let database = config.get_dbname().filter(|name| !name.is_empty());
        let database = database.ok_or(ServerError::Missing("database"))?.to_owned();
        let host = match config.get_hosts() {
            [] => return Err(ServerError::Missing("host")),
            [host] => host.clone(),
            [..] => return Err(ServerError::Several),
        };
        let port = config.get_ports().first().copied().unwrap_or(PORT_DEFAULT);
        let (shown, is_near) = match &host {
            Host::Tcp(name) => (format!("postgres://{name}:{port}/{database}"), is_loopback(name)),
            Host::Unix(path) => (format!("postgres://{}:{port}/{database}", path.display()), true),
        };
        if !is_near && config.get_ssl_mode() != SslMode::Disable {
            return Err(ServerError::Open);
        }
        config
            .connect_timeout(CONNECT_MAX)
            .tcp_user_timeout(UNANSWERED_MAX)
            .keepalives_idle(UNANSWERED_MAX)
            // What was replicated may lag behind.
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .application_name("sluice");
        Ok(Self { config, shown, hold: HOLD_DEFAULT })
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

impl Server {
    /// The same with a password, in place of one in the URL.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        self.config.password(password);
        self
    }

    /// Whether it has a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }

    /// The same with another hold time: how long a member that does not write keeps what it has, by
    /// the server's clock; from half a second to an hour. All members should agree.
    #[must_use]
    pub fn with_hold(mut self, hold: Duration) -> Self {
        self.hold = hold.clamp(HOLD_MIN, HOLD_MAX);
        self
    }

    pub(crate) const fn hold(&self) -> Duration {
        self.hold
    }

    pub(super) fn hold_ms(&self) -> i64 {
        i64::try_from(self.hold.as_millis()).unwrap_or(i64::MAX)
    }

    pub(super) const fn config(&self) -> &tokio_postgres::Config {
        &self.config
    }
}

/// Without user and password.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_one_server_and_never_shows_its_password() {
        let server: Server = "postgres://u:s3cret@127.0.0.1:6543/fleet".parse().expect("is one");
        assert_eq!(server.to_string(), "postgres://127.0.0.1:6543/fleet");
        assert!(server.has_password());
        let server = server.with_password("0ther");
        assert!(!format!("{server:?} {server}").contains("s3cret"));
        assert!(!format!("{server:?} {server}").contains("0ther"));
        let odd: Server = "postgres://u:s3c?ret@127.0.0.1/db".parse().expect("is one");
        assert_eq!(format!("{odd:?} {odd}").matches("ret").count(), 0);
        let socket: Server = "postgresql://u@%2Frun%2Fpg/fleet".parse().expect("is one");
        assert_eq!(socket.to_string(), "postgres:///run/pg:5432/fleet");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_repeating_it() {
        for (url, wrong) in [
            ("mysql://u:s3cret@h/db", ServerError::Url),
            ("host=127.0.0.1 password=s3cret", ServerError::Url),
            ("postgres://u%ff:s3cret@127.0.0.1/db", ServerError::Url),
            ("postgres://u:s3cret@127.0.0.1:99999/db", ServerError::Url),
            ("postgres://127.0.0.1/db", ServerError::Missing("user")),
            ("postgres://u:s3cret@127.0.0.1", ServerError::Missing("database")),
            ("postgres:///db?user=u", ServerError::Missing("host")),
            ("postgres://u:s3cret@127.0.0.1,127.0.0.2/db", ServerError::Several),
            ("postgres://u:s3cret@192.0.2.1/db", ServerError::Open),
            ("postgres://u:s3cret@db.example/db?sslmode=require", ServerError::Open),
        ] {
            let error = url.parse::<Server>().expect_err(url);
            assert_eq!(error, wrong, "{url}");
            assert!(!error.to_string().contains("s3c"), "{error}");
        }
        "postgres://u@192.0.2.1/db?sslmode=disable".parse::<Server>().expect("is asked for");
    }
}
