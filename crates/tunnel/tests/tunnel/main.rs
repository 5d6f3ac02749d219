//! Real TCP connections over real QUIC connections on loopback.

#![expect(clippy::disallowed_methods, reason = "these tests run on the kernel's clock")]

mod paying;
mod rig;
mod services;
mod tcp;
