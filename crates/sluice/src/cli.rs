//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use sluice_mesh::Multiaddr;
use sluice_proto::market::{Region, ServiceOffer};
use sluice_proto::{ChannelId, PeerId};

use crate::config::{
    ByteSize, DirectPolicy, Score, parse_bootstrap, parse_latency, parse_lease_duration,
    parse_peer, parse_service, parse_volume,
};

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
    /// Open a provider's services on local ports: by a ticket, or under a lease.
    Connect(ConnectArgs),
    /// Ask the market: providers bid, the best is taken, and the lease is proven to work.
    ///
    /// Says which bids came and why the others were not taken, and prints the lease's id for `sluice
    /// connect`. What is wanted stands in [order] or is said here. Opens the lease's payment channel.
    Order(OrderArgs),
    /// Take one of the bids that `sluice order --bids-only` kept; without one, show them.
    Award(AwardArgs),
    /// Find out what this network allows: NAT, UDP, relays, port mapping; and what to do about it.
    ///
    /// Asks the relays that are named here, in [provide] relays, or in the ticket in [connect]. Takes up
    /// to 20 s and disturbs no running role. Fails when no relay can be reached.
    Doctor(DoctorArgs),
    /// Turn vouchers into tokens, as the rule in [wallet] says or on demand.
    ///
    /// A running provider or relay redeems by itself; this is for one that is not running, and for
    /// a look at what would happen: `--dry-run` works beside a running role.
    Redeem(RedeemArgs),
    /// Look at payment channels, top them up, close them.
    #[command(subcommand)]
    Channel(ChannelCommand),
    /// Look at vouchers: list, export, verify. Works beside a running role.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Make, import and look at the keys that hold money.
    #[command(subcommand)]
    Wallet(WalletCommand),
    /// List the orders that a provider heard, what it bid, won and lost, and why. Works beside a running
    /// role.
    Bids(StateArgs),
    /// List the leases that were won or awarded, and how each stands. Works beside a running role.
    Leases(StateArgs),
    /// List the nodes of the mesh whose records are known: to the role that runs here, or, with
    /// `--bootstrap`, to those who are asked.
    Nodes(NodesArgs),
    /// List the relays that the mesh offers, as the role that runs here ranked them, or, with
    /// `--bootstrap`, as a new provider would.
    Relays(RelaysArgs),
    /// Guard somebody's exported vouchers: redeem them before a payer can close, with no key that
    /// could spend the money.
    ///
    /// Redeemed money goes where the channel says. All that is needed here is an account with coins
    /// for the fees.
    Watch(WatchArgs),
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
    /// Run an auction first: three relays, five homes and a tenant who know one address; the download is
    /// under the lease that it wins.
    #[arg(long)]
    pub market: bool,
    /// Settle on a running node, such as http://127.0.0.1:8545, instead of the embedded chain.
    #[arg(long, value_name = "URL")]
    pub rpc: Option<String>,
    /// The chain id that the node must have: the demo makes up its own money, so it runs on
    /// development chains only.
    #[arg(long, value_name = "ID", default_value_t = 31_337, requires = "rpc")]
    pub chain_id: u64,
}

