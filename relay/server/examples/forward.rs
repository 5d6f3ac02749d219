//! Measures what the forwarding path costs: CPU seconds of the relay's threads per GB (10^9 bytes
//! of frames), with batches of several sizes, over loopback.
//!
//! `cargo run --release -p sluice-relay --example forward`

#![allow(clippy::print_stdout, reason = "it prints a table")]
#![allow(clippy::disallowed_methods, reason = "it measures")]

#[path = "../tests/support/client.rs"]
mod client;

use std::io::IoSliceMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use client::{Client, some_keypair};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use sluice_proto::frame::FrameType;
use sluice_relay::{Limits, Relay, RelayConfig};

/// Payload of one frame: the largest QUIC packet that our sessions send.
const PAYLOAD: usize = 1420;
/// Bytes between sender and receiver: below the kernel's buffers, so that nothing is dropped.
const IN_FLIGHT: u64 = 1 << 20;
const WARM_UP: Duration = Duration::from_millis(300);
const MEASURE: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    println!("{:>8} {:>10} {:>12} {:>12}", "segments", "Gbit/s", "CPU s/GB", "dropped");
    for segments in [44, 40, 20, 10, 1] {
        let (gbit_s, cpu, dropped) = measure(segments).await;
        println!("{segments:>8} {gbit_s:>10.2} {cpu:>12.3} {dropped:>12}");
    }
}

async fn measure(segments: usize) -> (f64, f64, u64) {
    let config = RelayConfig::new(some_keypair(), "127.0.0.1:0".parse().expect("an address"));
    let limits = Limits {
        leg_bits_per_s: 100_000_000_000,
        reservation_bits_per_s: 100_000_000_000,
        ..config.limits.clone()
    };
    let relay = Relay::start(RelayConfig { threads: 2, limits, ..config }).await.expect("a relay");
    let mut holder = Client::settled(&relay).await;
    holder.reserve().await;
    let mut tenant = Client::settled(&relay).await;
    let (_, flow) = tenant.open_flow(&mut holder).await;
    let address = relay.local_addr();
    let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let receiver = std::thread::spawn({
        let (stop, received) = (stop.clone(), received.clone());
        move || {
            let state = UdpSocketState::new((&tenant.udp).into()).expect("socket options");
            let _ = state.set_recv_buffer_size((&tenant.udp).into(), 4 << 20);
            tenant.udp.set_nonblocking(false).expect("blocking");
            tenant.udp.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
            let mut buffer = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                let mut meta = [RecvMeta::default()];
                let mut buffers = [IoSliceMut::new(&mut buffer)];
                if state.recv((&tenant.udp).into(), &mut buffers, &mut meta).is_ok() {
                    received.fetch_add(meta[0].len as u64, Ordering::Relaxed);
                }
            }
        }
    });
    let sender = std::thread::spawn({
        let (stop, received) = (stop.clone(), received.clone());
        move || {
            let state = UdpSocketState::new((&holder.udp).into()).expect("socket options");
            holder.udp.set_nonblocking(false).expect("blocking");
            let payload = [0x55; PAYLOAD];
            let mut sent = 0;
            let mut batch = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                if sent > received.load(Ordering::Relaxed) + IN_FLIGHT {
                    std::thread::sleep(Duration::from_micros(20));
                    continue;
                }
                batch.clear();
                for _ in 0..segments {
                    batch.extend(holder.sealed(FrameType::Data, flow, &payload));
                }
                let transmit = Transmit {
                    destination: address,
                    ecn: None,
                    contents: &batch,
                    segment_size: (segments > 1).then_some(PAYLOAD + 19),
                    src_ip: None,
                };
                if state.send((&holder.udp).into(), &transmit).is_ok() {
                    sent += batch.len() as u64;
                }
            }
        }
    });
    tokio::time::sleep(WARM_UP).await;
    let (cpu, bytes, start) = (relay_cpu_ns(), relay.stats().forwarded(), Instant::now());
    tokio::time::sleep(MEASURE).await;
    let stats = relay.stats();
    let cpu = (relay_cpu_ns() - cpu) as f64 / 1e9;
    let bytes = (stats.forwarded() - bytes) as f64;
    let gbit_s = bytes * 8.0 / 1e9 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    sender.join().expect("the sender ends");
    receiver.join().expect("the receiver ends");
    relay.stop().await;
    (gbit_s, cpu / (bytes / 1e9), stats.drops.iter().map(|(_, n)| n).sum())
}

/// CPU time of the relay's forwarding threads, the kernel's work in them included.
fn relay_cpu_ns() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    tasks
        .flatten()
        .filter(|task| {
            std::fs::read_to_string(task.path().join("comm"))
                .is_ok_and(|name| name.starts_with("relay-"))
        })
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}
