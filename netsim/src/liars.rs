//! Who lies, alone or with another, and what that costs the others.
//!
//! A tenant fetches and brings bytes through one relay; the tenant pays the provider, the provider
//! pays the relay. Whoever lies does so with the keys and on the connections of an honest party.
//! Then the books are compared by somebody who believes none of them: ledgers on disk, what the
//! programs heard, and what passed on the wires.

mod books;
mod lie;
mod provider;
mod report;
mod stranger;
mod tenant;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use sluice_metering::{Payee, Payer};
use sluice_transport::{Clock, Session};
use tokio::task::JoinSet;

use crate::net::{Net, PlaceId};
use crate::paid::{Asked, Deal, Ear, Guest, Meeting, Outcome, Served, fetch, megabits};
use crate::rng::Rng;
use crate::scene::HomeSpec;
use crate::time;
use books::{Books, Wires};
use stranger::Stranger;

pub use books::Losses;
pub use lie::{Counting, ProviderLie, RelayLie, TenantLie, cases};
pub use report::Report;
pub use stranger::StrangerLie;

/// So long the tenant tries to get what it wants.
const LASTS: Duration = Duration::from_secs(90);
/// So long whoever is honest may still settle, and no longer than the product's own bound.
const SETTLES: Duration = Duration::from_secs(5);
/// What the tenant wants: six windows down, four up, and some of both.
const WANTED: [(u64, u64); 3] = [(0, 3 << 20), (2 << 20, 0), (256 << 10, 256 << 10)];
/// What it wants if all that it is after is garbage: little, so that it grants little.
const WANTED_LITTLE: [(u64, u64); 3] = [(0, 128 << 10), (16 << 10, 0), (1 << 10, 1 << 10)];
/// The provider that counts every packet as payload looks this often at what it sent.
const COUNTS_EVERY: Duration = Duration::from_millis(50);

/// Who lies in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// The tenant.
    pub tenant: TenantLie,
    /// The provider.
    pub provider: ProviderLie,
    /// The relay.
    pub relay: RelayLie,
    /// Somebody on the network.
    pub stranger: StrangerLie,
    /// How the provider counts what it grants.
    pub counting: Counting,
    /// Decides all else.
    pub seed: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, provider, relay, stranger, counting, seed } = self;
        write!(f, "{tenant:?}-{provider:?}-{relay:?}-{stranger:?}-{seed}")?;
        if *counting == Counting::EveryPacket { write!(f, "-control") } else { Ok(()) }
    }
}

/// The provider's end of the session.
enum Host {
    Honest(Served),
    Cheat(Arc<provider::Cheat>),
}

/// The tenant's.
enum Client {
    Honest(Guest),
    Cheat(Arc<tenant::Cheat>),
}

/// All that a case is played with.
struct Stage {
    deal: Deal,
    meeting: Meeting,
    wires: Arc<Mutex<Wires>>,
    stranger: Arc<Mutex<Stranger>>,
}

impl Case {
    /// Nobody lies.
    pub const HONEST: Self = Self {
        tenant: TenantLie::None,
        provider: ProviderLie::None,
        relay: RelayLie::None,
        stranger: StrangerLie::None,
        counting: Counting::Payload,
        seed: 0,
    };

    /// Plays it; who lost what.
    ///
    /// # Errors
    /// When honest parties do not get what they want, or books contradict each other where they
    /// must not.
    pub fn run(&self) -> Result<Losses> {
        time::run(async |clock| self.play(clock).await).with_context(|| format!("case {self}"))
    }

    /// Whether all that is asked for must arrive and be paid: nobody withholds anything.
    fn must_succeed(&self) -> bool {
        self.tenant == TenantLie::None
            && self.provider == ProviderLie::None
            && self.relay != RelayLie::Inflates
    }

    async fn play(&self, clock: Clock) -> Result<Losses> {
        let mut rng = Rng::new(self.seed);
        let mut stage = self.set(clock.clone(), &mut rng).await?;
        let host = self.host(&stage).await?;
        let client = self.client(&mut stage, &mut rng).await?;
        let elicits = self.tenant == TenantLie::Elicits;
        let wanted = if elicits { WANTED_LITTLE } else { WANTED };
        let asked = wanted.map(|(up, down)| Asked { seed: rng.number() >> 1, up, down });
        let outcomes = wanted.map(|_| Arc::<Outcome>::default());
        let mut fetching = JoinSet::new();
        if let Client::Cheat(cheat) = &client
            && elicits
        {
            let cheat = cheat.clone();
            fetching.spawn(async {
                cheat.elicit().await;
                Ok(())
            });
        }
        let counting = (self.counting == Counting::EveryPacket).then(|| {
            tokio::spawn(count_every_packet(
                stage.wires.clone(),
                stage.meeting.theirs.clone(),
                clock.clone(),
            ))
        });
        for (asked, outcome) in asked.into_iter().zip(&outcomes) {
            let outcome = outcome.clone();
            match &client {
                Client::Honest(guest) => fetching.spawn(fetch(guest.clone(), asked, outcome)),
                Client::Cheat(cheat) => fetching.spawn(cheat.clone().fetch(asked, outcome)),
            };
        }
        // The provider's home came first.
        let line = stage.deal.scene.sites[1].host;
        let acks = (self.tenant == TenantLie::DelaysAcks)
            .then(|| tokio::spawn(hold_acks(stage.deal.scene.net.clone(), line)));
        let all = async { while fetching.join_next().await.is_some() {} };
        let in_time = clock.timeout(LASTS, all).await.is_ok();
        self.settle(&clock, &host, &client).await;
        for task in [acks, counting].into_iter().flatten() {
            task.abort();
        }
        let books = Books { case: *self, outcomes: &outcomes, host: &host, client: &client };
        let losses = books.audit(&stage, in_time).await?;
        stage.meeting.ours.close(0, "done");
        Ok(losses)
    }

