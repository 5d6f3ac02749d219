//! A network stack of its own, entered by one thread.

use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context as _, Result, bail};
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use serde_json::Value;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace without a name. It lives as long as something is in it: its thread, which
/// ends when this is dropped, and the processes and sockets that were made there.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes one, with nothing but loopback; `name` is for messages.
    ///
    /// # Errors
    /// When this process may not: it takes root.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let (jobs, queue) = channel::<Job>();
        let (tell, told) = sync_channel(1);
        let thread = Builder::new().name(name.clone()).spawn(move || {
            let entered = enter();
            let is_in = entered.is_ok();
            let _ = tell.send(entered);
            if is_in {
                queue.into_iter().for_each(|job| job());
            }
        })?;
        let path = told.recv()?.context("failed to make a network namespace: it takes root")?;
        let made = Self { name, path, jobs: Some(jobs), thread: Some(thread) };
        made.ip("link set lo up")?;
        Ok(made)
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does `work` on the namespace's thread: sockets, threads and processes that it makes belong to
    /// the namespace.
    ///
    /// # Panics
    /// When `work` does.
    pub fn call<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = sync_channel(1);
        let job = Box::new(move || {
            let _ = tell.send(catch_unwind(AssertUnwindSafe(work)));
        });
        let jobs = self.jobs.as_ref().expect("taken when it is dropped");
        jobs.send(job).expect("the thread outlives its jobs");
        match told.recv().expect("a job answers") {
            Ok(done) => done,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Runs a command line, words parted by spaces; its output.
    ///
    /// # Errors
    /// With the command's own words when it fails.
    pub fn run(&self, line: &str) -> Result<String> {
        self.feed(line, "")
    }

    /// Runs a command line that reads `input`.
    ///
    /// # Errors
    /// With the command's own words when it fails.
    pub fn feed(&self, line: &str, input: &str) -> Result<String> {
        let (words, text) = (line.to_owned(), input.to_owned());
        let done = self.call(move || feed(&words, &text));
        done.with_context(|| format!("failed to run {line:?} in {}\n{input}", self.name))
    }

    /// Runs these lines of `ip`.
    ///
    /// # Errors
    /// With its own words when it fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip -batch -", lines).map(drop)
    }

    /// Loads these nftables rules.
    ///
    /// # Errors
    /// With `nft`'s own words when it fails.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.feed("nft -f -", rules).map(drop)
    }

    /// Forwards packets from now on.
    ///
    /// # Errors
    /// When the kernel does not let it.
    pub fn forward(&self) -> Result<()> {
        self.call(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
        Ok(())
    }

    /// Joins the interface `mine` to the interface `theirs` of `peer`, and brings both up.
    ///
    /// # Errors
    /// When there is such an interface already.
    pub fn join(&self, mine: &str, peer: &Self, theirs: &str) -> Result<()> {
        let there = peer.path.display();
        self.ip(&format!(
            "link add name {mine} type veth peer name {theirs} netns {there}\nlink set {mine} up"
        ))?;
        peer.ip(&format!("link set {theirs} up"))
    }

    /// A UDP socket.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn udp(&self, addr: Ipv4Addr, port: u16) -> Result<UdpSocket> {
        Ok(self.call(move || UdpSocket::bind((addr, port)))?)
    }

    /// Bytes that the interface received and sent so far.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn counts(&self, interface: &str) -> Result<(u64, u64)> {
        let link = self.show(interface)?;
        let count = |way: &str| link["stats64"][way]["bytes"].as_u64().context("no count");
        Ok((count("rx")?, count("tx")?))
    }

    /// The kernel's number of an interface.
    pub(crate) fn index(&self, interface: &str) -> Result<u32> {
        let index = self.show(interface)?["ifindex"].as_u64().context("no number")?;
        Ok(index.try_into()?)
    }

    fn show(&self, interface: &str) -> Result<Value> {
        let links = self.run(&format!("ip -json -stats link show dev {interface}"))?;
        let mut links: Value = serde_json::from_str(&links)?;
        Ok(links[0].take())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[expect(unsafe_code, reason = "leaving the process's network namespace")]
fn enter() -> Result<PathBuf> {
    // SAFETY: descriptors stay shared (no `UnshareFlags::FILES`), which is all that the call asks.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }?;
    // Programs look up interfaces in /sys, which shows those of the namespace that mounted it.
    feed("mount --make-rprivate /", "")?;
    feed("mount -t sysfs sysfs /sys", "")?;
    // Labs speak IPv4; autoconfiguration would add packets that nobody asked for.
    for group in ["all", "default"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{group}/disable_ipv6"), "1");
    }
    let (process, thread) = (std::process::id(), gettid().as_raw_nonzero());
    Ok(format!("/proc/{process}/task/{thread}/ns/net").into())
}

fn feed(line: &str, input: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input is no failure.
        let _ = stdin.write_all(input.as_bytes());
    }
    let done = child.wait_with_output()?;
    if !done.status.success() {
        bail!("{}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
