//! The tracer: follows a victim's threads from system call to system call (ptrace(2)).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use sluice_ledger::Role;

use super::FILE;
use super::disk::{Log, Operation};
use super::victim::{self, Victim};

/// What a victim meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// Nothing.
    None,
    /// SIGKILL before this system call of the write path is carried out, from 1.
    KillAt(usize),
    /// SIGKILL before this system call since the process began.
    KillInAllAt(usize),
    /// This disk call of the write path fails.
    Fail(usize, Fault),
}

/// How a disk call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// EIO.
    Io,
    /// ENOSPC.
    Full,
    /// Only half of a write is done.
    Short,
    /// The same, and the next disk call fails with ENOSPC.
    ShortThenFull,
}

impl Fault {
    pub(super) const ALL: [Self; 4] = [Self::Io, Self::Full, Self::Short, Self::ShortThenFull];
}

/// How a victim ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With this code.
    Exited(i32),
    /// By the blow.
    Killed,
}

/// What a victim did.
#[derive(Debug)]
pub(super) struct Traced {
    pub(super) ended: Ended,
    /// The newest voucher that it told of; 0: none.
    pub(super) told: u64,
    /// System calls of the write path, and from the start on.
    pub(super) calls: usize,
    pub(super) calls_of_all: usize,
    /// Those of the write path that change or sync a file of the ledger's.
    pub(super) disk_calls: usize,
    /// What it did to the ledger's files, and when it told of a voucher.
    pub(super) log: Log,
}

/// Runs `victim` as a process of `program`, which must be able to be one.
pub(super) fn run(program: &Path, victim: &Victim, blow: Blow) -> Result<Traced> {
    let role = match victim.role {
        Role::Payee => "payee",
        Role::Payer => "payer",
    };
    let mut command = Command::new(program);
    command.arg("crash-victim").arg("--folder").arg(&victim.folder).args(["--role", role]);
    command.arg("--vouchers").arg(victim.vouchers.to_string());
    if victim.hasty {
        command.arg("--hasty");
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).env_clear();
    let child = command.spawn().with_context(|| format!("{} does not start", program.display()))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let status = waitpid(pid, Some(WaitPidFlag::__WALL))?;
    ensure!(
        status == WaitStatus::Stopped(pid, Signal::SIGSTOP),
        "the victim began with {status:?}"
    );
    let options =
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(pid, options)?;
    ptrace::syscall(pid, None)?;
    let folder = victim.folder.canonicalize()?;
    let tracer = Tracer {
        pid,
        folder,
        memory: File::open(format!("/proc/{pid}/mem"))?,
        blow,
        began: false,
        inside: HashMap::new(),
        traced: Traced {
            ended: Ended::Killed,
            told: 0,
            calls: 0,
            calls_of_all: 0,
            disk_calls: 0,
            log: Log::default(),
        },
    };
    tracer.follow()
}

/// A system call that a thread is inside of.
struct Call {
    /// What it does to a file of the ledger's, if it succeeds.
    operation: Option<Operation>,
    /// What it returns instead of what the kernel says.
    fails: Option<Errno>,
}

struct Tracer {
    pid: Pid,
    folder: PathBuf,
    memory: File,
    blow: Blow,
    began: bool,
    /// By thread.
    inside: HashMap<Pid, Call>,
    traced: Traced,
}

