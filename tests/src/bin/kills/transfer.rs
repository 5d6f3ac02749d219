//! The client: a download or an upload that goes on where it was cut off, as `curl -C -` does.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use parking_lot::{Condvar, Mutex};
use tests::{CHUNK, PATIENCE, content, differs_at};

use crate::store::{GET, PUT, REQUEST_LEN, TAKEN, Wire};

/// Between two attempts to go on.
const AGAIN: Duration = Duration::from_millis(10);

/// Which way the content goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Down,
    Up,
}

/// What is to be carried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Errand {
    pub(crate) way: Way,
    pub(crate) seed: u64,
    pub(crate) len: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// It runs, or tries to.
    Runs,
    /// It was cut off, and waits to be told to go on.
    Cut,
    Done,
    /// Other bytes came than were sent.
    Wrong(String),
}

#[derive(Debug)]
struct Inside {
    way: Way,
    state: Mutex<(State, u64)>,
    changed: Condvar,
}

/// A transfer that runs in a thread of its own.
#[derive(Debug, Clone)]
pub(crate) struct Transfer(Arc<Inside>);

impl Transfer {
    pub(crate) fn start(errand: Errand, to: SocketAddr, wire: Arc<Wire>) -> Self {
        let (state, changed) = (Mutex::new((State::Runs, 0)), Condvar::new());
        let transfer = Self(Arc::new(Inside { way: errand.way, state, changed }));
        let ours = transfer.clone();
        std::thread::spawn(move || ours.run(errand, to, &wire));
        transfer
    }

    fn run(&self, errand: Errand, to: SocketAddr, wire: &Wire) {
        let mut at = 0;
        loop {
            let outcome = match errand.way {
                Way::Down => self.download(errand, to, wire, &mut at),
                Way::Up => self.upload(errand, to, wire),
            };
            match outcome {
                Ok(None) => return self.set(State::Done),
                Ok(Some(wrong)) => return self.set(State::Wrong(wrong)),
                Err(_) => self.set(State::Cut),
            }
            let mut state = self.0.state.lock();
            while state.0 == State::Cut {
                self.0.changed.wait(&mut state);
            }
        }
    }

    /// `Some`: what is wrong with what came.
    fn download(
        &self,
        errand: Errand,
        to: SocketAddr,
        wire: &Wire,
        at: &mut u64,
    ) -> Result<Option<String>> {
        let mut tcp = ask(GET, errand, *at, to, wire)?;
        let mut buffer = vec![0; CHUNK];
        while *at < errand.len {
            let n = wire.read(&mut tcp, &mut buffer)?;
            ensure!(n > 0, "cut off");
            if let Some(place) = differs_at(errand.seed, *at, &buffer[..n]) {
                return Ok(Some(format!("byte {place} of a download is another")));
            }
            *at += n as u64;
            self.advance(*at);
        }
        Ok(None)
    }

    fn upload(&self, errand: Errand, to: SocketAddr, wire: &Wire) -> Result<Option<String>> {
        let mut tcp = ask(PUT, errand, 0, to, wire)?;
        let mut taken = [0; 8];
        wire.read_exact(&mut tcp, &mut taken)?;
        let (mut at, mut buffer) = (u64::from_be_bytes(taken), vec![0; CHUNK]);
        while at < errand.len {
            let n = (errand.len - at).min(CHUNK as u64) as usize;
            content(errand.seed, at, &mut buffer[..n]);
            wire.write(&mut tcp, &buffer[..n])?;
            at += n as u64;
            self.advance(at);
        }
        let mut end = [0];
        wire.read_exact(&mut tcp, &mut end)?;
        Ok((end != [TAKEN]).then(|| "an upload was answered with something else".to_owned()))
    }

    fn set(&self, to: State) {
        self.0.state.lock().0 = to;
        self.0.changed.notify_all();
    }

    fn advance(&self, to: u64) {
        self.0.state.lock().1 = to;
        self.0.changed.notify_all();
    }

    /// Waits until `bytes` went, or it came to a halt.
    pub(crate) fn wait_for_bytes(&self, bytes: u64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut state = self.0.state.lock();
        while state.1 < bytes && state.0 == State::Runs {
            if self.0.changed.wait_until(&mut state, end).timed_out() {
                bail!("{} of {bytes} bytes went", state.1);
            }
        }
        Ok(())
    }

    /// Which way it goes.
    pub(crate) fn way(&self) -> Way {
        self.0.way
    }

    /// Whether it was cut off and waits.
    pub(crate) fn is_cut(&self) -> bool {
        self.0.state.lock().0 == State::Cut
    }

    /// Lets it go on after it was cut off.
    pub(crate) fn go_on(&self) {
        std::thread::sleep(AGAIN);
        self.set(State::Runs);
    }

    /// Whether all went well; `None` while it runs.
    ///
    /// # Errors
    /// When other bytes came.
    pub(crate) fn is_done(&self) -> Result<bool> {
        match &self.0.state.lock().0 {
            State::Done => Ok(true),
            State::Wrong(what) => bail!("{what}"),
            State::Runs | State::Cut => Ok(false),
        }
    }
}

fn ask(kind: u8, errand: Errand, from: u64, to: SocketAddr, wire: &Wire) -> Result<TcpStream> {
    let mut tcp = TcpStream::connect(to).context("nobody listens")?;
    tcp.set_nodelay(true)?;
    let mut request = [0; REQUEST_LEN];
    request[0] = kind;
    for (place, word) in [(1, errand.seed), (9, from), (17, errand.len)] {
        request[place..place + 8].copy_from_slice(&word.to_be_bytes());
    }
    wire.write(&mut tcp, &request)?;
    Ok(tcp)
}
