//! Asks relays what they see of this node, and so learns what its NAT does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::hairpin::{Both, Hairpin};
use crate::nat::{self, Nat, Observation};
use crate::tokens::Tokens;
use crate::{Mapping, SocketId};

/// Fresh sockets that a survey needs beside the data socket; each costs the NAT an entry.
pub const SURVEY_SOCKETS: usize = 5;
/// A question is asked again after this ..
const AGAIN: Duration = Duration::from_millis(300);
/// .. and so often in all.
const TRIES: u32 = 3;

/// Which of a relay's two ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RelayPort {
    /// The one that it is known by.
    Main,
    /// Another of the same address.
    Alternate,
}

/// A relay that may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SurveyRelay {
    /// Its address.
    pub main: SocketAddr,
    /// Its other port, if it has one.
    pub alternate: Option<SocketAddr>,
}

/// One question, to be sent as an observe frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// From which socket: the data socket, or fresh socket 1 to [`SURVEY_SOCKETS`].
    pub socket: SocketId,
    /// Which relay, by its place in the list.
    pub relay: usize,
    /// To which of its ports.
    pub to: RelayPort,
    /// From which it shall answer.
    pub answer_from: RelayPort,
    /// To which port of this node's public address it shall answer; `None`: where the question
    /// came from.
    pub answer_to: Option<u16>,
    /// Comes back with the answer.
    pub token: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    /// How the data socket is seen, by relay and port.
    Mapping(usize, RelayPort),
    /// How a fresh socket is seen by the first relay.
    Allocator(u32),
    /// Whether another port of an address that was sent to is let in.
    OtherPort,
    /// Whether an address that was never sent to is let in.
    OtherAddress,
}

#[derive(Debug)]
struct Asked {
    question: Question,
    tries: u32,
    sent: Instant,
    answer: Option<(SocketAddr, Duration)>,
}

/// One survey. See the crate's page for how to drive it; it is done when there is no timeout.
#[derive(Debug)]
pub struct Survey {
    relays: Vec<SurveyRelay>,
    local_ports: Vec<u16>,
    tokens: Tokens,
    asked: BTreeMap<Purpose, Asked>,
    to_send: Vec<Purpose>,
    filters_asked: bool,
    hairpin: Option<Both>,
}

impl Survey {
    /// Begins. `local_ports`: of the data socket, then of up to [`SURVEY_SOCKETS`] sockets that
    /// never sent anything.
    #[must_use]
    pub fn new(relays: Vec<SurveyRelay>, local_ports: Vec<u16>, seed: u64, now: Instant) -> Self {
        let mut survey = Self {
            relays,
            local_ports,
            tokens: Tokens::new(seed),
            asked: BTreeMap::new(),
            to_send: Vec::new(),
            filters_asked: false,
            hairpin: None,
        };
        for relay in 0..survey.relays.len() {
            survey.ask(Purpose::Mapping(relay, RelayPort::Main), now);
            if survey.relays[relay].alternate.is_some() {
                survey.ask(Purpose::Mapping(relay, RelayPort::Alternate), now);
            }
        }
        if !survey.relays.is_empty() {
            let fresh = survey.local_ports.len().saturating_sub(1).min(SURVEY_SOCKETS);
            for socket in (1..).take(fresh) {
                survey.ask(Purpose::Allocator(socket), now);
            }
        }
        survey
    }

    fn ask(&mut self, purpose: Purpose, now: Instant) {
        let token = self.tokens.draw();
        let plain = Question {
            socket: SocketId::DATA,
            relay: 0,
            to: RelayPort::Main,
            answer_from: RelayPort::Main,
            answer_to: None,
            token,
        };
        let question = match purpose {
            Purpose::Mapping(relay, port) => {
                Question { relay, to: port, answer_from: port, ..plain }
            }
            Purpose::Allocator(socket) => Question { socket: SocketId(socket), ..plain },
            Purpose::OtherPort => {
                Question { socket: SocketId(1), answer_from: RelayPort::Alternate, ..plain }
            }
            Purpose::OtherAddress => {
                Question { relay: 1, answer_to: self.fresh(1).map(|a| a.port()), ..plain }
            }
        };
        self.asked.insert(purpose, Asked { question, tries: 1, sent: now, answer: None });
        self.to_send.push(purpose);
    }

    /// How the first relay saw a fresh socket.
    fn fresh(&self, socket: u32) -> Option<SocketAddr> {
        let asked = self.asked.get(&Purpose::Allocator(socket))?;
        asked.answer.map(|(observed, _)| observed)
    }

    fn seen(&self, relay: usize, port: RelayPort) -> Option<SocketAddr> {
        let asked = self.asked.get(&Purpose::Mapping(relay, port))?;
        asked.answer.map(|(observed, _)| observed)
    }

