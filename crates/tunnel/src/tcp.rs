//! What a TCP socket needs beyond reading and writing.

use std::net::Shutdown;

use socket2::SockRef;
use tokio::net::TcpStream;

/// Sends FIN: nothing more will be written.
pub(crate) fn finish(tcp: &TcpStream) {
    // A socket that is gone already needs no FIN.
    let _ = SockRef::from(tcp).shutdown(Shutdown::Write);
}

/// Closes with a RST, so that the other end learns that the connection broke.
pub(crate) fn reset(tcp: TcpStream) {
    let _ = tcp.set_zero_linger();
    drop(tcp);
}
