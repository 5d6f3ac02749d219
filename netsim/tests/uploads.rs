//! Uploads whose relay is killed: they go on at the line's rate, through another relay or the same one,
//! which knows nothing any more of what its holder granted.
//!
//! Some packets are lost, so that what fills the credit of QUIC is not all in order. Without the credit
//! in the grant, five of the eight take from nearly three minutes to more than five.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netsim::net::LinkSpec;
use netsim::paid::{Asked, Deal, Ear, Outcome, Served, fetch, megabits};
use netsim::rng::Rng;
use netsim::scene::HomeSpec;
use netsim::{pool, time};
use sluice_transport::Clock;

/// One way over each line.
const LINE: Duration = Duration::from_millis(10);
/// Bits per second of the homes' lines, in millions.
const MBITS: u64 = 100;
/// What is uploaded.
const UPLOAD: u64 = 12 << 20;
/// A relay that was killed is back after this.
const BACK: Duration = Duration::from_secs(1);
/// Of packets to and from each relay this part is lost.
const LOSS: f64 = 0.005;
/// The rest is there by then: it takes up to a minute with so much loss, and an hour at 16 kbit/s.
const REST_WITHIN: Duration = Duration::from_secs(120);
/// It is looked this often what came.
const LOOK: Duration = Duration::from_millis(1);

/// An upload and what befalls it.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// With one, that one comes back.
    relays: usize,
    /// Bytes after which the relay in use is killed.
    after: u64,
    seed: u64,
}

impl Case {
    fn run(&self) -> Result<()> {
        time::run(async |clock| self.play(clock).await).with_context(|| format!("{self:?}"))
    }

    async fn play(&self, clock: Clock) -> Result<()> {
        let lines = vec![LinkSpec { loss: LOSS, ..LinkSpec::delay(LINE) }; self.relays];
        let mut deal = Deal::open(clock.clone(), Rng::new(self.seed), &lines).await?;
        let line = megabits(MBITS, LINE);
        let home = HomeSpec { up: line, down: line, ..HomeSpec::default() };
        let meeting = deal.meet(&home, &home, self.relays, Ear::True, |_, _| {}).await?;
        let served = deal.serve(&meeting).await?;
        let guest = deal.guest(&meeting).await?;
        let asked = Asked { seed: self.seed, up: UPLOAD, down: 0 };
        let outcome = Arc::<Outcome>::default();
        let fetching = tokio::spawn(fetch(guest, asked, outcome));
        let begun = clock.timeout(REST_WITHIN, arrived(&clock, &served, self.after)).await;
        ensure!(begun.is_ok(), "it came to a halt before anything happened");
        let path = meeting.theirs.path().borrow().context("the session has a path")?;
        let used = path.relay.context("a relay carries it")?.addr;
        let relay = deal.scene.relays.iter().position(|relay| relay.addr.addr == used);
        let relay = relay.context("it is one of them")?;
        let net = deal.scene.net.clone();
        deal.scene.relays[relay].kill(&net);
        if self.relays == 1 {
            clock.sleep(BACK).await;
            deal.scene.relays[relay].restart().await?;
        }
        let rest = clock.timeout(REST_WITHIN, arrived(&clock, &served, UPLOAD)).await;
        let heard = served.heard();
        ensure!(rest.is_ok(), "{heard} of {UPLOAD} bytes after {REST_WITHIN:?}");
        fetching.await?
    }
}

async fn arrived(clock: &Clock, served: &Served, bytes: u64) {
    while served.heard() < bytes {
        clock.sleep(LOOK).await;
    }
}

#[test]
fn an_upload_goes_on_when_its_relay_is_killed() {
    let after = [1 << 20, 9 << 20];
    let cases: Vec<Case> = [1, 2]
        .into_iter()
        .flat_map(|relays| after.map(|after| (relays, after)))
        .flat_map(|(relays, after)| (0..2).map(move |seed| Case { relays, after, seed }))
        .collect();
    let outcomes = pool::run(&cases, Case::run, |_, _| {});
    let failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let failed: Vec<String> = failed.map(|error| format!("{error:#}")).collect();
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}
