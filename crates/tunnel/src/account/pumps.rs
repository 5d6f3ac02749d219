//! What the pumps ask of an account.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use sluice_metering::{Direction, Permit, Reason, StreamIndex, StreamState};
use tokio::sync::futures::Notified;

use super::{Account, Meter, Stopped};

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
        self.wait_for(|meter, now| match meter {
            Meter::Payer(payer) => {
                payer.handle_written(want, now);
                Permit::Granted(want)
            }
            Meter::Payee(gate) => gate.permit(stream, Direction::Down, want, now),
            Meter::Closed(_) => Permit::Wait(Reason::Closed, None),
        })
        .await
    }

    async fn wait_for(
        &self,
        mut ask: impl FnMut(&mut Meter, Instant) -> Permit,
    ) -> Result<u64, Stopped> {
        loop {
            // Made before the question is asked, so that no answer is missed.
            let writable = self.0.writable.notified();
            match self.change(&mut ask) {
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

    /// Waits until up to `n` bytes that a payee took from a stream may be handed on, and how many.
    /// Only those count as read.
    pub(crate) async fn admit(&self, stream: StreamIndex, n: u64) -> Result<u64, Stopped> {
        self.wait_for(|meter, now| {
            let Meter::Payee(gate) = meter else { return Permit::Wait(Reason::Closed, None) };
            let permit = gate.permit(stream, Direction::Up, n, now);
            if let Permit::Granted(granted) = permit {
                gate.payee_mut().handle_read(granted, now);
            }
            permit
        })
        .await
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
