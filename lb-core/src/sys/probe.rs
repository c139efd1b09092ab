//! What this kernel lets this process do, found out by doing it once: nothing stays behind.
//!
//! Asking is the only test that holds. A version says nothing of a seccomp profile, a sysctl or a
//! distribution that patched something in or out.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, opcode, squeue};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with, sockopt};
use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};

use super::filter;
use super::rotation::Rotation;
use super::udp::set_int;

/// Every operation that the io_uring engine submits, by its name in io_uring_enter(2).
pub(crate) const OPCODES: [(&str, u8); 10] = [
    ("IORING_OP_ACCEPT", opcode::Accept::CODE),
    ("IORING_OP_RECV", opcode::Recv::CODE),
    ("IORING_OP_SEND", opcode::Send::CODE),
    ("IORING_OP_SENDMSG", opcode::SendMsg::CODE),
    ("IORING_OP_CONNECT", opcode::Connect::CODE),
    ("IORING_OP_POLL_ADD", opcode::PollAdd::CODE),
    ("IORING_OP_POLL_REMOVE", opcode::PollRemove::CODE),
    ("IORING_OP_ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("IORING_OP_CLOSE", opcode::Close::CODE),
    ("IORING_OP_SHUTDOWN", opcode::Shutdown::CODE),
];

/// What the kernel said to a ring's first steps, in their order; `None` where an earlier one was
/// refused, so that this one was not tried.
#[derive(Debug)]
pub(crate) struct Rings {
    /// io_uring_setup(2) with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1).
    pub(crate) setup: Result<(), Errno>,
    /// io_uring_enter(2): a no-op, waited for with a timeout (EXT_ARG, Linux 5.11).
    pub(crate) enter: Option<Result<(), Errno>>,
    /// io_uring_register(2): which of [`OPCODES`] there are.
    pub(crate) opcodes: Option<Result<[bool; OPCODES.len()], Errno>>,
    /// A ring of provided buffers (Linux 5.19).
    pub(crate) buffers: Option<Result<(), Errno>>,
}

/// Makes a small ring and tries on it what the engine will do.
pub(crate) fn rings() -> Rings {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    match builder.build(8) {
        Ok(mut ring) => Rings {
            setup: Ok(()),
            enter: Some(enter(&mut ring)),
            opcodes: Some(opcodes(&ring)),
            buffers: Some(buffers(&ring)),
        },
        Err(error) => Rings {
            setup: Err(errno(&error)),
            enter: None,
            opcodes: None,
            buffers: None,
        },
    }
}

fn enter(ring: &mut IoUring) -> Result<(), Errno> {
    if !ring.params().is_feature_ext_arg() {
        return Err(Errno::OPNOTSUPP);
    }
    let nothing: squeue::Entry = opcode::Nop::new().build();
    // SAFETY: a no-op refers to no memory and to no descriptor, so nothing need outlive it.
    unsafe { ring.submission().push(&nothing) }.map_err(|_| Errno::BUSY)?;
    let soon = Timespec::new().sec(1);
    let arguments = SubmitArgs::new().timespec(&soon);
    let waited = ring.submitter().submit_with_args(1, &arguments);
    waited.map_err(|error| errno(&error))?;
    match ring.completion().next() {
        Some(done) if done.result() == 0 => Ok(()),
        Some(done) => Err(Errno::from_raw_os_error(-done.result())),
        None => Err(Errno::TIME),
    }
}

fn opcodes(ring: &IoUring) -> Result<[bool; OPCODES.len()], Errno> {
    let mut known = Probe::new();
    let asked = ring.submitter().register_probe(&mut known);
    asked.map_err(|error| errno(&error))?;
    Ok(OPCODES.map(|(_, code)| known.is_supported(code)))
}

fn buffers(ring: &IoUring) -> Result<(), Errno> {
    /// A page of the largest size that Linux has; entries of 16 bytes.
    const LAYOUT: Layout = match Layout::from_size_align(65_536, 65_536) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two"),
    };
    // SAFETY: the layout has a size.
    let room = unsafe { alloc_zeroed(LAYOUT) };
    if room.is_null() {
        handle_alloc_error(LAYOUT);
    }
    let submitter = ring.submitter();
    // SAFETY: `room` is aligned to a page and holds the 8 entries of 16 bytes; it is freed below
    // only once the kernel has let go of it, which is when it never took it or unregisters it.
    let taken = unsafe { submitter.register_buf_ring_with_flags(room as u64, 8, 0, 0) };
    let gone = taken.is_err() || submitter.unregister_buf_ring(0).is_ok();
    if gone {
        // SAFETY: allocated above with this layout, and nobody refers to it any more.
        unsafe { dealloc(room, LAYOUT) };
    }
    taken.map_err(|error| errno(&error))
}

