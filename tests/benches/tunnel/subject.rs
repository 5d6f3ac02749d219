//! What is measured.

use std::fmt;

use crate::netns::Lab;
use crate::peers::Programs;
use crate::results::Results;

/// What `--only` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Family {
    Tcp,
    Sluice,
    Iroh,
    Rathole,
    Bore,
}

/// The path between tenant and provider that a subject is held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Path {
    Relayed,
    Direct,
}

/// One way to carry TCP from a provider to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    PlainTcp,
    Sluice {
        path: Path,
        metered: bool,
    },
    Iroh(Path),
    /// The tenant speaks plain TCP to the relay; `noise` is between relay and provider.
    Rathole {
        noise: bool,
    },
    /// As rathole, without cryptography.
    Bore,
}

impl Subject {
    pub(crate) const SLUICE_RELAYED: Self = Self::Sluice { path: Path::Relayed, metered: false };

    pub(crate) fn family(self) -> Family {
        match self {
            Self::PlainTcp => Family::Tcp,
            Self::Sluice { .. } => Family::Sluice,
            Self::Iroh(_) => Family::Iroh,
            Self::Rathole { .. } => Family::Rathole,
            Self::Bore => Family::Bore,
        }
    }

    /// The path it must have, or `None` if there is nothing to choose.
    pub(crate) fn path(self) -> Option<Path> {
        match self {
            Self::Sluice { path, .. } | Self::Iroh(path) => Some(path),
            Self::PlainTcp | Self::Rathole { .. } | Self::Bore => None,
        }
    }

    /// Whether packets must pass between tenant and provider.
    pub(crate) fn needs_forwarding(self) -> bool {
        self == Self::PlainTcp || self.path() == Some(Path::Direct)
    }

    /// Whether its cost without offloads is of interest: what crosses a relay in UDP, and iroh,
    /// with which that is compared.
    pub(crate) fn is_measured_without_offloads(self) -> bool {
        self.path() == Some(Path::Relayed)
    }

    /// Its name in figures: lower-case words joined by underscores.
    pub(crate) fn slug(self) -> String {
        self.to_string().to_lowercase().replace(' ', "_").replace([',', '(', ')'], "")
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relayed => "relayed",
            Self::Direct => "direct",
        })
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PlainTcp => f.write_str("plain TCP"),
            Self::Sluice { path, metered: false } => write!(f, "sluice {path}"),
            Self::Sluice { path, metered: true } => write!(f, "sluice {path}, metered"),
            Self::Iroh(path) => write!(f, "iroh {path}"),
            Self::Rathole { noise: false } => f.write_str("rathole"),
            Self::Rathole { noise: true } => f.write_str("rathole (noise)"),
            Self::Bore => f.write_str("bore"),
        }
    }
}

/// All that can be measured here, in the order of the tables.
pub(crate) fn all(programs: &Programs, lab: &Lab, results: &mut Results) -> Vec<Subject> {
    let mut all = vec![Subject::PlainTcp];
    for path in [Path::Relayed, Path::Direct] {
        all.extend([false, true].map(|metered| Subject::Sluice { path, metered }));
    }
    if lab.is_namespaces() {
        all.extend([Path::Relayed, Path::Direct].map(Subject::Iroh));
    } else if programs.has(Family::Iroh) {
        results.note("On loopback iroh can't be held to a path: left out");
    }
    all.extend([false, true].map(|noise| Subject::Rathole { noise }));
    all.push(Subject::Bore);
    all.retain(|subject| programs.has(subject.family()));
    all.sort_unstable();
    all
}
