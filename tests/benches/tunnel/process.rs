//! Programs started and stopped by the benchmark.
//!
//! Each is killed when its [`Process`] is dropped, and by the kernel if the benchmark itself dies.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Lines of a program's error output kept for an error message.
const LOG_LINES: usize = 12;

/// A running program, its output read line by line.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    lines: Receiver<String>,
    log: Arc<Mutex<VecDeque<String>>>,
}

/// A command for `program` that the kernel kills when the benchmark's main thread ends, prefixed by
/// the words of `within` (how to enter a namespace).
pub(crate) fn command(within: &[&str], program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).args(within).arg(program);
    command
}

impl Process {
    /// Starts `command`, called `name` in messages. Must be called from the main thread, with whose
    /// end the program is killed.
    ///
    /// # Errors
    ///
    /// If it can't be started.
    pub(crate) fn spawn(name: impl Into<String>, command: &mut Command) -> Result<Self> {
        let name = name.into();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, lines) = channel();
        let out = child.stdout.take().context("a child without output")?;
        let err = child.stderr.take().context("a child without error output")?;
        let (kept, also_kept) = (Arc::clone(&log), Arc::clone(&log));
        std::thread::spawn(move || read_lines(out, &kept, Some(&sender)));
        std::thread::spawn(move || read_lines(err, &also_kept, None));
        Ok(Self { name, child, lines, log })
    }

    /// The process id. The namespace is entered by `exec`, so it is that of the program itself.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it is called in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Reads lines of output until `pick` finds in one what it looks for.
    ///
    /// # Errors
    ///
    /// If the program ends or `limit` passes first, with the last lines it wrote.
    pub(crate) fn wait_for<T>(
        &mut self,
        limit: Duration,
        mut pick: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some(found) = pick(&line) {
                        return Ok(found);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    bail!("{} did not answer within {limit:?}{}", self.name, self.log());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("{} ended{}", self.name, self.log());
                }
            }
        }
    }

    /// Writes one line to the program's standard input.
    ///
    /// # Errors
    ///
    /// If the program no longer reads.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("a child without input")?;
        writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .with_context(|| format!("{} has ended{}", self.name, log_of(&self.log)))
    }

    fn log(&self) -> String {
        log_of(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log_of(log: &Mutex<VecDeque<String>>) -> String {
    let log = log.lock().unwrap_or_else(PoisonError::into_inner);
    log.iter().map(|line| format!("\n    {line}")).collect()
}

fn read_lines(from: impl Read, log: &Mutex<VecDeque<String>>, to: Option<&Sender<String>>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(line.clone());
        drop(log);
        if to.is_some_and(|to| to.send(line).is_err()) {
            return;
        }
    }
}
