//! Every pair of NATs, each allocator, some seeds: who meets, how fast, at what cost.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_transport::PathKind;

use crate::check::{NAT_ENTRIES, Probes};
use crate::class::{Class, Kind, class, kinds};
use crate::figures::{Figure, Spans, Target};
use crate::nat::{Allocator, Dependence, NatSpec};
use crate::net::LinkSpec;
use crate::rng::Rng;
use crate::scene::{HomeSpec, Scene, allow_direct};
use crate::time;

/// How long a pair may take to meet before it counts as relayed.
const DIRECT_WITHIN: Duration = Duration::from_secs(12);
/// The same where both must guess: nobody expects them to.
const HOPELESS_WITHIN: Duration = Duration::from_secs(6);
/// Bytes that must come back right over whatever path there is in the end.
const ECHOED: usize = 4096;

/// One cell of the matrix and one seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// The tenant's NAT.
    pub tenant: Kind,
    /// The provider's.
    pub provider: Kind,
    /// How both give ports.
    pub allocator: Allocator,
    /// Decides delays and ports.
    pub seed: u64,
    /// What helps, if anything does.
    pub help: Help,
}

/// What makes a meeting easier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Help {
    /// Nothing.
    None,
    /// The provider has a public address: no NAT at all.
    Public,
    /// Both have IPv6 behind firewalls.
    Ipv6,
}

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// When a direct path was in use, from when it was allowed.
    pub direct: Option<Duration>,
    /// What [`Outcome::direct`] may take for an easy pair.
    pub allowance: Duration,
    /// Probes that both sides sent to addresses other than relays', in all.
    pub probes: u64,
    /// The most of one side within a second.
    pub probes_per_second: u64,
    /// The round trip through the relay.
    pub relay_rtt: Duration,
    /// From the call to the first byte of the request at the provider.
    pub first_byte: Duration,
    /// From the call to the first byte of the answer at the tenant.
    pub first_answer: Duration,
    /// The most mappings of one NAT.
    pub nat_entries: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = (name(self.tenant), name(self.provider));
        write!(f, "{a}-{b}-{}-{}", allocator_name(self.allocator), self.seed)?;
        match self.help {
            Help::None => Ok(()),
            Help::Public => f.write_str("-public"),
            Help::Ipv6 => f.write_str("-ipv6"),
        }
    }
}

/// The short name of a kind of NAT.
#[must_use]
pub fn name((mapping, filtering): Kind) -> String {
    let mapping = match mapping {
        Dependence::Endpoint => "EIM",
        Dependence::Address => "ADM",
        Dependence::AddressAndPort => "APDM",
    };
    let filtering = match filtering {
        Dependence::Endpoint => "EIF",
        Dependence::Address => "ADF",
        Dependence::AddressAndPort => "APDF",
    };
    format!("{mapping}/{filtering}")
}

const fn allocator_name(allocator: Allocator) -> &'static str {
    match allocator {
        Allocator::Preserving => "preserving",
        Allocator::Sequential => "sequential",
        Allocator::Random => "random",
        Allocator::Blocks => "blocks",
    }
}

/// All cases of some seeds.
#[must_use]
pub fn cases(seeds: u64, help: Help) -> Vec<Case> {
    let mut out = Vec::new();
    for seed in 0..seeds {
        for tenant in kinds() {
            for provider in kinds() {
                for allocator in Allocator::ALL {
                    out.push(Case { tenant, provider, allocator, seed, help });
                }
            }
        }
    }
    out
}

