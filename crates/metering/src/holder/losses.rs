//! What got lost between a holder and its relay.
//!
//! Each side counts what passes *it*: a frame that is lost on the way was sent and never counted, or
//! counted and never received. Both counts are cumulative, so without correction every loss would
//! take room from the holder's window for ever, or pretend room that is not there. A claim tells what
//! the relay had counted: of what was sent well before it came, the rest is lost. What the relay sends
//! beyond grant or window it does not count: of what came well before the claim, the rest is a gift.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::repeat::after;

/// A frame that the relay has not counted after this, or after a probe timeout if that is longer, is
/// lost.
const SETTLE_MIN: Duration = Duration::from_millis(20);
/// As long as it takes a claim that got lost to be repeated, and more.
const SILENCE: Duration = Duration::from_secs(1);
/// The count of sent bytes is remembered this often ..
const MARK_EVERY: Duration = Duration::from_millis(10);
/// .. for as long as it is looked at.
const MARKS_MAX: usize = 128;
/// A claim that is news was made no longer ago than this, unless it was repeated time and again.
const CLAIM_AGE: Duration = Duration::from_secs(2);

/// Frame bytes that were lost in each direction, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Losses {
    marks: VecDeque<(Instant, u64)>,
    up: u64,
    /// Received and not billed, less what was billed and not received.
    gift: i64,
    /// What was received by a moment that is at least as long ago as a claim is old, and by one since.
    received: [Option<(Instant, u64)>; 2],
}

impl Losses {
    /// Notes how much was sent and received by now.
    pub(super) fn note(&mut self, sent: u64, received: u64, now: Instant) {
        if self.received[1].is_none_or(|(at, _)| after(at, CLAIM_AGE) <= now) {
            self.received = [self.received[1], Some((now, received))];
        }
        if self.marks.back().is_some_and(|(at, _)| now < after(*at, MARK_EVERY)) {
            return;
        }
        if self.marks.len() >= MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((now, sent));
    }

    /// What was sent until `span` ago.
    fn sent_before(&self, span: Duration, now: Instant) -> u64 {
        let old = self.marks.iter().rev().find(|(at, _)| after(*at, span) <= now);
        old.map_or(0, |(_, sent)| *sent)
    }

    /// The relay says what it counted up.
    pub(super) fn handle_claim(&mut self, up: u64, pto: Duration, now: Instant) {
        let sent = self.sent_before(pto.max(SETTLE_MIN), now);
        self.up = self.up.max(sent.saturating_sub(up));
    }

    /// The relay says for the first time that it counted `down`; `received` came by now.
    pub(super) fn handle_billed(&mut self, down: u64, received: u64, now: Instant) {
        let beyond = |received: u64| signed(received).saturating_sub(signed(down));
        let old = self.received.iter().flatten().rev().find(|(at, _)| after(*at, CLAIM_AGE) <= now);
        let least = old.map_or(i64::MIN, |(_, received)| beyond(*received));
        self.gift = self.gift.max(least).min(beyond(received));
    }

    /// The relay claims nothing, as it must at the latest once it counted `most` up.
    pub(super) fn handle_silence(&mut self, most: u64, now: Instant) {
        self.up = self.up.max(self.sent_before(SILENCE, now).saturating_sub(most));
    }

    /// Sent, and never to be counted by the relay.
    pub(super) const fn up(&self) -> u64 {
        self.up
    }

    /// Counted by the relay, and never received.
    pub(super) fn down(&self) -> u64 {
        u64::try_from(self.gift.saturating_neg()).unwrap_or_default()
    }

    /// Received, and never to be counted by the relay.
    pub(super) fn unbilled(&self) -> u64 {
        u64::try_from(self.gift).unwrap_or_default()
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const PTO: Duration = Duration::from_millis(50);

    #[test]
    fn what_is_in_flight_is_not_lost_and_what_was_sent_before_is() {
        let (mut losses, start) = (Losses::default(), Instant::now());
        losses.note(1_000, 0, start);
        losses.note(5_000, 0, start + PTO);
        losses.handle_claim(400, PTO, start + PTO);
        assert_eq!(losses.up(), 600);
        losses.handle_claim(4_400, PTO, start + PTO * 2);
        assert_eq!(losses.up(), 600, "4,000 more were sent, and all arrived");
        losses.handle_silence(2_000, start + PTO * 2);
        assert_eq!(losses.up(), 600, "a claim may be on its way");
        losses.handle_silence(2_000, start + SILENCE * 2);
        assert_eq!(losses.up(), 3_000);
    }

    #[test]
    fn what_the_relay_sent_and_did_not_come_is_lost() {
        let (mut losses, now) = (Losses::default(), Instant::now());
        losses.handle_billed(900, 1_000, now);
        assert_eq!(losses.down(), 0, "it did not claim all yet");
        losses.handle_billed(1_500, 1_300, now);
        assert_eq!((losses.down(), losses.unbilled()), (200, 0));
    }

    #[test]
    fn what_came_well_before_a_claim_and_is_not_in_it_is_a_gift() {
        let (mut losses, start) = (Losses::default(), Instant::now());
        losses.note(0, 0, start);
        losses.note(0, 50_000, start + CLAIM_AGE);
        losses.handle_billed(10_000, 50_000, start + CLAIM_AGE);
        assert_eq!(losses.unbilled(), 0, "it may be in the next claim");
        losses.note(0, 60_000, start + CLAIM_AGE * 2);
        losses.handle_billed(11_000, 60_000, start + CLAIM_AGE * 2);
        assert_eq!((losses.down(), losses.unbilled()), (0, 39_000));
        losses.handle_billed(40_000, 60_000, start + CLAIM_AGE * 2);
        assert_eq!(losses.unbilled(), 20_000, "some of it was billed");
    }
}
