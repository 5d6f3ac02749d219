//! One stream to a relay, from its first dial to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use sluice_proto::RelayAddr;
use tokio::sync::watch;

use super::{Carried, PacketSink, PacketStream, StreamQueue, dial};
use crate::Clock;
use crate::node::Inner;

/// A relay that does not take a TCP connection and its handshake by then is not there.
const DIAL_WITHIN: Duration = Duration::from_secs(5);

/// A stream that packets to a relay go over. Dropping it ends it, and packets go over UDP again.
#[derive(Debug)]
pub(crate) struct Carriage {
    relay: SocketAddr,
    carried: Arc<Carried>,
    queue: Arc<StreamQueue>,
    alive: watch::Receiver<()>,
}

impl Carriage {
    /// Dials the relay's TCP port; once the stream stands, packets go over it.
    pub(crate) async fn dial(node: &Arc<Inner>, relay: &RelayAddr) -> Result<Self, String> {
        let stream = match node.clock.timeout(DIAL_WITHIN, dial(relay)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {} s", DIAL_WITHIN.as_secs())),
        };
        let (carried, queue) = (node.socket.carried.clone(), Arc::<StreamQueue>::default());
        let (life, alive) = watch::channel(());
        let stream = PacketStream::new(stream, queue.clone());
        tokio::spawn(run(stream, node.clock.clone(), relay.addr, carried.clone(), life));
        carried.begin(relay.addr, queue.clone());
        Ok(Self { relay: relay.addr, carried, queue, alive })
    }

    /// Closes when the stream is gone.
    pub(crate) fn alive(&self) -> watch::Receiver<()> {
        self.alive.clone()
    }

    /// Packets go over UDP from now on. The stream stands until this is dropped, for what is still
    /// on its way.
    pub(crate) fn stand_aside(&self) {
        self.carried.end(self.relay, &self.queue);
    }
}

impl Drop for Carriage {
    fn drop(&mut self) {
        self.stand_aside();
        self.queue.close();
    }
}

async fn run(
    stream: PacketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>,
    clock: Clock,
    relay: SocketAddr,
    carried: Arc<Carried>,
    life: watch::Sender<()>,
) {
    let reason = stream.run(&clock, &mut Inlet { relay, carried }).await;
    tracing::debug!(%relay, %reason, "the stream to a relay ended");
    drop(life);
}

/// Hands what comes over a stream to the data socket.
struct Inlet {
    relay: SocketAddr,
    carried: Arc<Carried>,
}

impl PacketSink for Inlet {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.carried.poll_room(cx)
    }

    fn take(&mut self, packets: &mut [u8], stride: usize) {
        self.carried.give(self.relay, packets, stride);
    }
}
