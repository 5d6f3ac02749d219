//! The members as whoever started them sees them: pipes, signals, and who waits for which answer.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::bank::Bank;
use super::member::{MemberOptions, URL};

/// An answer to a holder.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) member: usize,
    /// What was asked: `take`, `pay`, `leave`.
    pub(super) what: String,
    /// A number, or why not.
    pub(super) outcome: Result<u64, String>,
}

/// Some processes of one fleet. They end with it.
pub(super) struct Crew {
    members: Vec<Member>,
    /// Who holds which channel.
    holders: Vec<Sender<Answer>>,
    pub(super) bank: Mutex<Bank>,
    /// How often each was stopped and let go on: odd while it is stopped.
    stops: Mutex<Vec<u64>>,
}

struct Member {
    process: Mutex<Child>,
    asks: Mutex<ChildStdin>,
    ready: OnceLock<()>,
    resting: OnceLock<()>,
}

/// How the fleet is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) members: usize,
    pub(super) channels: u64,
    pub(super) redeemers: u64,
    pub(super) hold: Duration,
}

impl Crew {
    /// Starts the members; each holder's answers come out of its receiver.
    pub(super) fn start(
        program: &Path,
        url: &str,
        shape: Shape,
    ) -> Result<(Arc<Self>, Vec<Receiver<Answer>>)> {
        let (holders, answers) = (0..shape.channels).map(|_| mpsc::channel()).unzip();
        let (mut members, mut outs) = (Vec::new(), Vec::new());
        for n in 0..shape.members {
            // As evenly as can be.
            let redeemers = (shape.redeemers + n as u64) / shape.members as u64;
            let name = format!("relay-{n}");
            let mut process = Command::new(program)
                .args(MemberOptions::arguments(&name, shape.hold, redeemers, shape.channels))
                .env(URL, url)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("failed to start a member")?;
            outs.push(process.stdout.take().context("its output is piped")?);
            let asks = Mutex::new(process.stdin.take().context("its input is piped")?);
            members.push(Member {
                process: Mutex::new(process),
                asks,
                ready: OnceLock::new(),
                resting: OnceLock::new(),
            });
        }
        let (bank, stops) = (Mutex::default(), Mutex::new(vec![0; shape.members]));
        let crew = Arc::new(Self { members, holders, bank, stops });
        for (n, out) in outs.into_iter().enumerate() {
            let crew = crew.clone();
            thread::spawn(move || {
                for line in BufReader::new(out).lines() {
                    let Ok(line) = line else { return };
                    crew.hear(n, &line);
                }
            });
        }
        Ok((crew, answers))
    }

    pub(super) fn is_ready(&self) -> bool {
        self.members.iter().all(|member| member.ready.get().is_some())
    }

    /// Whether all have written down what they redeemed, since they were asked to `rest`.
    pub(super) fn is_resting(&self) -> bool {
        self.members.iter().all(|member| member.resting.get().is_some())
    }

    /// Asks a member; its answer comes later, or never.
    pub(super) fn ask(&self, member: usize, question: &str) {
        let mut asks = self.members[member].asks.lock();
        // One that died does not answer.
        let _ = asks.write_all(format!("{question}\n").as_bytes()).and_then(|()| asks.flush());
    }

    fn hear(&self, member: usize, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok());
        let (first, second, third) = (number(1), number(2), number(3));
        match (words[0], first, second, third) {
            ("ready", ..) => drop(self.members[member].ready.set(())),
            ("resting", ..) => drop(self.members[member].resting.set(())),
            ("begin", Some(task), ..) => {
                self.bank.lock().begin((member, task), &self.stops.lock());
                self.ask(member, &format!("answer {task} 0"));
            }
            ("look", Some(channel), Some(task), _) => {
                let redeemed = self.bank.lock().look((member, task), channel, &self.stops.lock());
                self.ask(member, &format!("answer {task} {redeemed}"));
            }
            ("send", Some(channel), Some(task), Some(amount)) => {
                let tx = self.bank.lock().send((member, task), channel, amount, &self.stops.lock());
                self.ask(member, &format!("answer {task} {tx}"));
            }
            ("end", Some(channel), Some(task), _) => {
                self.bank.lock().end((member, task), channel);
                self.ask(member, &format!("answer {task} 0"));
            }
            ("did", _, Some(channel), Some(number)) => {
                self.give(member, words[1], channel, Ok(number));
            }
            ("no", _, Some(channel), _) => {
                let why = words.last().copied().unwrap_or_default().to_owned();
                self.give(member, words[1], channel, Err(why));
            }
            _ => {}
        }
    }

    fn give(&self, member: usize, what: &str, channel: u64, outcome: Result<u64, String>) {
        let answer = Answer { member, what: what.to_owned(), outcome };
        if let Some(holder) = self.holders.get(channel as usize) {
            let _ = holder.send(answer);
        }
    }

    /// Stops a member where it stands.
    pub(super) fn stop(&self, member: usize) -> Result<()> {
        self.stops.lock()[member] += 1;
        self.signal(member, Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub(super) fn go_on(&self, member: usize) -> Result<()> {
        self.signal(member, Signal::SIGCONT)?;
        self.stops.lock()[member] += 1;
        Ok(())
    }

    fn signal(&self, member: usize, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.members[member].process.lock().id())?;
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    /// Ends all members.
    pub(super) fn end(&self) {
        for member in &self.members {
            let mut process = member.process.lock();
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
