//! Whether a leg does to packets what it was asked to do.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::Namespace;
use crate::internet::Leg;

/// A rate may be off by this share ..
const RATE_TOLERANCE: f64 = 0.02;
/// .. and a delay by this much.
const DELAY_TOLERANCE: Duration = Duration::from_millis(1);
/// Other programs may disturb a measurement; one of so many must be right ..
const TRIES: u32 = 8;
/// .. with a pause after each that was not, longer each time by this: a compiler beside it has bursts.
const PAUSE: Duration = Duration::from_millis(500);
/// Round trips whose median counts.
const PINGS: usize = 11;
/// A rate is measured for this long.
const BLAST: Duration = Duration::from_millis(400);
/// A link is offered this many times what it carries.
const OFFERED: f64 = 1.3;
/// Packets of a measurement of losses.
const SAMPLES: u32 = 2_000;
/// Chance explains up to so many standard deviations.
const DEVIATIONS: f64 = 4.0;
/// Payload of a packet in a blast, and the headers of Ethernet, IPv4 and UDP.
const PAYLOAD: usize = 1_400;
const HEADERS: usize = 14 + 20 + 8;
/// Opens the way back.
const HELLO: &[u8] = b"hello";
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Measures `leg` against `reference`.
pub(crate) fn leg(leg: &Leg, reference: &Leg) -> Result<()> {
    let delay = leg.link.delay + reference.link.delay;
    let spread = (leg.link.jitter + reference.link.jitter) / 2;
    again(|| delay_is(&Pair::open(leg, reference)?, delay + spread))?;
    for (way, rate) in [(Way::Up, leg.link.up), (Way::Down, leg.link.down)] {
        if rate > 0 {
            again(|| rate_is(&Pair::open(leg, reference)?, way, rate))?;
        }
    }
    if leg.link.loss > 0.0 {
        let passes = (1.0 - leg.link.loss) * (1.0 - reference.link.loss);
        for way in [Way::Up, Way::Down] {
            again(|| loss_is(&Pair::open(leg, reference)?, way, 1.0 - passes))?;
        }
    }
    Ok(())
}

