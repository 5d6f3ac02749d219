//! Which ledger a role uses: a file in its state directory, or for relays the server of their fleet.

use std::path::Path;

use anyhow::{Context, Result};
use sluice_ledger::{Ledger, Server};

use crate::config::Config;
use crate::state::{State, StateError};

/// The role whose ledger may be on a server.
const FLEET_ROLE: &str = "relay";
/// Where PostgreSQL's own programs look for a password.
const PASSWORD: &str = "PGPASSWORD";

/// Opens the ledger of a role, to write it; a relay joins its fleet under its peer id.
pub(crate) async fn open(config: &Config, role: Option<&str>, state: &State) -> Result<Ledger> {
    match server(config, role)? {
        Some(server) => Ok(Ledger::connect(&server, &state.peer().to_string()).await?),
        None => Ok(Ledger::open(&state.ledger_path())?),
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
