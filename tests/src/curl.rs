//! curl, the client.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{CHUNK, PATIENCE};

/// No download may take longer than this.
const TIME_MAX: &str = "180";

fn command() -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", TIME_MAX]);
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Downloads `path` from `addr`.
///
/// # Errors
/// With curl's own words.
pub fn curl(addr: SocketAddr, path: &str) -> Result<Vec<u8>> {
    let done = command().arg(format!("http://{addr}/{path}")).output().context("no curl")?;
    if !done.status.success() {
        bail!("curl {path}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(done.stdout)
}

/// What a download brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Downloaded {
    /// Bytes.
    pub bytes: u64,
    /// Of all of them.
    pub sha256: [u8; 32],
}

/// A curl that runs. It is killed when it is dropped.
#[derive(Debug)]
pub struct Curl {
    child: Child,
    to: Option<PathBuf>,
}

impl Curl {
    /// Starts a download whose bytes are read with [`Self::finish`].
    ///
    /// # Errors
    /// When there is no curl.
    pub fn stream(addr: SocketAddr, path: &str) -> Result<Self> {
        let mut command = command();
        command.arg(format!("http://{addr}/{path}")).stdout(Stdio::piped());
        Ok(Self { child: command.spawn().context("no curl")?, to: None })
    }

    /// Starts a download into a file; goes on behind what is there (`-C -`) if `resume`.
    ///
    /// # Errors
    /// When there is no curl.
    pub fn to_file(addr: SocketAddr, path: &str, to: &Path, resume: bool) -> Result<Self> {
        let mut command = command();
        if resume {
            command.args(["-C", "-"]);
        }
        // Bytes must be in the file as soon as they came: the tests watch it grow.
        command.arg("--no-buffer").arg("-o").arg(to).arg(format!("http://{addr}/{path}"));
        command.stdout(Stdio::null());
        Ok(Self { child: command.spawn().context("no curl")?, to: Some(to.to_owned()) })
    }

    /// Starts one curl that downloads `count` paths `<n>/<len>` at once, each into the file `<n>`.
    ///
    /// # Errors
    /// When there is no curl.
    pub fn many(addr: SocketAddr, count: usize, len: u64, folder: &Path) -> Result<Self> {
        let mut command = command();
        command.args(["--parallel", "--parallel-immediate", "--parallel-max", "300", "-o"]);
        command.arg(folder.join("#1")).arg(format!("http://{addr}/[1-{count}]/{len}"));
        command.stdout(Stdio::null());
        Ok(Self { child: command.spawn().context("no curl")?, to: None })
    }

    /// Waits until the file holds at least `bytes`.
    ///
    /// # Errors
    /// When curl ends or [`PATIENCE`] is over first.
    pub fn wait_for_bytes(&mut self, bytes: u64) -> Result<u64> {
        let to = self.to.clone().context("not into a file")?;
        let end = Instant::now() + PATIENCE;
        loop {
            let len = to.metadata().map_or(0, |m| m.len());
            if len >= bytes {
                return Ok(len);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("curl ended at {len} of {bytes} bytes: {status}{}", self.errors());
            }
            if Instant::now() > end {
                bail!("curl has {len} of {bytes} bytes");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until curl ended; true: well.
    ///
    /// # Errors
    /// When it does not end; it limits itself, though.
    pub fn ended_well(&mut self) -> Result<bool> {
        Ok(self.child.wait()?.success())
    }

    /// Waits until curl ended well, and hashes what it printed or wrote.
    ///
    /// # Errors
    /// With curl's words when it failed.
    pub fn finish(mut self) -> Result<Downloaded> {
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        let mut take = |part: &[u8]| {
            hash.update(part);
            bytes += part.len() as u64;
        };
        let mut buffer = vec![0; CHUNK];
        if let Some(mut out) = self.child.stdout.take() {
            loop {
                match out.read(&mut buffer)? {
                    0 => break,
                    n => take(&buffer[..n]),
                }
            }
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("curl: {status}{}", self.errors());
        }
        if let Some(path) = &self.to {
            let mut file = std::fs::File::open(path)?;
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    n => take(&buffer[..n]),
                }
            }
        }
        Ok(Downloaded { bytes, sha256: hash.finalize().into() })
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            let _ = errors.read_to_string(&mut text);
        }
        // Many at once fail many times: the first and the last words say enough.
        let lines: Vec<_> = text.lines().collect();
        let first = lines.iter().take(3).chain(lines.iter().skip(3).last());
        first.map(|line| format!("\n    {line}")).collect()
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
