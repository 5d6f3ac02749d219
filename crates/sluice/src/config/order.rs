//! `[order]`: what a tenant asks the market for.

use std::time::Duration;

use sluice_market::{AwardPolicy, Weights};
use sluice_proto::ServiceName;
use sluice_proto::market::{
    DURATION_MAX_S, DURATION_MIN_S, Region, ServiceKind, ServiceOffer, VOLUME_MAX,
};

use super::read::{Section, number, quantity, text};
use super::sections::within;
use super::values::{BitRate, ByteSize, ValueError, parse_duration, wrong};

/// The region that is meant unless another is named.
pub const REGION: &str = "world";
/// Bounds of a lease.
const DURATION_MIN: Duration = Duration::from_secs(DURATION_MIN_S as u64);
const DURATION_MAX: Duration = Duration::from_secs(DURATION_MAX_S as u64);
/// Bounds of a session's idle timeout, as messages have them.
const IDLE_MIN: Duration = Duration::from_secs(10);
const IDLE_MAX: Duration = Duration::from_secs(86_400);
/// Bounds of the latency that is wanted.
const LATENCY_MIN: Duration = Duration::from_millis(1);
const LATENCY_MAX: Duration = Duration::from_secs(10);

/// `[order]`: what a tenant asks the market for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderSection {
    /// Where; providers name the regions that they sell in.
    pub region: Region,
    /// What is to be reached.
    pub services: Vec<ServiceOffer>,
    /// Bytes that are expected from the provider: what bids are compared by.
    pub volume_down: ByteSize,
    /// Bytes that are expected to it.
    pub volume_up: ByteSize,
    /// The least rate from the provider; `None`: any.
    pub rate_down_min: Option<BitRate>,
    /// The least rate to it; `None`: any.
    pub rate_up_min: Option<BitRate>,
    /// The most to pay per GiB from the provider, token base units; 0: nothing.
    pub max_price_down: u128,
    /// The same per GiB to the provider.
    pub max_price_up: u128,
    /// The most to pay in all; 0: what the volume costs at the highest price.
    pub budget: u128,
    /// How long the lease lasts.
    pub duration: Duration,
    /// Whoever is farther is not taken; `None`: wherever it is.
    pub latency_max: Option<Duration>,
    /// Who is taken.
    pub score: Score,
    /// Silence after which a session ends.
    pub idle_timeout: Duration,
}

impl Default for OrderSection {
    fn default() -> Self {
        Self {
            region: Region::parse(REGION).expect("a region's name"),
            services: Vec::new(),
            volume_down: ByteSize(1 << 30),
            volume_up: ByteSize(0),
            rate_down_min: None,
            rate_up_min: None,
            max_price_down: 0,
            max_price_up: 0,
            budget: 0,
            duration: Duration::from_secs(86_400),
            latency_max: None,
            score: Score::default(),
            idle_timeout: Duration::from_secs(600),
        }
    }
}

impl OrderSection {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.set("region", &mut it.region, text(Region::parse));
        section.list("services", &mut it.services, parse_service);
        section.set("volume_down", &mut it.volume_down, quantity(parse_volume));
        section.set("volume_up", &mut it.volume_up, quantity(parse_volume));
        section.maybe("rate_down_min", &mut it.rate_down_min, quantity(str::parse::<BitRate>));
        section.maybe("rate_up_min", &mut it.rate_up_min, quantity(str::parse::<BitRate>));
        section.set("max_price_down", &mut it.max_price_down, number(0, u128::MAX));
        section.set("max_price_up", &mut it.max_price_up, number(0, u128::MAX));
        section.set("budget", &mut it.budget, number(0, u128::MAX));
        section.set("duration", &mut it.duration, text(within(DURATION_MIN, DURATION_MAX)));
        section.maybe("latency_max", &mut it.latency_max, text(parse_latency));
        section.set("score", &mut it.score, text(str::parse::<Score>));
        section.set("idle_timeout", &mut it.idle_timeout, text(within(IDLE_MIN, IDLE_MAX)));
        it
    }
}

/// Who is taken: the cheapest, or the one of the highest score.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score(pub AwardPolicy);

impl std::str::FromStr for Score {
    type Err = ValueError;

    /// `cheapest`, or weights as in `price=3,latency=1`; what is not named has none.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "cheapest" {
            return Ok(Self(AwardPolicy::Cheapest));
        }
        let mut weights = Weights { price: 0, rate: 0, latency: 0, success: 0 };
        for part in text.split(',') {
            let Some((name, Ok(weight))) =
                part.split_once('=').map(|(name, weight)| (name.trim(), weight.trim().parse()))
            else {
                return wrong(format!(
                    "{text:?} is not a score: write \"cheapest\", or weights of 0 to 65535 such as \
                     \"price=3,rate=1,latency=1,success=1\""
                ));
            };
            match name {
                "price" => weights.price = weight,
                "rate" => weights.rate = weight,
                "latency" => weights.latency = weight,
                "success" => weights.success = weight,
                _ => {
                    return wrong(format!(
                        "{name:?} is nothing that a score weighs: price, rate, latency, success"
                    ));
                }
            }
        }
        let Weights { price, rate, latency, success } = weights;
        match [price, rate, latency, success].iter().any(|weight| *weight > 0) {
            true => Ok(Self(AwardPolicy::Score(weights))),
            false => wrong(format!("{text:?} weighs nothing: give something more than 0")),
        }
    }
}

/// Parses a latency that is wanted.
///
/// # Errors
/// When it is out of bounds.
pub fn parse_latency(text: &str) -> Result<Duration, ValueError> {
    let latency = parse_duration(text)?;
    match (LATENCY_MIN..=LATENCY_MAX).contains(&latency) {
        true => Ok(latency),
        false => wrong(format!("must be from 1 ms to 10 s, not {text}")),
    }
}

/// Parses how long a lease is to last.
///
/// # Errors
/// When it is out of bounds.
pub fn parse_lease_duration(text: &str) -> Result<Duration, String> {
    within(DURATION_MIN, DURATION_MAX)(text)
}

/// Parses how much is expected to be carried: at most a pebibyte.
///
/// # Errors
/// When it is no size, or a larger one.
pub fn parse_volume(text: &str) -> Result<ByteSize, ValueError> {
    // A part of a byte is a slip.
    let has_unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
    match text.parse::<ByteSize>() {
        Ok(size) if size.0 <= VOLUME_MAX && (has_unit || !text.contains('.')) => Ok(size),
        Ok(_) => wrong(format!("{text:?} is no volume: write such as \"10 GiB\", at most 1 PiB")),
        Err(error) => Err(error),
    }
}

/// Parses the name of a service that is ordered. It is a TCP one: others cannot be exposed so far.
///
/// # Errors
/// When it is none.
pub fn parse_service(text: &str) -> Result<ServiceOffer, ValueError> {
    match ServiceName::parse(text) {
        Ok(name) => Ok(ServiceOffer { name, kind: ServiceKind::Tcp }),
        Err(error) => wrong(error.to_string()),
    }
}
