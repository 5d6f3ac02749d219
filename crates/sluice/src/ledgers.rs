//! Which ledger a role uses: a file in its state directory, or for relays the server of their fleet.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_ledger::{Ledger, Server, ServerMark};
use sluice_transport::Clock;

use crate::config::Config;
use crate::state::{State, StateError};

/// The role whose ledger may be on a server.
const FLEET_ROLE: &str = "relay";
/// Where PostgreSQL's own programs look for a password.
const PASSWORD: &str = "PGPASSWORD";

/// How often a relay writes down where its fleet's server stands: what is brought back from an older
/// backup than that is noticed.
const REMEMBER: Duration = Duration::from_secs(60);

/// Opens the ledger of a role, to write it; a relay joins its fleet under its peer id. A recovery begins
/// when the fleet's server is not as it was left.
pub(crate) async fn open(config: &Config, role: Option<&str>, state: &mut State) -> Result<Ledger> {
    let Some(server) = server(config, role)? else {
        return Ok(Ledger::open(&state.ledger_path())?);
    };
    let ledger = Ledger::connect(&server, &state.peer().to_string()).await?;
    let Some(now) = stand(&ledger).await else { return Ok(ledger) };
    let before = state.server()?.as_deref().map(ServerMark::parse);
    // What cannot be read says nothing of what it was.
    let why = before.and_then(|before| match before {
        Some(before) => now.differs(&before),
        None => Some("nothing tells where the ledger's server stood when it was used last"),
    });
    if let Some(why) = why {
        state.doubt(why)?;
    }
    State::remember_server(state.dir(), &now.to_string())?;
    Ok(ledger)
}

async fn stand(ledger: &Ledger) -> Option<ServerMark> {
    ledger.server_mark().await.unwrap_or_else(|error| {
        tracing::warn!("a server that is brought back from a backup will not be noticed: {error}");
        None
    })
}

/// Goes on writing down where the ledger's server stands.
pub(crate) async fn keep_stand(ledger: Ledger, dir: PathBuf) {
    let clock = Clock::default();
    loop {
        clock.sleep(REMEMBER).await;
        // One that is away now is asked again.
        let Ok(now) = ledger.server_mark().await else { continue };
        let Some(now) = now else { return };
        if let Err(error) = State::remember_server(&dir, &now.to_string()) {
            tracing::warn!("{error}");
        }
    }
}

/// Opens the ledger of a directory to be read beside a running role.
pub(crate) async fn read(config: &Config, role: Option<&str>, dir: &Path) -> Result<Ledger> {
    if let Some(server) = server(config, role)? {
        return Ok(Ledger::connect_read_only(&server).await?);
    }
    let path = State::ledger_in(dir);
    if !path.exists() {
        return Err(StateError::NoLedger { dir: dir.to_owned() }.into());
    }
    Ok(Ledger::open_read_only(&path)?)
}

/// Whether it is on a server. Where no role is named, one that is configured is meant.
pub(crate) fn is_on_server(config: &Config, role: Option<&str>) -> bool {
    config.relay.ledger.is_some() && role.is_none_or(|role| role == FLEET_ROLE)
}

fn server(config: &Config, role: Option<&str>) -> Result<Option<Server>> {
    let Some(server) = config.relay.ledger.clone().filter(|_| is_on_server(config, role)) else {
        return Ok(None);
    };
    if let Some(path) = &config.relay.ledger_password_file {
        let password = State::first_line(path).context("relay.ledger_password_file")?;
        return Ok(Some(server.with_password(&password)));
    }
    Ok(Some(match std::env::var(PASSWORD) {
        Ok(password) if !server.has_password() => server.with_password(&password),
        Ok(_) | Err(_) => server,
    }))
}
