//! Requests and their answers between two nodes: a length, then bytes that the mesh does not read.

use std::io;

use bytes::Bytes;
use libp2p::StreamProtocol;
use libp2p::futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::request_response::Codec;

/// Largest request or answer. A circuit of relay v2 carries 128 KiB before it closes, so several fit.
pub const CONTROL_MAX: usize = 16 * 1024;

/// Reads and writes control messages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ControlCodec;

/// A length as a big-endian u16, which is looked at before anything is set aside, then as many bytes.
async fn read(io: &mut (impl AsyncRead + Unpin + Send)) -> io::Result<Bytes> {
    let mut len = [0; 2];
    io.read_exact(&mut len).await?;
    let len = usize::from(u16::from_be_bytes(len));
    if len > CONTROL_MAX {
        let text = format!("a control message of {len} bytes exceeds {CONTROL_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut bytes = vec![0; len];
    io.read_exact(&mut bytes).await?;
    Ok(bytes.into())
}

async fn write(io: &mut (impl AsyncWrite + Unpin + Send), bytes: &[u8]) -> io::Result<()> {
    let len = u16::try_from(bytes.len()).ok().filter(|_| bytes.len() <= CONTROL_MAX);
    let len = len.ok_or(io::ErrorKind::InvalidInput)?;
    io.write_all(&len.to_be_bytes()).await?;
    io.write_all(bytes).await?;
    io.close().await
}

impl Codec for ControlCodec {
    type Protocol = StreamProtocol;
    type Request = Bytes;
    type Response = Bytes;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Bytes>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Bytes>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io).await
    }

    async fn write_request<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        request: Bytes,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &request).await
    }

    async fn write_response<T>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        response: Bytes,
    ) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, &response).await
    }
}
