//! The task that drives an account for as long as its session lasts.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Account, Meter};

/// Shortest sleep: the runtime's timers know nothing shorter.
const TICK: Duration = Duration::from_millis(1);
/// With nothing to wait for, the account's task looks again after this.
const LOOK: Duration = Duration::from_secs(60);
/// What a peer may delay an acknowledgement, beside the round trip (RFC 9000, 18.2).
const ACK_DELAY_MAX: Duration = Duration::from_millis(25);

/// When a task that is asked at `now` wakes for something that is due at `at`. A deadline that is
/// closer than a tick, or past, is no reason to look again at once.
pub(super) fn wake_at(at: Instant, now: Instant) -> Instant {
    at.max(now + TICK)
}

impl Account {
    pub(super) async fn run(self) {
        let connection = self.0.connection.clone();
        let clock = self.0.options.clock.clone();
        loop {
            let until = self.arm();
            tokio::select! {
                biased;
                datagram = connection.read_datagram() => match datagram {
                    Ok(message) => self.take(&message),
                    Err(_) => break,
                },
                () = self.0.task.notified() => {}
                () = clock.sleep_until(until) => {}
            }
            self.tick();
        }
        self.change(|meter, now| {
            if let Meter::Payer(payer) = meter {
                payer.flush(now);
            }
        });
        self.0.writable.notify_waiters();
        self.0.progress.notify_waiters();
    }

    /// When the task must look again by itself.
    fn arm(&self) -> Instant {
        let now = self.0.options.clock.now();
        let next = self.0.meter.lock().poll_timeout();
        let until = next.map_or(now + LOOK, |at| wake_at(at, now));
        *self.0.sleeping_until.lock() = Some(until);
        until
    }

    fn take(&self, message: &Bytes) {
        self.change(|meter, now| match meter {
            Meter::Payer(payer) => payer.handle_datagram(message, now),
            Meter::Payee(gate) => gate.payee_mut().handle_datagram(message, now),
            Meter::Closed(_) => {}
        });
        self.0.progress.notify_waiters();
    }

    fn tick(&self) {
        // RFC 9002, 6.2.1, with the variance at its usual half.
        let pto = self.0.connection.rtt().saturating_mul(2).saturating_add(ACK_DELAY_MAX);
        self.change(|meter, now| match meter {
            Meter::Payer(payer) => {
                payer.handle_pto(pto);
                payer.handle_timeout(now);
            }
            Meter::Payee(gate) => {
                gate.payee_mut().handle_pto(pto);
                gate.payee_mut().handle_timeout(now);
            }
            Meter::Closed(_) => {}
        });
    }
}
