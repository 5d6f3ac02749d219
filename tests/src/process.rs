//! A running `sluice` and what it says.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::PATIENCE;

/// Lines of a process's error output that a failure shows.
const SHOWN: usize = 15;

/// What one end of an account says of it when a session or the role ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The other end.
    pub peer: String,
    /// Payload bytes to the payee.
    pub up: u64,
    /// Payload bytes from the payee.
    pub down: u64,
    /// Cumulative amount in token base units.
    pub amount: u128,
}

#[derive(Debug, Default)]
struct Said {
    events: Vec<Value>,
    out: Vec<String>,
    errors: Vec<String>,
    open: usize,
}

#[derive(Debug, Default)]
struct Output {
    said: Mutex<Said>,
    more: Condvar,
}

impl Output {
    fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner));
        self.more.notify_all();
    }
}

/// A running process. Dropping it kills it, and fails the test if it panicked.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

impl Process {
    /// Starts `program`, called `name` in messages. The kernel kills it if the test's thread ends
    /// without doing so.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        name: impl Into<String>,
        program: &Path,
        set_up: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let name = name.into();
        let mut command = if crate::has("setpriv") {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        set_up(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("failed to start {name}"))?;
        let output = Arc::new(Output::default());
        output.change(|said| said.open = 2);
        let out = child.stdout.take().context("a child without output")?;
        let errors = child.stderr.take().context("a child without error output")?;
        listen(out, output.clone(), |said, line| {
            said.events.extend(serde_json::from_str(&line));
            said.out.push(line);
        });
        listen(errors, output.clone(), |said, line| said.errors.push(line));
        Ok(Self { name, child, output })
    }

    /// How many events it told so far: what comes later is behind this.
    #[must_use]
    pub fn told(&self) -> usize {
        self.said(|said| said.events.len())
    }

    /// Waits for an event that `pick` accepts, the first `skip` events aside.
    ///
    /// # Errors
    /// When the process ends or [`PATIENCE`] is over first, with the last that it said.
    pub fn wait_for<T>(
        &self,
        skip: usize,
        what: &str,
        mut pick: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + PATIENCE;
        let mut seen = skip;
        let mut said = self.output.said.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = said.events.iter().skip(seen).find_map(&mut pick) {
                return Ok(found);
            }
            seen = seen.max(said.events.len());
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || said.open == 0 {
                let how = if said.open == 0 { "ended" } else { "is silent" };
                bail!("{} {how} before: {what}{}", self.name, shown(&said));
            }
            let waited = self.output.more.wait_timeout(said, left);
            said = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for an event of this kind, the first `skip` events aside.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn event(&self, skip: usize, kind: &str) -> Result<Value> {
        self.wait_for(skip, kind, |event| (event["event"] == kind).then(|| event.clone()))
    }

    /// Waits for a line of output that holds `words`.
    ///
    /// # Errors
    /// When the process ends or [`PATIENCE`] is over first.
    pub fn line(&self, words: &str) -> Result<String> {
        crate::until(&format!("{} says {words:?}", self.name), || {
            self.said(|said| {
                let mut lines = said.out.iter().chain(&said.errors);
                lines.find(|l| l.contains(words)).cloned()
            })
        })
    }

    /// All events of this kind so far.
    #[must_use]
    pub fn events(&self, kind: &str) -> Vec<Value> {
        self.said(|said| said.events.iter().filter(|e| e["event"] == kind).cloned().collect())
    }

    /// The newest word of each account so far.
    ///
    /// # Errors
    /// When an event is not what it should be.
    pub fn accounts(&self) -> Result<Vec<Account>> {
        let mut accounts: Vec<Account> = Vec::new();
        for event in self.events("account") {
            let count = |key: &str| event[key].as_u64().with_context(|| format!("{key}: {event}"));
            let text = |key: &str| event[key].as_str().with_context(|| format!("{key}: {event}"));
            let account = Account {
                peer: text("peer")?.to_owned(),
                up: count("up")?,
                down: count("down")?,
                amount: text("amount")?.parse()?,
            };
            accounts.retain(|a| a.peer != account.peer);
            accounts.push(account);
        }
        Ok(accounts)
    }

    /// The last that it said, for a failure's message.
    #[must_use]
    pub fn story(&self) -> String {
        format!("\n  {}:{}", self.name, self.said(shown))
    }

    /// Its standard output so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.said(|said| said.out.join("\n"))
    }

    /// Its error output so far.
    #[must_use]
    pub fn errors(&self) -> String {
        self.said(|said| said.errors.join("\n"))
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Asks it to stop.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("{} is gone", self.name))
    }

    /// Waits until it ended and all that it said was read.
    ///
    /// # Errors
    /// When [`PATIENCE`] is over.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() > end {
                bail!("{} did not end{}", self.name, self.said(shown));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        crate::until("the end of output", || self.said(|said| said.open == 0).then_some(()))?;
        Ok(status)
    }

    /// Asks it to stop in order (SIGTERM), and waits until it did.
    ///
    /// # Errors
    /// When it does not end, or not well.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait()?;
        ensure!(status.success(), "{} ended with {status}{}", self.name, self.said(shown));
        Ok(())
    }

    /// Kills it (SIGKILL), as a power cut would, and waits until it is gone.
    ///
    /// # Errors
    /// When it was gone already.
    pub fn kill(&mut self) -> Result<()> {
        ensure!(self.child.try_wait()?.is_none(), "{} is gone{}", self.name, self.said(shown));
        self.signal(Signal::KILL)?;
        self.wait().map(drop)
    }

    fn said<T>(&self, look: impl FnOnce(&Said) -> T) -> T {
        look(&self.output.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            let errors = self.errors();
            assert!(!errors.contains("panicked at"), "{} panicked:\n{errors}", self.name);
        }
    }
}

fn shown(said: &Said) -> String {
    let newest = said.errors.iter().rev().take(SHOWN).rev();
    let events = said.out.iter().rev().take(SHOWN).rev();
    events.chain(newest).map(|line| format!("\n    {line}")).collect()
}

fn listen(
    from: impl Read + Send + 'static,
    output: Arc<Output>,
    take: impl Fn(&mut Said, String) + Send + 'static,
) {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            output.change(|said| take(said, text));
            line.clear();
        }
        output.change(|said| said.open -= 1);
    });
}
