//! The configuration: one `sluice.toml` for all roles of a box, parsed into valid types at once.
//!
//! Every value has a default, so that no file is needed; [`Config::example`] is a whole file with
//! all of them and what they mean. An unknown key, a value of the wrong kind or out of its bounds is
//! refused, all of a file's problems together, each with its line, its key, and what to write
//! instead. Flags override fields after the file was read; [`Config::check`] then looks at what only
//! several fields together can tell.

mod order;
mod read;
mod sections;
mod sell;
mod values;

use std::path::{Path, PathBuf};

pub use order::{
    OrderSection, REGION, Score, parse_latency, parse_lease_duration, parse_service, parse_volume,
};
pub use read::{ConfigError, Problem};
pub use sections::{
    ChainChoice, ChainKind, ChainSection, ConnectSection, MeshSection, NodeSection, ProvideSection,
    RelaySection, WalletSection,
};
pub use sell::SellSection;
pub use values::{
    BitRate, ByteSize, DirectPolicy, Expose, Finality, GasPrice, Map, ServiceKind, ValueError,
    parse_bootstrap, parse_duration, parse_peer, parse_relay, parse_rule,
};

use read::Document;

/// The file that is read when none is named.
pub const FILE: &str = "sluice.toml";
/// Largest file that is read: nobody writes more by hand.
const FILE_MAX: u64 = 1 << 20;

/// All of `sluice.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// What every role needs.
    pub node: NodeSection,
    /// `sluice provide`.
    pub provide: ProvideSection,
    /// `sluice relay`.
    pub relay: RelaySection,
    /// `sluice connect`.
    pub connect: ConnectSection,
    /// How nodes find one another.
    pub mesh: MeshSection,
    /// `sluice order`.
    pub order: OrderSection,
    /// What `sluice provide` sells on the market.
    pub sell: SellSection,
    /// Where money lives.
    pub chain: ChainSection,
    /// Whose keys.
    pub wallet: WalletSection,
}

impl Config {
    /// Reads `path`; without one, `./sluice.toml` if there is one, else the defaults.
    ///
    /// # Errors
    /// When the file cannot be read, or with all that is wrong in it.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let default = PathBuf::from(FILE);
        let path = match path {
            Some(path) => path,
            None if default.exists() => &default,
            None => return Ok(Self::default()),
        };
        let name = path.display().to_string();
        Self::parse(&name, &read(path).map_err(|e| ConfigError::unreadable(&name, &e))?)
    }

    /// Parses the text of a file; `name` is the file's, for errors.
    ///
    /// # Errors
    /// With all that is wrong in it.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let mut document = Document::parse(name, text)?;
        document.version();
        let config = Self {
            node: NodeSection::read(&mut document.section("node")),
            provide: ProvideSection::read(&mut document.section("provide")),
            relay: RelaySection::read(&mut document.section("relay")),
            connect: ConnectSection::read(&mut document.section("connect")),
            mesh: MeshSection::read(&mut document.section("mesh")),
            order: OrderSection::read(&mut document.section("order")),
            sell: SellSection::read(&mut document.section("sell")),
            chain: ChainSection::read(&mut document.section("chain")),
            wallet: WalletSection::read(&mut document.section("wallet")),
        };
        document.finish().map(|()| config)
    }

    /// Looks at what only several fields together can tell, once flags have had their say.
    ///
    /// # Errors
    /// With all that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut problems: Vec<Problem> =
            self.chain.choice().err().into_iter().flat_map(|error| error.problems).collect();
        let priced = [
            ("provide.price_up", self.provide.price_up),
            ("provide.price_down", self.provide.price_down),
            ("relay.price", self.relay.price),
            ("order.max_price_up", self.order.max_price_up),
            ("order.max_price_down", self.order.max_price_down),
            ("sell.floor_up", self.sell.floor_up),
            ("sell.floor_down", self.sell.floor_down),
            ("sell.ceiling_up", self.sell.ceiling_up),
            ("sell.ceiling_down", self.sell.ceiling_down),
        ];
        for (key, _) in priced.iter().filter(|(_, price)| *price > 0) {
            if self.chain.kind == ChainKind::None {
                problems.push(Problem::new(
                    key,
                    "a price needs a chain to be paid on: set chain.kind to \"embedded\" or \
                     \"rpc\", or the price to 0",
                ));
            }
        }
        problems
            .extend(self.sell.problems().into_iter().map(|(key, what)| Problem::new(key, what)));
        if self.relay.ledger.is_none() && self.relay.ledger_password_file.is_some() {
            problems.push(Problem::new(
                "relay.ledger_password_file",
                "it is beside relay.ledger, the URL of a PostgreSQL server, which is missing",
            ));
        }
        ConfigError::of(None, problems)
    }

    /// A whole `sluice.toml` with every key, its default and what it means.
    #[must_use]
    pub const fn example() -> &'static str {
        include_str!("config/example.toml")
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if file.take(FILE_MAX + 1).read_to_string(&mut text)? as u64 > FILE_MAX {
        let too_large = format!("it is larger than {FILE_MAX} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, too_large));
    }
    Ok(text)
}