fn again(mut measure: impl FnMut() -> Result<()>) -> Result<()> {
    let mut failure = None;
    for tried in 1..=TRIES {
        match measure() {
            Ok(()) => return Ok(()),
            Err(error) => {
                eprintln!("measuring again: {error:#}");
                failure = Some(error);
                std::thread::sleep(PAUSE * tried);
            }
        }
    }
    Err(failure.context("no try")?)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// A socket at the end of the leg, one at the other end, and the addresses to reach them. The first sent to the
/// second, so that no firewall stands in the way back.
struct Pair {
    edge: (UdpSocket, SocketAddr),
    far: (UdpSocket, SocketAddr),
}

impl Pair {
    fn open(leg: &Leg, reference: &Leg) -> Result<Self> {
        let (edge, far) = (bind(&leg.edge, leg.addr)?, bind(&reference.edge, reference.addr)?);
        // A router draws ports for its own packets too.
        let seen = tests::until("a packet crosses the leg", || {
            edge.send_to(HELLO, far.local_addr().ok()?).ok()?;
            far.recv_from(&mut [0; HELLO.len()]).ok()
        })?;
        let far_addr = far.local_addr()?;
        Ok(Self { edge: (edge, seen.1), far: (far, far_addr) })
    }

    /// Who sends, who receives, and where.
    fn ends(&self, way: Way) -> (&UdpSocket, &UdpSocket, SocketAddr) {
        match way {
            Way::Up => (&self.edge.0, &self.far.0, self.far.1),
            Way::Down => (&self.far.0, &self.edge.0, self.edge.1),
        }
    }
}

fn bind(namespace: &Namespace, addr: Ipv4Addr) -> Result<UdpSocket> {
    let socket = namespace.udp(addr, 0)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(16 << 20);
    Ok(socket)
}

fn delay_is(pair: &Pair, asked: Duration) -> Result<()> {
    let mut trips: Vec<_> = (0..PINGS).filter_map(|n| round_trip(pair, n as u64).ok()).collect();
    trips.sort_unstable();
    let delay = *trips.get(trips.len() / 2).context("no packet came back")? / 2;
    ensure!(delay.abs_diff(asked) <= DELAY_TOLERANCE, "a delay of {delay:?}, asked for {asked:?}");
    Ok(())
}

fn round_trip(pair: &Pair, number: u64) -> Result<Duration> {
    let begin = Instant::now();
    pair.edge.0.send_to(&number.to_be_bytes(), pair.far.1)?;
    expect(&pair.far.0, number)?;
    pair.far.0.send_to(&number.to_be_bytes(), pair.edge.1)?;
    expect(&pair.edge.0, number)?;
    Ok(begin.elapsed())
}

/// Waits for a packet with this number; others are of tries before.
fn expect(socket: &UdpSocket, number: u64) -> Result<()> {
    let mut buffer = [0; 16];
    loop {
        let len = socket.recv(&mut buffer)?;
        if buffer[..len] == number.to_be_bytes() {
            return Ok(());
        }
    }
}

fn rate_is(pair: &Pair, way: Way, asked: u64) -> Result<()> {
    let (from, to, addr) = pair.ends(way);
    let arrivals = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| arrivals(to));
        let sent = blast(from, addr, asked as f64 * OFFERED);
        sent.and(receiver.join().expect("receiving does not panic"))
    })?;
    // What the link passes at once, and what began late, is over by then.
    let counted = &arrivals[arrivals.len() / 4..];
    let [first, .., last] = counted else { bail!("{} packets came", arrivals.len()) };
    let bits = (counted.len() - 1) * (PAYLOAD + HEADERS) * 8;
    let rate = bits as f64 / last.duration_since(*first).as_secs_f64();
    let off = (rate / asked as f64 - 1.0).abs();
    ensure!(off <= RATE_TOLERANCE, "{rate:.0} bit/s {way:?}, asked for {asked}");
    Ok(())
}

fn arrivals(socket: &UdpSocket) -> Result<Vec<Instant>> {
    let (mut arrivals, mut buffer) = (Vec::new(), [0; PAYLOAD]);
    socket.set_read_timeout(Some(PATIENCE))?;
    while let Ok(len) = socket.recv(&mut buffer) {
        if len == PAYLOAD {
            arrivals.push(Instant::now());
            socket.set_read_timeout(Some(PATIENCE / 4))?;
        }
    }
    Ok(arrivals)
}

/// Sends packets at this rate in bits a second.
fn blast(socket: &UdpSocket, to: SocketAddr, rate: f64) -> Result<()> {
    let (begin, mut sent) = (Instant::now(), 0.0);
    loop {
        let elapsed = begin.elapsed();
        if elapsed > BLAST {
            return Ok(());
        }
        if sent < rate * elapsed.as_secs_f64() {
            socket.send_to(&[0; PAYLOAD], to)?;
            sent += ((PAYLOAD + HEADERS) * 8) as f64;
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn loss_is(pair: &Pair, way: Way, asked: f64) -> Result<()> {
    let (from, to, addr) = pair.ends(way);
    let came = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| arrivals(to).map(|a| a.len()));
        let sent = trickle(from, addr);
        sent.and(receiver.join().expect("receiving does not panic"))
    })?;
    let samples = f64::from(SAMPLES);
    let deviation = (samples * asked * (1.0 - asked)).sqrt();
    let lost = samples - came as f64;
    let chance = deviation * DEVIATIONS;
    ensure!((lost - samples * asked).abs() <= chance, "{lost} of {SAMPLES} lost, asked {asked}");
    Ok(())
}

/// Sends so slowly that no queue fills.
fn trickle(socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    for n in 0..SAMPLES {
        socket.send_to(&[0; PAYLOAD], to)?;
        if n % 8 == 7 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}
