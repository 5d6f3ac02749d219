//! Sessions over a real relay and real sockets on loopback: through the relay, then directly,
//! then back, on one stream; and what happens when somebody restarts.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_proto::{Invite, Keypair, RelayAddr, ServiceName, Ticket};
use sluice_relay::{Relay, RelayConfig};
use sluice_transport::{
    AcceptPolicy, Clock, LinkEvent, Network, Node, NodeConfig, NoiseKeys, PathKind, Random,
    RelayLink, Session,
};
use tokio::sync::mpsc;

const SECRET: [u8; 16] = [7; 16];
const PATIENCE: Duration = Duration::from_secs(20);

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn node_config(seed: u8, accept: AcceptPolicy) -> Result<NodeConfig> {
    Ok(NodeConfig {
        key: Keypair::ed25519_from_bytes([seed; 32])?,
        noise: NoiseKeys::from_secret([seed; 32])?,
        bind: loopback(),
        reset_key: [seed; 64],
        incarnation: next_start(),
        accept,
        idle_timeout: Duration::from_secs(60),
        clock: Clock::default(),
        network: Network::Kernel,
        random: Random::default(),
    })
}

/// A number above all that were given before: the later start of a node stands.
fn next_start() -> u64 {
    static STARTS: AtomicU64 = AtomicU64::new(1);
    STARTS.fetch_add(1, Ordering::Relaxed)
}

async fn start_relay(bind: SocketAddr) -> Result<(Relay, RelayAddr)> {
    let key = Keypair::ed25519_from_bytes([1; 32])?;
    let peer = key.public().to_peer_id();
    let mut config = RelayConfig::new(key, bind);
    config.reset_key = [1; 32];
    let relay = Relay::start(config).await?;
    let addr = RelayAddr::new(peer, relay.local_addr());
    Ok((relay, addr))
}

/// A provider with a reservation, and its ticket.
async fn start_provider(relay: RelayAddr) -> Result<(Node, RelayLink, Ticket)> {
    let config = node_config(2, AcceptPolicy::Invited(SECRET))?;
    let noise_key = config.noise.public();
    let node = Node::bind(config)?;
    let (events, mut heard) = mpsc::channel(8);
    let link = node.link(relay, Some(events));
    let reserved = tokio::spawn(async move {
        while let Some(event) = heard.recv().await {
            if let LinkEvent::Offer { offer, reply, .. } = event {
                let key = Keypair::ed25519_from_bytes([2; 32]).expect("a key");
                let _ = reply.send(Ok(accept(&key, &offer)));
            }
        }
    });
    drop(reserved);
    let mut state = link.state();
    let wait = state.wait_for(|s| matches!(s, sluice_transport::LinkState::Reserved(_)));
    tokio::time::timeout(PATIENCE, wait).await.context("no reservation")??;
    let ticket = Ticket {
        peer: node.id(),
        noise_key,
        relays: vec![relay],
        invite: Invite::issue(&SECRET, 0),
        expires_unix_s: 0,
        services: vec![ServiceName::parse("web")?],
    };
    Ok((node, link, ticket))
}

fn accept(
    key: &Keypair,
    offer: &sluice_proto::wire::control::ReserveOffer,
) -> sluice_proto::wire::pay::Accept {
    let terms = offer.terms.clone().unwrap_or_default().terms;
    let hash = sluice_proto::eth::keccak256(&terms);
    sluice_proto::wire::pay::Accept {
        terms_hash: bytes::Bytes::copy_from_slice(&hash),
        signature: sluice_proto::sign(key, sluice_proto::Topic::Accept, &hash).into(),
        channel: None,
        newest: None,
    }
}

fn start_tenant(seed: u8) -> Result<Node> {
    Ok(Node::bind(node_config(seed, AcceptPolicy::Nobody)?)?)
}

/// Answers each stream with what it carries, until the session ends.
fn echo(session: Session) {
    tokio::spawn(async move {
        while let Ok((mut send, mut recv)) = session.connection().accept_bi().await {
            tokio::spawn(async move {
                while let Ok(Some(chunk)) = recv.read_chunk(65536, true).await {
                    if send.write_chunk(chunk.bytes).await.is_err() {
                        return;
                    }
                }
                let _ = send.finish();
            });
        }
    });
}

async fn exchange(
    send: &mut quinn::SendStream,
    recv: &mut quinn::RecvStream,
    text: &[u8],
) -> Result<()> {
    send.write_all(text).await?;
    let mut back = vec![0; text.len()];
    tokio::time::timeout(PATIENCE, recv.read_exact(&mut back)).await.context("no echo")??;
    ensure!(back == text, "another echo came back");
    Ok(())
}

