//! Providers that cheat: they send without asking the gate, and claim what they please.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use sluice_metering::{Direction, Payee, PayeeEvent, StreamIndex, VoucherRecord};
use sluice_proto::LeaseId;
use sluice_proto::wire::pay::{self, pay_datagram::Kind};
use sluice_transport::{Clock, Session};
use sluice_tunnel::Local;

use super::ProviderLie;
use crate::paid::{Asked, Outcome, Program};

/// The cheat looks at its account this often.
const TICK: Duration = Duration::from_millis(5);
/// Bytes sent and read at a time.
const CHUNK: usize = 16 << 10;
/// Times what it got, for who inflates.
const FACTOR: u64 = 3;
/// Bytes that nobody asked for: four windows of a lease that is slow.
const UNSOLICITED: u64 = 2 << 20;

/// An account and what the cheat makes of it.
#[derive(Debug)]
pub(super) struct Cheat {
    lie: ProviderLie,
    lease: LeaseId,
    session: Session,
    clock: Clock,
    payee: Mutex<Payee>,
    /// Bytes each way, as the cheat counts them.
    got: Mutex<(u64, u64)>,
    pub(super) outcomes: Mutex<Vec<Arc<Outcome>>>,
    newest: Mutex<Option<VoucherRecord>>,
}

impl Cheat {
    pub(super) fn new(
        lie: ProviderLie,
        session: Session,
        clock: Clock,
        lease: LeaseId,
        payee: Payee,
    ) -> Arc<Self> {
        let (got, outcomes, newest) = Default::default();
        let payee = Mutex::new(payee);
        Arc::new(Self { lie, lease, session, clock, payee, got, outcomes, newest })
    }

    /// Serves, takes vouchers and claims until the session ends.
    pub(super) async fn cheat(self: Arc<Self>) {
        tokio::spawn(self.clone().accept());
        if self.lie == ProviderLie::Unsolicited {
            tokio::spawn(self.clone().push());
        }
        let connection = self.session.connection().clone();
        loop {
            tokio::select! {
                biased;
                datagram = connection.read_datagram() => match datagram {
                    Ok(message) => self.payee.lock().handle_datagram(&message, self.clock.now()),
                    Err(_) => return,
                },
                () = self.clock.sleep(TICK) => self.claim(),
            }
            self.look();
        }
    }

    /// The highest voucher that it could get.
    pub(super) fn newest(&self) -> Option<VoucherRecord> {
        self.newest.lock().clone()
    }

    fn look(&self) {
        let now = self.clock.now();
        let mut payee = self.payee.lock();
        payee.handle_timeout(now);
        while let Some(event) = payee.poll_event() {
            if let PayeeEvent::Persist { seq, record } = event {
                payee.handle_durable(seq);
                *self.newest.lock() = Some(record);
            }
        }
        while let Some(datagram) = payee.poll_transmit(now) {
            self.send(&datagram);
        }
    }

    fn send(&self, datagram: &Bytes) {
        let copies = if self.lie == ProviderLie::Repeats { 3 } else { 1 };
        for _ in 0..copies {
            // The session may be over.
            let _ = self.session.connection().send_datagram(datagram.clone());
        }
    }

    /// Says how much it is owed, again and again.
    fn claim(&self) {
        let (up, down) = *self.got.lock();
        let (up, down) = match self.lie {
            ProviderLie::Inflates => (up * FACTOR, down * FACTOR),
            ProviderLie::Unsolicited => (up, down + UNSOLICITED),
            ProviderLie::None | ProviderLie::OwesRelay | ProviderLie::Repeats => (up, down),
        };
        let lease = Bytes::copy_from_slice(&self.lease.0);
        let kind = Some(Kind::Claim(pay::Claim { lease, up, down }));
        self.send(&pay::PayDatagram { kind }.encode_to_vec().into());
    }

    /// Pushes bytes that nobody asked for.
    async fn push(self: Arc<Self>) -> Result<()> {
        let (mut send, _) = self.session.connection().open_bi().await?;
        let junk = vec![0x5A; CHUNK];
        for _ in 0..UNSOLICITED / CHUNK as u64 {
            send.write_all(&junk).await?;
        }
        send.finish()?;
        Ok(())
    }

    async fn accept(self: Arc<Self>) {
        let connection = self.session.connection().clone();
        while let Ok((send, recv)) = connection.accept_bi().await {
            let cheat = self.clone();
            tokio::spawn(async move {
                let ended = cheat.serve(send, recv).await;
                tracing::debug!(?ended, "a cheating provider's stream ended");
            });
        }
    }

    async fn serve(&self, send: quinn::SendStream, mut recv: quinn::RecvStream) -> Result<()> {
        let stream = StreamIndex(recv.id().index());
        self.payee.lock().handle_opened(stream);
        let mut asked = [0; Asked::LEN];
        recv.read_exact(&mut asked).await?;
        let outcome = Arc::<Outcome>::default();
        self.outcomes.lock().push(outcome.clone());
        let program = Program::answering(Asked::decode(&asked), outcome);
        let (down, up) =
            tokio::join!(self.speak(stream, &program, send), self.listen(stream, &program, recv));
        self.payee.lock().handle_closed(stream);
        down.and(up)
    }

    async fn speak(
        &self,
        stream: StreamIndex,
        program: &Program,
        mut send: quinn::SendStream,
    ) -> Result<()> {
        loop {
            let mut buffer = BytesMut::with_capacity(CHUNK);
            let n = program.try_read(&mut buffer)? as u64;
            if n == 0 {
                send.finish()?;
                return Ok(());
            }
            // Counted, so that honest vouchers are taken; the answer is not waited for.
            let _ = self.payee.lock().permit(stream, Direction::Down, n, self.clock.now());
            self.got.lock().1 += n;
            send.write_all(&buffer).await?;
        }
    }

    async fn listen(
        &self,
        stream: StreamIndex,
        program: &Program,
        mut recv: quinn::RecvStream,
    ) -> Result<()> {
        while let Some(chunk) = recv.read_chunk(CHUNK, true).await? {
            let (n, now) = (chunk.bytes.len() as u64, self.clock.now());
            program.try_write(&[std::io::IoSlice::new(&chunk.bytes)])?;
            let mut payee = self.payee.lock();
            let _ = payee.permit(stream, Direction::Up, n, now);
            payee.handle_read(n, now);
            drop(payee);
            let mut got = self.got.lock();
            got.0 += n;
            self.session.set_delivered(got.0);
        }
        program.finish();
        Ok(())
    }
}
