//! The ledger through its public face: accounts, the file, crashes and full disks; and on a server.

#![expect(clippy::duplicate_mod, reason = "the same must hold of both stores")]

mod common;
mod crash;
mod file;
#[cfg(unix)]
mod fleet;
mod recovery;
#[cfg(unix)]
mod server;
#[cfg(unix)]
mod way;

/// What holds of both stores, in a file.
#[path = "."]
mod in_a_file {
    use crate::file::Place;

    #[path = "accounts.rs"]
    mod accounts;
}

/// What holds of both stores, on a server.
#[cfg(unix)]
#[path = "."]
mod on_a_server {
    use crate::fleet::Place;

    #[path = "accounts.rs"]
    mod accounts;
}
