//! The bill: what was delivered over which paths, who paid whom, what was refunded, and the gas.

use std::fmt;

use serde::Serialize;

/// What `sluice demo --json` ends with, and, printed, what a person reads. Amounts are token base
/// units; sizes are bytes of payload.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bill {
    /// Bytes that passed the tenant's client's socket, both ways: the request and the response.
    pub bytes_delivered: u64,
    /// Whether they are the bytes that the provider served.
    pub sha256_ok: bool,
    /// What went over which kind of path, in the order of use.
    pub paths: Vec<PathBill>,
    /// Bytes that the tenant counted.
    pub billed_bytes_tenant: u64,
    /// Bytes that the provider counted.
    pub billed_bytes_provider: u64,
    /// Vouchers that the tenant signed.
    pub vouchers: u64,
    /// Most that was sent and not yet paid, in flight included.
    pub unpaid_bytes_max: u64,
    /// The most that may ever be.
    pub window_bytes: u64,
    /// From the tenant's deposit to the provider.
    pub tenant_paid: u128,
    /// To the provider, from the tenant.
    pub provider_earned: u128,
    /// To the relay, from the provider.
    pub relay_earned: u128,
    /// From the deposit back to the tenant.
    pub tenant_refunded: u128,
    /// What the transactions cost.
    pub gas: Gas,
    /// Where it was settled: "embedded", "rpc", or "none" when nothing was charged.
    pub chain: String,
}

/// What went over one kind of path.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathBill {
    /// Which kind.
    pub kind: PathKind,
    /// Bytes of payload.
    pub bytes: u64,
    /// At this rate, 10^6 bits per second.
    pub mbit_s: f64,
}

/// A kind of path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// Through a relay.
    Relayed,
    /// From node to node.
    Direct,
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Relayed => "relayed",
            Self::Direct => "direct",
        })
    }
}

/// Gas by what it was used for, all parties together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Gas {
    /// To open channels.
    pub open: u64,
    /// To redeem vouchers.
    pub redeem: u64,
    /// To close channels.
    pub close: u64,
}

/// Width of the column of names.
const NAME: usize = 22;
/// Least width of the column of numbers; a larger number widens its block.
const NUMBER: usize = 13;

impl fmt::Display for Bill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = Column::wide_enough_for(self.bytes_delivered.into());
        self.delivery(f, &bytes)?;
        self.metering(f, &bytes)?;
        match self.chain.as_str() {
            "none" => writeln!(f, "\nMoney\n  nothing was charged: price 0"),
            _ => {
                let largest = self.deposit().max(self.provider_earned).max(self.relay_earned);
                self.money(f, &Column::wide_enough_for(largest))
            }
        }
    }
}

impl Bill {
    /// What the tenant had paid in: all of it was paid out or refunded.
    fn deposit(&self) -> u128 {
        self.tenant_paid.saturating_add(self.tenant_refunded)
    }

    fn delivery(&self, f: &mut fmt::Formatter<'_>, column: &Column) -> fmt::Result {
        writeln!(f, "Delivered")?;
        for path in &self.paths {
            let rate = format!("at {} Mbit/s", tenths(path.mbit_s));
            column.bytes(f, &path.kind.to_string(), path.bytes, &rate)?;
        }
        let verdict = match self.sha256_ok {
            true => "SHA-256 matches",
            false => "SHA-256 DOES NOT MATCH",
        };
        column.bytes(f, "in all", self.bytes_delivered, verdict)
    }

    fn metering(&self, f: &mut fmt::Formatter<'_>, column: &Column) -> fmt::Result {
        writeln!(f, "\nMetered")?;
        let agreed = match self.billed_bytes_tenant == self.billed_bytes_provider {
            true => "both agree",
            false => "THEY DO NOT AGREE",
        };
        column.bytes(f, "the tenant counted", self.billed_bytes_tenant, "")?;
        column.bytes(f, "the provider counted", self.billed_bytes_provider, agreed)?;
        column.row(f, "vouchers signed", self.vouchers.into(), "")?;
        let within = match self.unpaid_bytes_max <= self.window_bytes {
            true => "within the window",
            false => "BEYOND THE WINDOW",
        };
        column.bytes(f, "unpaid at most", self.unpaid_bytes_max, within)?;
        column.bytes(f, "window", self.window_bytes, "")
    }

    fn money(&self, f: &mut fmt::Formatter<'_>, column: &Column) -> fmt::Result {
        let place = match self.chain.as_str() {
            "embedded" => "the embedded chain",
            "rpc" => "the node's chain",
            other => other,
        };
        writeln!(f, "\nMoney, in token base units, settled on {place}")?;
        column.row(f, "the tenant deposited", self.deposit(), "")?;
        column.row(f, "  paid the provider", self.tenant_paid, "")?;
        column.row(f, "  got back", self.tenant_refunded, "")?;
        let earned = match self.provider_earned == self.tenant_paid {
            true => "all that the tenant paid",
            false => "NOT WHAT THE TENANT PAID",
        };
        column.row(f, "the provider earned", self.provider_earned, earned)?;
        column.row(f, "  paid the relay", self.relay_earned, "")?;
        match self.provider_earned.checked_sub(self.relay_earned) {
            Some(kept) => column.row(f, "  kept", kept, "")?,
            None => {
                let lost = self.relay_earned.saturating_sub(self.provider_earned);
                column.row(f, "  lost", lost, "its relay cost more than it earned")?;
            }
        }
        column.row(f, "the relay earned", self.relay_earned, "")?;
        writeln!(f, "\nGas")?;
        column.row(f, "to open channels", self.gas.open.into(), "")?;
        column.row(f, "to redeem vouchers", self.gas.redeem.into(), "")?;
        column.row(f, "to close channels", self.gas.close.into(), "")
    }
}

/// Names to the left, numbers flush right, a remark behind.
struct Column {
    width: usize,
}

impl Column {
    fn wide_enough_for(largest: u128) -> Self {
        Self { width: NUMBER.max(grouped(largest).len()) }
    }

    fn row(&self, f: &mut fmt::Formatter<'_>, name: &str, value: u128, rest: &str) -> fmt::Result {
        let width = self.width;
        let line = format!("  {name:<NAME$}{:>width$}  {rest}", grouped(value));
        writeln!(f, "{}", line.trim_end())
    }

    /// With the unit, and the same number as people would say it.
    fn bytes(&self, f: &mut fmt::Formatter<'_>, name: &str, value: u64, rest: &str) -> fmt::Result {
        self.row(f, name, value.into(), &format!("bytes {:>10}  {rest}", rounded(value)))
    }
}

/// Digits in groups of three.
fn grouped(value: u128) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in the unit that people would say, powers of 1,000, rounded to a tenth.
fn rounded(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)];
    match UNITS.iter().find(|(_, scale)| bytes >= *scale) {
        None => String::new(),
        Some((unit, scale)) => {
            let tenths = (u128::from(bytes) * 10 + u128::from(scale / 2)) / u128::from(*scale);
            format!("{}.{} {unit}", grouped(tenths / 10), tenths % 10)
        }
    }
}

/// A rate with one decimal and its digits in groups.
fn tenths(value: f64) -> String {
    let text = format!("{:.1}", value.max(0.0));
    match text.split_once('.').map(|(whole, part)| (whole.parse(), part)) {
        Some((Ok(whole), part)) => format!("{}.{part}", grouped(whole)),
        Some((Err(_), _)) | None => text,
    }
}
