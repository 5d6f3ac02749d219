//! The three roles: relay, provider, tenant. Each composes the crates below it.

mod accounts;
mod advertise;
mod channel;
mod choose;
mod connect;
mod control;
mod edge;
mod identity;
mod lease;
mod market;
mod mesh;
mod probe;
mod provide;
mod reach;
mod relay;
mod report;
mod reservation;
mod sight;
mod starts;
mod stop;
mod vouchers;
mod warm;

pub use channel::{CannotPay, Money};
pub(crate) use choose::{facts as relay_facts, policy as relay_policy, ranked};
pub use connect::{Connect, ConnectOptions};
pub use identity::Identity;
pub use lease::{LeaseUnfit, deposit_under, fits};
pub use market::{
    BidEntry, Bids, Bought, BuyOptions, Buyer, Damaged, Ended, LEASES_MAX, LeaseError, LeaseState,
    Leases, Progress, SellOptions, Selling, Teller, Times,
};
pub use mesh::{AskFailed, Asked, KnownRelay, MeshOptions, Meshed};
pub(crate) use mesh::{Known, NodeLine, Ranked, RelayLine};
pub(crate) use probe::Probing;
pub use provide::{Provide, ProvideOptions};
pub use relay::{RelayOptions, start_relay};
pub(crate) use report::transaction;
pub use report::{Report, Reporter};
pub use stop::wait_for_stop;
