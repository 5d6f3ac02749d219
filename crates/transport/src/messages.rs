//! Length-prefixed messages on QUIC streams.

use std::marker::PhantomData;

use bytes::{Buf, BytesMut};
use prost::Message;
use sluice_proto::wire::{self, MESSAGE_MAX, WireError};

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The stream or its connection ended.
    #[error("the stream was lost: {0}")]
    Lost(#[from] quinn::ReadError),
    /// The stream ended in the middle of a message.
    #[error("the stream ended in the middle of a message")]
    Cut,
    /// The peer wrote nonsense.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Reads messages, each after its length as a big-endian u16.
#[derive(Debug)]
pub struct MessageReader<M> {
    stream: quinn::RecvStream,
    buffer: BytesMut,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> MessageReader<M> {
    /// Reads from `stream`.
    #[must_use]
    pub fn new(stream: quinn::RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new(), message: PhantomData }
    }

    /// The next message; `None` when the peer finished the stream. Cancel-safe.
    ///
    /// # Errors
    /// When the stream is lost, or holds something else.
    pub async fn next(&mut self) -> Result<Option<M>, MessageError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            match self.stream.read_chunk(MESSAGE_MAX, true).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(MessageError::Cut),
            }
        }
    }

    fn take(&mut self) -> Result<Option<M>, WireError> {
        let Some(prefix) = self.buffer.get(..2) else { return Ok(None) };
        let len = usize::from(u16::from_be_bytes([prefix[0], prefix[1]]));
        if len > MESSAGE_MAX {
            return Err(WireError::TooLarge { max: MESSAGE_MAX, found: len });
        }
        if self.buffer.len() < 2 + len {
            return Ok(None);
        }
        self.buffer.advance(2);
        let body = self.buffer.split_to(len).freeze();
        wire::decode(body, MESSAGE_MAX).map(Some)
    }
}

/// Writes one message after its length.
///
/// # Errors
/// When the stream is lost.
pub async fn send_message<M: Message>(
    stream: &mut quinn::SendStream,
    message: &M,
) -> Result<(), quinn::WriteError> {
    stream.write_chunk(wire::prefixed(message)).await
}
