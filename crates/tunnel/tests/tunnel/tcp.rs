//! What users of TCP expect.

use std::io::ErrorKind;

use sha2::{Digest, Sha256};
use sluice_proto::wire::code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{Rig, Setup, WINDOW};
use crate::services::{echo, manual, pattern, source};

async fn reset_error(tcp: &mut TcpStream) -> ErrorKind {
    loop {
        match tcp.read(&mut [0; 4096]).await {
            Ok(0) => panic!("closed in order, not reset"),
            Ok(_) => {}
            Err(e) => return e.kind(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_comes_back_and_both_sides_bill_it() {
    let rig = Rig::new(Setup::default(), &[("echo", echo().await)]).await;
    let mut tcp = rig.dial("echo").await;
    for n in [1, 64, 5000] {
        let message = pattern(n, n);
        tcp.write_all(&message).await.expect("written");
        let mut back = vec![0; message.len()];
        tcp.read_exact(&mut back).await.expect("read");
        assert_eq!(back, message);
    }
    tcp.shutdown().await.expect("closed");
    assert_eq!(tcp.read(&mut [0]).await.expect("closed in order"), 0);
    rig.settle().await;
    let billed = rig.provider.account.snapshot().paid;
    assert_eq!((billed.up, billed.down), (5065, 5065));
}

async fn download(setup: Setup, len: u64) {
    let rig = Rig::new(setup, &[("file", source(len).await)]).await;
    let mut tcp = rig.dial("file").await;
    let (mut hash, mut expected) = (Sha256::new(), Sha256::new());
    let (mut buffer, mut total) = (vec![0; 256 * 1024], 0);
    loop {
        let n = tcp.read(&mut buffer).await.expect("read");
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        total += n as u64;
    }
    assert_eq!(total, len);
    (0..len).step_by(1 << 20).for_each(|at| expected.update(pattern(at, (len - at).min(1 << 20))));
    assert_eq!(hash.finalize(), expected.finalize());
    drop(tcp);
    rig.settle().await;
    assert_eq!(rig.provider.account.snapshot().paid.down, len);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_download_is_whole_and_billed_to_the_byte() {
    download(Setup::default(), 64 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_works_the_same_without_money() {
    let price = sluice_proto::Price::default();
    download(Setup { price, ..Setup::default() }, 16 << 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_is_whole_and_billed_to_the_byte() {
    let (addr, mut accepted) = manual().await;
    let rig = Rig::new(Setup::default(), &[("sink", addr)]).await;
    let mut tcp = rig.dial("sink").await;
    let len = 16 << 20;
    let writing = async {
        tcp.write_all(&pattern(0, len)).await.expect("written");
        tcp.shutdown().await.expect("closed");
    };
    let reading = async {
        let mut service = accepted.recv().await.expect("a connection");
        let mut all = Vec::new();
        service.read_to_end(&mut all).await.expect("read");
        service.shutdown().await.expect("closed");
        all
    };
    let ((), all) = tokio::join!(writing, reading);
    assert!(all == pattern(0, len));
    assert_eq!(tcp.read(&mut [0]).await.expect("closed in order"), 0);
    rig.settle().await;
    assert_eq!(rig.provider.account.snapshot().paid.up, len);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_direction_closes_by_itself() {
    let (addr, mut accepted) = manual().await;
    let rig = Rig::new(Setup::default(), &[("manual", addr)]).await;
    // The tenant closes first and goes on reading.
    let mut tcp = rig.dial("manual").await;
    tcp.write_all(b"question").await.expect("written");
    tcp.shutdown().await.expect("closed");
    let mut service = accepted.recv().await.expect("a connection");
    let mut question = Vec::new();
    service.read_to_end(&mut question).await.expect("read to FIN");
    assert_eq!(question, b"question");
    service.write_all(b"answer").await.expect("written");
    drop(service);
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.expect("read to FIN");
    assert_eq!(answer, b"answer");
    // The service closes first and goes on reading.
    let mut tcp = rig.dial("manual").await;
    let mut service = accepted.recv().await.expect("a connection");
    service.write_all(b"hello").await.expect("written");
    service.shutdown().await.expect("closed");
    let mut hello = Vec::new();
    tcp.read_to_end(&mut hello).await.expect("read to FIN");
    assert_eq!(hello, b"hello");
    tcp.write_all(b"still here").await.expect("written");
    drop(tcp);
    let mut last = Vec::new();
    service.read_to_end(&mut last).await.expect("read to FIN");
    assert_eq!(last, b"still here");
    rig.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_at_one_end_is_a_reset_at_the_other() {
    let (addr, mut accepted) = manual().await;
    let rig = Rig::new(Setup::default(), &[("manual", addr)]).await;
    let mut tcp = rig.dial("manual").await;
    let mut service = accepted.recv().await.expect("a connection");
    service.write_all(b"begin").await.expect("written");
    tcp.read_exact(&mut [0; 5]).await.expect("read");
    service.set_zero_linger().expect("an option");
    drop(service);
    assert_eq!(reset_error(&mut tcp).await, ErrorKind::ConnectionReset);

    let mut tcp = rig.dial("manual").await;
    let mut service = accepted.recv().await.expect("a connection");
    tcp.write_all(b"begin").await.expect("written");
    service.read_exact(&mut [0; 5]).await.expect("read");
    tcp.set_zero_linger().expect("an option");
    drop(tcp);
    assert_eq!(reset_error(&mut service).await, ErrorKind::ConnectionReset);
    rig.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_disconnects_midway_frees_the_service_and_accounts_agree() {
    let (addr, mut accepted) = manual().await;
    let rig = Rig::new(Setup::default(), &[("manual", addr)]).await;
    for _ in 0..20 {
        let mut tcp = rig.dial("manual").await;
        let mut service = accepted.recv().await.expect("a connection");
        let flood = tokio::spawn(async move {
            let chunk = pattern(0, 64 * 1024);
            loop {
                if let Err(e) = service.write_all(&chunk).await {
                    return e.kind();
                }
            }
        });
        tcp.read_exact(&mut vec![0; 300_000]).await.expect("read");
        drop(tcp);
        let kind = flood.await.expect("the service learns of it");
        assert!(matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{kind}");
    }
    rig.settle().await;
    assert!(rig.provider.account.snapshot().paid.down >= 20 * 300_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_its_own_connection_and_no_other() {
    let (addr, mut accepted) = manual().await;
    let setup = Setup { stream_window: 1 << 20, ..Setup::default() };
    let rig = Rig::new(setup, &[("manual", addr), ("file", source(8 << 20).await)]).await;
    let paused = rig.dial("manual").await;
    let service = accepted.recv().await.expect("a connection");
    let chunk = pattern(0, 64 * 1024);
    // Written until nothing moves for a while: back-pressure reached the service.
    let mut written = 0;
    while let Ok(ready) =
        tokio::time::timeout(std::time::Duration::from_millis(500), service.writable()).await
    {
        ready.expect("open");
        written += service.try_write(&chunk).unwrap_or(0) as u64;
    }
    let sent = rig.provider.account.snapshot().counted.down;
    assert!(sent < written, "the service was not held back");
    let mut other = rig.dial("file").await;
    let mut all = Vec::new();
    other.read_to_end(&mut all).await.expect("read");
    assert!(all == pattern(0, 8 << 20));
    drop(paused);
    drop(service);
    rig.settle().await;
    assert!(rig.provider.account.snapshot().unpaid_max <= WINDOW);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_reset_when_the_session_is_lost() {
    let (addr, mut accepted) = manual().await;
    let rig = Rig::new(Setup::default(), &[("manual", addr)]).await;
    let mut tcp = rig.dial("manual").await;
    let mut service = accepted.recv().await.expect("a connection");
    tcp.write_all(b"begin").await.expect("written");
    service.read_exact(&mut [0; 5]).await.expect("read");
    rig.tenant.connection.close(0u32.into(), b"");
    assert_eq!(reset_error(&mut tcp).await, ErrorKind::ConnectionReset);
    assert_eq!(reset_error(&mut service).await, ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_declared_is_refused_and_so_is_a_service_that_is_down() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = gone.local_addr().expect("bound");
    drop(gone);
    let rig = Rig::new(Setup::default(), &[("down", addr)]).await;
    for name in ["nowhere", "down"] {
        // The reset may be quicker than the dial.
        let kind = match TcpStream::connect(rig.local_port(name).await).await {
            Ok(mut tcp) => reset_error(&mut tcp).await,
            Err(e) => e.kind(),
        };
        assert_eq!(kind, ErrorKind::ConnectionReset, "{name}");
    }
    rig.settle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_connections_at_once_each_get_their_own_bytes() {
    let rig = Rig::new(Setup::default(), &[("echo", echo().await)]).await;
    let addr = rig.local_port("echo").await;
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..50 {
        clients.spawn(async move {
            let tcp = TcpStream::connect(addr).await.expect("accepted");
            let message = pattern(n << 20, 200_000);
            let (mut read, mut write) = tcp.into_split();
            let sent = message.clone();
            let writing = tokio::spawn(async move {
                write.write_all(&sent).await.expect("written");
                write
            });
            let mut back = vec![0; message.len()];
            read.read_exact(&mut back).await.expect("read");
            assert!(back == message, "connection {n} got another's bytes");
            drop(writing.await);
        });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("each client succeeds");
    }
    rig.settle().await;
    let billed = rig.provider.account.snapshot().paid;
    assert_eq!((billed.up, billed.down), (50 * 200_000, 50 * 200_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_speaks_first_is_heard_at_once() {
    let (addr, mut accepted) = manual().await;
    let rig = Rig::new(Setup::default(), &[("manual", addr)]).await;
    let mut tcp = rig.dial("manual").await;
    let mut service = accepted.recv().await.expect("a connection");
    service.write_all(b"220 ready").await.expect("written");
    let mut greeting = [0; 9];
    tcp.read_exact(&mut greeting).await.expect("read");
    assert_eq!(&greeting, b"220 ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_does_not_begin_with_a_service_is_reset_and_the_session_lives() {
    let rig = Rig::new(Setup::default(), &[("echo", echo().await)]).await;
    let long = [&[0xff, 0xff][..], &[0; 100]].concat();
    for (junk, expected) in [
        (&b"\x00\x04junk"[..], code::PROTOCOL),
        (&long, code::PROTOCOL),
        (b"\x00\x02\x0a\x00", code::NO_SUCH_SERVICE),
        (b"\x00\x0b\x0a\x09127.0.0.1", code::NO_SUCH_SERVICE),
    ] {
        let (mut send, mut recv) = rig.tenant.connection.open_bi().await.expect("open");
        send.write_all(junk).await.expect("written");
        let error = recv.read_to_end(100).await.expect_err("reset");
        let reset = quinn::ReadToEndError::Read(quinn::ReadError::Reset(expected.into()));
        assert_eq!(error, reset, "{junk:?}");
    }
    let mut tcp = rig.dial("echo").await;
    tcp.write_all(b"alive").await.expect("written");
    tcp.read_exact(&mut [0; 5]).await.expect("read");
}
