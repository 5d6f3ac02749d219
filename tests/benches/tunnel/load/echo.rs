//! Latencies as the tenant sees them: of a warm connection, and of a new one.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{ASK_ECHO, ECHO_BYTES};

/// Rounds before those that count: caches, congestion windows and branch predictors settle.
const WARM_UP: usize = 20;

/// How long one echo may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The middle and the tail of some durations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl fmt::Display for Quantiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quantiles {} {}", self.p50.as_nanos(), self.p99.as_nanos())
    }
}

impl FromStr for Quantiles {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        ensure!(words.next() == Some("quantiles"), "not quantiles: {line}");
        let mut nanos =
            || words.next().context("a quantile is missing")?.parse().context("no number");
        Ok(Self { p50: Duration::from_nanos(nanos()?), p99: Duration::from_nanos(nanos()?) })
    }
}

pub(super) fn echo(entry: SocketAddr, times: usize) -> Result<()> {
    let mut connection = open(entry)?;
    measure(times, || round_trip(&mut connection))
}

pub(super) fn dial(entry: SocketAddr, times: usize) -> Result<()> {
    measure(times, || round_trip(&mut open(entry)?))
}

pub(super) fn probe(entry: SocketAddr) -> Result<()> {
    let end = Instant::now() + crate::START;
    loop {
        match open(entry).and_then(|mut connection| round_trip(&mut connection)) {
            Ok(()) => break,
            Err(error) if Instant::now() > end => return Err(error.context("no echo came back")),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    println!("ready");
    Ok(())
}

fn measure(times: usize, mut what: impl FnMut() -> Result<()>) -> Result<()> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times + WARM_UP {
        let start = Instant::now();
        what()?;
        took.push(start.elapsed());
    }
    took.drain(..WARM_UP);
    took.sort_unstable();
    let at = |percent: usize| took.get(took.len() * percent / 100).context("no round at all");
    println!("{}", Quantiles { p50: *at(50)?, p99: *at(99)? });
    Ok(())
}

fn open(entry: SocketAddr) -> Result<TcpStream> {
    let connection = TcpStream::connect_timeout(&entry, PATIENCE).context("failed to dial")?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

fn round_trip(connection: &mut TcpStream) -> Result<()> {
    let (sent, mut back) = ([ASK_ECHO; ECHO_BYTES], [0; ECHO_BYTES]);
    connection.write_all(&sent).context("failed to send an echo")?;
    connection.read_exact(&mut back).context("an echo did not come back")?;
    ensure!(back == sent, "an echo came back changed");
    Ok(())
}
