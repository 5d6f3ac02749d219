//! Nodes reach one another: directly, through a circuit, and not beyond the limits.

use bytes::Bytes;
use sluice_mesh::{
    CONTROL_MAX, FindError, Mesh, MeshConfig, MeshEvent, MeshLimits, Multiaddr, RequestError,
};

use crate::rig::{Node, content, hidden, peer, public, start, until};

/// Answers requests with what they say, twice.
fn answer(mut node: Node) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        // Without its handle the mesh would end.
        let _running = node.mesh;
        while let Some(event) = node.events.next().await {
            if let MeshEvent::Request(request) = event {
                let twice = [&request.bytes[..], &request.bytes[..]].concat();
                request.answer(twice.into()).await;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_and_bounded() {
    let first = start(public(1), &[]);
    let second = start(public(2), &first.addresses().await);
    until(async || first.mesh.publish(content(1)).await.ok()).await;
    answer(first);
    let ask = async |len| second.mesh.request(peer(1), vec![7; len].into()).await;
    assert_eq!(ask(3).await, Ok(Bytes::from_static(&[7; 6])));
    assert_eq!(ask(CONTROL_MAX / 2).await.map(|b| b.len()), Ok(CONTROL_MAX));
    assert_eq!(ask(CONTROL_MAX + 1).await, Err(RequestError::TooLarge(CONTROL_MAX + 1)));
    let unanswered = ask(CONTROL_MAX).await;
    assert!(matches!(unanswered, Err(RequestError::Failed { .. })), "{unanswered:?}");
    let nobody = second.mesh.request(peer(9), Bytes::new()).await;
    assert_eq!(nobody, Err(RequestError::NotFound(FindError::NotFound(peer(9)))));
}

/// The provider listens nowhere, as if its NAT let nothing in: only a circuit leads to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_behind_a_circuit_is_reached() {
    let relay = start(MeshConfig { relay: true, ..public(1) }, &[]);
    let addresses = relay.addresses().await;
    let provider = start(MeshConfig { listen: Vec::new(), ..hidden(2) }, &addresses);
    let tenant = start(hidden(3), &addresses);
    // It found the relay by itself.
    until(async || (!provider.status().await.reachable.is_empty()).then_some(())).await;
    assert!(!provider.status().await.serves, "a circuit makes nobody a server of the DHT");
    until(async || provider.mesh.publish(content(2)).await.ok()).await;
    let named = until(async || {
        let found = tenant.mesh.find(peer(2)).await.ok()?;
        (!found.record().mesh.is_empty()).then_some(found)
    });
    let named: Vec<Multiaddr> = named
        .await
        .record()
        .mesh
        .iter()
        .map(|bytes| Multiaddr::try_from(bytes.to_vec()).expect("an address"))
        .collect();
    assert!(named.iter().all(|a| a.to_string().ends_with("/p2p-circuit")), "{named:?}");
    answer(provider);
    let answered =
        until(async || tenant.mesh.request(peer(2), Bytes::from_static(b"bid")).await.ok());
    assert_eq!(answered.await, "bidbid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_too_many_is_refused() {
    let limits = MeshLimits { incoming_max: 2, per_peer_max: 1, ..MeshLimits::default() };
    let first = start(MeshConfig { limits, ..public(1) }, &[]);
    let address = first.addresses().await.swap_remove(0);
    let one = start(hidden(2), std::slice::from_ref(&address));
    let two = start(hidden(3), std::slice::from_ref(&address));
    first.meets(2).await;
    let three = start(hidden(4), &[address]);
    until(async || (first.status().await.counts.connections_refused >= 1).then_some(())).await;
    assert_eq!(first.mesh.score(peer(4)).await, None, "it is not connected");
    // There is room again when one goes, and the third did not give up.
    drop(one);
    until(async || first.mesh.score(peer(4)).await).await;
    drop((two, three));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_shut_out_stays_out() {
    let first = start(public(1), &[]);
    let second = start(hidden(2), &first.addresses().await);
    second.meets(1).await;
    first.mesh.block(peer(2)).await;
    until(async || (first.status().await.peers == 0).then_some(())).await;
    until(async || (first.status().await.counts.connections_refused >= 1).then_some(())).await;
    assert_eq!(first.status().await.peers, 0);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    let address = format!("/ip4/127.0.0.1/tcp/{port}");
    let listen = vec![address.parse().expect("an address")];
    let Err(error) = Mesh::start(MeshConfig { listen, ..hidden(1) }) else {
        panic!("it listens twice")
    };
    let text = error.to_string();
    assert!(
        text.contains(&address) && text.contains("in use") && text.contains("--mesh"),
        "{text}"
    );
}