impl Case {
    /// What it should come to.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.help {
            Help::None => class(self.tenant, self.provider),
            Help::Public | Help::Ipv6 => Class::Open,
        }
    }

    fn number(&self) -> u64 {
        let mut digest = crate::net::Digest::default();
        for byte in self.to_string().bytes() {
            digest.number(byte.into());
        }
        digest.value()
    }

    /// Runs it.
    ///
    /// # Errors
    /// When the session does not work, over whatever path.
    pub fn run(&self) -> Result<Outcome> {
        time::run(async |clock| self.play(clock).await).with_context(|| self.to_string())
    }

    async fn play(&self, clock: sluice_transport::Clock) -> Result<Outcome> {
        let mut rng = Rng::new(self.number());
        let ms = |rng: &mut Rng, from, to| {
            rng.span(Duration::from_millis(from), Duration::from_millis(to))
        };
        let relay_line = ms(&mut rng, 2, 15);
        let lines = [LinkSpec::delay(relay_line), LinkSpec::delay(ms(&mut rng, 2, 15))];
        let mut scene = Scene::new(clock, rng.number(), &lines).await?;
        let (tenant_line, provider_line) = (ms(&mut rng, 3, 25), ms(&mut rng, 3, 25));
        let home = |(mapping, filtering), line, is_provider| HomeSpec {
            nats: match self.help == Help::Public && is_provider {
                true => Vec::new(),
                false => vec![NatSpec::new(mapping, filtering, self.allocator)],
            },
            up: LinkSpec::delay(line),
            down: LinkSpec::delay(line),
            ipv6: self.help == Help::Ipv6,
        };
        let provider = scene.provider(&home(self.provider, provider_line, true), 2).await?;
        let tenant = scene.tenant(&home(self.tenant, tenant_line, false), 2).await?;
        let probes = Probes::watch(&scene.net);
        // Whatever the nodes learn about their networks on their own, they have had time for.
        scene.sleep(Duration::from_secs(2)).await;

        let began = scene.net.elapsed();
        let (ours, theirs, times) =
            crate::workload::first_bytes(&scene, &tenant, &provider).await?;
        let allowed = scene.net.elapsed();
        let told = tokio::spawn({
            let (ours, theirs) = (ours.clone(), theirs.clone());
            async move { allow_direct(&ours, &theirs).await }
        });
        let hopeless = self.class() == Class::Hopeless;
        let span = if hopeless { HOPELESS_WITHIN } else { DIRECT_WITHIN };
        let ours_at = scene.until_path(&ours, PathKind::Direct, span).await;
        let theirs_at = match ours_at {
            Some(_) => scene.until_path(&theirs, PathKind::Direct, span).await,
            None => None,
        };
        told.await??;
        let direct = ours_at.zip(theirs_at).map(|(a, b)| a.max(b) - allowed);
        let echoed = crate::workload::echo(&scene, &ours, &theirs, ECHOED).await?;
        ensure!(echoed, "the session carries nothing");
        let direct_rtt = (tenant_line + provider_line) * 2;
        let relay_rtt = direct_rtt + relay_line * 4;
        let gateways = tenant.gateways.iter().chain(&provider.gateways);
        let nat_entries = gateways.map(|g| scene.net.with_nat(*g, |nat| nat.peak())).max();
        let probes = probes.lock().clone();
        Ok(Outcome {
            direct,
            allowance: relay_rtt * 3 / 2 + direct_rtt * 2 + Duration::from_millis(50),
            probes: probes.total,
            probes_per_second: probes.peak,
            relay_rtt,
            first_byte: times.request - began,
            first_answer: times.answer - began,
            nat_entries: nat_entries.unwrap_or_default(),
        })
    }
}

/// What is reported of the matrix.
#[derive(Debug, Default)]
pub struct Report {
    cells: BTreeMap<(Kind, Kind), Cell>,
    classes: BTreeMap<(Class, Allocator), Cell>,
    first_byte: Vec<f64>,
    first_answer: Vec<f64>,
    /// How much later than the allowance easy pairs met; in ms.
    late_ms: Vec<f64>,
    one_guess: Spans,
    probes_per_second: u64,
    probes_max: u64,
    nat_entries: usize,
    failed: usize,
    helped: BTreeMap<Help, Cell>,
}

#[derive(Debug, Default, Clone)]
struct Cell {
    runs: usize,
    direct: Spans,
    probes: Vec<u64>,
}

impl Cell {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.direct.extend(outcome.direct);
        self.probes.push(outcome.probes);
    }

    fn fraction(&self) -> f64 {
        self.direct.count() as f64 / self.runs.max(1) as f64
    }

    fn percent(&self) -> f64 {
        self.fraction() * 100.0
    }
}

impl Report {
    /// Takes in a case's outcome.
    pub fn add(&mut self, case: &Case, outcome: &Result<Outcome>) {
        let Ok(outcome) = outcome else {
            self.failed += 1;
            return;
        };
        if case.help != Help::None {
            return self.helped.entry(case.help).or_default().add(outcome);
        }
        let class = case.class();
        self.cells.entry((case.tenant, case.provider)).or_default().add(outcome);
        self.classes.entry((class, case.allocator)).or_default().add(outcome);
        let rtt = outcome.relay_rtt.as_secs_f64();
        self.first_byte.push(outcome.first_byte.as_secs_f64() / rtt);
        self.first_answer.push(outcome.first_answer.as_secs_f64() / rtt);
        self.probes_per_second = self.probes_per_second.max(outcome.probes_per_second);
        self.probes_max = self.probes_max.max(outcome.probes);
        self.nat_entries = self.nat_entries.max(outcome.nat_entries);
        match (class, outcome.direct) {
            (Class::Open, direct) => {
                let late = direct.map_or(f64::INFINITY, |direct| {
                    (direct.as_secs_f64() - outcome.allowance.as_secs_f64()) * 1e3
                });
                self.late_ms.push(late);
            }
            (Class::OneGuess, Some(direct)) => self.one_guess.push(direct),
            (Class::OneGuess, None) | (Class::Hopeless, _) => {}
        }
    }

