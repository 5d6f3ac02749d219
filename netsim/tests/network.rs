//! The simulated network itself: links, queues and NATs are as they are asked to be.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use netsim::nat::{Allocator, Dependence, NatSpec};
use netsim::net::{Bursty, LinkSpec, Net, Packet, PlaceId, Queueing, Seen, Taken};
use netsim::rng::Rng;
use netsim::time;
use parking_lot::Mutex;
use quinn::AsyncUdpSocket;
use quinn_udp::Transmit;
use sluice_transport::Network;

const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
const THREE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 3));
const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 2));

type Log = Arc<Mutex<Vec<(Duration, PlaceId, Packet)>>>;

/// Everything that is delivered from now on.
fn deliveries(net: &Net) -> Log {
    let log = Log::default();
    let writing = log.clone();
    net.watch(Box::new(move |at, host, seen, packet| {
        if seen == Seen::Delivered {
            writing.lock().push((at, host, packet.clone()));
        }
    }));
    log
}

fn bind(net: &Net, host: PlaceId, port: u16) -> Arc<dyn AsyncUdpSocket> {
    let Network::Other(fabric) = net.network(host) else { panic!("not the simulated network") };
    fabric.bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).expect("a free port")
}

fn send(socket: &Arc<dyn AsyncUdpSocket>, to: SocketAddr, len: usize) {
    let contents = vec![0; len];
    let transmit = Transmit {
        destination: to,
        ecn: None,
        contents: &contents,
        segment_size: None,
        src_ip: None,
    };
    socket.try_send(&transmit).expect("it never blocks");
}

/// Sends `count` packets of 1,000 bytes at once over a link; when they arrived.
fn burst(link: LinkSpec, count: usize) -> Vec<Duration> {
    time::run(async |clock| {
        let net = Net::new(clock.clone(), Rng::new(1));
        let from = net.add_host(net.core(), &[ONE], link, LinkSpec::default());
        let to = net.add_host(net.core(), &[TWO], LinkSpec::default(), LinkSpec::default());
        let log = deliveries(&net);
        let (socket, _other) = (bind(&net, from, 1000), bind(&net, to, 2000));
        for _ in 0..count {
            send(&socket, SocketAddr::new(TWO, 2000), 1000);
        }
        clock.sleep(Duration::from_secs(60)).await;
        let log = log.lock();
        log.iter().map(|(at, ..)| *at).collect()
    })
}

#[test]
fn a_link_delays_and_serializes_as_asked() {
    let link =
        LinkSpec { rate: Some(8_000_000), delay: Duration::from_millis(10), ..LinkSpec::default() };
    let arrived = burst(link, 3);
    // 1,028 bytes on the wire take 1.028 ms at 8 Mbit/s.
    let expected = [11_028, 12_056, 13_084].map(Duration::from_micros);
    assert_eq!(arrived, expected);
}

#[test]
fn a_fifo_holds_as_many_bytes_as_asked_and_drops_the_rest() {
    let queue = Queueing::Fifo(10 * 1028);
    let link = LinkSpec { rate: Some(8_000_000), queue, ..LinkSpec::default() };
    // One is on the wire, ten wait.
    assert_eq!(burst(link, 100).len(), 11);
}

#[test]
fn loss_is_as_frequent_as_asked() {
    let link = LinkSpec { loss: 0.1, ..LinkSpec::default() };
    let arrived = burst(link, 10_000).len();
    assert!((8_900..=9_100).contains(&arrived), "{arrived} of 10,000 came through 10 % loss");
    let bursts = Bursty { begins: 0.01, ends: 0.1, loss: 1.0 };
    let link = LinkSpec { bursts: Some(bursts), ..LinkSpec::default() };
    let arrived = burst(link, 10_000).len();
    // In bursts for begins / (begins + ends) of the time: one packet in eleven.
    assert!((8_800..=9_400).contains(&arrived), "{arrived} of 10,000 came through bursts");
}

#[test]
fn duplicates_are_as_frequent_as_asked_and_late_packets_are_overtaken() {
    let link = LinkSpec { duplicates: 0.1, ..LinkSpec::default() };
    let arrived = burst(link, 10_000).len();
    assert!((10_900..=11_100).contains(&arrived), "{arrived} came of 10,000 with 10 % twice");
    let link = LinkSpec { reorders: 0.1, ..LinkSpec::default() };
    let arrived = burst(link, 10_000);
    assert_eq!(arrived.len(), 10_000, "none is lost");
    let late = arrived.iter().filter(|at| **at > Duration::from_millis(1)).count();
    assert!((700..=1_100).contains(&late), "{late} of 10,000 came late: in 0 to 10 ms");
}

