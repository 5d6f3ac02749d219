//! The first stream of a session, read and written as messages.

use std::time::Duration;

use anyhow::{Context, Result};
use sluice_proto::wire::session::{self, session::Kind};
use sluice_transport::{MessageReader, send_message};

/// Both directions of a session's first stream.
pub(crate) struct Control {
    halves: Option<(quinn::SendStream, MessageReader<session::Session>)>,
}

impl Control {
    pub(crate) fn new(send: quinn::SendStream, receive: quinn::RecvStream) -> Self {
        Self { halves: Some((send, MessageReader::new(receive))) }
    }

    /// Stands in for the stream while it is elsewhere.
    pub(crate) const fn placeholder() -> Self {
        Self { halves: None }
    }

    pub(crate) async fn send(&mut self, kind: Kind) -> Result<()> {
        let (send, _) = self.halves.as_mut().context("the control stream is gone")?;
        send_message(send, &session::Session { kind: Some(kind) }).await?;
        Ok(())
    }

    /// The next message that has a known kind. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<Kind> {
        let (_, reader) = self.halves.as_mut().context("the control stream is gone")?;
        loop {
            let message = reader.next().await?.context("the other side closed the session")?;
            if let Some(kind) = message.kind {
                return Ok(kind);
            }
        }
    }

    pub(crate) async fn next_within(&mut self, span: Duration) -> Result<Kind> {
        tokio::time::timeout(span, self.next()).await.context("the other side did not answer")?
    }
}