impl Tracer {
    fn follow(mut self) -> Result<Traced> {
        // This thread's children alone: others trace theirs at the same time.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = waitpid(None, Some(flags))?;
            match status {
                WaitStatus::PtraceSyscall(thread) => self.stopped_at_call(thread)?,
                WaitStatus::PtraceEvent(thread, ..)
                | WaitStatus::Stopped(thread, Signal::SIGSTOP | Signal::SIGTRAP) => {
                    go_on(thread, None)?;
                }
                WaitStatus::Stopped(thread, signal) => go_on(thread, Some(signal))?,
                WaitStatus::Exited(thread, code) if thread == self.pid => {
                    self.traced.ended = Ended::Exited(code);
                    return Ok(self.traced);
                }
                WaitStatus::Signaled(thread, Signal::SIGKILL, _) if thread == self.pid => {
                    return Ok(self.traced);
                }
                WaitStatus::Signaled(thread, signal, _) if thread == self.pid => {
                    bail!("the victim died of {signal}")
                }
                WaitStatus::Exited(..)
                | WaitStatus::Signaled(..)
                | WaitStatus::Continued(_)
                | WaitStatus::StillAlive => {}
            }
        }
    }

    fn stopped_at_call(&mut self, thread: Pid) -> Result<()> {
        let stopped = match self.inside.remove(&thread) {
            Some(call) => self.leave(thread, call),
            None => self.enter(thread),
        };
        match stopped {
            // Another thread ended the process meanwhile, or it was killed.
            Err(error) if error.downcast_ref() == Some(&Errno::ESRCH) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => go_on(thread, None),
        }
    }

    fn enter(&mut self, thread: Pid) -> Result<()> {
        let mut registers = ptrace::getregs(thread)?;
        self.traced.calls_of_all += 1;
        self.traced.calls += usize::from(self.began);
        let kill = match self.blow {
            Blow::KillAt(at) => self.began && self.traced.calls == at,
            Blow::KillInAllAt(at) => self.traced.calls_of_all == at,
            Blow::None | Blow::Fail(..) => false,
        };
        if kill {
            ptrace::kill(self.pid)?;
            return Ok(());
        }
        let mut call = Call { operation: self.operation(&registers)?, fails: None };
        if self.began && call.operation.as_ref().is_some_and(Operation::is_of_the_disk) {
            self.traced.disk_calls += 1;
            let at = self.traced.disk_calls;
            if self.strike(at, &mut call, &mut registers) {
                ptrace::setregs(thread, registers)?;
            }
        }
        self.inside.insert(thread, call);
        Ok(())
    }

    /// Makes a disk call fail if it is to. True: the registers have changed.
    fn strike(&self, at: usize, call: &mut Call, registers: &mut libc::user_regs_struct) -> bool {
        let Blow::Fail(wanted, fault) = self.blow else { return false };
        let halved = matches!(fault, Fault::Short | Fault::ShortThenFull);
        let errno = match fault {
            Fault::Io if at == wanted => Errno::EIO,
            Fault::Full if at == wanted => Errno::ENOSPC,
            Fault::ShortThenFull if at == wanted + 1 => Errno::ENOSPC,
            Fault::Short | Fault::ShortThenFull if at == wanted => {
                if let Some(Operation::Write { bytes, .. }) = &mut call.operation {
                    bytes.truncate(bytes.len() / 2);
                    registers.rdx = bytes.len() as u64;
                    return halved;
                }
                // What is no write can only fail.
                Errno::EIO
            }
            Fault::Io | Fault::Full | Fault::Short | Fault::ShortThenFull => return false,
        };
        call.operation = None;
        call.fails = Some(errno);
        // No system call has this number: nothing is done.
        registers.orig_rax = u64::MAX;
        true
    }

    fn leave(&mut self, thread: Pid, call: Call) -> Result<()> {
        let mut registers = ptrace::getregs(thread)?;
        if let Some(errno) = call.fails {
            registers.rax = (-(errno as i64)).cast_unsigned();
            ptrace::setregs(thread, registers)?;
            return Ok(());
        }
        let result = registers.rax.cast_signed();
        let Some(operation) = call.operation.filter(|_| result >= 0) else { return Ok(()) };
        match &operation {
            Operation::Told(number) => self.traced.told = *number,
            Operation::Began => self.began = true,
            Operation::Write { bytes, .. } => {
                ensure!(usize::try_from(result)? == bytes.len(), "a write was cut by the kernel");
            }
            Operation::Truncate { .. }
            | Operation::Create { .. }
            | Operation::Unlink { .. }
            | Operation::Sync { .. }
            | Operation::SyncFolder => {}
        }
        self.traced.log.push(operation);
        Ok(())
    }

    /// What a system call does to the ledger's files, or says.
    fn operation(&self, registers: &libc::user_regs_struct) -> Result<Option<Operation>> {
        let number = registers.orig_rax.cast_signed();
        Ok(match number {
            libc::SYS_write if registers.rdi == 1 => self.said(registers)?,
            libc::SYS_pwrite64 => match self.file(registers.rdi) {
                Some(file) => {
                    let bytes = self.bytes(registers.rsi, registers.rdx)?;
                    Some(Operation::Write { file, at: registers.r10, bytes })
                }
                None => None,
            },
            libc::SYS_ftruncate => {
                let len = registers.rsi;
                self.file(registers.rdi).map(|file| Operation::Truncate { file, len })
            }
            libc::SYS_fsync | libc::SYS_fdatasync => match self.open_path(registers.rdi) {
                Some(path) if path == self.folder => Some(Operation::SyncFolder),
                Some(path) => self.name(&path).map(|file| Operation::Sync { file }),
                None => None,
            },
            libc::SYS_openat if registers.rdx & libc::O_CREAT as u64 != 0 => {
                let path = self.path(registers.rsi)?;
                let new = !path.exists();
                self.name(&path).filter(|_| new).map(|file| Operation::Create { file })
            }
            libc::SYS_unlink => {
                let path = self.path(registers.rdi)?;
                self.name(&path).map(|file| Operation::Unlink { file })
            }
            libc::SYS_write | libc::SYS_pwritev | libc::SYS_pwritev2 | libc::SYS_writev
                if self.file(registers.rdi).is_some() =>
            {
                bail!("system call {number} on a ledger's file is not known here")
            }
            libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_fallocate => {
                bail!("system call {number} is not known here")
            }
            _ => None,
        })
    }

    fn said(&self, registers: &libc::user_regs_struct) -> Result<Option<Operation>> {
        let line = self.bytes(registers.rsi, registers.rdx)?;
        let line = std::str::from_utf8(&line)?.trim_end();
        if line == victim::BEGIN {
            return Ok(Some(Operation::Began));
        }
        let number = line.strip_prefix(victim::TOLD).context("the victim says something else")?;
        Ok(Some(Operation::Told(number.parse()?)))
    }

    fn bytes(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        self.memory.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    fn path(&self, at: u64) -> Result<PathBuf> {
        let mut bytes = vec![0; libc::PATH_MAX as usize];
        let read = self.memory.read_at(&mut bytes, at)?;
        let end = bytes[..read].iter().position(|b| *b == 0).context("a path without an end")?;
        let text = std::str::from_utf8(&bytes[..end])?;
        Ok(Path::new(OsStr::new(text)).to_owned())
    }

    fn open_path(&self, descriptor: u64) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.pid)).ok()
    }

    fn file(&self, descriptor: u64) -> Option<String> {
        self.name(&self.open_path(descriptor)?)
    }

    /// The name of a file that holds what the ledger knows. Its lock holds nothing, and SQLite makes
    /// its index of the log anew.
    fn name(&self, path: &Path) -> Option<String> {
        let inside = path.parent()? == self.folder;
        let name = path.file_name()?.to_str()?;
        let of_ledger = name.strip_prefix(FILE)?;
        (inside && matches!(of_ledger, "" | "-wal" | "-journal")).then(|| name.to_owned())
    }
}

/// Up to the next system call.
fn go_on(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(thread, signal) {
        // It died meanwhile.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
