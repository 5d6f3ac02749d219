//! The load at both outer ends, in child processes of the benchmark: this program itself, started
//! again with a hidden subcommand in the tenant's or the provider's namespace.
//!
//! One service answers everything, and tells by the first byte what is wanted of it: `G` (of `GET`)
//! an HTTP server, `E` an echo, `B` bytes without end. So each tunnel carries one port.
//!
//! A child writes lines to its output and reads lines from its input; it ends when its input does.

mod bulk;
mod echo;
mod http;
mod serve;

use std::io::BufRead as _;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};

use crate::idle;
use crate::netns::{Lab, Place};
use crate::process::Process;

pub(crate) use echo::Quantiles;

/// Bytes of one echo.
const ECHO_BYTES: usize = 64;

/// The byte that asks the service for an echo, and the first of those echoed.
const ASK_ECHO: u8 = b'E';

/// The byte that asks the service for bytes without end.
const ASK_BULK: u8 = b'B';

/// Bytes written or read at once in bulk.
const BULK_BYTES: usize = 256 * 1024;

/// What a child does.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Child {
    /// The service. Prints `ready <address>`.
    #[command(hide = true)]
    Serve { bind: SocketAddr },
    /// Prints `free <address>`: an address of this host with a port that nobody uses.
    #[command(hide = true)]
    FreePort { ip: IpAddr },
    /// Makes and holds so many reservations at a relay. Prints `ready`.
    #[command(hide = true)]
    Reserve { relay: String, count: usize },
    /// Dials until one echo comes back. Prints `ready`.
    #[command(hide = true)]
    Probe { entry: SocketAddr },
    /// Reads bytes on so many connections. Prints `flowing`, then `count <bytes>` for each line read.
    #[command(hide = true)]
    Bulk { entry: SocketAddr, connections: usize },
    /// Requests on so many connections. Prints `flowing`, then `count <responses>` for each line read.
    #[command(hide = true)]
    Http { entry: SocketAddr, connections: usize },
    /// Echoes so often on one connection. Prints [`Quantiles`].
    #[command(hide = true)]
    Echo { entry: SocketAddr, times: usize },
    /// Dials and echoes once, so often. Prints [`Quantiles`].
    #[command(hide = true)]
    Dial { entry: SocketAddr, times: usize },
}

/// Starts this program at `place` with the arguments of a [`Child`].
///
/// # Errors
///
/// If it can't be started.
pub(crate) fn spawn(lab: &Lab, place: Place, args: &[&str]) -> Result<Process> {
    let program = std::env::current_exe().context("failed to find this program's own file")?;
    let name = format!("the load ({})", args.first().copied().unwrap_or_default());
    Process::spawn(name, lab.command(place, program).args(args))
}

/// Is a child: does what it says until standard input ends.
///
/// # Errors
///
/// If the load can't be made.
pub(crate) fn run(child: Child) -> Result<()> {
    match child {
        Child::Serve { bind } => serve::run(bind),
        Child::FreePort { ip } => {
            let listener = TcpListener::bind((ip, 0)).context("no free port")?;
            println!("free {}", listener.local_addr()?);
            Ok(())
        }
        Child::Reserve { relay, count } => idle::hold(&relay, count),
        Child::Probe { entry } => echo::probe(entry),
        Child::Bulk { entry, connections } => bulk::run(entry, connections),
        Child::Http { entry, connections } => http::run(entry, connections),
        Child::Echo { entry, times } => echo::echo(entry, times),
        Child::Dial { entry, times } => echo::dial(entry, times),
    }
}

/// Tells `counter` whenever a line comes in, until there are no more.
fn tell_counts(counter: &AtomicU64) {
    for _line in std::io::stdin().lock().lines().map_while(Result::ok) {
        println!("count {}", counter.load(Ordering::Relaxed));
    }
}

/// Waits until the benchmark wants no more of this child.
pub(crate) fn wait_for_end() {
    std::io::stdin().lock().lines().map_while(Result::ok).for_each(drop);
}

/// Ends this child with a message: a load that lost a connection measures nothing.
fn give_up(error: &anyhow::Error) -> ! {
    eprintln!("{error:#}");
    std::process::exit(1)
}