    /// An answer arrived at one of the sockets.
    pub fn handle_answer(&mut self, token: u64, observed: SocketAddr, now: Instant) {
        let asked = self.asked.values_mut().find(|a| a.question.token == token);
        if let Some(asked) = asked
            && asked.answer.is_none()
        {
            asked.answer = Some((observed, now.saturating_duration_since(asked.sent)));
        }
        if let Some(hairpin) = &mut self.hairpin {
            hairpin.handle_arrival(token);
        }
        self.ask_filters(now);
        self.try_hairpin(now);
    }

    /// Once two fresh sockets' public addresses are known, each may try to reach the other.
    fn try_hairpin(&mut self, now: Instant) {
        let (Some(first), Some(second)) = (self.fresh(1), self.fresh(2)) else { return };
        if self.hairpin.is_none() {
            let mut packet =
                |from, to| Hairpin { from: SocketId(from), to, token: self.tokens.draw() };
            let packets = [packet(1, second), packet(2, first)];
            self.hairpin = Some(Both::new(packets, now));
        }
    }

    /// Once a fresh socket's public port is known, others may try to reach it.
    fn ask_filters(&mut self, now: Instant) {
        let Some(observed) = self.fresh(1) else { return };
        if self.filters_asked {
            return;
        }
        self.filters_asked = true;
        if self.relays[0].alternate.is_some() {
            self.ask(Purpose::OtherPort, now);
        }
        let elsewhere = self.relays.get(1).is_some_and(|r| r.main.ip() != self.relays[0].main.ip());
        // A relay sends only to the address that asks it, so that must be the same one.
        let same = self.seen(1, RelayPort::Main).is_none_or(|seen| seen.ip() == observed.ip());
        if elsewhere && same {
            self.ask(Purpose::OtherAddress, now);
        }
    }

    /// Asks again what was not answered.
    pub fn handle_timeout(&mut self, now: Instant) {
        for (purpose, asked) in &mut self.asked {
            if asked.answer.is_none() && asked.sent + AGAIN <= now && asked.tries <= TRIES {
                asked.tries += 1;
                asked.sent = now;
                if asked.tries <= TRIES {
                    self.to_send.push(*purpose);
                }
            }
        }
        if let Some(hairpin) = &mut self.hairpin {
            hairpin.handle_timeout(now);
        }
    }

    /// The next question to send, in order.
    pub fn poll_transmit(&mut self) -> Option<Question> {
        if self.to_send.is_empty() {
            return None;
        }
        let purpose = self.to_send.remove(0);
        self.asked.get(&purpose).map(|a| a.question)
    }

    /// The next packet to send from a fresh socket to the public address of another; if it arrives, its
    /// token is an answer.
    pub fn poll_hairpin(&mut self) -> Option<Hairpin> {
        self.hairpin.as_mut()?.poll_transmit()
    }

    /// When [`Survey::handle_timeout`] is next due; `None`: the survey is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.asked.values().filter(|a| a.answer.is_none() && a.tries <= TRIES);
        let hairpin = self.hairpin.as_ref().and_then(Both::poll_timeout);
        waiting.map(|a| a.sent + AGAIN).chain(hairpin).min()
    }

    /// What is known of the NAT so far.
    #[must_use]
    pub fn nat(&self) -> Nat {
        let samples: Vec<(u16, u16)> = (1..)
            .zip(self.local_ports.iter().skip(1))
            .filter_map(|(socket, local)| Some((*local, self.fresh(socket)?.port())))
            .collect();
        Nat {
            mapping: self.mapping(),
            filtering: nat::filtering(
                self.reached(Purpose::OtherPort),
                self.reached(Purpose::OtherAddress),
            ),
            allocator: nat::allocator(&samples),
        }
    }

    fn mapping(&self) -> Option<Mapping> {
        let local_port = *self.local_ports.first()?;
        let mut seen = Vec::new();
        for (i, relay) in self.relays.iter().enumerate() {
            let ports =
                [(RelayPort::Main, Some(relay.main)), (RelayPort::Alternate, relay.alternate)];
            for (port, destination) in ports {
                let (Some(observed), Some(destination)) = (self.seen(i, port), destination) else {
                    continue;
                };
                let socket = SocketId::DATA;
                seen.push(Observation { socket, local_port, destination, observed });
            }
        }
        nat::mapping(&seen)
    }

    /// Whether an answer from elsewhere came; silence counts once it was asked often enough.
    fn reached(&self, purpose: Purpose) -> Option<bool> {
        let asked = self.asked.get(&purpose)?;
        match asked.answer {
            Some(_) => Some(true),
            None => (asked.tries > TRIES).then_some(false),
        }
    }

    /// Whether sockets behind the NAT reach one another at their public addresses.
    #[must_use]
    pub fn hairpins(&self) -> Option<bool> {
        self.hairpin.as_ref()?.verdict()
    }

    /// How each relay sees the data socket, and the round trip to it.
    #[must_use]
    pub fn relays(&self) -> Vec<Option<(SocketAddr, Duration)>> {
        let main = |relay| self.asked.get(&Purpose::Mapping(relay, RelayPort::Main));
        (0..self.relays.len()).map(|relay| main(relay)?.answer).collect()
    }
}