async fn wait_for(session: &Session, kind: PathKind) -> Result<()> {
    let mut path = session.path();
    let wait = path.wait_for(|p| p.is_some_and(|p| p.kind == kind));
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("not {kind}"))??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_goes_through_the_relay_then_directly_then_back() -> Result<()> {
    let (relay, addr) = start_relay(loopback()).await?;
    let (provider, _link, ticket) = start_provider(addr).await?;
    let tenant = start_tenant(3)?;
    let link = tenant.link(addr, None);
    let session = tenant.connect(&ticket, &link).await?;
    let theirs = provider.accept().await.context("no session came")?;
    ensure!(theirs.peer() == tenant.id() && session.peer() == provider.id());
    ensure!(theirs.exporter() == session.exporter());
    echo(theirs.clone());

    let (mut send, mut recv) = session.connection().open_bi().await?;
    for _ in 0..20 {
        exchange(&mut send, &mut recv, &[5; 20_000]).await?;
    }
    let relayed = relay.stats().forwarded();
    ensure!(relayed > 2 * 20 * 20_000, "the relay forwarded {relayed}");
    ensure!(session.path_bytes().direct_sent == 0);

    session.set_direct_allowed(true);
    theirs.set_direct_allowed(true);
    session.add_candidates(&theirs.local_candidates());
    theirs.add_candidates(&session.local_candidates());
    wait_for(&session, PathKind::Direct).await?;
    wait_for(&theirs, PathKind::Direct).await?;
    let before = relay.stats().forwarded();
    for _ in 0..20 {
        exchange(&mut send, &mut recv, &[6; 20_000]).await?;
    }
    let after = relay.stats().forwarded();
    ensure!(after - before < 8_000, "{} bytes still went through the relay", after - before);

    session.set_direct_allowed(false);
    theirs.set_direct_allowed(false);
    wait_for(&session, PathKind::Relayed).await?;
    for _ in 0..20 {
        exchange(&mut send, &mut recv, &[7; 20_000]).await?;
    }
    ensure!(relay.stats().forwarded() > after + 2 * 19 * 20_000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_a_relay_that_restarts() -> Result<()> {
    let (relay, addr) = start_relay(loopback()).await?;
    let (provider, _link, ticket) = start_provider(addr).await?;
    let tenant = start_tenant(3)?;
    let link = tenant.link(addr, None);
    let session = tenant.connect(&ticket, &link).await?;
    echo(provider.accept().await.context("no session came")?);
    let (mut send, mut recv) = session.connection().open_bi().await?;
    exchange(&mut send, &mut recv, b"before").await?;
    drop(relay);
    let mut again = start_relay(addr.addr).await;
    for _ in 0..100 {
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        again = start_relay(addr.addr).await;
    }
    let (relay, _) = again?;
    exchange(&mut send, &mut recv, b"after").await?;
    ensure!(relay.stats().forwarded() > 0, "the new relay carries it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_restarts_ends_its_sessions_at_once() -> Result<()> {
    let (_relay, addr) = start_relay(loopback()).await?;
    let (provider, link, ticket) = start_provider(addr).await?;
    let tenant = start_tenant(3)?;
    let tenant_link = tenant.link(addr, None);
    let session = tenant.connect(&ticket, &tenant_link).await?;
    let theirs = provider.accept().await.context("no session came")?;
    // As after kill -9: nothing is said, the process is just gone. Its socket must not answer.
    std::mem::forget(theirs);
    drop((provider, link));
    let (provider, _link, _) = start_provider(addr).await?;
    tokio::time::timeout(PATIENCE, session.connection().closed())
        .await
        .context("the tenant was not told")?;
    let again = tenant.connect(&ticket, &tenant_link).await?;
    ensure!(again.peer() == provider.id());
    Ok(())
}

#[tokio::test]
async fn a_wrong_invite_a_wrong_peer_and_an_absent_one_are_refused_by_name() -> Result<()> {
    use sluice_transport::ConnectError;
    let (_relay, addr) = start_relay(loopback()).await?;
    let (_provider, _link, ticket) = start_provider(addr).await?;
    let tenant = start_tenant(3)?;
    let link = tenant.link(addr, None);

    let uninvited = Ticket { invite: Invite::issue(&[8; 16], 0), ..ticket.clone() };
    let refused = tenant.connect(&uninvited, &link).await;
    ensure!(matches!(refused, Err(ConnectError::NotInvited)), "{refused:?}");

    let expired = Ticket { invite: Invite::issue(&SECRET, 5), ..ticket.clone() };
    let refused = tenant.connect(&expired, &link).await;
    ensure!(matches!(refused, Err(ConnectError::NotInvited)), "{refused:?}");

    let stranger = Keypair::ed25519_from_bytes([9; 32])?.public().to_peer_id();
    let absent = Ticket { peer: stranger, ..ticket.clone() };
    let refused = tenant.connect(&absent, &link).await;
    ensure!(matches!(refused, Err(ConnectError::NotThere { .. })), "{refused:?}");

    let other_key = Ticket { noise_key: NoiseKeys::from_secret([44; 32])?.public(), ..ticket };
    let refused = tenant.connect(&other_key, &link).await;
    ensure!(
        matches!(refused, Err(ConnectError::NotInvited | ConnectError::Failed(_))),
        "{refused:?}"
    );

    let wrong_relay = RelayAddr { peer: stranger, ..addr };
    let link = tenant.link(wrong_relay, None);
    let refused = link.ready().await;
    ensure!(refused.is_err(), "a relay with another identity was accepted");
    Ok(())
}
