//! A relay, a provider of an echo and a tenant, and commands beside them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{Echo, Lab, PATIENCE, Process, Provider, RelayRole, Tenant};

#[derive(Debug)]
/// A relay, a provider of an echo and a tenant, who meet on the relay alone.
pub struct Three {
    /// The relay.
    pub relay: RelayRole,
    /// The provider of the service `echo`.
    pub provider: Provider,
    /// The tenant.
    pub tenant: Tenant,
    _echo: Echo,
}

impl Three {
    /// Bytes that [`Self::talk`] sends before it reads them.
    pub const CHUNK: usize = 32 * 1024;

    /// Starts them.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(lab: &Lab) -> Result<Self> {
        let echo = Echo::start()?;
        let relay = lab.relay()?;
        let provider = lab.provide(&relay, &[("echo", echo.addr())], "never")?;
        let tenant = lab.connect(&provider.ticket, &["echo"], "never")?;
        Ok(Self { relay, provider, tenant, _echo: echo })
    }

    /// Sends so many bytes, in whole [chunks](Self::CHUNK), and gets them back.
    ///
    /// # Errors
    /// When they do not come.
    pub fn talk(&self, bytes: usize) -> Result<()> {
        let mut tcp = TcpStream::connect(self.tenant.port("echo"))?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let (sent, mut back) = (vec![0xA5; Self::CHUNK], vec![0; Self::CHUNK]);
        for _ in 0..bytes.div_ceil(Self::CHUNK) {
            tcp.write_all(&sent)?;
            tcp.read_exact(&mut back).context("no echo")?;
        }
        Ok(())
    }

    /// Stops them, the tenant first.
    ///
    /// # Errors
    /// When one does not end well.
    pub fn stop(mut self) -> Result<Self> {
        self.tenant.process.stop()?;
        self.provider.process.stop()?;
        self.relay.process.stop()?;
        Ok(self)
    }
}

/// Runs a command to its end, which must be a good one.
///
/// # Errors
/// When it is not.
pub fn done(lab: &Lab, state: &str, args: &[&str]) -> Result<Process> {
    let mut process = lab.run(state, args)?;
    let status = process.wait()?;
    ensure!(status.success(), "sluice {} failed{}", args.join(" "), process.story());
    Ok(process)
}

/// The last event of a kind.
///
/// # Errors
/// When there is none.
pub fn last(process: &Process, kind: &str) -> Result<Value> {
    process.events(kind).pop().with_context(|| format!("no {kind}{}", process.story()))
}

/// An amount in an event.
///
/// # Errors
/// When there is none of that name.
pub fn amount(event: &Value, key: &str) -> Result<u128> {
    let text = event[key].as_str().with_context(|| format!("{key} in {event}"))?;
    Ok(text.parse()?)
}
