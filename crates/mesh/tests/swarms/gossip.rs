//! Gossip arrives, whoever dies; rubbish does not.

use bytes::Bytes;
use sluice_mesh::{GossipError, MeshEvent, Verdict};

use crate::records::twenty;
use crate::rig::{Node, peer, public, start, until};

const TOPIC: &str = "sluice/1/orders/test";

/// Says something as soon as somebody listens.
async fn say(node: &Node, bytes: &'static [u8]) {
    until(async || match node.mesh.gossip(TOPIC, Bytes::from_static(bytes)).await {
        Ok(()) => Some(()),
        Err(GossipError::NoPeers) => None,
        Err(error) => panic!("{error}"),
    })
    .await;
}

/// Waits for a message, and lets it pass or not.
async fn hear(node: &mut Node, verdict: Verdict) -> Bytes {
    let gossip = node.event(|event| match event {
        MeshEvent::Gossip(gossip) => Some(gossip),
        MeshEvent::Request(_) | MeshEvent::Equivocation { .. } | MeshEvent::Published(_) => None,
    });
    let gossip = gossip.await;
    node.mesh.judge(&gossip, verdict).await;
    gossip.bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_still_arrives_when_the_bootstrap_is_gone() {
    let mut nodes = twenty().await;
    drop(nodes.remove(0));
    for node in &nodes {
        node.mesh.subscribe(TOPIC).await.expect("there is room for a topic");
    }
    let mut teller = nodes.remove(3);
    say(&teller, b"an order").await;
    for node in &mut nodes {
        assert_eq!(hear(node, Verdict::Accept).await, "an order");
    }
    let twice = teller.mesh.gossip(TOPIC, Bytes::from_static(b"an order")).await;
    assert_eq!(twice, Err(GossipError::Duplicate));
    let large = teller.mesh.gossip(TOPIC, vec![0; 9000].into()).await;
    assert_eq!(large, Err(GossipError::TooLarge(9000)));
    // And back: the first teller hears the others.
    say(&nodes[9], b"another").await;
    assert_eq!(hear(&mut teller, Verdict::Accept).await, "another");
}

/// A line: the liar speaks to the judge, and the judge alone to the bystander.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rubbish_is_not_forwarded_and_costs_its_bringer_its_hearing() {
    let mut judge = start(public(1), &[]);
    let addresses = judge.addresses().await;
    let (liar, mut bystander) = (start(public(2), &addresses), start(public(3), &addresses));
    for node in [&judge, &liar, &bystander] {
        node.mesh.subscribe(TOPIC).await.expect("there is room for a topic");
    }
    liar.mesh.block(peer(3)).await;
    bystander.mesh.block(peer(2)).await;
    // The control: what the judge accepts goes on.
    say(&liar, b"genuine").await;
    assert_eq!(hear(&mut judge, Verdict::Accept).await, "genuine");
    assert_eq!(hear(&mut bystander, Verdict::Accept).await, "genuine");
    let before = judge.mesh.score(peer(2)).await.expect("it is connected");
    for rubbish in [&b"rubbish 1"[..], b"rubbish 2", b"rubbish 3"] {
        say(&liar, rubbish).await;
        assert_eq!(hear(&mut judge, Verdict::Reject).await, rubbish);
    }
    let after = judge.mesh.score(peer(2)).await.expect("it is connected");
    assert!(before >= 0.0 && after < -80.0, "{before} -> {after}");
    assert_eq!(judge.status().await.counts.gossip_rejected, 3);
    // Nobody listens to the liar now; the judge's own word arrives, and nothing before it.
    let _ = liar.mesh.gossip(TOPIC, Bytes::from_static(b"rubbish 4")).await;
    say(&judge, b"the judge's").await;
    assert_eq!(hear(&mut bystander, Verdict::Accept).await, "the judge's");
    assert_eq!(judge.status().await.counts.gossip_rejected, 3);
}
