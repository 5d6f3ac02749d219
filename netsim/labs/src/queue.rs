//! Packets that wait for a verdict: the kernel's nfnetlink queue (`linux/netfilter/
//! nfnetlink_queue.h`), of which only the meta data of packets leaves the kernel.

use std::io::{Error, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketType, bind, netlink, recv, send, socket, sockopt,
};

const SUBSYSTEM: u16 = 3 << 8;
const PACKET: u16 = SUBSYSTEM;
const VERDICT: u16 = SUBSYSTEM | 1;
const CONFIG: u16 = SUBSYSTEM | 2;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
/// `nlmsghdr`, and `nfgenmsg` behind it.
const HEADER: usize = 16;
const GENERAL: usize = 4;

/// Attributes of a configuration.
const CONFIG_COMMAND: u16 = 1;
const CONFIG_PARAMS: u16 = 2;
const CONFIG_LEN_MAX: u16 = 3;
const CONFIG_MASK: u16 = 4;
const CONFIG_FLAGS: u16 = 5;
const BIND: u8 = 1;
const COPY_META: u8 = 1;
/// Batches stay batches.
const WHOLE_BATCHES: u32 = 4;

/// Attributes of a packet.
const PACKET_HEADER: u16 = 1;
const VERDICT_HEADER: u16 = 2;
const IN_INTERFACE: u16 = 5;
const OUT_INTERFACE: u16 = 6;

/// A second of a gigabit in packets of full size may wait.
const WAITING_MAX: u32 = 100_000;
/// So many notices may wait for this process, a few hundred bytes each.
const BUFFER: usize = 32 << 20;

/// A packet that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Its number.
    pub id: u32,
    /// Number of the interface it came from.
    pub from: u32,
    /// Number of the interface it leaves by.
    pub to: u32,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is lost.
    Drop = 0,
    /// It goes on.
    Accept = 1,
}

/// A queue of the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Queue {
    socket: OwnedFd,
    number: u16,
    buffer: Vec<u8>,
    verdicts: Vec<u8>,
}

impl Queue {
    /// Opens queue `number`; `splits` asks for single packets where the kernel has batches.
    pub(crate) fn open(number: u16, splits: bool) -> Result<Self> {
        let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER))?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
        let mut queue = Self { socket, number, buffer: vec![0; 1 << 17], verdicts: Vec::new() };
        let [high, low] = AddressFamily::INET.as_raw().to_be_bytes();
        queue.configure(&[(CONFIG_COMMAND, &[BIND, 0, high, low])]).context("no NFQUEUE")?;
        let flags = if splits { 0 } else { WHOLE_BATCHES };
        queue.configure(&[
            (CONFIG_PARAMS, &[0, 0, 0, 0, COPY_META]),
            (CONFIG_LEN_MAX, &WAITING_MAX.to_be_bytes()),
            (CONFIG_MASK, &WHOLE_BATCHES.to_be_bytes()),
            (CONFIG_FLAGS, &flags.to_be_bytes()),
        ])?;
        Ok(queue)
    }

    fn configure(&mut self, attributes: &[(u16, &[u8])]) -> Result<()> {
        let mut message = Vec::new();
        put(&mut message, CONFIG, REQUEST | ACKNOWLEDGE, self.number, attributes);
        send(&self.socket, &message, SendFlags::empty())?;
        let (len, _) = recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
        let answer = &self.buffer[..len];
        if u16_at(answer, 4) != Some(ERROR) {
            bail!("the kernel's answer is no acknowledgement");
        }
        match u32_at(answer, HEADER) {
            Some(0) => Ok(()),
            Some(code) => Err(Error::from_raw_os_error(code.wrapping_neg().cast_signed()).into()),
            None => bail!("the kernel's answer is cut off"),
        }
    }

    /// Takes what came, without waiting. `None`: the kernel had no room for some notices, and their
    /// packets are lost.
    pub(crate) fn take(&mut self, mut packet: impl FnMut(Waiting)) -> Result<Option<()>> {
        loop {
            let len = match recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                Err(Errno::NOBUFS) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Some(())),
                Err(error) => return Err(error.into()),
            };
            messages(&self.buffer[..len]).filter_map(parse).for_each(&mut packet);
        }
    }

    /// Says what becomes of a packet, with the next [`Self::flush`].
    pub(crate) fn decide(&mut self, id: u32, verdict: Verdict) {
        let mut header = [0; 8];
        header[..4].copy_from_slice(&(verdict as u32).to_be_bytes());
        header[4..].copy_from_slice(&id.to_be_bytes());
        put(&mut self.verdicts, VERDICT, REQUEST, self.number, &[(VERDICT_HEADER, &header)]);
    }

    /// Tells the kernel all verdicts.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if !self.verdicts.is_empty() {
            send(&self.socket, &self.verdicts, SendFlags::empty())?;
            self.verdicts.clear();
        }
        Ok(())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn put(to: &mut Vec<u8>, kind: u16, flags: u16, queue: u16, attributes: &[(u16, &[u8])]) {
    let start = to.len();
    to.extend([0; 4]);
    to.extend(kind.to_ne_bytes());
    to.extend(flags.to_ne_bytes());
    to.extend([0; 8]);
    to.extend([0, 0]);
    to.extend(queue.to_be_bytes());
    for (kind, value) in attributes {
        let len = u16::try_from(4 + value.len()).expect("short values");
        to.extend(len.to_ne_bytes());
        to.extend(kind.to_ne_bytes());
        to.extend_from_slice(value);
        to.resize(to.len().next_multiple_of(4), 0);
    }
    let len = u32::try_from(to.len() - start).expect("a short message");
    to[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

/// The messages of a datagram, headers included.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    chunks(datagram, |rest| usize::try_from(u32_at(rest, 0)?).ok())
}

fn parse(message: &[u8]) -> Option<Waiting> {
    if u16_at(message, 4)? != PACKET {
        return None;
    }
    let (mut id, mut from, mut to) = (None, 0, 0);
    let rest = message.get(HEADER + GENERAL..)?;
    for attribute in chunks(rest, |rest| u16_at(rest, 0).map(usize::from)) {
        let number = attribute.get(4..8).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
        match (u16_at(attribute, 2)?, number) {
            (PACKET_HEADER, _) => id = number,
            (IN_INTERFACE, Some(index)) => from = index,
            (OUT_INTERFACE, Some(index)) => to = index,
            _ => {}
        }
    }
    Some(Waiting { id: id?, from, to })
}

/// Parts that begin at multiples of 4 and say their own length.
fn chunks(bytes: &[u8], len: impl Fn(&[u8]) -> Option<usize>) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let len = len(rest).filter(|len| *len >= 4)?;
        let chunk = rest.get(..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(chunk)
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
