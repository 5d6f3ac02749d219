//! What liars do.

use std::time::Duration;

use super::{Case, StrangerLie};
use crate::net::LinkSpec;

/// What a tenant does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantLie {
    /// It is honest.
    None,
    /// It takes what it gets.
    NeverPays,
    /// Each voucher goes out two seconds late.
    PaysLate,
    /// It pays a little, and says that again and again.
    Replays,
    /// It signs two sets of vouchers, with different counts.
    Equivocates,
    /// Its vouchers are on a channel of somebody else's.
    StrangersChannel,
    /// It pays, and sends garbage that the relay bills to the provider.
    Floods,
    /// It pays for little, and sends small packets for ever that the provider has to acknowledge.
    Elicits,
    /// It pays, and holds its acknowledgements back.
    DelaysAcks,
}

/// What a provider counts as sent when it grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// Small packets count as 1,200 bytes if they carry payload.
    Payload,
    /// All do, as they must for who sees lengths only: a control, for a tenant that [elicits]
    /// acknowledgements then pays for its own flood.
    ///
    /// [elicits]: TenantLie::Elicits
    EveryPacket,
}

/// What a provider does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProviderLie {
    /// It is honest.
    None,
    /// It claims three times what it got.
    Inflates,
    /// It pushes bytes that nobody asked for, and claims them.
    Unsolicited,
    /// It says everything three times.
    Repeats,
    /// It does not pay its relay.
    OwesRelay,
}

/// What a relay does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayLie {
    /// It is honest.
    None,
    /// It loses one packet in fifty, each way.
    Drops,
    /// It sends one packet in five twice.
    Duplicates,
    /// One packet in five comes too late.
    Reorders,
    /// It claims three times what it forwarded.
    Inflates,
    /// It says every claim three times.
    Repeats,
}

impl TenantLie {
    const LIES: [Self; 8] = [
        Self::NeverPays,
        Self::PaysLate,
        Self::Replays,
        Self::Equivocates,
        Self::StrangersChannel,
        Self::Floods,
        Self::Elicits,
        Self::DelaysAcks,
    ];
}

impl ProviderLie {
    const LIES: [Self; 4] = [Self::Inflates, Self::Unsolicited, Self::Repeats, Self::OwesRelay];
}

impl RelayLie {
    const LIES: [Self; 5] =
        [Self::Drops, Self::Duplicates, Self::Reorders, Self::Inflates, Self::Repeats];

    /// The relay's line, which does to packets what the relay would.
    pub(super) fn line(self, delay: Duration) -> LinkSpec {
        let line = LinkSpec::delay(delay);
        match self {
            Self::None | Self::Inflates | Self::Repeats => line,
            Self::Drops => LinkSpec { loss: 0.02, ..line },
            Self::Duplicates => LinkSpec { duplicates: 0.2, ..line },
            Self::Reorders => LinkSpec { reorders: 0.2, ..line },
        }
    }
}

/// All are honest; each lies alone, and so does a stranger; each two against the third: with as many
/// seeds.
#[must_use]
pub fn cases(seeds: u64) -> Vec<Case> {
    let honest = Case::HONEST;
    let mut out = vec![honest];
    let with_relay = |case: Case| RelayLie::LIES.map(|relay| Case { relay, ..case });
    for tenant in TenantLie::LIES {
        let case = Case { tenant, ..honest };
        out.push(case);
        out.extend(with_relay(case));
        out.extend(ProviderLie::LIES.map(|provider| Case { provider, ..case }));
    }
    for provider in ProviderLie::LIES {
        let case = Case { provider, ..honest };
        out.push(case);
        out.extend(with_relay(case));
    }
    out.extend(with_relay(honest));
    out.extend(StrangerLie::LIES.map(|stranger| Case { stranger, ..honest }));
    (0..seeds).flat_map(|seed| out.iter().map(move |case| Case { seed, ..*case })).collect()
}
