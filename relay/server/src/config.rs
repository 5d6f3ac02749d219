//! What a relay is told, and why it does not start.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use sluice_chain::Chain;
use sluice_ledger::{Ledger, Recovery};
use sluice_proto::{EthAddress, Keypair, Price};
use sluice_relay_core::Limits;
use sluice_transport::{Clock, Network, Random};

/// Where a relay's money lives. Needed when its price is not 0.
#[derive(Debug, Clone)]
pub struct RelayPayment {
    /// Where vouchers and leases are kept.
    pub ledger: Ledger,
    /// Where channels are looked up.
    pub chain: Chain,
    /// The relay's wallet: may redeem and close.
    pub payee: EthAddress,
    /// Receives the money.
    pub payout: EthAddress,
    /// Least close period of a channel, in seconds.
    pub period_s: u32,
    /// Windows of credit on a deposit that is on-chain but not final yet.
    pub unfinal_credit: u64,
    /// How often channels that are in use are looked at.
    pub look: Duration,
    /// What is in doubt after the state directory was found copied or restored.
    pub recovery: Recovery,
}

impl RelayPayment {
    /// With the default period of 48 hours, a credit of 64 windows and a look each 30 s.
    #[must_use]
    pub const fn new(ledger: Ledger, chain: Chain, payee: EthAddress, payout: EthAddress) -> Self {
        let (period_s, unfinal_credit) = (48 * 3600, 64);
        let look = Duration::from_secs(30);
        let recovery = Recovery::none();
        Self { ledger, chain, payee, payout, period_s, unfinal_credit, look, recovery }
    }
}

/// What a relay is told at its start.
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// The relay's identity.
    pub keypair: Keypair,
    /// Where it listens; port 0 takes any that is free.
    pub bind: SocketAddr,
    /// Where it listens for clients whose network blocks UDP; none: nowhere.
    pub tcp: Option<SocketAddr>,
    /// Forwarding threads; 0: one per core.
    pub threads: usize,
    /// What holders pay per GiB, each way as they see it.
    pub price: Price,
    /// Bits per second that a reservation's window is computed from.
    pub rate_max: u64,
    /// Bytes that a new holder may pass before its first voucher is due.
    pub starter_bytes: u64,
    /// Starter bytes given to all holders in a month.
    pub starter_total: u64,
    /// How long a reservation lasts; holders renew it before.
    pub reservation_ttl: Duration,
    /// Bounds.
    pub limits: Limits,
    /// Where the money lives; none at price 0.
    pub payment: Option<RelayPayment>,
    /// Key of QUIC's stateless resets: 32 random bytes that are kept on disk, so that clients
    /// notice a restart at once.
    pub reset_key: [u8; 32],
    /// The clock that everything reads.
    pub clock: Clock,
    /// Where its sockets come from. Not the kernel: one task forwards, and there are no threads.
    pub network: Network,
    /// Where seeds and numbers come from.
    pub random: Random,
}

impl RelayConfig {
    /// A relay at price 0 with the default bounds and a reset key of its own.
    #[must_use]
    pub fn new(keypair: Keypair, bind: SocketAddr) -> Self {
        let random = Random::default();
        Self {
            keypair,
            bind,
            tcp: None,
            threads: 0,
            price: Price::default(),
            rate_max: 1_000_000_000,
            starter_bytes: 256 * 1024 * 1024,
            starter_total: 16 * 1024 * 1024 * 1024,
            reservation_ttl: Duration::from_secs(30 * 24 * 3600),
            limits: Limits::default(),
            payment: None,
            reset_key: random.bytes(),
            clock: Clock::default(),
            network: Network::Kernel,
            random,
        }
    }
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// Another program listens on that port.
    #[error(
        "{0} is in use by another program: stop it, or choose another port with `bind` in [relay]"
    )]
    PortInUse(SocketAddr),
    /// The address cannot be bound.
    #[error("cannot listen on {0}: {1}")]
    Bind(SocketAddr, #[source] io::Error),
    /// Another program listens on that TCP port.
    #[error(
        "TCP {0} is in use by another program: stop it, or choose another port with `tcp` in [relay]"
    )]
    TcpPortInUse(SocketAddr),
    /// The TCP port is not ours to take.
    #[error(
        "TCP {0} may not be listened on: ports below 1024 need the capability \
         CAP_NET_BIND_SERVICE; give it, or choose another port with `tcp` in [relay]"
    )]
    TcpPermission(SocketAddr),
    /// The TCP address cannot be bound.
    #[error("cannot listen on TCP {0}: {1}")]
    Tcp(SocketAddr, #[source] io::Error),
    /// A socket option or a thread failed.
    #[error("cannot {0}: {1}")]
    System(&'static str, #[source] io::Error),
    /// A price without a wallet and a chain, or the other way round.
    #[error("`price` in [relay] needs a wallet and a chain exactly when it is not 0")]
    Payment,
    /// The identity's certificate cannot be made.
    #[error("cannot make the relay's TLS certificate: {0}")]
    Certificate(String),
}
