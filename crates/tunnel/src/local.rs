//! The end of a connection that faces a program: TCP, or a simulator's program.

use std::future::Future;
use std::io::{self, IoSlice};

use bytes::BytesMut;
use tokio::net::TcpStream;

use crate::tcp;

/// A byte stream each way between a program and a pump, as a non-blocking TCP socket is.
pub trait Local: Send + Sync {
    /// Reads what there is into the room of `buffer`; 0: the program sends nothing more.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing now; anything else: the program reset the connection.
    fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize>;

    /// Waits until it may be worth reading again.
    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Hands `slices` to the program; how many bytes it took.
    ///
    /// # Errors
    /// `WouldBlock` when it takes none now; anything else: the program reset the connection.
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Waits until it may be worth writing again.
    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Nothing more will be written.
    fn finish(&self);

    /// The connection broke.
    fn reset(self);
}

impl Local for TcpStream {
    fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.try_read_buf(buffer)
    }

    fn readable(&self) -> impl Future<Output = io::Result<()>> + Send {
        Self::readable(self)
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write_vectored(slices)
    }

    fn writable(&self) -> impl Future<Output = io::Result<()>> + Send {
        Self::writable(self)
    }

    fn finish(&self) {
        tcp::finish(self);
    }

    fn reset(self) {
        tcp::reset(self);
    }
}
