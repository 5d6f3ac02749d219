//! Gossip: signed by who says it, judged by the application before it goes on, and scored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use libp2p::gossipsub::{
    Behaviour, ConfigBuilder, IdentTopic, Message, MessageAuthenticity, MessageId, PeerScoreParams,
    PeerScoreThresholds, TopicScoreParams, ValidationMode, score_parameter_decay,
};
use sluice_proto::Keypair;
use sluice_proto::eth::keccak256;

/// Largest message of a topic.
pub const GOSSIP_MAX: usize = 8 * 1024;
/// Three rejected messages and nobody listens to their bringer: 3^2 x -20 is far below the score of
/// -80 at which gossipsub ignores a peer, and two are not.
const INVALID_WEIGHT: f64 = -20.0;
/// A rejected message is remembered for so long.
const INVALID_DECAY: Duration = Duration::from_secs(600);

/// One id for the same bytes of a topic, whoever signed them: a copy under another's name is the
/// message that was seen.
fn message_id(message: &Message) -> MessageId {
    let parts = [message.topic.as_str().as_bytes(), &[0], &message.data].concat();
    MessageId::from(&keccak256(&parts)[..20])
}

/// Gossipsub as we run it.
pub(crate) fn behaviour(key: &Keypair) -> Behaviour {
    let config = ConfigBuilder::default()
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        .max_transmit_size(GOSSIP_MAX)
        .protocol_id_prefix("/sluice/gossip")
        // Orders are rare and small, and the first bid should come at once.
        .flood_publish(true)
        .build()
        .expect("its bounds agree with one another");
    let mut behaviour = Behaviour::new(MessageAuthenticity::Signed(key.clone()), config)
        .expect("signed messages are strictly validated");
    // Many nodes of one machine, in tests and in fleets, are not many identities of one stranger.
    let whitelist = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let params = PeerScoreParams {
        ip_colocation_factor_whitelist: whitelist.into(),
        ..PeerScoreParams::default()
    };
    behaviour
        .with_peer_score(params, PeerScoreThresholds::default())
        .expect("the scores' parameters are valid");
    behaviour
}

/// What a peer's conduct on a topic counts. Orders are too rare to demand a number of them, so
/// nobody is blamed for bringing few.
pub(crate) fn topic_score() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 100.0,
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_cap: 50.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: INVALID_WEIGHT,
        invalid_message_deliveries_decay: score_parameter_decay(INVALID_DECAY),
        ..TopicScoreParams::default()
    }
}

/// A topic by its name.
pub(crate) fn topic(name: &str) -> IdentTopic {
    IdentTopic::new(name)
}
