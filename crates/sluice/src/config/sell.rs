//! `[sell]`: what a provider offers on the market, and to whom not.

use std::collections::BTreeSet;
use std::time::Duration;

use sluice_market::{BidPolicy, Hours};
use sluice_proto::market::{DURATION_MAX_S, DURATION_MIN_S, Money, Region, ServiceOffer};
use sluice_proto::{PeerId, Price, WINDOW_MAX, WINDOW_MIN};

use super::read::{Section, flag, number, quantity, text};
use super::sections::within;
use super::values::{BitRate, ByteSize, parse_peer};

/// Most leases at a time that may be allowed: the accounts of all are kept in memory.
const LEASES_MAX: usize = 1024;
/// Zero bits of a stamp that anybody finds within a minute.
const STAMP_BITS_MAX: u32 = 24;
/// Where orders go unless they name a region.
const REGION: &str = "world";

/// `[sell]`: a provider on the market.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SellSection {
    /// Whether anything is sold.
    pub on: bool,
    /// The regions whose orders are heard.
    pub regions: Vec<Region>,
    /// Token base units per GiB from the tenant, while the month's bytes are unused.
    pub floor_up: u128,
    /// The same to the tenant.
    pub floor_down: u128,
    /// Token base units per GiB from the tenant for the last of the month's bytes.
    pub ceiling_up: u128,
    /// The same to the tenant.
    pub ceiling_down: u128,
    /// Bytes that may be sold in a month, both ways; 0: no bound.
    pub month_bytes: ByteSize,
    /// Hours of the day at which nothing is sold.
    pub closed: Vec<Hours>,
    /// The home's time zone, minutes east of UTC.
    pub utc_offset_min: i32,
    /// Whom not to serve.
    pub denied: Vec<PeerId>,
    /// From the home.
    pub uplink: BitRate,
    /// To it.
    pub downlink: BitRate,
    /// Of the uplink, what is never sold.
    pub uplink_kept: BitRate,
    /// Most leases at a time.
    pub leases_max: usize,
    /// Longest lease.
    pub duration_max: Duration,
    /// Largest window, which is what a liar can take.
    pub window_max: ByteSize,
    /// Zero bits that an order's stamp begins with.
    pub stamp_bits: u32,
}

impl Default for SellSection {
    fn default() -> Self {
        Self {
            on: false,
            regions: vec![Region::parse(REGION).expect("the name of a region")],
            floor_up: 0,
            floor_down: 0,
            ceiling_up: 0,
            ceiling_down: 0,
            month_bytes: ByteSize(0),
            closed: Vec::new(),
            utc_offset_min: 0,
            denied: Vec::new(),
            uplink: BitRate(10_000_000),
            downlink: BitRate(10_000_000),
            uplink_kept: BitRate(2_000_000),
            leases_max: 16,
            duration_max: Duration::from_secs(30 * 86_400),
            window_max: ByteSize(WINDOW_MAX),
            stamp_bits: 16,
        }
    }
}

