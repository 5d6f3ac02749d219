//! What was bid, won and lost, and why: kept in a file for `sluice bids`, with what was sold this month.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sluice_market::{Bidder, Fate, Made, Tally};
use sluice_mesh::Verdict;

use crate::state::{State, StateError};

/// Orders that are listed: the newest.
const BIDS_MAX: usize = 512;
/// Name of the file in the state directory.
const FILE: &str = "bids.json";

/// What became of one order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BidEntry {
    /// The order, in hexadecimal digits.
    pub order: String,
    /// Whose.
    pub tenant: String,
    /// Token base units per GiB to the provider, as bid or as it would have been; decimal digits.
    pub price_up: Option<String>,
    /// The same from the provider.
    pub price_down: Option<String>,
    /// In one word: `waiting`, `bid`, `not_bid`, `silent`, `lost`, `refused`, `won`, `unfunded`.
    pub fate: String,
    /// In a sentence.
    pub why: String,
    /// When it was heard first, Unix seconds.
    pub heard_unix_s: u64,
}

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bids {
    /// Oldest first.
    pub bids: Vec<BidEntry>,
    /// What was refused since the provider started, by name, and how often.
    pub refused: BTreeMap<String, u64>,
    /// The month of `sold_before`, as `2026-11`.
    #[serde(default)]
    pub month: String,
    /// Payload bytes that were signed for before this month.
    #[serde(default)]
    pub sold_before: u64,
}

impl Bids {
    /// Where a state directory has it.
    #[must_use]
    pub fn path_in(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE)
    }

    /// Reads the file; empty where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is none.
    pub fn read(path: &Path) -> Result<Self, StateError> {
        match State::read_text(path)? {
            Some(text) => serde_json::from_str(&text).map_err(|error| StateError::Damaged {
                path: path.to_owned(),
                what: error.to_string(),
                holds: "the list of bids",
                remedy: "delete it; it is written anew",
            }),
            None => Ok(Self::default()),
        }
    }
}

/// A calendar month of the home's own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Month {
    year: i64,
    /// 1 to 12.
    month: i64,
}

impl Month {
    /// The one of a Unix time. Days to dates as Howard Hinnant's `civil_from_days` counts them: years
    /// that begin in March, in eras of 400.
    pub(super) fn of(unix_s: u64, utc_offset_min: i32) -> Self {
        let local = i64::try_from(unix_s).unwrap_or(i64::MAX / 2) + i64::from(utc_offset_min) * 60;
        let days = local.div_euclid(86_400) + 719_468;
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let from_march = (5 * of_year + 2) / 153;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        Self { year: year + era * 400 + i64::from(month <= 2), month }
    }

    fn name(self) -> String {
        format!("{}-{:02}", self.year, self.month)
    }
}

/// The list as the running provider keeps it.
#[derive(Debug)]
pub(super) struct BidLog {
    path: Option<PathBuf>,
    bids: VecDeque<BidEntry>,
    rejected: BTreeMap<&'static str, u64>,
    month: String,
    sold_before: u64,
    changed: bool,
    /// Of the bidder's own history, as it was looked at last.
    seen: Vec<Made>,
    /// Of what it refused.
    refused: Tally,
}

impl BidLog {
    /// Goes on with the file, if there is one that can be read.
    pub(super) fn open(path: Option<PathBuf>) -> Self {
        let before = path.as_deref().map(Bids::read).transpose().unwrap_or_else(|error| {
            tracing::warn!("the list of bids begins anew: {error}");
            None
        });
        let Bids { bids, month, sold_before, .. } = before.unwrap_or_default();
        Self {
            path,
            bids: bids.into(),
            rejected: BTreeMap::new(),
            month,
            sold_before,
            changed: true,
            seen: Vec::new(),
            refused: Tally::default(),
        }
    }

    /// Counts a message that only a liar sends.
    pub(super) fn rejected(&mut self, name: &'static str) -> Verdict {
        let count = self.rejected.entry(name).or_default();
        *count = count.saturating_add(1);
        self.changed = true;
        Verdict::Reject
    }

    /// Takes over what became of orders since. True: there is something to write.
    pub(super) fn take(&mut self, bidder: &Bidder, now_unix_s: u64) -> bool {
        if !bidder.history().eq(&self.seen) {
            let made: Vec<Made> = bidder.history().copied().collect();
            let before = std::mem::replace(&mut self.seen, made.clone());
            for made in made.iter().filter(|made| !before.contains(made)) {
                self.note(made, now_unix_s);
            }
            self.changed = true;
        }
        if *bidder.refused() != self.refused {
            self.refused = bidder.refused().clone();
            self.changed = true;
        }
        self.changed
    }

