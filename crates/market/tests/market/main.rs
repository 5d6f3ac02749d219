//! The market through its public face.

#![expect(clippy::disallowed_methods, reason = "a beginning of time for cores that are told it")]

mod auction;
mod hostile;
mod relays;
mod world;
