//! Starts a development node for tests: Foundry's anvil; and a way to it that can be cut, and lie.

mod way;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub use way::{Mood, Way};

/// Where `npm install --prefix ~/.cache/sluice/npm @foundry-rs/anvil-linux-amd64` puts it.
const NPM_PATH: &str = ".cache/sluice/npm/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil";

/// A running anvil on a port of its own; dropped, it ends.
#[derive(Debug)]
pub struct Anvil {
    child: Child,
    url: String,
}

impl Anvil {
    /// Starts one with a block per transaction. `None`, with a loud line on stderr, when there is no
    /// anvil on this machine.
    ///
    /// # Panics
    /// When it does not start, or is missing while the variable `CI` is set.
    #[must_use]
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with more arguments.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Option<Self> {
        let Some(program) = find() else {
            let how = "install it with `npm install --prefix ~/.cache/sluice/npm \
                       @foundry-rs/anvil-linux-amd64` or set SLUICE_ANVIL";
            assert!(std::env::var_os("CI").is_none(), "anvil not found, but CI is set; {how}");
            eprintln!("SKIPPED: anvil not found, nothing was tested on a real node; {how}");
            return None;
        };
        let mut child = Command::new(&program)
            .args(["--port", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
        let mut lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let address = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("Listening on ").map(str::to_owned));
        // Read on to its end: a full pipe would stop it.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        match address {
            Some(address) => Some(Self { child, url: format!("http://{}", address.trim()) }),
            None => {
                let _ = child.kill();
                panic!("{} ended without listening", program.display());
            }
        }
    }

    /// Its JSON-RPC URL.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `SLUICE_ANVIL`, or an `anvil` on `PATH`, or the npm package in the home folder's cache.
#[must_use]
pub fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_ANVIL").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "SLUICE_ANVIL is {}, which is no file", path.display());
        return Some(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("anvil"));
    let npm = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(NPM_PATH));
    on_path.chain(npm).find(|path| path.is_file())
}