    fn note(&mut self, made: &Made, now_unix_s: u64) {
        let order = hex::encode(made.order.0);
        let known = self.bids.iter().rposition(|entry| entry.order == order);
        let heard_unix_s = known.and_then(|at| self.bids.get(at)).map(|entry| entry.heard_unix_s);
        let (fate, why) = told(made.fate);
        let entry = BidEntry {
            order,
            tenant: made.tenant.to_string(),
            price_up: made.price.map(|price| price.up.to_string()),
            price_down: made.price.map(|price| price.down.to_string()),
            fate: fate.to_owned(),
            why,
            heard_unix_s: heard_unix_s.unwrap_or(now_unix_s),
        };
        match known.and_then(|at| self.bids.get_mut(at)) {
            Some(known) => *known = entry,
            None => {
                if self.bids.len() >= BIDS_MAX {
                    self.bids.pop_front();
                }
                self.bids.push_back(entry);
            }
        }
    }

    /// Of `total` bytes that were ever sold, those of this month.
    pub(super) fn used(&mut self, month: Month, total: u64) -> u64 {
        let name = month.name();
        if self.month != name {
            (self.month, self.sold_before, self.changed) = (name, total, true);
        }
        total.saturating_sub(self.sold_before)
    }

    /// Writes the file. That it cannot be written stops no business.
    pub(super) async fn write(&mut self, bidder: &Bidder) {
        self.changed = false;
        let Some(path) = self.path.clone() else { return };
        let mut refused: BTreeMap<String, u64> =
            bidder.refused().iter().map(|(name, count)| (name.to_owned(), count)).collect();
        for (name, count) in &self.rejected {
            refused.insert((*name).to_owned(), *count);
        }
        let (month, sold_before) = (self.month.clone(), self.sold_before);
        let bids = Bids { bids: self.bids.iter().cloned().collect(), refused, month, sold_before };
        let written = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_vec(&bids).expect("a list of plain values");
            State::write_file(&path, &text)
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the list of bids is not written: {error}"),
            Err(error) => tracing::warn!("the list of bids is not written: {error}"),
        }
    }
}

fn told(fate: Fate) -> (&'static str, String) {
    let (word, why) = match fate {
        Fate::Waiting => ("waiting", "its clock has not come to this price"),
        Fate::Bid => ("bid", "the tenant chooses"),
        Fate::NotBid(why) => return ("not_bid", why.to_string()),
        Fate::Silent => ("silent", "enough cheaper bids came, or its wallet was empty"),
        Fate::Lost => ("lost", "others were taken"),
        Fate::Refused(why) => return ("refused", why.to_string()),
        Fate::Won => ("won", "leased"),
        Fate::Unfunded => ("unfunded", "leased, and its tenant never opened the channel"),
    };
    (word, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fed::feed;

    #[test]
    fn the_list_of_bids() {
        let genuine = serde_json::to_string(&Bids::default()).expect("it can be written");
        let parse = |text: &str| serde_json::from_str::<Bids>(text);
        assert!(parse(&genuine).is_ok(), "the seed is not genuine");
        feed!(genuine, |text: &str| drop(parse(text)));
    }

    #[test]
    fn a_month_is_that_of_the_homes_own_clock() {
        let month = |unix_s, offset| Month::of(unix_s, offset).name();
        assert_eq!(month(0, 0), "1970-01");
        assert_eq!(month(951_782_400, 0), "2000-02");
        assert_eq!(month(951_868_800, 0), "2000-03");
        assert_eq!(month(1_793_491_199, 0), "2026-10");
        assert_eq!(month(1_793_491_200, 0), "2026-11");
        assert_eq!(month(1_793_491_200, -1), "2026-10");
        assert_eq!(month(1_798_761_600, -60), "2026-12");
        assert_eq!(month(1_798_761_600, 0), "2027-01");
    }

    #[test]
    fn what_was_sold_before_the_month_does_not_count_in_it() {
        let mut log = BidLog::open(None);
        let (november, december) = (Month::of(1_793_491_200, 0), Month::of(1_796_083_200, 0));
        assert_eq!(log.used(november, 1_000), 0);
        assert_eq!(log.used(november, 1_700), 700);
        assert_eq!(log.used(december, 1_900), 0);
        assert_eq!(log.used(december, 2_000), 100);
    }
}
