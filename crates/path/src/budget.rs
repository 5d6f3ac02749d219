//! What the direct probes of all of a node's sessions may cost: one pace, one count of NAT entries.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::{GUESSES_MAX, Pair};

/// A NAT may keep an entry for this long after it was last used: what RFC 4787 recommends
/// (section 4.3, REQ-5).
const ENTRY_LIFE: Duration = Duration::from_secs(300);
/// Probes go out this far apart ..
const SPACING: Duration = Duration::from_micros(2085);
/// .. but so many may go at once: 500 in any second.
const AT_ONCE: u32 = 20;
/// The candidates of one session may not take more than a fifth of that.
const SPACING_OF_ONE: Duration = Duration::from_millis(10);
/// Guesses leave room for so many other probes at once.
const AT_ONCE_OTHERS: u32 = 8;
/// Entries that are not counted here: of the links to relays, and of the mesh.
const ENTRIES_OTHERWISE: u16 = 16;
/// Guesses leave so many entries to candidates.
const ENTRIES_OTHERS: u16 = 24;
/// Candidates may have so many entries, however few are allowed for guesses.
const ENTRIES_MIN: u16 = 64;
/// A turn ends this long after the last guess of the session that has it.
const TURN: Duration = Duration::from_millis(300);

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A path that answers its echoes: such a probe is counted, but never held back.
    Proven,
    /// An address that the other node named or was heard at.
    Candidate,
    /// The same once no more entries may be made: where one stands.
    Known,
    /// A port that is guessed, or a socket whose port shall be.
    Guess,
}

/// What comes of a wish to send a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spent {
    /// It may go.
    Yes {
        /// It makes an entry.
        fresh: bool,
    },
    /// Not before this moment.
    Later(Instant),
    /// It would make an entry too many.
    NoRoom,
}

/// The one budget of a node; give each of its [`Agent`](crate::Agent)s a clone.
#[derive(Clone)]
pub struct Budget(Arc<Mutex<State>>);

struct State {
    entries_max: u16,
    /// When each pair of a socket and a remote address was last used.
    entries: BTreeMap<Pair, Instant>,
    /// No entry ends before this.
    next_end: Option<Instant>,
    /// When the next probe would be due if none went at once.
    due: Option<Instant>,
    /// The session that guesses, and until when no other does.
    turn: Option<(u64, Instant)>,
    sessions: u64,
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        write!(f, "Budget({} of {} entries)", state.entries.len(), state.entries_max)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(GUESSES_MAX)
    }
}

impl Budget {
    /// For a node that may take so many entries in its NAT's table; at most [`GUESSES_MAX`].
    #[must_use]
    pub fn new(entries_max: u16) -> Self {
        Self(Arc::new(Mutex::new(State {
            entries_max: entries_max.min(GUESSES_MAX),
            entries: BTreeMap::new(),
            next_end: None,
            due: None,
            turn: None,
            sessions: 0,
        })))
    }

    /// From now on the node may take so many entries; at most [`GUESSES_MAX`]. Those that stand
    /// are not given back.
    pub fn set_entries_max(&self, entries_max: u16) {
        self.0.lock().entries_max = entries_max.min(GUESSES_MAX);
    }

    /// Something else than an agent sent from this socket to this address.
    pub fn note(&self, pair: Pair, now: Instant) {
        self.0.lock().enter(pair, now, u16::MAX);
    }

    /// The part in it of one session.
    pub(crate) fn share(&self) -> Share {
        let mut state = self.0.lock();
        state.sessions += 1;
        Share { budget: self.clone(), session: state.sessions, due: None }
    }
}

impl State {
    /// Most entries that may stand after a probe of this purpose.
    fn limit(&self, purpose: Purpose) -> u16 {
        match purpose {
            Purpose::Proven => u16::MAX,
            Purpose::Candidate => self.entries_max.max(ENTRIES_MIN) - ENTRIES_OTHERWISE,
            Purpose::Known => 0,
            Purpose::Guess => self.entries_max.saturating_sub(ENTRIES_OTHERWISE + ENTRIES_OTHERS),
        }
    }

