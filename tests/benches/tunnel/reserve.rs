//! Makes many reservations from one process: one QUIC endpoint, one identity each.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use sluice_proto::eth::keccak256;
use sluice_proto::wire::control::{self, Control, control::Kind};
use sluice_proto::wire::pay;
use sluice_proto::{ALPN_RELAY, Keypair, PeerId, Topic, VERSION, sign};
use sluice_transport::{MessageReader, client_config, send_message};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Handshakes that run at the same time.
const AT_ONCE: usize = 32;

/// Reservations that are held until this is dropped.
struct Held {
    _connections: Vec<quinn::Connection>,
    _streams: Vec<(quinn::SendStream, MessageReader<Control>)>,
    _endpoint: quinn::Endpoint,
    _runtime: Runtime,
}

/// Makes `count` reservations at the relay, each of a node of its own.
///
/// # Errors
///
/// If one cannot be made.
pub(crate) fn reserve(relay: &str, count: usize) -> Result<Box<dyn Any>> {
    let (peer, addr) = relay.split_once('@').context("not <peer id>@<ip>:<port>")?;
    let (peer, addr): (PeerId, SocketAddr) = (peer.parse()?, addr.parse()?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (endpoint, connections, streams) = runtime.block_on(async {
        let endpoint = quinn::Endpoint::client((Ipv4Addr::UNSPECIFIED, 0).into())?;
        let (mut connections, mut streams) = (Vec::new(), Vec::new());
        let mut making = JoinSet::new();
        for number in 0..count {
            if making.len() >= AT_ONCE {
                let (connection, stream) = making.join_next().await.context("no task")???;
                connections.push(connection);
                streams.push(stream);
            }
            making.spawn(one(endpoint.clone(), peer, addr, number));
        }
        while let Some(done) = making.join_next().await {
            let (connection, stream) = done??;
            connections.push(connection);
            streams.push(stream);
        }
        anyhow::Ok((endpoint, connections, streams))
    })?;
    Ok(Box::new(Held {
        _connections: connections,
        _streams: streams,
        _endpoint: endpoint,
        _runtime: runtime,
    }))
}

type Stream = (quinn::SendStream, MessageReader<Control>);

async fn one(
    endpoint: quinn::Endpoint,
    peer: PeerId,
    addr: SocketAddr,
    number: usize,
) -> Result<(quinn::Connection, Stream)> {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
    let key = Keypair::ed25519_from_bytes(seed)?;
    let mut config = quinn::ClientConfig::new(client_config(&key, peer, ALPN_RELAY)?);
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(std::time::Duration::from_secs(10)));
    config.transport_config(transport.into());
    let connection = endpoint.connect_with(config, addr, "relay")?.await?;
    let (mut send, receive) = connection.open_bi().await?;
    let mut reader = MessageReader::<Control>::new(receive);
    let hello = control::Hello { versions: vec![VERSION], features: Vec::new(), incarnation: 1 };
    say(&mut send, Kind::Hello(hello)).await?;
    let Kind::Welcome(_) = hear(&mut reader).await? else { bail!("no welcome") };
    say(&mut send, Kind::Reserve(control::Reserve {})).await?;
    let Kind::Offer(offer) = hear(&mut reader).await? else { bail!("no offer") };
    let hash = keccak256(&offer.terms.context("no terms")?.terms);
    let accept = pay::Accept {
        terms_hash: hash.to_vec().into(),
        signature: sign(&key, Topic::Accept, &hash).into(),
        channel: None,
        newest: None,
    };
    say(&mut send, Kind::Accept(accept)).await?;
    let Kind::Reserved(_) = hear(&mut reader).await? else { bail!("not reserved") };
    Ok((connection, (send, reader)))
}

async fn say(send: &mut quinn::SendStream, kind: Kind) -> Result<()> {
    Ok(send_message(send, &Control { kind: Some(kind) }).await?)
}

async fn hear(reader: &mut MessageReader<Control>) -> Result<Kind> {
    reader.next().await?.and_then(|m| m.kind).context("the relay closed the stream")
}