impl SellSection {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut it = Self::default();
        section.set("on", &mut it.on, flag);
        let mut regions = Vec::new();
        if section.list("regions", &mut regions, Region::parse) {
            it.regions = regions;
        }
        section.set("floor_up", &mut it.floor_up, number(0, u128::MAX));
        section.set("floor_down", &mut it.floor_down, number(0, u128::MAX));
        section.set("ceiling_up", &mut it.ceiling_up, number(0, u128::MAX));
        section.set("ceiling_down", &mut it.ceiling_down, number(0, u128::MAX));
        section.set("month_bytes", &mut it.month_bytes, quantity(str::parse::<ByteSize>));
        section.list("closed", &mut it.closed, hours);
        section.set("utc_offset", &mut it.utc_offset_min, text(utc_offset));
        section.list("denied", &mut it.denied, parse_peer);
        section.set("uplink", &mut it.uplink, quantity(str::parse::<BitRate>));
        section.set("downlink", &mut it.downlink, quantity(str::parse::<BitRate>));
        section.set("uplink_kept", &mut it.uplink_kept, quantity(str::parse::<BitRate>));
        section.set("leases_max", &mut it.leases_max, number(1, LEASES_MAX));
        let (shortest, longest) = (seconds(DURATION_MIN_S), seconds(DURATION_MAX_S));
        section.set("duration_max", &mut it.duration_max, text(within(shortest, longest)));
        section.set("window_max", &mut it.window_max, quantity(window));
        section.set("stamp_bits", &mut it.stamp_bits, number(0, STAMP_BITS_MAX));
        it
    }

    /// What is wrong with these fields together: a key, and what.
    pub(super) fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let below = "the ceiling must not be below the floor: the price climbs as the month's bytes \
                     are used";
        let mut found = Vec::new();
        // Without a ceiling the floor is the price.
        if self.ceiling_up != 0 && self.ceiling_up < self.floor_up {
            found.push(("sell.ceiling_up", below));
        }
        if self.ceiling_down != 0 && self.ceiling_down < self.floor_down {
            found.push(("sell.ceiling_down", below));
        }
        if self.on && self.uplink_kept >= self.uplink {
            found.push((
                "sell.uplink_kept",
                "all of the uplink is kept, so that none is left to sell",
            ));
        }
        if self.on && self.regions.is_empty() {
            found.push(("sell.regions", "name a region at least, such as \"world\""));
        }
        found
    }

    /// What its owner allows, for these services, paid with this money on channels of this close
    /// period at least.
    #[must_use]
    pub fn policy(
        &self,
        services: Vec<ServiceOffer>,
        money: Option<Money>,
        period_min_s: u32,
    ) -> BidPolicy {
        BidPolicy {
            floor: Price { up: self.floor_up, down: self.floor_down },
            ceiling: Price {
                up: self.ceiling_up.max(self.floor_up),
                down: self.ceiling_down.max(self.floor_down),
            },
            money: money.into_iter().collect(),
            services,
            uplink: self.uplink.0,
            downlink: self.downlink.0,
            uplink_kept: self.uplink_kept.0,
            month_bytes: self.month_bytes.0,
            closed: self.closed.clone(),
            utc_offset_min: self.utc_offset_min,
            denied: self.denied.iter().copied().collect::<BTreeSet<_>>(),
            leases_max: self.leases_max,
            duration_max_s: u32::try_from(self.duration_max.as_secs()).unwrap_or(DURATION_MAX_S),
            period_min_s,
            window_max: self.window_max.0,
            stamp_bits: self.stamp_bits,
        }
    }
}

const fn seconds(n: u32) -> Duration {
    Duration::from_secs(n as u64)
}

fn window(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(|e: super::ValueError| e.to_string())?;
    if (WINDOW_MIN..=WINDOW_MAX).contains(&size.0) {
        return Ok(size);
    }
    Err(format!("must be from {} to {}, not {text}", ByteSize(WINDOW_MIN), ByteSize(WINDOW_MAX)))
}

/// A part of the day, such as `22:00-06:30`.
fn hours(text: &str) -> Result<Hours, String> {
    let parsed = text.split_once('-').and_then(|(from, to)| Some((minute(from)?, minute(to)?)));
    match parsed {
        Some((from_min, to_min)) if from_min != to_min => Ok(Hours { from_min, to_min }),
        Some(_) | None => Err(format!(
            "{text:?} is not a part of the day: write when it begins and ends, such as \
             \"22:00-06:30\""
        )),
    }
}

fn minute(text: &str) -> Option<u32> {
    let (hour, minute) = text.trim().split_once(':')?;
    let two = |digits: &str| {
        let is_number = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| digits.parse::<u32>().ok()).flatten()
    };
    let (hour, minute) = (two(hour)?, two(minute)?);
    (hour < 24 && minute < 60).then_some(hour * 60 + minute)
}

/// Minutes east of UTC, of `+02:00` or `-03:30`.
fn utc_offset(text: &str) -> Result<i32, String> {
    let (sign, clock) = match text.split_at_checked(1) {
        Some(("+", clock)) => (1, clock),
        Some(("-", clock)) => (-1, clock),
        Some(_) | None => (0, text),
    };
    match minute(clock).and_then(|minutes| i32::try_from(minutes).ok()) {
        Some(minutes) if sign != 0 && minutes <= 14 * 60 => Ok(sign * minutes),
        Some(_) | None => Err(format!(
            "{text:?} is not a distance from UTC: write hours and minutes, such as \"+02:00\""
        )),
    }
}
