//! The market in the roles: what is won is kept, served and shown.

mod buyer;
mod leases;
mod memory;

pub use buyer::{Bought, BuyOptions, Buyer, Progress, Teller, Times};
pub use leases::{Damaged, Ended, LEASES_MAX, LeaseError, LeaseState, Leases};
