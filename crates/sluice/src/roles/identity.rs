//! Who a node is.

use crate::state::State;
use sluice_ledger::Recovery;
use sluice_proto::{Keypair, PeerId, WalletKey};

/// The keys of a node, from its state directory or, for the demo, made for one run, and what is to be
/// known of where they were.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its name.
    pub node: Keypair,
    /// Opens rendezvous messages.
    pub noise: [u8; 32],
    /// Keys QUIC's stateless resets.
    pub reset: [u8; 64],
    /// Signs vouchers and transactions.
    pub wallet: WalletKey,
    /// Issues invites.
    pub invites: [u8; 16],
    /// Number of this start, above those of all before.
    pub incarnation: u64,
    /// What is in doubt after the state directory was found copied or restored.
    pub recovery: Recovery,
}

impl Identity {
    /// The keys of a state directory.
    #[must_use]
    pub fn from_state(state: &State) -> Self {
        Self {
            node: state.node().clone(),
            noise: *state.noise_secret(),
            reset: *state.reset_key(),
            wallet: state.wallet().clone(),
            invites: *state.invite_secret(),
            incarnation: state.incarnation(),
            recovery: state.recovery().clone(),
        }
    }

    /// The node's name.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.node.public().to_peer_id()
    }
}
