//! Whoever pays over one channel: its log says what was acknowledged to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::crew::{Answer, Crew};
use crate::rng::Rng;

/// A member that does not answer for so long is left for another.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long after what was refused is asked again.
const AGAIN: Duration = Duration::from_millis(100);
/// It leaves a member in order after so many vouchers, at most.
const STAY: u64 = 60;
/// What is sent to a member that was left without a word, beyond what is sent to the next.
const STRAY: u64 = 1_000_000;

/// What a holder saw.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    /// Vouchers that were acknowledged, and by whom, in order.
    pub(super) acked: Vec<(usize, u64)>,
    /// How often a member began below what was acknowledged.
    pub(super) forgotten: u64,
    /// Vouchers that a member refused since another has the channel.
    pub(super) fenced: u64,
    /// Times that the ledger's server was away.
    pub(super) away: u64,
    /// Refusals that nobody expects.
    pub(super) failed: u64,
}

pub(super) struct Holder {
    pub(super) crew: Arc<Crew>,
    pub(super) channel: u64,
    pub(super) answers: Receiver<Answer>,
    pub(super) rng: Rng,
    pub(super) log: Log,
}

impl Holder {
    /// Pays until it is told to end.
    pub(super) fn run(mut self, over: &AtomicBool) -> Log {
        while !over.load(Ordering::Relaxed) {
            let member = self.rng.below(self.crew.members() as u64) as usize;
            self.stay(member, over);
        }
        self.log
    }

    /// Pays one member, from its newest voucher on.
    fn stay(&mut self, member: usize, over: &AtomicBool) {
        let channel = self.channel;
        let Some(Ok(newest)) = self.ask(member, "take", &format!("take {channel}")) else {
            thread::sleep(AGAIN);
            return;
        };
        let known = self.log.acked.iter().map(|(_, n)| *n).max().unwrap_or(0);
        self.log.forgotten += u64::from(newest < known);
        let mut next = newest.max(known) + 1;
        let last = next + 1 + self.rng.below(STAY);
        while next < last && !over.load(Ordering::Relaxed) {
            match self.ask(member, "pay", &format!("pay {channel} {next}")) {
                Some(Ok(n)) => {
                    self.log.acked.push((member, n));
                    next = n + 1;
                }
                Some(Err(why)) if why == "away" => thread::sleep(AGAIN),
                Some(Err(_)) => return,
                None => {
                    // It may be alive all the same, and hear of it later.
                    self.crew.ask(member, &format!("pay {channel} {}", next + STRAY));
                    return;
                }
            }
        }
        self.ask(member, "leave", &format!("leave {channel}"));
    }

    /// Asks, and waits for the answer to this; what others answer late is noted.
    fn ask(&mut self, member: usize, what: &str, question: &str) -> Option<Result<u64, String>> {
        self.crew.ask(member, question);
        loop {
            match self.answers.recv_timeout(PATIENCE) {
                Ok(answer) => {
                    self.note(&answer);
                    if answer.member == member && answer.what == what {
                        return Some(answer.outcome);
                    }
                    // Late: acknowledged all the same.
                    if let ("pay", Ok(n)) = (answer.what.as_str(), &answer.outcome) {
                        self.log.acked.push((answer.member, *n));
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn note(&mut self, answer: &Answer) {
        match answer.outcome.as_ref().map_err(String::as_str) {
            Err("fenced") => self.log.fenced += 1,
            Err("away") => self.log.away += 1,
            Err("failed") => self.log.failed += 1,
            Ok(_) | Err(_) => {}
        }
    }
}
