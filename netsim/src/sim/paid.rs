//! A run from a seed whose session is paid for: after random faults the three parties' books agree.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_ledger::StoredVoucher;
use sluice_metering::Counts;
use sluice_transport::{Clock, PathKind};
use tokio::task::JoinSet;

use super::rough::Rough;
use super::{FINISH_WITHIN, STREAM_MAX, Summary, Topology, fault};
use crate::paid::{Asked, Deal, Ear, Guest, Meeting, Outcome, Served, fetch};
use crate::rng::Rng;
use crate::scene::allow_direct;
use crate::time;

/// On rough lines it may take so long instead of [`FINISH_WITHIN`].
const ROUGH_FINISH_WITHIN: Duration = Duration::from_secs(1200);
/// One run in so many is not made rough.
const SMOOTH: u64 = 4;
/// Whether all has arrived is looked at this often.
const LOOK: Duration = Duration::from_millis(50);

/// Runs a seed with a paid session.
///
/// # Errors
/// When not all arrives, a byte was billed twice, or more than a window was lost.
pub fn run_paid(seed: u64) -> Result<Summary> {
    time::run(async |clock| play(clock, seed).await).with_context(|| format!("seed {seed}"))
}

async fn play(clock: Clock, seed: u64) -> Result<Summary> {
    let mut rng = Rng::new(seed);
    let mut topology = Topology::draw(&mut rng);
    let mut faults = fault::draw(&mut rng, &topology);
    let mut stream_max = STREAM_MAX;
    // Every fourth run has good lines and clocks.
    let rough = (seed % SMOOTH != SMOOTH - 1)
        .then(|| Rough::draw(&mut Rng::new(!seed), topology.relays.len()));
    if let Some(rough) = &rough {
        stream_max = (stream_max as f64 * rough.share()) as u64;
        rough.spoil(&mut topology, &mut faults);
    }
    let finish_within = if rough.is_some() { ROUGH_FINISH_WITHIN } else { FINISH_WITHIN };
    let mut deal = Deal::open(clock.clone(), rng.split(), &topology.relays).await?;
    let relays = 2.min(topology.relays.len());
    let (provider, tenant) = (&topology.provider, &topology.tenant);
    let meeting = deal.meet(provider, tenant, relays, Ear::True, |_, _| {}).await?;
    if topology.direct {
        let candidates = allow_direct(&meeting.ours, &meeting.theirs);
        deal.scene.within("the candidates", candidates).await??;
    }
    if let Some(rough) = &rough {
        rough.spoil_relays(&deal.scene);
    }
    let served = deal.serve(&meeting).await?;
    let guest = deal.guest(&meeting).await?;
    let began = deal.scene.net.elapsed();
    let mut fetching = JoinSet::new();
    let outcomes: Vec<Arc<Outcome>> = (0..2 + rng.below(4)).map(|_| Arc::default()).collect();
    for outcome in &outcomes {
        let (up, down) = (rng.below(stream_max / 2), rng.below(stream_max));
        let asked = Asked { seed: rng.number() >> 1, up, down };
        fetching.spawn(fetch(guest.clone(), asked, outcome.clone()));
    }
    fault::befall(&mut deal.scene, &faults).await?;
    let all = async {
        while let Some(ended) = fetching.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    };
    let finished = clock.timeout(finish_within, all).await;
    let stalls = (guest.account.snapshot().stalled, served.account.snapshot().stalled);
    finished.ok().with_context(|| format!("the streams did not arrive; {stalls:?}"))??;
    let end = async {
        // The tenant's last bytes are still under way when its own program is done.
        while !served.outcomes.lock().iter().all(|o| o.is_whole()) {
            clock.sleep(LOOK).await;
        }
        // A fault may outlast what one attempt waits for.
        while tokio::join!(guest.account.settle(), served.account.settle()) != (true, true) {}
    };
    let (ours, theirs) = (guest.account.clone(), served.account.clone());
    let snapshots = || (ours.snapshot(), theirs.snapshot());
    let ended = clock.timeout(finish_within, end).await;
    ended.ok().with_context(|| format!("the accounts do not settle: {:?}", snapshots()))?;
    let bytes = compare(&deal, &meeting, &guest, &served, &outcomes).await?;
    let (digest, packets) = deal.scene.net.digest();
    let took = deal.scene.net.elapsed() - began;
    let is_direct = meeting.ours.path().borrow().is_some_and(|p| p.kind == PathKind::Direct);
    Ok(Summary { topology, faults, digest, packets, took, bytes, is_direct })
}

/// What was heard, what either end counts, what is on either's disk and what the chain pays are one
/// number; no relay is owed more than a window. The bytes.
async fn compare(
    deal: &Deal,
    meeting: &Meeting,
    guest: &Guest,
    served: &Served,
    outcomes: &[Arc<Outcome>],
) -> Result<u64> {
    let theirs = served.outcomes.lock().clone();
    for outcome in outcomes.iter().chain(&theirs) {
        ensure!(outcome.is_whole() && !outcome.is_wrong(), "a stream is not whole: {outcome:?}");
    }
    let heard = |all: &[Arc<Outcome>]| all.iter().map(|o| o.heard()).sum::<u64>();
    let heard = Counts { up: heard(&theirs), down: heard(outcomes) };
    let lease = meeting.terms.lease;
    let signed = deal.tenant_ledger.newest_signed(lease).await?;
    let earned = deal.provider_ledger.newest_earned(lease).await?;
    for (who, counts) in [
        ("the tenant counts", guest.account.snapshot().counted),
        ("the provider counts", served.account.snapshot().counted),
        ("the tenant signed for", counts(signed.as_ref())),
        ("the provider was paid for", counts(earned.as_ref())),
    ] {
        ensure!(counts == heard, "{who} {counts}, but {heard} were heard");
    }
    let unpaid = served.account.snapshot().unpaid_max;
    ensure!(unpaid <= meeting.terms.window, "{unpaid} bytes were unpaid at a time");
    let lies = guest.account.snapshot().lies + served.account.snapshot().lies;
    ensure!(lies == 0, "honest parties accused each other {lies} times");
    let paid = deal.bank.redeem(&deal.purser, earned.as_ref()).await?;
    let bytes = heard.up + heard.down;
    ensure!(paid.0 == u128::from(bytes), "the chain paid {paid} for {bytes} bytes");
    compare_relays(deal).await?;
    Ok(bytes)
}

async fn compare_relays(deal: &Deal) -> Result<()> {
    for (relay, edge) in deal.scene.relays.iter().zip(&deal.edges) {
        let view = *edge.view.lock();
        ensure!(view.lies == 0, "an honest relay was accused {} times", view.lies);
        let (Some(process), Some(lease)) = (relay.process(), view.lease) else { continue };
        let stats = process.stats();
        let Some(meter) = stats.meters.iter().find(|meter| meter.lease == lease) else { continue };
        let earned = counts(edge.ledger.newest_earned(lease).await?.as_ref());
        let signed = counts(deal.provider_ledger.newest_signed(lease).await?.as_ref());
        ensure!(signed.covers(earned), "a relay earned {earned}, but {signed} was signed");
        let (up, down) = (meter.counts.up, meter.counts.down);
        let owed = (up + down).saturating_sub(earned.up + earned.down);
        ensure!(owed <= view.window, "a relay is owed {owed} bytes");
        ensure!(meter.unpaid_max <= view.window, "it was owed {} bytes", meter.unpaid_max);
    }
    Ok(())
}

fn counts(voucher: Option<&StoredVoucher>) -> Counts {
    voucher.map_or(Counts::default(), |v| Counts { up: v.up, down: v.down })
}
