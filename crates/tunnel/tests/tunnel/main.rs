//! Real TCP connections over real QUIC connections on loopback.

mod paying;
mod rig;
mod services;
mod tcp;
