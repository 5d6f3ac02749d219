//! The market in the roles: what is won is kept, served and shown.

mod leases;

pub use leases::{Damaged, Ended, LEASES_MAX, LeaseError, LeaseState, Leases};
