//! Classic BPF on listening sockets: which worker gets a client, and closing to newcomers.

use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{
    BPF_ABS, BPF_ALU, BPF_B, BPF_IMM, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_MISC, BPF_MOD, BPF_MUL,
    BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X, BPF_XOR, SKF_NET_OFF,
};
use rustix::io::Errno;

/// 2^32 over the golden ratio: spreads the low bits into the high ones (Knuth, TAOCP 6.4).
pub(super) const SPREAD: u32 = 0x9E37_79B1;

/// One instruction that does not jump.
const fn op(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

/// A program that returns a number below `workers` that depends on the client's address alone.
fn source_selector(is_v6: bool, workers: u32, seed: u32) -> Vec<libc::sock_filter> {
    // Offsets of the source address: RFC 791 section 3.1, RFC 8200 section 3. The kernel has
    // pulled the headers by then; SKF_NET_OFF reaches back to the network header.
    let words: &[i32] = if is_v6 { &[8, 12, 16, 20] } else { &[12] };
    let mut program = vec![op(BPF_LD | BPF_IMM, seed)];
    for &offset in words {
        program.extend([
            op(BPF_MISC | BPF_TAX, 0),
            op(BPF_LD | BPF_W | BPF_ABS, (SKF_NET_OFF + offset) as u32),
            op(BPF_ALU | BPF_XOR | BPF_X, 0),
            op(BPF_ALU | BPF_MUL | BPF_K, SPREAD),
        ]);
    }
    program.extend([
        op(BPF_ALU | BPF_RSH | BPF_K, 16),
        op(BPF_ALU | BPF_MOD | BPF_K, workers),
        op(BPF_RET | libc::BPF_A, 0),
    ]);
    program
}

/// Steers each client address to one of the `workers` sockets of the SO_REUSEPORT group that
/// `listener` is in. The program belongs to the group: attaching it again replaces it.
///
/// A number past the sockets of the group (while it forms) falls back to the kernel's own choice.
///
/// # Errors
/// EINVAL for a socket that is in no group.
pub(crate) fn attach_source_selector(
    listener: BorrowedFd<'_>,
    is_v6: bool,
    workers: u32,
    seed: u32,
) -> Result<(), Errno> {
    let mut program = source_selector(is_v6, workers.max(1), seed);
    set_program(listener, libc::SO_ATTACH_REUSEPORT_CBPF, &mut program)
}

/// Takes the selector of the group away: the kernel chooses by the hash of all four numbers.
/// That there is none (another worker was first) is no error.
pub(crate) fn detach_selector(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    let zero: libc::c_int = 0;
    // SAFETY: the descriptor is open for the life of the borrow; the option value points to a
    // c_int of this frame, its length is passed along, and the kernel keeps no pointer to it.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const zero).cast(),
            size_of_val(&zero) as libc::socklen_t,
        )
    };
    match check(result) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Lets no new TCP handshake begin at `listener` while those under way may end: segments with SYN
/// are discarded, all others pass.
pub(crate) fn refuse_syn(listener: BorrowedFd<'_>) -> Result<(), Errno> {
    // The filter of a TCP socket sees the segment from its TCP header on; the flags are in byte
    // 13, SYN is bit 1 (RFC 9293 section 3.1).
    let mut program = [
        op(BPF_LD | BPF_B | BPF_ABS, 13),
        libc::sock_filter {
            code: (BPF_JMP | BPF_JSET | BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: 0x02,
        },
        op(BPF_RET | BPF_K, 0),
        op(BPF_RET | BPF_K, u32::MAX),
    ];
    set_program(listener, libc::SO_ATTACH_FILTER, &mut program)
}

/// Attaches a classic BPF program by the socket option `option`.
fn set_program(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    program: &mut [libc::sock_filter],
) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: program.len() as libc::c_ushort,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the descriptor is open for the life of the borrow. `program.filter` points to
    // `program.len` instructions that the caller's exclusive borrow keeps alive; the kernel
    // copies and checks them during the call, writes nothing and keeps no pointer.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    })
}

/// The error of a libc call that returned `result`.
fn check(result: libc::c_int) -> Result<(), Errno> {
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
