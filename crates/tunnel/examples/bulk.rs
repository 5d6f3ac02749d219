#![allow(missing_docs, clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stdout)]
use quinn::*;
use sluice_metering::*;
use sluice_proto::*;
use sluice_transport::{Clock, client_config, server_config};
use sluice_tunnel::*;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

fn options(ms: u64) -> AccountOptions {
    let (persist, mut requests) = mpsc::unbounded_channel::<Persist>();
    tokio::spawn(async move {
        while let Some(r) = requests.recv().await {
            if ms > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
            }
            r.done(true);
        }
    });
    AccountOptions {
        persist,
        lies: mpsc::unbounded_channel().0,
        exhausted: mpsc::unbounded_channel().0,
        delivered: None,
        clock: Clock::default(),
    }
}
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let mode = a[1].as_str();
    let streams: u64 = a[2].parse().unwrap();
    let price: u128 = a[3].parse::<u128>().unwrap() << 30;
    let gb: u64 = a[4].parse().unwrap();
    let ms: u64 = a.get(5).map_or(0, |s| s.parse().unwrap());
    let price = Price { up: price, down: price };
    let keys = [
        Keypair::ed25519_from_bytes([1; 32]).unwrap(),
        Keypair::ed25519_from_bytes([2; 32]).unwrap(),
    ];
    let mut t = TransportConfig::default();
    t.initial_mtu(1420)
        .mtu_discovery_config(None)
        .stream_receive_window(VarInt::from_u32(10 << 20))
        .receive_window(VarInt::from_u32(16 << 20))
        .send_window(16 << 20)
        .max_concurrent_bidi_streams(1024u32.into());
    let t = Arc::new(t);
    let mut sc = ServerConfig::with_crypto(server_config(&keys[1], ALPN_SESSION).unwrap());
    sc.transport_config(t.clone());
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let se = Endpoint::server(sc, any).unwrap();
    let ce = Endpoint::client(any).unwrap();
    let mut cc = ClientConfig::new(
        client_config(&keys[0], keys[1].public().to_peer_id(), ALPN_SESSION).unwrap(),
    );
    cc.transport_config(t);
    let (ours, theirs) =
        tokio::join!(ce.connect_with(cc, se.local_addr().unwrap(), "x").unwrap(), async {
            se.accept().await.unwrap().await.unwrap()
        });
    let ours = ours.unwrap();
    let payment = Payment {
        domain: Domain { chain_id: 1, contract: EthAddress([1; 20]) },
        token: EthAddress([1; 20]),
        payee: EthAddress([1; 20]),
        payout: EthAddress([1; 20]),
        period_s: 1,
    };
    let terms = Terms {
        lease: LeaseId([9; 32]),
        payer: keys[0].public().to_peer_id(),
        payee: keys[1].public().to_peer_id(),
        price,
        window: WINDOW_MAX,
        payment: (!price.is_zero()).then_some(payment),
        starter_bytes: 0,
        idle_timeout_s: 600,
        expires_unix_s: 1,
        rate_max: 1,
    };
    let key = WalletKey::from_bytes([7; 32]).unwrap();
    let channel = Channel {
        id: ChannelId([8; 32]),
        domain: payment.domain,
        signer: key.address(),
        deposit: Amount(1 << 100),
        base: Amount(0),
    };
    let paid = !price.is_zero();
    let tenant = Account::payer(
        Payer::new(terms.clone(), paid.then_some(Purse { channel, key }), 1, None),
        ours.clone(),
        options(ms),
    );
    let provider = Account::payee(
        Payee::new(terms, paid.then_some(channel), 1, None),
        theirs.clone(),
        options(ms),
    );
    let l = TcpListener::bind(any).await.unwrap();
    let addr = l.local_addr().unwrap();
    let each = gb * 1_000_000_000 / streams;
    let m = mode.to_owned();
    tokio::spawn(async move {
        let m = Arc::new(m);
        while let Ok((mut s, _)) = l.accept().await {
            let m = m.clone();
            s.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                match m.as_str() {
                    "down" => {
                        let b = vec![7u8; 256 * 1024];
                        let mut left = each;
                        while left > 0 {
                            let n = left.min(b.len() as u64);
                            if s.write_all(&b[..n as usize]).await.is_err() {
                                return;
                            }
                            left -= n;
                        }
                    }
                    "up" => {
                        let mut b = vec![0u8; 256 * 1024];
                        while s.read(&mut b).await.unwrap() > 0 {}
                    }
                    _ => {
                        let mut b = vec![0u8; 256 * 1024];
                        loop {
                            let n = s.read(&mut b).await.unwrap();
                            if n == 0 {
                                return;
                            }
                            s.write_all(&b[..n]).await.unwrap();
                        }
                    }
                }
            });
        }
    });
    let name = ServiceName::parse("x").unwrap();
    let local = if mode == "raw" {
        addr
    } else {
        let services: Services = [(name.clone(), addr)].into_iter().collect();
        tokio::spawn(serve(theirs, Arc::new(services), provider.clone()));
        let ll = TcpListener::bind(any).await.unwrap();
        let a = ll.local_addr().unwrap();
        let (tx, rx) =
            watch::channel(Some(Link { connection: ours.clone(), account: tenant.clone() }));
        tokio::spawn(listen(ll, name, rx));
        std::mem::forget(tx);
        a
    };
    let (c0, t0) = (cpu(), Instant::now());
    let mut set = tokio::task::JoinSet::new();
    let lat = Arc::new(std::sync::Mutex::new(Vec::new()));
    for _ in 0..streams {
        let m = mode.to_owned();
        let lat = lat.clone();
        set.spawn(async move {
            let mut s = TcpStream::connect(local).await.unwrap();
            s.set_nodelay(true).unwrap();
            match m.as_str() {
                "down" => {
                    let mut b = vec![0u8; 256 * 1024];
                    while s.read(&mut b).await.unwrap() > 0 {}
                }
                "up" => {
                    let b = vec![7u8; 256 * 1024];
                    let mut left = each;
                    while left > 0 {
                        let n = left.min(b.len() as u64);
                        s.write_all(&b[..n as usize]).await.unwrap();
                        left -= n;
                    }
                    s.shutdown().await.unwrap();
                    let _ = s.read(&mut [0]).await;
                }
                _ => {
                    let mut b = [1u8; 64];
                    for _ in 0..5000 {
                        let t = Instant::now();
                        s.write_all(&b).await.unwrap();
                        s.read_exact(&mut b).await.unwrap();
                        lat.lock().unwrap().push(t.elapsed().as_micros());
                    }
                }
            }
        });
    }
    while set.join_next().await.is_some() {}
    let dt = t0.elapsed().as_secs_f64();
    let c = cpu() - c0;
    let mut l = lat.lock().unwrap();
    l.sort();
    if !l.is_empty() {
        println!("p50 {} us p99 {} us", l[l.len() / 2], l[l.len() * 99 / 100]);
    }
    println!(
        "{mode} x{streams} price {:?}: {:.2} Gbit/s, {:.2} cpu s/GB; {:?}",
        price.down >> 30,
        gb as f64 * 8.0 / dt,
        c / gb as f64,
        provider.snapshot()
    );
}