/// Keeps a link of 8 Mbit/s at twice its rate for some seconds; how long packets waited near the
/// end, in the median.
fn standing_delay(queue: Queueing) -> Duration {
    time::run(async |clock| {
        let net = Net::new(clock.clone(), Rng::new(1));
        let link = LinkSpec { rate: Some(8_000_000), queue, ..LinkSpec::default() };
        let from = net.add_host(net.core(), &[ONE], link, LinkSpec::default());
        let to = net.add_host(net.core(), &[TWO], LinkSpec::default(), LinkSpec::default());
        let waits: Arc<Mutex<Vec<Duration>>> = Arc::default();
        let (noted, sent) = (waits.clone(), Arc::new(Mutex::new(Vec::new())));
        let sending = sent.clone();
        net.watch(Box::new(move |at, _, seen, packet| {
            // Lengths tell packets apart.
            let number = packet.bytes.len() - 500;
            match seen {
                Seen::Sent => sending.lock().push((number, at)),
                Seen::Delivered => {
                    let mut sent = sending.lock();
                    let place = sent.iter().rposition(|(n, _)| *n == number).expect("it was sent");
                    let (_, began) = sent.remove(place);
                    noted.lock().push(at - began);
                }
            }
        }));
        let (socket, _other) = (bind(&net, from, 1000), bind(&net, to, 2000));
        for round in 0..4000 {
            send(&socket, SocketAddr::new(TWO, 2000), 500 + round % 1000);
            clock.sleep(Duration::from_micros(500)).await;
        }
        let mut waits = waits.lock();
        let half = waits.len() / 2;
        let mut last = waits.split_off(half);
        last.sort();
        last[last.len() / 2]
    })
}

#[test]
fn queues_with_management_keep_delay_low_where_a_plain_one_does_not() {
    let bytes = 256 << 10;
    let plain = standing_delay(Queueing::Fifo(bytes));
    for managed in [Queueing::Pie(bytes), Queueing::FqCodel(bytes)] {
        let delay = standing_delay(managed);
        assert!(delay * 2 < plain, "{managed:?}: {delay:?}, plain: {plain:?}");
    }
}

#[test]
fn what_a_fault_takes_is_gone_and_nothing_else() {
    time::run(async |clock| {
        let net = Net::new(clock.clone(), Rng::new(1));
        let line = LinkSpec::delay(Duration::from_millis(1));
        let from = net.add_host(net.core(), &[ONE], line, line);
        let to = net.add_host(net.core(), &[TWO], line, line);
        let log = deliveries(&net);
        let (one, two) = (bind(&net, from, 1000), bind(&net, to, 2000));
        net.take(to, Taken::Nothing, Taken::Everything);
        send(&one, SocketAddr::new(TWO, 2000), 10);
        send(&two, SocketAddr::new(ONE, 1000), 11);
        clock.sleep(Duration::from_secs(1)).await;
        net.take(to, Taken::Nothing, Taken::Nothing);
        send(&one, SocketAddr::new(TWO, 2000), 12);
        clock.sleep(Duration::from_secs(1)).await;
        net.cut(ONE, TWO, true);
        send(&one, SocketAddr::new(TWO, 2000), 13);
        clock.sleep(Duration::from_secs(1)).await;
        let lengths: Vec<usize> = log.lock().iter().map(|(.., p)| p.bytes.len()).collect();
        assert_eq!(lengths, [11, 12]);
    });
}

/// A host behind a NAT, and two hosts outside.
struct Home {
    net: Net,
    log: Log,
    gateway: PlaceId,
    inside: Arc<dyn AsyncUdpSocket>,
    outside: Vec<Arc<dyn AsyncUdpSocket>>,
}

