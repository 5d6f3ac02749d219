//! A provider that leaves a relay because what it asks has changed: its sessions stay.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use parking_lot::Mutex;
use sluice::roles::{
    Connect, ConnectOptions, MeshOptions, Meshed, Provide, ProvideOptions, Report, Reporter,
    start_relay,
};
use sluice_proto::record::RelayEntry;
use sluice_proto::{Price, RelayAddr, Ticket};
use sluice_relay::Relay;
use tests::{Cast, Echo, PATIENCE};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

/// A relay that tells the mesh what it asks.
struct Offering {
    relay: Relay,
    mesh: Meshed,
}

impl Offering {
    async fn start(cast: &Cast, bootstrap: &Meshed) -> Result<Self> {
        let operator = cast.member().await?;
        let relay = start_relay(cast.relay_options(&operator)).await?;
        let options = MeshOptions { bootstrap: bootstrap.addresses().await, ..public()? };
        let mesh = Meshed::start(&operator.identity, options, None).await?;
        let offering = Self { relay, mesh };
        offering.asks(0).await?;
        Ok(offering)
    }

    fn address(&self) -> RelayAddr {
        RelayAddr::new(self.relay.peer(), self.relay.local_addr())
    }

    async fn asks(&self, price: u128) -> Result<()> {
        let price = Price { up: price, down: price };
        let entry = RelayEntry { addresses: vec![self.address()], price };
        Ok(self.mesh.publish(None, Some(entry)).await?)
    }
}

fn public() -> Result<MeshOptions> {
    let listen = "/ip4/127.0.0.1/udp/0/quic-v1".parse()?;
    let listen = vec![listen];
    Ok(MeshOptions { listen, public: true, relay: true, private: true, ..MeshOptions::default() })
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        ensure!(Instant::now() < deadline, "{what}: in vain");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_becomes_too_dear_is_left_and_the_session_through_it_stays() -> Result<()> {
    let (cast, echo) = (Cast::free()?, Echo::start()?);
    let meeting = cast.member().await?;
    let meeting = Meshed::start(&meeting.identity, public()?, None).await?;
    let relays = [
        Offering::start(&cast, &meeting).await?,
        Offering::start(&cast, &meeting).await?,
        Offering::start(&cast, &meeting).await?,
    ];
    let (home, guest) = (cast.member().await?, cast.member().await?);
    let options = MeshOptions {
        public: false,
        relay: false,
        bootstrap: meeting.addresses().await,
        ..public()?
    };
    let mesh = Meshed::start(&home.identity, options, None).await?;
    let chosen: Arc<Mutex<Vec<String>>> = Arc::default();
    let ended: Arc<Mutex<Vec<String>>> = Arc::default();
    let (choosing, ending) = (chosen.clone(), ended.clone());
    let report = Reporter::new(move |report| {
        if let Report::RelaysChosen { relays } = report {
            choosing.lock().clone_from(relays);
        }
        if let Report::SessionEnded { reason, .. } = report {
            ending.lock().push(reason.clone());
        }
    });
    let options = cast.provide_options(&home, &relays[0].relay, &[("echo", echo.addr())]);
    // Only free relays are used.
    let (relays_named, relay_price_max) = (Vec::new(), 0);
    let options = ProvideOptions {
        relays: relays_named,
        relay_price_max,
        mesh: Some(mesh),
        report,
        ..options
    };
    let provide = Provide::start(options).await?;
    until("it chooses two", || chosen.lock().len() == 2).await?;

    let ticket = Ticket::decode(provide.ticket(), 0)?;
    let via: Arc<Mutex<Option<String>>> = Arc::default();
    let on = via.clone();
    let report = Reporter::new(move |report| {
        if let Report::Path { path, .. } = report {
            *on.lock() = Some(path.remote.to_string());
        }
    });
    let options = cast.connect_options(&guest, &ticket, "echo");
    let connect = Connect::start(ConnectOptions { report, ..options }).await?;
    let mut tcp = TcpStream::connect(connect.local()[0].0).await?;
    let mut talk = async || -> Result<()> {
        let mut back = [0; 5];
        tcp.write_all(b"hello").await?;
        tcp.read_exact(&mut back).await?;
        ensure!(&back == b"hello");
        Ok(())
    };
    talk().await?;
    until("the path is told", || via.lock().is_some()).await?;
    let carries = via.lock().clone().context("a path")?;
    let dear = relays.iter().find(|r| r.address().addr.to_string() == carries);
    let dear = dear.context("the session goes through one of the three")?;
    let name = dear.address().to_string();
    ensure!(chosen.lock().contains(&name), "{name} carries and was not chosen");

    dear.asks(1).await?;
    until("another takes its place", || {
        let now = chosen.lock();
        now.len() == 2 && !now.contains(&name)
    })
    .await?;
    let others = relays.iter().filter(|r| r.address().addr.to_string() != carries);
    for other in others {
        until("the others reserve", || !other.relay.stats().reservations.is_empty()).await?;
    }
    talk().await?;
    ensure!(ended.lock().is_empty(), "{:?}", ended.lock());
    // It has a reservation for as long; once nothing goes through it any more it is given up.
    ensure!(!dear.relay.stats().reservations.is_empty());
    connect.stop().await;
    until("it is left", || dear.relay.stats().reservations.is_empty()).await?;
    provide.stop().await;
    Ok(())
}
