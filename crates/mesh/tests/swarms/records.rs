//! Records are found, whoever dies.

use sluice_mesh::{FindError, Multiaddr, PublishError};

use crate::rig::{Node, content, hidden, peer, public, start, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_find_a_record() {
    let first = start(public(1), &[]);
    let alone = first.mesh.publish(content(7)).await;
    assert_eq!(alone, Err(PublishError::NoHolder));
    let second = start(public(2), &first.addresses().await);
    let found = until(async || second.mesh.find(peer(1)).await.ok()).await;
    assert_eq!(found.record().noise_key, [7; 32]);
    assert_eq!(found.record().peer, peer(1));
    assert!(!found.record().mesh.is_empty(), "it says where it is reached");
    let nobody = second.mesh.find(peer(9)).await;
    assert_eq!(nobody, Err(FindError::NotFound(peer(9))));
    // A new one replaces it, with a higher number.
    let sequence = found.record().sequence;
    let published = first.mesh.publish(content(8)).await.expect("the second holds it");
    assert!(published.sequence > sequence && published.holders > 0);
    let found = second.mesh.find(peer(1)).await.expect("it is there");
    assert_eq!((found.record().noise_key, found.record().sequence), ([8; 32], published.sequence));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_be_reached_is_a_client_and_its_record_is_found() {
    let server = start(public(1), &[]);
    let addresses = server.addresses().await;
    let (client, other) = (start(hidden(2), &addresses), start(hidden(3), &addresses));
    client.meets(1).await;
    other.meets(1).await;
    assert!(server.status().await.serves && !client.status().await.serves);
    until(async || client.mesh.publish(content(7)).await.ok()).await;
    let found = until(async || other.mesh.find(peer(2)).await.ok()).await;
    assert_eq!(found.record().noise_key, [7; 32]);
}

/// Twenty nodes of which only the first was known to the others.
pub(crate) async fn twenty() -> Vec<Node> {
    let first = start(public(100), &[]);
    let addresses: Vec<Multiaddr> = first.addresses().await;
    let mut nodes = vec![first];
    for seed in 101..120 {
        nodes.push(start(public(seed), &addresses));
    }
    for node in &nodes {
        node.meets(3).await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_nodes_go_on_without_their_bootstrap() {
    let mut nodes = twenty().await;
    for (node, seed) in nodes.iter().zip(100_u8..) {
        until(async || node.mesh.publish(content(seed)).await.ok()).await;
    }
    drop(nodes.remove(0));
    for (node, seed) in nodes.iter().zip(101_u8..) {
        for other in [seed + 1, seed + 7] {
            let other = 101 + (other - 101) % 19;
            let found = until(async || node.mesh.find(peer(other)).await.ok()).await;
            assert_eq!(found.record().noise_key, [other; 32]);
        }
    }
    // One that comes now begins with any of those that are left.
    let late = start(hidden(150), &nodes[5].addresses().await);
    let found = until(async || late.mesh.find(peer(112)).await.ok()).await;
    assert_eq!(found.record().noise_key, [112; 32]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_are_remembered_are_enough_to_start() {
    let first = start(public(1), &[]);
    let second = start(public(2), &first.addresses().await);
    second.meets(1).await;
    let remembered = sluice_mesh::write_remembered(&second.status().await.remembered);
    drop(second);
    let mut config = public(2);
    config.remembered = sluice_mesh::parse_remembered(&remembered);
    let again = start(config, &[]);
    again.meets(1).await;
}