    fn expire(&mut self, now: Instant) {
        if self.next_end.is_none_or(|at| at > now) {
            return;
        }
        self.entries.retain(|_, used| *used + ENTRY_LIFE > now);
        self.next_end = self.entries.values().min().map(|used| *used + ENTRY_LIFE);
    }

    /// Whether the pair's entry is a new one; `None`: there is no room for it below `limit`.
    fn enter(&mut self, pair: Pair, now: Instant, limit: u16) -> Option<bool> {
        self.expire(now);
        let used = self.entries.len();
        match self.entries.get_mut(&pair) {
            Some(used) => {
                *used = now;
                Some(false)
            }
            None if used < usize::from(limit) => {
                self.entries.insert(pair, now);
                self.next_end.get_or_insert(now + ENTRY_LIFE);
                Some(true)
            }
            None => None,
        }
    }

    /// Until when a probe of this purpose must wait.
    fn wait(&self, purpose: Purpose, now: Instant) -> Option<Instant> {
        let at_once = match purpose {
            Purpose::Proven => return None,
            Purpose::Candidate | Purpose::Known => AT_ONCE,
            Purpose::Guess => AT_ONCE - AT_ONCE_OTHERS,
        };
        early(self.due, SPACING, at_once, now)
    }

    fn spend(&mut self, pair: Pair, purpose: Purpose, now: Instant) -> Spent {
        if let Some(at) = self.wait(purpose, now) {
            return Spent::Later(at);
        }
        let limit = self.limit(purpose);
        let Some(fresh) = self.enter(pair, now, limit) else { return Spent::NoRoom };
        self.due = Some(self.due.map_or(now, |at| at.max(now)) + SPACING);
        Spent::Yes { fresh }
    }
}

/// Until when a probe must wait that is due then, if so many may go at once.
fn early(due: Option<Instant>, spacing: Duration, at_once: u32, now: Instant) -> Option<Instant> {
    due?.checked_sub(spacing * (at_once - 1)).filter(|at| *at > now)
}

/// One session's part in its node's [`Budget`]. Dropping it ends its turn.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Budget,
    session: u64,
    /// When its candidates' next probe would be due if none went at once.
    due: Option<Instant>,
}

impl Share {
    /// Spends what a probe over this pair costs, if that is to be had now.
    pub(crate) fn spend(&mut self, pair: Pair, purpose: Purpose, now: Instant) -> Spent {
        let mut state = self.budget.0.lock();
        let wait = match purpose {
            Purpose::Proven => None,
            Purpose::Candidate | Purpose::Known => early(self.due, SPACING_OF_ONE, AT_ONCE, now),
            Purpose::Guess => state.take_turn(self.session, now + TURN, now).err(),
        };
        if let Some(until) = wait {
            return Spent::Later(until);
        }
        let spent = state.spend(pair, purpose, now);
        let candidate = matches!(purpose, Purpose::Candidate | Purpose::Known);
        if candidate && matches!(spent, Spent::Yes { .. }) {
            self.due = Some(self.due.map_or(now, |at| at.max(now)) + SPACING_OF_ONE);
        }
        spent
    }

    /// Takes the turn to guess until then, unless another session of the node has it: until when.
    pub(crate) fn take_turn(&self, until: Instant, now: Instant) -> Result<(), Instant> {
        self.budget.0.lock().take_turn(self.session, until, now)
    }

    /// Lets other sessions guess.
    pub(crate) fn end_turn(&self) {
        let mut state = self.budget.0.lock();
        state.turn = state.turn.filter(|(session, _)| *session != self.session);
    }

    /// How many entries guesses may still make.
    pub(crate) fn room(&self, now: Instant) -> u16 {
        let mut state = self.budget.0.lock();
        state.expire(now);
        let used = u16::try_from(state.entries.len()).unwrap_or(u16::MAX);
        state.limit(Purpose::Guess).saturating_sub(used)
    }
}

impl State {
    fn take_turn(&mut self, session: u64, until: Instant, now: Instant) -> Result<(), Instant> {
        match self.turn {
            Some((other, until)) if other != session && until > now => Err(until),
            Some((ours, before)) if ours == session => {
                self.turn = Some((session, before.max(until)));
                Ok(())
            }
            Some(_) | None => {
                self.turn = Some((session, until));
                Ok(())
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.end_turn();
    }
}
