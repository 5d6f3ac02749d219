//! Whether a node finds out that its NAT leads packets to its own public address back inside.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netsim::nat::{Allocator, Dependence, NatSpec};
use netsim::net::LinkSpec;
use netsim::scene::{HomeSpec, Scene};
use netsim::time;

fn is_found(hairpins: bool, filtering: Dependence) -> Result<()> {
    time::run(async |clock| {
        let line = LinkSpec::default();
        let mut scene = Scene::new(clock.clone(), 1, &[line, line]).await?;
        let plain = NatSpec::new(Dependence::Endpoint, filtering, Allocator::Random);
        let home = HomeSpec { nats: vec![NatSpec { hairpins, ..plain }], ..HomeSpec::default() };
        let party = scene.tenant(&home, 2).await?;
        let mut nat = party.node.nat();
        let known = nat.wait_for(|state| state.complete && state.hairpins.is_some());
        let known = clock.timeout(Duration::from_secs(30), known).await;
        let found = known.context("it was not found out")??.hairpins;
        ensure!(found == Some(hairpins), "{found:?}, filtering {filtering:?}");
        Ok(())
    })
}

#[test]
fn a_nat_that_hairpins_is_known_whatever_it_filters() -> Result<()> {
    Dependence::ALL.into_iter().try_for_each(|filtering| is_found(true, filtering))
}

#[test]
fn a_nat_that_does_not_is_known_whatever_it_filters() -> Result<()> {
    Dependence::ALL.into_iter().try_for_each(|filtering| is_found(false, filtering))
}
