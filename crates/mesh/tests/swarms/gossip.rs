//! Gossip arrives, whoever dies; rubbish does not.

use std::time::Duration;

use bytes::Bytes;
use sluice_mesh::{GossipError, Mesh, MeshEvent, Verdict};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::records::twenty;
use crate::rig::{Node, peer, public, start, until};

const TOPIC: &str = "sluice/1/orders/test";

/// Says something as soon as somebody listens.
async fn say(mesh: &Mesh, bytes: Bytes) {
    until(async || match mesh.gossip(TOPIC, bytes.clone()).await {
        Ok(()) => Some(()),
        Err(GossipError::NoPeers) => None,
        Err(error) => panic!("{error}"),
    })
    .await;
}

/// Says `word 0`, `word 1` and so on: who is not connected yet hears a later one.
fn repeat(mesh: &Mesh, word: &'static str) -> JoinHandle<()> {
    let mesh = mesh.clone();
    tokio::spawn(async move {
        for n in 0.. {
            say(&mesh, format!("{word} {n}").into()).await;
            sleep(Duration::from_millis(200)).await;
        }
    })
}

/// Lets messages pass until one begins with this; all that was heard.
async fn hear_until(node: &mut Node, word: &str) -> Vec<Bytes> {
    let mut heard = Vec::new();
    loop {
        heard.push(hear(node, Verdict::Accept).await);
        if heard.last().is_some_and(|bytes| bytes.starts_with(word.as_bytes())) {
            return heard;
        }
    }
}

/// Waits for a message, and lets it pass or not.
async fn hear(node: &mut Node, verdict: Verdict) -> Bytes {
    let gossip = node.event(|event| match event {
        MeshEvent::Gossip(gossip) => Some(gossip),
        MeshEvent::Request(_)
        | MeshEvent::Equivocation { .. }
        | MeshEvent::Published(_)
        | MeshEvent::Listener { .. } => None,
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
    let telling = repeat(&teller.mesh, "order");
    for node in &mut nodes {
        hear_until(node, "order").await;
    }
    telling.abort();
    let twice = teller.mesh.gossip(TOPIC, Bytes::from_static(b"order 0")).await;
    assert_eq!(twice, Err(GossipError::Duplicate));
    let large = teller.mesh.gossip(TOPIC, vec![0; 9000].into()).await;
    assert_eq!(large, Err(GossipError::TooLarge(9000)));
    // And back: the first teller hears the others.
    let answering = repeat(&nodes[9].mesh, "answer");
    hear_until(&mut teller, "answer").await;
    answering.abort();
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
    let greeting = repeat(&judge.mesh, "hello");
    hear_until(&mut bystander, "hello").await;
    greeting.abort();
    // The control: what the judge accepts goes on.
    say(&liar.mesh, Bytes::from_static(b"genuine")).await;
    assert_eq!(hear(&mut judge, Verdict::Accept).await, "genuine");
    hear_until(&mut bystander, "genuine").await;
    let before = judge.mesh.score(peer(2)).await.expect("it is connected");
    for rubbish in ["rubbish 1", "rubbish 2", "rubbish 3"] {
        say(&liar.mesh, Bytes::from_static(rubbish.as_bytes())).await;
        assert_eq!(hear(&mut judge, Verdict::Reject).await, rubbish);
    }
    let after = judge.mesh.score(peer(2)).await.expect("it is connected");
    assert!(before >= 0.0 && after < -80.0, "{before} -> {after}");
    assert_eq!(judge.status().await.counts.gossip_rejected, 3);
    // Nobody listens to the liar now; the judge's own word arrives, and no rubbish before it.
    let _ = liar.mesh.gossip(TOPIC, Bytes::from_static(b"rubbish 4")).await;
    say(&judge.mesh, Bytes::from_static(b"the judge's")).await;
    let heard = hear_until(&mut bystander, "the judge's").await;
    assert!(heard.iter().all(|bytes| !bytes.starts_with(b"rubbish")), "{heard:?}");
    assert_eq!(judge.status().await.counts.gossip_rejected, 3);
}