/// A role's mesh.
#[derive(Debug, Clone, Default, Args)]
pub struct MeshArgs {
    /// Address and port, UDP and TCP, at which the mesh listens [default: a relay, two above the port of
    /// `--bind`; others a free one].
    #[arg(long = "mesh", value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
    /// A node of the mesh to begin with, as `sluice relay` prints it, or `/dnsaddr/<name>`. May be
    /// repeated: one that answers is enough.
    #[arg(long, value_name = "MULTIADDR", value_parser = parse_bootstrap)]
    pub bootstrap: Vec<Multiaddr>,
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
    /// The mesh; without it the relay has to be named to its users.
    #[command(flatten)]
    pub mesh: MeshArgs,
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
    /// A relay, as it prints itself: `<peer id>@<ip>:<port>`. May be repeated [default: those that the
    /// mesh offers].
    #[arg(long, value_name = "RELAY")]
    pub relay: Vec<String>,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Price per GiB towards the tenant, in token base units [default: 0, free].
    #[arg(long, value_name = "N")]
    pub price_down: Option<u128>,
    /// Price per GiB from the tenant.
    #[arg(long, value_name = "N")]
    pub price_up: Option<u128>,
    /// Sell to tenants of the market, by the prices and bounds of [sell] in sluice.toml.
    #[arg(long)]
    pub sell: bool,
    /// Token base units per GiB towards the tenant to bid at least [default: 0, free].
    #[arg(long, value_name = "N", requires = "sell")]
    pub floor_down: Option<u128>,
    /// The same from the tenant.
    #[arg(long, value_name = "N", requires = "sell")]
    pub floor_up: Option<u128>,
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
    /// The ticket that `sluice provide` printed, or a lease: the id that `sluice order` printed, of
    /// which the beginning is enough, or its file.
    pub ticket: Option<String>,
    /// `local=service`, such as `127.0.0.1:9000=web`. May be repeated.
    #[arg(long, value_name = "LOCAL=NAME")]
    pub map: Vec<String>,
    /// Deposit for the payment channel, in token base units.
    #[arg(long, value_name = "N")]
    pub deposit: Option<u128>,
    /// The most that the channel is topped up to when it runs dry [default: 0, never].
    #[arg(long, value_name = "N")]
    pub deposit_max: Option<u128>,
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

/// `sluice order`. What is not said here is as in [order].
#[derive(Debug, Args)]
pub struct OrderArgs {
    /// A service that is to be reached, such as `web`. May be repeated.
    #[arg(long, value_name = "NAME", value_parser = parse_service)]
    pub service: Vec<ServiceOffer>,
    /// Where [default: world].
    #[arg(long, value_name = "REGION", value_parser = Region::parse)]
    pub region: Option<Region>,
    /// What is expected to come from the provider, such as `10GiB` [default: 1 GiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_volume)]
    pub volume_down: Option<ByteSize>,
    /// What is expected to go to it [default: 0].
    #[arg(long, value_name = "SIZE", value_parser = parse_volume)]
    pub volume_up: Option<ByteSize>,
    /// The most to pay per GiB down, in token base units [default: 0, only free services].
    #[arg(long, value_name = "N")]
    pub max_price_down: Option<u128>,
    /// The most to pay per GiB up.
    #[arg(long, value_name = "N")]
    pub max_price_up: Option<u128>,
    /// The most to pay in all [default: what the volume costs at the highest price].
    #[arg(long, value_name = "N")]
    pub budget: Option<u128>,
    /// How long the lease is to last, such as `30d` [default: 24h].
    #[arg(long, value_name = "TIME", value_parser = parse_lease_duration)]
    pub duration: Option<Duration>,
    /// Whoever is farther, as measured, is not taken, such as `80ms`.
    #[arg(long, value_name = "TIME", value_parser = parse_latency)]
    pub latency_max: Option<Duration>,
    /// Who is taken: `cheapest`, or weights such as `price=3,latency=1,success=1` [default: cheapest].
    #[arg(long, value_name = "SCORE")]
    pub score: Option<Score>,
    /// Take no bid: keep them for `sluice award` while they hold.
    #[arg(long)]
    pub bids_only: bool,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Local address of the UDP socket [default: 0.0.0.0:0].
    #[arg(long, value_name = "IP:PORT")]
    pub bind: Option<SocketAddr>,
    /// State directory: keys, ledger and leases; that of `sluice connect`.
    #[arg(long, alias = "state", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// `sluice award`.
#[derive(Debug, Args)]
pub struct AwardArgs {
    /// The bid: its number in the list, or its bidder's id.
    pub bid: Option<String>,
    /// The mesh.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Local address of the UDP socket [default: 0.0.0.0:0].
    #[arg(long, value_name = "IP:PORT")]
    pub bind: Option<SocketAddr>,
    /// State directory: keys, ledger and leases; that of `sluice connect`.
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
    /// Measure how long the NAT keeps a mapping that nothing goes over. Takes 5 to 15 minutes.
    #[arg(long)]
    pub nat_timer: bool,
}

/// `sluice config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Read the configuration and say what is wrong with it.
    Check,
    /// Print a whole configuration with every key, its default and what it means.
    Example,
}

/// Whose keys and ledger.
#[derive(Debug, Clone, Default, Args)]
pub struct StateArgs {
    /// The role whose state is meant [default: the one that has a ledger].
    #[arg(long, value_name = "ROLE", value_parser = ["relay", "provide", "connect"])]
    pub role: Option<String>,
    /// State directory: keys and ledger.
    #[arg(long, alias = "state", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// `sluice redeem`.
#[derive(Debug, Args)]
pub struct RedeemArgs {
    /// Show what would be redeemed, its fee and the reason, and send nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Redeem all that is unredeemed, whatever the fee.
    #[arg(long, conflicts_with = "channel")]
    pub all: bool,
    /// Redeem this channel, whatever the fee. May be repeated.
    #[arg(long, value_name = "ID")]
    pub channel: Vec<ChannelId>,
    /// Whose.
    #[command(flatten)]
    pub state: StateArgs,
}

/// `sluice channel`.
#[derive(Debug, Subcommand)]
pub enum ChannelCommand {
    /// List channels, paying and paid, as the ledger and the chain have them.
    List {
        /// Whose.
        #[command(flatten)]
        state: StateArgs,
    },
    /// Add to the deposit of a channel that this node pays from.
    TopUp {
        /// The channel, as `sluice channel list` shows it; its beginning is enough.
        channel: String,
        /// How much to add, in token base units.
        amount: u128,
        /// Whose.
        #[command(flatten)]
        state: StateArgs,
    },
    /// Close a channel.
    ///
    /// The payee closes at once: it is paid, and the payer is refunded the rest. The payer starts to
    /// close; once the channel's period is over the same command gets the rest back.
    Close {
        /// The channel, as `sluice channel list` shows it; its beginning is enough.
        channel: String,
        /// As its payee: close at the newest voucher that this ledger holds, even if newer ones may be
        /// lost, since the state directory was copied or restored from a backup.
        #[arg(long)]
        accept_loss: bool,
        /// Whose.
        #[command(flatten)]
        state: StateArgs,
    },
}

/// `sluice ledger`.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// List leases, what they carried and what they came to.
    List {
        /// Whose.
        #[command(flatten)]
        state: StateArgs,
    },
    /// Write the ledger out: as JSON, whole, also for `sluice watch`; or one table as CSV.
    Export {
        /// The form.
        #[arg(long, value_name = "FORM", default_value = "json", value_parser = ["json", "csv"])]
        format: String,
        /// CSV: which table.
        #[arg(long, value_name = "TABLE", default_value = "vouchers", value_parser = ["vouchers", "channels", "transactions"])]
        table: String,
        /// Write to this file, mode 0600, instead of standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Whose.
        #[command(flatten)]
        state: StateArgs,
    },
    /// Check every signature, that amounts only grew, that they follow from counts and prices, and
    /// what the chain says.
    Verify {
        /// Do not ask the chain.
        #[arg(long)]
        offline: bool,
        /// Whose.
        #[command(flatten)]
        state: StateArgs,
    },
}

/// Where a passphrase comes from.
#[derive(Debug, Clone, Default, Args)]
pub struct PassphraseArgs {
    /// A file of mode 0600 whose first line is the passphrase [default: $SLUICE_PASSPHRASE, or a
    /// prompt].
    #[arg(long, value_name = "FILE")]
    pub passphrase_file: Option<PathBuf>,
}

/// `sluice wallet`.
#[derive(Debug, Subcommand)]
pub enum WalletCommand {
    /// Make a new key and write it to an encrypted keystore.
    Create {
        /// The keystore to write; must not exist.
        file: PathBuf,
        /// Where its passphrase comes from.
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Write a key that exists to an encrypted keystore.
    Import {
        /// The keystore to write; must not exist.
        file: PathBuf,
        /// A file of mode 0600: 64 hexadecimal digits, or another keystore.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// Where its passphrase comes from.
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Show the address of a key.
    Show {
        /// A keystore or key file [default: the wallet of the role].
        file: Option<PathBuf>,
        /// Whose.
        #[command(flatten)]
        state: StateArgs,
    },
    /// Show what an account has on the chain.
    Balance {
        /// An address, or a keystore or key file [default: the wallet of the role].
        account: Option<String>,
        /// Whose.
        #[command(flatten)]
        state: StateArgs,
    },
}

/// `sluice nodes`.
#[derive(Debug, Args)]
pub struct NodesArgs {
    /// Nodes whose records are to be found, by their peer ids [default: all that are known].
    #[arg(value_name = "PEER", value_parser = parse_peer)]
    pub peer: Vec<PeerId>,
    /// The mesh to ask.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Whose knowledge.
    #[command(flatten)]
    pub state: StateArgs,
}

/// `sluice relays`.
#[derive(Debug, Args)]
pub struct RelaysArgs {
    /// Rank them, and say why each is chosen or not.
    #[arg(long)]
    pub explain: bool,
    /// The mesh to ask.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Whose choice.
    #[command(flatten)]
    pub state: StateArgs,
}

/// `sluice watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// A file of `sluice ledger export`, read anew whenever it changes. May be repeated.
    #[arg(required = true, value_name = "FILE")]
    pub vouchers: Vec<PathBuf>,
    /// Look once, do what is to be done, and end: well when nothing was to be done, when it was done,
    /// and when a voucher waits for cheaper gas and has the time; with an error when a channel ends
    /// and its voucher could not be redeemed, or the chain or a file could not be read.
    #[arg(long)]
    pub once: bool,
    /// State directory, for the key that pays the fees [default: as for a role called watch].
    #[arg(long, alias = "state", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}
