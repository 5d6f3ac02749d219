//! Who lost what, for people and for machines.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Result;

use super::{Case, Losses, ProviderLie, RelayLie, StrangerLie, TenantLie, names};
use crate::figures::{Figure, Target};

/// Losses by who lied: the worst over the seeds.
#[derive(Debug, Default)]
pub struct Report {
    rows: BTreeMap<usize, (Case, Losses)>,
    keys: Vec<(TenantLie, ProviderLie, RelayLie, StrangerLie)>,
    worst: Worst,
    failed: u64,
    judged: u64,
}

/// The most that anybody lost: in windows, but for garbage, which is in bytes beyond its bound.
#[derive(Debug, Default)]
struct Worst {
    provider: f64,
    tenant: f64,
    relay: f64,
    holder: f64,
    flood: f64,
    answers: f64,
}

impl Report {
    /// Takes in what came of a case.
    pub fn add(&mut self, case: &Case, outcome: &Result<Losses>) {
        let Ok(losses) = outcome else {
            self.failed += 1;
            return;
        };
        self.judged += 1;
        let [lease, reservation] = losses.windows.map(|w| w.max(1) as f64);
        let worst = &mut self.worst;
        for (of, lost, unit) in [
            (&mut worst.provider, losses.provider, lease),
            (&mut worst.tenant, losses.tenant, lease),
            (&mut worst.relay, losses.relay, reservation),
            (&mut worst.holder, losses.holder, reservation),
            (&mut worst.flood, losses.flood, 1.0),
        ] {
            *of = of.max(lost.unwrap_or_default() as f64 / unit);
        }
        let [sent, answers] = losses.stranger.map(|bytes| bytes as f64);
        worst.answers = worst.answers.max(answers / sent.max(1.0));
        let key = (case.tenant, case.provider, case.relay, case.stranger);
        let at = self.keys.iter().position(|k| *k == key).unwrap_or_else(|| {
            self.keys.push(key);
            self.keys.len() - 1
        });
        let row = self.rows.entry(at).or_insert((*case, *losses));
        if total(losses) > total(&row.1) {
            *row = (*case, *losses);
        }
    }

    /// A row for each set of liars, with the seed in which the others lost most.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::from(
            "liars                                              seed  provider    tenant     relay  \
             overpaid   garbage      down        up      paid  noticed\n",
        );
        for (case, losses) in self.rows.values() {
            let _ = writeln!(
                out,
                "{:<50} {:>4} {} {} {} {} {} {:>9} {:>9} {:>9} {:>8}",
                liars(case),
                case.seed,
                cell(losses.provider),
                cell(losses.tenant),
                cell(losses.relay),
                cell(losses.holder),
                cell(losses.flood),
                losses.heard[0],
                losses.heard[1],
                losses.paid,
                losses.noticed,
            );
        }
        out
    }

    /// What is to be reached.
    #[must_use]
    pub fn figures(&self) -> Vec<Figure> {
        let worst = &self.worst;
        let windows = |name: &str, value| Figure::new(name, value, "windows", Target::AtMost(1.0));
        vec![
            windows("most that a provider lost to its tenant", worst.provider),
            windows("most that a tenant lost", worst.tenant),
            windows("most that a relay lost", worst.relay),
            windows("most that a provider overpaid its relay", worst.holder),
            Figure::new("paid for garbage beyond the grant", worst.flood, "B", Target::AtMost(0.0)),
            Figure::new(
                "a stranger is answered with, per byte sent",
                worst.answers,
                "B",
                Target::AtMost(1.0),
            ),
            Figure::new("cases judged", self.judged as f64, "", Target::None),
            Figure::new("cases that failed", self.failed as f64, "", Target::AtMost(0.0)),
        ]
    }
}

fn total(losses: &Losses) -> u64 {
    let each = [losses.provider, losses.tenant, losses.relay, losses.holder, losses.flood];
    each.into_iter().flatten().sum()
}

fn cell(lost: Option<u64>) -> String {
    lost.map_or_else(|| format!("{:>9}", "liar"), |bytes| format!("{bytes:>9}"))
}

fn liars(case: &Case) -> String {
    let mut liars = BTreeSet::new();
    let (tenant, provider) = (tenant_says(case.tenant), provider_says(case.provider));
    liars.extend(tenant.into_iter().chain(provider).chain(relay_says(case.relay)));
    liars.extend(stranger_says(case.stranger));
    names(&liars)
}

const fn tenant_says(lie: TenantLie) -> Option<&'static str> {
    match lie {
        TenantLie::None => None,
        TenantLie::NeverPays => Some("tenant never pays"),
        TenantLie::PaysLate => Some("tenant pays late"),
        TenantLie::Replays => Some("tenant replays"),
        TenantLie::Equivocates => Some("tenant equivocates"),
        TenantLie::StrangersChannel => Some("tenant cites a stranger"),
        TenantLie::Floods => Some("tenant floods"),
        TenantLie::Elicits => Some("tenant elicits acks"),
        TenantLie::DelaysAcks => Some("tenant delays acks"),
    }
}

const fn provider_says(lie: ProviderLie) -> Option<&'static str> {
    match lie {
        ProviderLie::None => None,
        ProviderLie::Inflates => Some("provider inflates"),
        ProviderLie::Unsolicited => Some("provider pushes"),
        ProviderLie::Repeats => Some("provider repeats"),
        ProviderLie::OwesRelay => Some("provider owes its relay"),
    }
}

const fn relay_says(lie: RelayLie) -> Option<&'static str> {
    match lie {
        RelayLie::None => None,
        RelayLie::Drops => Some("relay drops"),
        RelayLie::Duplicates => Some("relay duplicates"),
        RelayLie::Reorders => Some("relay reorders"),
        RelayLie::Inflates => Some("relay inflates"),
        RelayLie::Repeats => Some("relay repeats"),
    }
}

const fn stranger_says(lie: StrangerLie) -> Option<&'static str> {
    match lie {
        StrangerLie::None => None,
        StrangerLie::Replays => Some("stranger replays"),
        StrangerLie::Elsewhere => Some("stranger sends from elsewhere"),
        StrangerLie::Forges => Some("stranger forges"),
    }
}
