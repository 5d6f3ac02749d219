//! Tenants that cheat: their pay messages are honest ones, mangled on their way out.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream};
use sluice_metering::{Payer, PayerEvent, StreamIndex};
use sluice_transport::{Clock, Session};
use sluice_tunnel::Local;

use super::TenantLie;
use crate::paid::{Asked, Outcome, Program};
use crate::rng::Rng;

/// The cheat looks at its account this often.
const TICK: Duration = Duration::from_millis(5);
/// Who pays late pays after this.
const LATE: Duration = Duration::from_secs(2);
/// Who replays pays honestly so many times before.
const HONEST_VOUCHERS: usize = 3;
/// Garbage in each tick: 10 Mbit/s in datagrams of this many bytes.
const GARBAGE: usize = 6;
const GARBAGE_LEN: usize = 1000;
/// So long acknowledgements are elicited, with a packet each time.
const ELICITS: Duration = Duration::from_secs(12);
const BETWEEN: Duration = Duration::from_micros(500);
/// Bytes read at a time.
const CHUNK: usize = 16 << 10;

/// One account, and what the cheat has said of it.
#[derive(Debug)]
pub(super) struct Cheat {
    lie: TenantLie,
    session: Session,
    clock: Clock,
    /// The account that the cheat says the truth from, if it says it.
    payer: Mutex<Payer>,
    /// Who equivocates keeps a second book, in which it read half.
    second: Option<Mutex<Payer>>,
    said: Mutex<Vec<Bytes>>,
    rng: Mutex<Rng>,
}

impl Cheat {
    pub(super) fn new(
        lie: TenantLie,
        session: Session,
        clock: Clock,
        payer: Payer,
        second: Option<Payer>,
        rng: Rng,
    ) -> Arc<Self> {
        let (payer, second) = (Mutex::new(payer), second.map(Mutex::new));
        Arc::new(Self {
            lie,
            session,
            clock,
            payer,
            second,
            said: Mutex::default(),
            rng: Mutex::new(rng),
        })
    }

    /// Pays as it pleases until the session ends.
    pub(super) async fn pay(self: Arc<Self>) {
        let connection = self.session.connection().clone();
        loop {
            tokio::select! {
                biased;
                datagram = connection.read_datagram() => match datagram {
                    Ok(message) => self.payer.lock().handle_datagram(&message, self.clock.now()),
                    Err(_) => return,
                },
                () = self.clock.sleep(TICK) => {}
            }
            self.look();
        }
    }

    fn look(self: &Arc<Self>) {
        let now = self.clock.now();
        for datagram in drain(&mut self.payer.lock(), now) {
            self.say(datagram);
        }
        if let Some(second) = &self.second {
            for datagram in drain(&mut second.lock(), now) {
                self.send(datagram);
            }
        }
        match self.lie {
            TenantLie::Replays => {
                let said = self.said.lock();
                let old = said.get(self.rng.lock().below(said.len().max(1) as u64) as usize);
                if let Some(old) = old {
                    self.send(old.clone());
                }
            }
            TenantLie::Floods => {
                let mut rng = self.rng.lock();
                for _ in 0..GARBAGE {
                    self.send(Bytes::copy_from_slice(&rng.bytes::<GARBAGE_LEN>()));
                }
            }
            TenantLie::None
            | TenantLie::NeverPays
            | TenantLie::PaysLate
            | TenantLie::Equivocates
            | TenantLie::StrangersChannel
            | TenantLie::Elicits
            | TenantLie::DelaysAcks => {}
        }
    }

    /// Packets as small as they can be, one at a time, for as long as the case lasts: each other of
    /// them is acknowledged at once.
    pub(super) async fn elicit(self: Arc<Self>) {
        let until = self.clock.now() + ELICITS;
        while self.clock.now() < until {
            self.send(Bytes::from_static(b"x"));
            self.clock.sleep(BETWEEN).await;
        }
    }

    fn say(self: &Arc<Self>, datagram: Bytes) {
        match self.lie {
            TenantLie::NeverPays => {}
            TenantLie::PaysLate => {
                let cheat = self.clone();
                tokio::spawn(async move {
                    cheat.clock.sleep(LATE).await;
                    cheat.send(datagram);
                });
            }
            TenantLie::Replays => {
                let mut said = self.said.lock();
                if said.len() < HONEST_VOUCHERS {
                    said.push(datagram.clone());
                    self.send(datagram);
                }
            }
            TenantLie::None
            | TenantLie::Equivocates
            | TenantLie::StrangersChannel
            | TenantLie::Floods
            | TenantLie::Elicits
            | TenantLie::DelaysAcks => self.send(datagram),
        }
    }

    fn send(&self, datagram: Bytes) {
        // The session may be over.
        let _ = self.session.connection().send_datagram(datagram);
    }

    /// Asks for bytes as an honest tenant does, and counts them.
    pub(super) async fn fetch(self: Arc<Self>, asked: Asked, outcome: Arc<Outcome>) -> Result<()> {
        let (mut send, recv) = self.session.connection().open_bi().await?;
        send.write_all(&asked.encode()).await?;
        let program = Program::asking(asked, outcome);
        let (up, down) = tokio::join!(self.speak(&program, send), self.listen(&program, recv));
        up.and(down)
    }

    async fn speak(&self, program: &Program, mut send: SendStream) -> Result<()> {
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK);
            let n = program.try_read(&mut buffer)?;
            if n == 0 {
                send.finish()?;
                return Ok(());
            }
            self.payer.lock().handle_written(n as u64, self.clock.now());
            send.write_all(&buffer).await?;
        }
    }

    async fn listen(&self, program: &Program, mut recv: RecvStream) -> Result<()> {
        let stream = StreamIndex(recv.id().index());
        while let Some(chunk) = recv.read_chunk(CHUNK, true).await? {
            let now = self.clock.now();
            program.try_write(&[IoSlice::new(&chunk.bytes)])?;
            self.payer.lock().handle_read(stream, chunk.bytes.len() as u64, now);
            if let Some(second) = &self.second {
                second.lock().handle_read(stream, chunk.bytes.len() as u64 / 2, now);
            }
        }
        program.finish();
        Ok(())
    }

    /// What the newest voucher that it made states, whether it was sent or not.
    pub(super) fn stated(&self) -> sluice_metering::Counts {
        self.payer.lock().newest().map_or_else(Default::default, |v| v.counts)
    }
}

fn drain(payer: &mut Payer, now: Instant) -> Vec<Bytes> {
    payer.handle_timeout(now);
    while let Some(event) = payer.poll_event() {
        if let PayerEvent::Persist { seq, .. } = event {
            payer.handle_persisted(seq, now);
        }
    }
    std::iter::from_fn(|| payer.poll_transmit(now)).collect()
}