    /// The figures.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let of = |class| {
            let cells = self.classes.iter().filter(|((c, _), _)| *c == class);
            let (met, runs) = cells.fold((0, 0), |(met, runs), (_, cell)| {
                (met + cell.direct.count(), runs + cell.runs)
            });
            if runs == 0 { f64::NAN } else { met as f64 / runs as f64 * 100.0 }
        };
        let helped = |help| self.helped.get(&help).map_or(f64::NAN, Cell::percent);
        let worst = self.classes.iter().filter(|((c, _), _)| *c == Class::OneGuess);
        let worst = worst.map(|(_, cell)| cell.percent()).fold(f64::NAN, f64::min);
        vec![
            Figure::new(
                "pairs that open at once: direct",
                of(Class::Open),
                "%",
                Target::AtLeast(100.0),
            ),
            Figure::new(
                "pairs that need one guess: direct",
                of(Class::OneGuess),
                "%",
                Target::AtLeast(97.0),
            ),
            Figure::new("the same, worst allocator", worst, "%", Target::AtLeast(97.0)),
            Figure::new(
                "pairs that need two guesses: direct",
                of(Class::Hopeless),
                "%",
                Target::None,
            ),
            Figure::new(
                "all pairs, a public address on one side: direct",
                helped(Help::Public),
                "%",
                Target::AtLeast(100.0),
            ),
            Figure::new(
                "all pairs, IPv6 behind firewalls: direct",
                helped(Help::Ipv6),
                "%",
                Target::AtLeast(100.0),
            ),
            Figure::new("sessions that failed", self.failed as f64, "", Target::AtMost(0.0)),
            Figure::new(
                "easy pairs: p95 later than allowed",
                percentile(&self.late_ms, 95.0),
                "ms",
                Target::AtMost(0.0),
            ),
            Figure::new(
                "one guess: p95 to direct",
                self.one_guess.percentile_ms(95.0),
                "ms",
                Target::AtMost(4000.0),
            ),
            Figure::new(
                "first byte of a request, worst",
                percentile(&self.first_byte, 100.0),
                "relay RTT",
                Target::AtMost(2.0),
            ),
            Figure::new(
                "first byte of an answer, worst",
                percentile(&self.first_answer, 100.0),
                "relay RTT",
                Target::None,
            ),
            Figure::new("probes of both sides, most", self.probes_max as f64, "", Target::None),
            Figure::new(
                "probes of one side in a second, most",
                self.probes_per_second as f64,
                "",
                Target::AtMost(500.0),
            ),
            Figure::new(
                "entries in one NAT, most",
                self.nat_entries as f64,
                "",
                Target::AtMost(NAT_ENTRIES as f64),
            ),
        ]
    }

    /// For people: what each pair came to, then each class with each allocator.
    #[must_use]
    pub fn table(&self) -> String {
        let kinds = kinds();
        let mut out = format!("{:10}", "direct, %");
        for kind in &kinds {
            out.push_str(&format!("{:>11}", name(*kind)));
        }
        for tenant in &kinds {
            out.push_str(&format!("\n{:10}", name(*tenant)));
            for provider in &kinds {
                let text = self.cells.get(&(*tenant, *provider)).map_or_else(String::new, |cell| {
                    format!("{} {:.1}", class(*tenant, *provider), cell.percent())
                });
                out.push_str(&format!("{text:>11}"));
            }
        }
        out.push_str(
            "\n\nclass allocator    runs  direct %   p50 ms   p95 ms  worst ms  probes p50  p95\n",
        );
        for ((class, allocator), cell) in &self.classes {
            let probes: Vec<f64> = cell.probes.iter().map(|p| *p as f64).collect();
            out.push_str(&format!(
                "{class:5} {:11} {:5} {:9.2} {:8.0} {:8.0} {:9.0} {:11.0} {:4.0}\n",
                allocator_name(*allocator),
                cell.runs,
                cell.percent(),
                cell.direct.percentile_ms(50.0),
                cell.direct.percentile_ms(95.0),
                cell.direct.percentile_ms(100.0),
                percentile(&probes, 50.0),
                percentile(&probes, 95.0),
            ));
        }
        out
    }
}

fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * values.len() as f64).ceil().max(1.0) as usize;
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}