/// splice(2) from a socket into a pipe.
pub(crate) fn splices() -> Result<(), Errno> {
    let (from, peer) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let (_out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    send(&peer, b"x", SendFlags::NOSIGNAL)?;
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    match splice(&from, None, &into, None, 1, flags)? {
        1 => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// The size in bytes that a pipe has after it was asked to be of `bytes`.
///
/// # Errors
/// Of pipe2(2) alone: a pipe that stays small is none.
pub(crate) fn pipe_size(bytes: usize) -> Result<usize, Errno> {
    let (_out, into) = pipe_with(PipeFlags::CLOEXEC)?;
    // EPERM past the user's limits; what it has then is what counts.
    let _ = fcntl_setpipe_size(&into, bytes);
    fcntl_getpipe_size(&into)
}

/// One send that the kernel cuts into datagrams (UDP_SEGMENT, Linux 4.18).
pub(crate) fn cuts_datagrams() -> Result<(), Errno> {
    set_int(datagram()?.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 1_200)
}

/// Datagrams of one flow that come joined (UDP_GRO, Linux 5.0).
pub(crate) fn joins_datagrams() -> Result<(), Errno> {
    set_int(datagram()?.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// A classic BPF program that chooses among the sockets of a port (Linux 4.5).
pub(crate) fn selects_sockets() -> Result<(), Errno> {
    let socket = datagram()?;
    sockopt::set_socket_reuseport(&socket, true)?;
    filter::attach_source_selector(socket.as_fd(), false, 2, 0)
}

/// An eBPF program that gives the sockets of a port their connections by turns (Linux 5.12).
pub(crate) fn rotates_sockets() -> Result<(), Errno> {
    Rotation::new(2).map(drop)
}

fn datagram() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)
}

/// The number in an error that a system call gave.
fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_kernel_of_ours_has_is_found() {
        assert_eq!(splices(), Ok(()));
        assert_eq!(pipe_size(4_096), Ok(4_096));
        assert_eq!(cuts_datagrams(), Ok(()));
        assert_eq!(joins_datagrams(), Ok(()));
        assert_eq!(selects_sockets(), Ok(()));
    }

    #[test]
    fn what_is_tried_leaves_no_descriptor_behind() {
        let open = || std::fs::read_dir("/proc/self/fd").expect("proc").count();
        // Other tests open and close theirs meanwhile: a leak of 600 stands out.
        let before = open();
        for _ in 0..100 {
            let _ = (rings(), splices(), pipe_size(4_096));
            let _ = (cuts_datagrams(), joins_datagrams(), selects_sockets());
        }
        assert!(open() < before + 100, "{before} before, {} after", open());
    }

    #[test]
    fn after_a_refusal_nothing_more_is_tried() {
        let rings = rings();
        match rings.setup {
            Ok(()) => assert!(rings.enter.is_some() && rings.buffers.is_some()),
            Err(_) => assert!(rings.enter.is_none() && rings.opcodes.is_none()),
        }
    }
}
