//! The command `sluice`: roles, configuration, state on disk, and what a person is shown.
//!
//! - [`cli`] and [`app`]: the command line, and how its commands come to roles.
//! - [`roles`]: relay, provider and tenant, each composed of the crates below.
//! - [`demo`]: all three and a chain in one process.
//! - [`config`]: `sluice.toml`, parsed into valid types at once, with errors for people.
//! - [`settle`]: vouchers to tokens: what is redeemed, when, and top-ups.
//! - [`state`]: one locked directory per role with its keys.
//! - [`doctor`]: what this network allows, and what can be done about it.
//! - [`wallet`]: keys in encrypted files.
//! - [`bill`]: who paid whom for what.

pub mod app;
pub mod bill;
pub mod cli;
mod commands;
pub mod config;
pub mod demo;
pub mod doctor;
#[cfg(test)]
mod fed;
mod ledgers;
mod right;
pub mod roles;
pub mod settle;
pub mod state;
pub mod wallet;
