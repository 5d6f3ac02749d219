//! What the pumps ask of an account.

use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Instant;

use sluice_metering::{Direction, Permit, Reason, StreamIndex, StreamState};
use tokio::sync::futures::Notified;

use super::{Account, Meter, Stopped};

/// Why nothing may be read, and until when at the latest.
type Waiting = (Reason, Option<Instant>);

impl Account {
    /// A stream opened.
    pub(crate) fn opened(&self, stream: StreamIndex) {
        self.change(|meter, _| {
            if let Meter::Payee(gate) = meter {
                gate.payee_mut().handle_opened(stream);
            }
        });
    }

    /// Nothing more will be read from (payer) or written to (payee) a stream.
    pub(crate) fn closed(&self, stream: StreamIndex, state: StreamState) {
        self.change(|meter, now| match meter {
            Meter::Payer(payer) => payer.handle_closed(stream, state, now),
            Meter::Payee(gate) => gate.payee_mut().handle_closed(stream),
            Meter::Closed(_) => {}
        });
    }

    /// Whether this end pays.
    pub(crate) fn pays(&self) -> bool {
        self.0.pays
    }

    /// Waits until up to `want` bytes may be sent on a stream, and how many. They count at once.
    pub(crate) async fn permit(&self, stream: StreamIndex, want: u64) -> Result<u64, Stopped> {
        loop {
            // Made before the question is asked, so that no answer is missed.
            let writable = self.0.writable.notified();
            let permit = self.change(|meter, now| match meter {
                Meter::Payer(payer) => {
                    payer.handle_written(want, now);
                    Permit::Granted(want)
                }
                Meter::Payee(gate) => gate.permit(stream, Direction::Down, want, now),
                Meter::Closed(_) => Permit::Wait(Reason::Closed, None),
            });
            match permit {
                Permit::Granted(n) => return Ok(n),
                Permit::Wait(Reason::Ledger | Reason::Closed, _) => return Err(Stopped),
                Permit::Wait(reason, until) => self.wait(reason, until, writable).await?,
            }
        }
    }

    /// Gives back what was permitted and not sent.
    pub(crate) fn refund(&self, stream: StreamIndex, n: u64) {
        if n > 0 {
            self.change(|meter, _| match meter {
                Meter::Payer(payer) => payer.handle_unwritten(n),
                Meter::Payee(gate) => gate.refund(stream, Direction::Down, n),
                Meter::Closed(_) => {}
            });
        }
    }

    /// Bytes that a payer read from a stream.
    pub(crate) fn count_read(&self, stream: StreamIndex, n: u64) {
        if n > 0 {
            self.change(|meter, now| {
                if let Meter::Payer(payer) = meter {
                    payer.handle_read(stream, n, now);
                }
            });
        }
    }

    /// A payee's read of at most `want` bytes: `read` is told how many it may read, and tells how
    /// many it did. Waits as long as the gate does not permit any.
    pub(crate) async fn read_permitted<E: From<Stopped>>(
        &self,
        stream: StreamIndex,
        want: u64,
        mut read: impl FnMut(&mut Context<'_>, u64) -> Poll<Result<u64, E>>,
    ) -> Result<u64, E> {
        loop {
            let writable = self.0.writable.notified();
            let asked = poll_fn(|cx| match self.poll_read(stream, want, |n| read(cx, n)) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
                Err(wait) => Poll::Ready(Err(wait)),
            });
            match asked.await {
                Ok(result) => return result,
                Err((Reason::Ledger | Reason::Closed, _)) => return Err(Stopped.into()),
                Err((reason, until)) => self.wait(reason, until, writable).await?,
            }
        }
    }

    /// Reserves, reads, and gives back the rest, in one step: a stream that has nothing holds nothing.
    fn poll_read<E>(
        &self,
        stream: StreamIndex,
        want: u64,
        read: impl FnOnce(u64) -> Poll<Result<u64, E>>,
    ) -> Result<Poll<Result<u64, E>>, Waiting> {
        let permit = self.change(|meter, now| match meter {
            Meter::Payee(gate) => gate.permit(stream, Direction::Up, want, now),
            Meter::Payer(_) | Meter::Closed(_) => Permit::Wait(Reason::Closed, None),
        });
        let granted = match permit {
            Permit::Granted(n) => n,
            Permit::Wait(reason, until) => return Err((reason, until)),
        };
        let result = read(granted);
        let n = if let Poll::Ready(Ok(n)) = &result { *n } else { 0 };
        self.change(|meter, now| {
            if let Meter::Payee(gate) = meter {
                if n > 0 {
                    gate.payee_mut().handle_read(n, now);
                }
                gate.refund(stream, Direction::Up, granted.saturating_sub(n));
            }
        });
        Ok(result)
    }

    /// A provider's service took payload.
    pub(crate) fn delivered(&self, n: u64) {
        let total = self.0.delivered.fetch_add(n, Relaxed).saturating_add(n);
        if let Some(tell) = self.0.options.delivered.as_ref().filter(|_| !self.0.pays) {
            tell(total);
        }
    }

    async fn wait(
        &self,
        reason: Reason,
        until: Option<Instant>,
        writable: Notified<'_>,
    ) -> Result<(), Stopped> {
        *self.0.stalled.lock() = Some(reason);
        let timer = async {
            match until {
                Some(at) => self.0.options.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = writable => {}
            () = timer => *self.0.stalled.lock() = None,
            _ = self.0.connection.closed() => return Err(Stopped),
        }
        Ok(())
    }
}
