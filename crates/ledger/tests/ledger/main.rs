//! The ledger through its public face: accounts, the file, crashes and full disks.

mod accounts;
mod common;
mod crash;
mod file;