    async fn set(&self, clock: Clock, rng: &mut Rng) -> Result<Stage> {
        let line = self.relay.line(Duration::from_millis(10));
        let mut deal = Deal::open(clock, rng.split(), &[line]).await?;
        let home = HomeSpec {
            up: megabits(20, Duration::from_millis(10)),
            down: megabits(40, Duration::from_millis(10)),
            ..HomeSpec::default()
        };
        let stranger = Stranger::join(&deal.scene.net, self.stranger, rng.split());
        let wires = Arc::new(Mutex::new(Wires::default()));
        let relay = deal.scene.relays[0].addr.addr.ip();
        let (ear, watching) = (self.ear(), wires.clone());
        let watch = |net: &Net, host| Wires::watch(watching, net, host, relay);
        let meeting = deal.meet(&home, &home, 1, ear, watch).await?;
        Ok(Stage { deal, meeting, wires, stranger })
    }

    fn ear(&self) -> Ear {
        match (self.provider, self.relay) {
            (ProviderLie::OwesRelay, _) => Ear::Unpaid,
            (_, RelayLie::Inflates) => Ear::Inflated(3),
            (_, RelayLie::Repeats) => Ear::Repeated,
            _ => Ear::True,
        }
    }

    async fn host(&self, stage: &Stage) -> Result<Host> {
        let Stage { deal, meeting, .. } = stage;
        if matches!(self.provider, ProviderLie::None | ProviderLie::OwesRelay) {
            return Ok(Host::Honest(deal.serve(meeting).await?));
        }
        let (clock, session) = (deal.scene.net.clock().clone(), meeting.theirs.clone());
        let lease = meeting.terms.lease;
        let payee = Payee::new(meeting.terms.clone(), Some(deal.purser.purse.channel), 1, None);
        let cheat = provider::Cheat::new(self.provider, session, clock, lease, payee);
        tokio::spawn(cheat.clone().cheat());
        Ok(Host::Cheat(cheat))
    }

    async fn client(&self, stage: &mut Stage, rng: &mut Rng) -> Result<Client> {
        let Stage { deal, meeting, .. } = stage;
        if matches!(self.tenant, TenantLie::None | TenantLie::DelaysAcks) {
            return Ok(Client::Honest(deal.guest(meeting).await?));
        }
        let mut purse = deal.purser.purse.clone();
        if self.tenant == TenantLie::StrangersChannel {
            // It pays the same provider, from somebody else's money: the key is not the tenant's.
            purse.channel = deal.strangers_channel().await?.purse.channel;
        }
        let (clock, session) = (deal.scene.net.clock().clone(), meeting.ours.clone());
        let terms = &meeting.terms;
        let payer = Payer::new(terms.clone(), Some(purse.clone()), 1, None);
        let second = (self.tenant == TenantLie::Equivocates)
            .then(|| Payer::new(terms.clone(), Some(purse), 1, None));
        let cheat = tenant::Cheat::new(self.tenant, session, clock, payer, second, rng.split());
        tokio::spawn(cheat.clone().pay());
        Ok(Client::Cheat(cheat))
    }

    /// Whoever is honest settles, as far as the other lets it.
    async fn settle(&self, clock: &Clock, host: &Host, client: &Client) {
        let ours = async {
            if let Client::Honest(guest) = client {
                guest.account.settle().await;
            }
        };
        let theirs = async {
            if let Host::Honest(served) = host {
                served.account.settle().await;
            }
        };
        tokio::join!(ours, theirs);
        clock.sleep(SETTLES).await;
    }
}

/// A receiver that delays its acknowledgements: nothing leaves its line for most of the time.
async fn hold_acks(net: Net, line: PlaceId) {
    const HELD: Duration = Duration::from_millis(150);
    const LET_GO: Duration = Duration::from_millis(160);
    loop {
        net.stall_up(line, HELD);
        net.clock().sleep(LET_GO).await;
    }
}

/// A provider that counts as a relay does, which sees lengths only.
async fn count_every_packet(wires: Arc<Mutex<Wires>>, session: Session, clock: Clock) {
    loop {
        if let Some(flow) = session.relay_flow() {
            flow.count_small(wires.lock().lacking().saturating_sub(flow.small()));
        }
        clock.sleep(COUNTS_EVERY).await;
    }
}

/// The names of a set of parties, for people.
fn names(parties: &BTreeSet<&'static str>) -> String {
    if parties.is_empty() {
        return "nobody".to_owned();
    }
    parties.iter().copied().collect::<Vec<_>>().join(" and ")
}
