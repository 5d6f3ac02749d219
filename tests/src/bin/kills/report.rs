//! What all kills came to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tests::figures::{Figure, Target};

use crate::judge::{Losses, Lost, Paid};
use crate::stage::Role;

/// The worst of each kind.
#[derive(Debug, Clone, Copy, Default)]
struct Worst {
    kills: usize,
    provider: Lost,
    with_read_ahead: Lost,
    tenant: Lost,
    relay: Lost,
    holder: Lost,
}

/// Adds up.
#[derive(Debug, Default)]
pub(crate) struct Report {
    of: BTreeMap<Role, Worst>,
    /// Vouchers that were acknowledged and were not on the disk; how many accounts were compared.
    forgotten: usize,
    compared: usize,
    /// What would have been found if payees had written nothing during the transfers.
    control_lost: usize,
    control_forgotten: usize,
    failed: usize,
    stalled: usize,
}

impl Lost {
    fn windows(self) -> f64 {
        self.bytes as f64 / self.window.max(1) as f64
    }

    fn worse(self, other: Self) -> Self {
        if other.windows() > self.windows() { other } else { self }
    }
}

impl Report {
    pub(crate) fn note(&mut self, victim: Role, losses: &Losses, control: &Losses) {
        let worst = self.of.entry(victim).or_default();
        worst.kills += 1;
        worst.provider = worst.provider.worse(losses.provider);
        worst.with_read_ahead = worst.with_read_ahead.worse(losses.with_read_ahead);
        worst.tenant = worst.tenant.worse(losses.tenant);
        worst.relay = worst.relay.worse(losses.relay);
        worst.holder = worst.holder.worse(losses.holder);
        let is_lost = control.provider.windows() > 1.0 || control.relay.windows() > 1.0;
        self.control_lost += usize::from(is_lost);
    }

    /// What a payer was told that is durable, and what the payee's disk had: when it died, and when
    /// the transfer began.
    pub(crate) fn acknowledged(&mut self, told: Paid, disk: Paid, before: Paid) {
        let is_behind = |disk: Paid| disk.up < told.up || disk.down < told.down;
        self.compared += 1;
        self.forgotten += usize::from(is_behind(disk));
        self.control_forgotten += usize::from(is_behind(before));
    }

    pub(crate) fn fail(&mut self) {
        self.failed += 1;
    }

    /// A transfer did not complete within a minute.
    pub(crate) fn stall(&mut self) {
        self.stalled += 1;
    }

    fn worst(&self, of: fn(&Worst) -> Lost) -> f64 {
        self.of.values().map(|worst| of(worst).windows()).fold(0.0, f64::max)
    }

    /// Whether nobody lost more than may be, and the controls did.
    pub(crate) fn is_sound(&self) -> bool {
        let losses = [
            self.worst(|w| w.provider),
            self.worst(|w| w.tenant),
            self.worst(|w| w.relay),
            self.worst(|w| w.holder),
        ];
        let found = [self.compared, self.control_lost, self.control_forgotten];
        losses.iter().all(|windows| *windows <= 1.0)
            && found.iter().all(|count| *count > 0)
            && self.forgotten + self.failed == 0
    }

    /// The worst losses by who was killed, in bytes.
    pub(crate) fn table(&self) -> String {
        let mut out =
            String::from("killed      times    provider      tenant       relay    overpaid\n");
        for (role, worst) in &self.of {
            let cells = [worst.provider, worst.tenant, worst.relay, worst.holder];
            let cells: String = cells.iter().map(|lost| format!("{:>12}", lost.bytes)).collect();
            let _ = writeln!(out, "{:<10} {:>6}{cells}", role.name(), worst.kills);
        }
        out
    }

    pub(crate) fn figures(&self, kills: usize, seconds: f64) -> Vec<Figure> {
        let mut figures = Vec::new();
        for role in Role::ALL {
            let done = self.of.get(&role).map_or(0, |worst| worst.kills);
            let name = format!("kill instants of the {}", role.name());
            figures.push(Figure::new(name, done as f64, "", Target::AtLeast(kills as f64)));
        }
        for (name, value) in [
            ("most that the provider lost to its tenant", self.worst(|w| w.provider)),
            ("most that the tenant lost", self.worst(|w| w.tenant)),
            ("most that the relay lost", self.worst(|w| w.relay)),
            ("most that the provider overpaid its relay", self.worst(|w| w.holder)),
        ] {
            figures.push(Figure::new(name, value, "windows", Target::AtMost(1.0)));
        }
        let with = self.worst(|w| w.with_read_ahead);
        let name = "the provider, with what it had read ahead of its sending";
        figures.push(Figure::new(name, with, "windows", Target::None));
        let control = "control: kills that lose more than a window if payees write nothing";
        let other = "control: acknowledged vouchers that are lost then";
        let all = self.of.values().map(|worst| worst.kills).sum::<usize>().max(1);
        figures.extend([
            Figure::new(
                "accounts whose acknowledgements were compared",
                self.compared as f64,
                "",
                Target::AtLeast(1.0),
            ),
            Figure::new(
                "acknowledged vouchers lost",
                self.forgotten as f64,
                "",
                Target::AtMost(0.0),
            ),
            Figure::new(
                "transfers that did not complete within a minute",
                self.stalled as f64,
                "",
                Target::AtMost(0.0),
            ),
            Figure::new(
                "kills after which something did not hold",
                self.failed as f64,
                "",
                Target::AtMost(0.0),
            ),
            Figure::new(control, self.control_lost as f64, "kills", Target::AtLeast(1.0)),
            Figure::new(other, self.control_forgotten as f64, "", Target::AtLeast(1.0)),
            Figure::new("a kill and all that follows", seconds / all as f64, "s", Target::None),
        ]);
        figures
    }
}
