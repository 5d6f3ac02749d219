//! Real swarms on loopback, in real time: libp2p's timers follow no other clock.

mod gossip;
mod hostile;
mod records;
mod rig;
mod routes;
