//! What a holder left unpaid under an account that ended.

use std::time::Instant;

use crate::Counts;

/// Bytes that are forgiven at a time: a frame of the largest size.
const STEP: u64 = 1_500;
/// How often, in seconds: 2 kbit/s, an eighth of what a relay forwards unpaid anyhow.
const STEP_EVERY_S: u64 = 6;

/// Bytes that a relay forwarded under an account that ended, and that no voucher covers. They stand
/// against the window of the account that follows, so that coming back does not renew it.
///
/// The holder cannot pay for them: it counts anew. But paying for as many others makes up for them;
/// and since a debt as large as the window leaves nothing that could be forwarded and paid, it is
/// forgiven little by little, out of the 16 kbit/s that a relay forwards unpaid: while something is
/// owed, the trickle is an eighth smaller, so that who never pays gets no byte more. The first frame
/// that fits is paid for, which makes room for two: some ten vouchers later an honest holder has its
/// whole window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Debt {
    bytes: u64,
    since: Instant,
    paid: Counts,
}

impl Debt {
    /// `bytes` are owed `since` then, when durable vouchers paid for `paid`.
    #[must_use]
    pub const fn new(bytes: u64, since: Instant, paid: Counts) -> Self {
        Self { bytes, since, paid }
    }

    /// Since when it is owed.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.since
    }

    /// Bytes that are still owed, once durable vouchers pay for `paid`.
    #[must_use]
    pub fn left(&self, paid: Counts, now: Instant) -> u64 {
        let age = now.saturating_duration_since(self.since);
        let forgiven = (age.as_secs() / STEP_EVERY_S).saturating_mul(STEP);
        self.bytes.saturating_sub(paid.since(self.paid)).saturating_sub(forgiven)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use std::time::Duration;

    use super::*;

    const WINDOW: u64 = 1 << 20;

    #[test]
    fn what_is_paid_makes_up_for_it() {
        let start = Instant::now();
        let paid = Counts { up: 5_000, down: 1_000 };
        let debt = Debt::new(WINDOW, start, paid);
        assert_eq!(debt.left(paid, start), WINDOW);
        assert_eq!(debt.left(Counts { up: 7_000, down: 1_500 }, start), WINDOW - 2_500);
        assert_eq!(debt.left(Counts { up: 5_000 + WINDOW, down: 1_000 }, start), 0);
    }

    #[test]
    fn a_whole_window_of_it_passes_although_nothing_fits_at_first() {
        let mut now = Instant::now();
        let debt = Debt::new(WINDOW, now, Counts::default());
        let (mut paid, mut steps) = (Counts::default(), 0);
        while debt.left(paid, now) > 0 {
            // All that fits is forwarded, and paid for before the next step.
            paid.up += WINDOW - debt.left(paid, now);
            now += Duration::from_secs(STEP_EVERY_S);
            steps += 1;
        }
        assert!(steps < 12, "{steps} steps");
    }

    #[test]
    fn who_never_pays_is_forgiven_less_than_what_goes_unpaid_anyhow() {
        let start = Instant::now();
        let debt = Debt::new(WINDOW, start, Counts::default());
        let hour = Duration::from_secs(3_600);
        let forgiven = WINDOW - debt.left(Counts::default(), start + hour);
        assert_eq!(forgiven, 250 * 3_600, "2 kbit/s of 16");
    }
}
