//! What waits inside the kernel's TCP sockets.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result};

/// A listening socket's queues count connections.
const LISTENS: &str = "0A";

/// Bytes that wait between the sockets of a listener and their other ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Written by the listener's side and not read yet.
    pub(crate) from: u64,
    /// Written towards the listener's side and not read by it yet.
    pub(crate) to: u64,
}

/// Adds up the queues of all connections of the listener at `listener`, as `/proc/net/tcp` has them.
pub(crate) fn waiting(listener: SocketAddr) -> Result<Waiting> {
    let table = std::fs::read_to_string("/proc/net/tcp")?;
    let mut waiting = Waiting::default();
    for row in table.lines().skip(1) {
        let fields: Vec<_> = row.split_whitespace().collect();
        let [_, local, remote, state, queues, ..] = fields[..] else { continue };
        if state == LISTENS {
            continue;
        }
        let (sent, received) = queues.split_once(':').context("a row without queues")?;
        let [sent, received] = [sent, received].map(|hex| u64::from_str_radix(hex, 16));
        if address(local) == Some(listener) {
            waiting.from += sent?;
            waiting.to += received?;
        } else if address(remote) == Some(listener) {
            waiting.to += sent?;
            waiting.from += received?;
        }
    }
    Ok(waiting)
}

/// `0100007F:1F90` is 127.0.0.1:8080 on a little-endian machine.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).ok()?.to_ne_bytes());
    Some((ip, u16::from_str_radix(port, 16).ok()?).into())
}
