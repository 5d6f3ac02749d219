//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::DirectPolicy;

/// Makes a home's workload reachable through relays, counts every byte that both sides agree was
/// delivered, and gets everyone paid.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, about, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: ./sluice.toml if there is one].
    #[arg(long, short, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object a line instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to log to standard error: error, warn, info, debug, trace, or a filter such as
    /// `sluice_transport=debug` [default: warn].
    #[arg(long, global = true, value_name = "FILTER", env = "SLUICE_LOG")]
    pub log: Option<String>,
    /// Threads of the role [default: as `threads` in [node] says, else one per core].
    #[arg(long, global = true, value_name = "N", env = "SLUICE_THREADS")]
    pub threads: Option<usize>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole story on this machine: a relay, a home, a tenant, a download, the bill.
    ///
    /// Needs no root, no configuration and no network. An HTTP download crosses a relay that cannot
    /// read it, then the direct path, on one connection; each window of bytes is paid by a signed
    /// voucher; at the end the payment channels are settled by the contract.
    Demo(DemoArgs),
    /// Forward traffic for others, and be paid for each byte.
    ///
    /// Needs a public address (or any address that the others can reach).
    Relay(RelayArgs),
    /// Make services of this machine reachable from behind NAT. Prints a ticket for tenants.
    Provide(ProvideArgs),
    /// Open a provider's services on local ports.
    Connect(ConnectArgs),
    /// Find out what this network allows: NAT, UDP, relays, port mapping; and what to do about it.
    ///
    /// Asks the relays that are named here, in [provide] relays, or in the ticket in [connect]. Takes up
    /// to 20 s and disturbs no running role. Fails when no relay can be reached.
    Doctor(DoctorArgs),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `sluice demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Size of the download.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub megabytes: u64,
    /// Serve and fetch this file instead.
    #[arg(long, value_name = "PATH", conflicts_with = "megabytes")]
    pub file: Option<PathBuf>,
    /// Settle on a running node, such as http://127.0.0.1:8545, instead of the embedded chain.
    #[arg(long, value_name = "URL")]
    pub rpc: Option<String>,
    /// The chain id that the node must have: the demo makes up its own money, so it runs on
    /// development chains only.
    #[arg(long, value_name = "ID", default_value_t = 31_337, requires = "rpc")]
    pub chain_id: u64,
}

/// `sluice relay`.
#[derive(Debug, Args)]
pub struct RelayArgs {
    /// Address and UDP port to listen on [default: 0.0.0.0:4433].
    #[arg(long, value_name = "IP:PORT")]
    pub bind: Option<SocketAddr>,
    /// Address that is told to others, if it differs from `--bind`.
    #[arg(long, value_name = "IP:PORT")]
    pub public_addr: Option<SocketAddr>,
    /// Address and TCP port to listen on for those whose network blocks UDP, such as 0.0.0.0:443
    /// [default: none].
    #[arg(long, value_name = "IP:PORT")]
    pub tcp: Option<SocketAddr>,
    /// Price per GiB in token base units [default: 0, free].
    #[arg(long, value_name = "N")]
    pub price: Option<u128>,
    /// State directory: keys and ledger.
    #[arg(long, alias = "state", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// `sluice provide`.
#[derive(Debug, Args)]
pub struct ProvideArgs {
    /// A service: `name=tcp:address:port`, such as `web=tcp:127.0.0.1:8080`. May be repeated.
    #[arg(long, value_name = "NAME=KIND:ADDR")]
    pub expose: Vec<String>,
    /// A relay, as it prints itself: `<peer id>@<ip>:<port>`. May be repeated.
    #[arg(long, value_name = "RELAY")]
    pub relay: Vec<String>,
    /// Price per GiB towards the tenant, in token base units [default: 0, free].
    #[arg(long, value_name = "N")]
    pub price_down: Option<u128>,
    /// Price per GiB from the tenant.
    #[arg(long, value_name = "N")]
    pub price_up: Option<u128>,
    /// Whether tenants may learn this machine's address for a direct path.
    #[arg(long, value_name = "WHEN")]
    pub direct: Option<DirectPolicy>,
    /// Local address of the UDP socket [default: 0.0.0.0:0].
    #[arg(long, value_name = "IP:PORT")]
    pub bind: Option<SocketAddr>,
    /// State directory: keys and ledger.
    #[arg(long, alias = "state", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// `sluice connect`.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// The ticket that `sluice provide` printed.
    pub ticket: Option<String>,
    /// `local=service`, such as `127.0.0.1:9000=web`. May be repeated.
    #[arg(long, value_name = "LOCAL=NAME")]
    pub map: Vec<String>,
    /// Deposit for the payment channel, in token base units.
    #[arg(long, value_name = "N")]
    pub deposit: Option<u128>,
    /// The most to pay per GiB down, in token base units [default: 0, only free services].
    #[arg(long, value_name = "N")]
    pub max_price_down: Option<u128>,
    /// The most to pay per GiB up.
    #[arg(long, value_name = "N")]
    pub max_price_up: Option<u128>,
    /// Whether the provider may learn this machine's address for a direct path.
    #[arg(long, value_name = "WHEN")]
    pub direct: Option<DirectPolicy>,
    /// Local address of the UDP socket [default: 0.0.0.0:0].
    #[arg(long, value_name = "IP:PORT")]
    pub bind: Option<SocketAddr>,
    /// State directory: keys and ledger.
    #[arg(long, alias = "state", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// `sluice doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A ticket whose relays are asked.
    pub ticket: Option<String>,
    /// A relay, as it prints itself: `<peer id>@<ip>:<port>`. May be repeated.
    #[arg(long, value_name = "RELAY")]
    pub relay: Vec<String>,
    /// Local address of the UDP socket [default: 0.0.0.0:0].
    #[arg(long, value_name = "IP:PORT")]
    pub bind: Option<SocketAddr>,
    /// Do not ask the router to forward a port.
    #[arg(long)]
    pub no_port_mapping: bool,
}

/// `sluice config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read the configuration and say what is wrong with it.
    Check,
    /// Print a whole configuration with every key, its default and what it means.
    Example,
}