impl Home {
    fn new(clock: &sluice_transport::Clock, nat: NatSpec) -> Self {
        let net = Net::new(clock.clone(), Rng::new(3));
        let none = LinkSpec::default();
        let gateway = net.add_gateway(net.core(), Ipv4Addr::new(203, 0, 113, 1), nat, none, none);
        let host = net.add_host(gateway, &[INSIDE], none, none);
        let two = net.add_host(net.core(), &[TWO], none, none);
        let three = net.add_host(net.core(), &[THREE], none, none);
        let log = deliveries(&net);
        let outside = vec![bind(&net, two, 1), bind(&net, two, 2), bind(&net, three, 1)];
        let inside = bind(&net, host, 5000);
        Self { net, log, gateway, inside, outside }
    }

    /// The outside port towards each of the three outside sockets.
    async fn ports(&self) -> Vec<u16> {
        self.log.lock().clear();
        for to in [SocketAddr::new(TWO, 1), SocketAddr::new(TWO, 2), SocketAddr::new(THREE, 1)] {
            send(&self.inside, to, 10);
        }
        self.net.clock().sleep(Duration::from_millis(1)).await;
        self.log.lock().iter().map(|(.., packet)| packet.src.port()).collect()
    }

    /// Which of the outside sockets get in at `port`.
    async fn lets_in(&self, port: u16) -> Vec<bool> {
        let mut out = Vec::new();
        for socket in &self.outside {
            self.log.lock().clear();
            send(socket, SocketAddr::new(ONE, port), 20);
            self.net.clock().sleep(Duration::from_millis(1)).await;
            out.push(!self.log.lock().is_empty());
        }
        out
    }
}

#[test]
fn a_nat_maps_as_rfc_4787_says() {
    use Dependence::{Address, AddressAndPort, Endpoint};
    for (mapping, same_address, other_address) in
        [(Endpoint, true, true), (Address, true, false), (AddressAndPort, false, false)]
    {
        for allocator in Allocator::ALL {
            time::run(async |clock| {
                let home = Home::new(&clock, NatSpec::new(mapping, Endpoint, allocator));
                let ports = home.ports().await;
                assert_eq!(ports[0] == ports[1], same_address, "{mapping:?} {allocator:?}");
                assert_eq!(ports[0] == ports[2], other_address, "{mapping:?} {allocator:?}");
                assert_eq!(home.ports().await, ports, "mappings last");
            });
        }
    }
}

#[test]
fn a_nat_filters_as_rfc_4787_says() {
    use Dependence::{Address, AddressAndPort, Endpoint};
    for (filtering, expected) in [
        (Endpoint, [true, true, true]),
        (Address, [true, true, false]),
        (AddressAndPort, [true, false, false]),
    ] {
        time::run(async |clock| {
            let nat = NatSpec::new(Endpoint, filtering, Allocator::Preserving);
            let home = Home::new(&clock, nat);
            send(&home.inside, SocketAddr::new(TWO, 1), 10);
            clock.sleep(Duration::from_millis(1)).await;
            assert_eq!(home.lets_in(5000).await, expected, "{filtering:?}");
        });
    }
}

#[test]
fn a_nat_forgets_after_its_timer_and_gives_another_port_if_it_must() {
    time::run(async |clock| {
        let spec = NatSpec {
            timeout: Duration::from_secs(30),
            ..NatSpec::new(Dependence::Endpoint, Dependence::Endpoint, Allocator::Sequential)
        };
        let home = Home::new(&clock, spec);
        let before = home.ports().await[0];
        clock.sleep(Duration::from_secs(29)).await;
        assert_eq!(home.lets_in(before).await, [true; 3], "and what comes in keeps it");
        clock.sleep(Duration::from_secs(29)).await;
        assert_eq!(home.ports().await[0], before);
        clock.sleep(Duration::from_secs(31)).await;
        assert_eq!(home.lets_in(before).await, [false; 3]);
        assert_eq!(home.ports().await[0], before + 1);
    });
}

#[test]
fn a_nat_that_restarts_at_another_address_is_found_only_there() {
    time::run(async |clock| {
        let spec = NatSpec::new(Dependence::Endpoint, Dependence::Endpoint, Allocator::Preserving);
        let home = Home::new(&clock, spec);
        assert_eq!(home.ports().await[0], 5000);
        home.net.reboot(home.gateway, Ipv4Addr::new(203, 0, 113, 9));
        assert_eq!(home.lets_in(5000).await, [false; 3]);
        send(&home.inside, SocketAddr::new(TWO, 1), 10);
        clock.sleep(Duration::from_millis(1)).await;
        let src = home.log.lock().last().map(|(.., packet)| packet.src.ip());
        assert_eq!(src, Some(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9))));
    });
}
