//! Tells the kernel which of the port's sockets gets a packet.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Steers within the `SO_REUSEPORT` group of `socket`: a frame goes to socket number (flow number
/// mod `sockets`), counted in the order of binding; any other packet where the kernel's hash of
/// its addresses says.
///
/// # Errors
/// When the kernel refuses the program.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub(crate) fn steer_frames(socket: BorrowedFd<'_>, sockets: u32) -> io::Result<()> {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const MOD: u16 = (libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN_A: u16 = (libc::BPF_RET | libc::BPF_A) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // No socket has this number: the kernel falls back to its hash.
    const NO_SOCKET: u32 = u32::MAX;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // Offsets count from the UDP payload.
    let mut program = [
        step(LOAD_BYTE, 0, 0, 0),
        step(AND, 0, 0, 0xC0),
        step(JUMP_EQUAL, 0, 3, 0x80),
        step(LOAD_WORD, 0, 0, 1),
        step(MOD, 0, 0, sockets.max(1)),
        step(RETURN_A, 0, 0, 0),
        step(RETURN, 0, 0, NO_SOCKET),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("seven steps"),
        filter: program.as_mut_ptr(),
    };
    let len = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).expect("small");
    // SAFETY: the descriptor is open while it is borrowed; the option's value is a `sock_fprog`
    // of the given size, whose `filter` points to `len` instructions; both live until the call
    // returns, and the kernel copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Elsewhere the kernel's hash decides.
#[cfg(not(target_os = "linux"))]
pub(crate) fn steer_frames(_socket: BorrowedFd<'_>, _sockets: u32) -> io::Result<()> {
    Ok(())
}
