//! The tenant's sink: reads as fast as bytes come, on some connections at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context as _, Result, ensure};

use super::{ASK_BULK, BULK_BYTES, give_up, tell_counts};

pub(super) fn run(entry: SocketAddr, connections: usize) -> Result<()> {
    let count = Arc::new(AtomicU64::new(0));
    let (flows, flowing) = channel();
    for _ in 0..connections {
        let (count, flows) = (Arc::clone(&count), flows.clone());
        std::thread::spawn(move || {
            if let Err(error) = sink(entry, &count, &flows) {
                give_up(&error.context("a bulk connection failed"));
            }
        });
    }
    for _ in 0..connections {
        flowing.recv().context("a bulk connection ended")?;
    }
    println!("flowing");
    tell_counts(&count);
    Ok(())
}

fn sink(entry: SocketAddr, count: &AtomicU64, flows: &Sender<()>) -> Result<()> {
    let mut connection = TcpStream::connect(entry).context("failed to dial")?;
    connection.write_all(&[ASK_BULK])?;
    let mut buffer = vec![0; BULK_BYTES];
    let mut first = true;
    loop {
        let read = connection.read(&mut buffer)?;
        ensure!(read > 0, "the service closed");
        count.fetch_add(u64::try_from(read)?, Ordering::Relaxed);
        if std::mem::take(&mut first) {
            flows.send(()).context("nobody waits")?;
        }
    }
}
