//! The market in the roles: what is won is kept, served and shown.

mod bids;
mod buyer;
mod leases;
mod memory;
mod seller;

pub use bids::{BidEntry, Bids};
pub use buyer::{Bought, BuyOptions, Buyer, Progress, Teller, Times};
pub use leases::{Damaged, Ended, LEASES_MAX, LeaseError, LeaseState, Leases};
pub use seller::{SellOptions, Selling};
