//! IORING_OP_RECV, multishot, into provided buffers.

use std::os::fd::BorrowedFd;

use io_uring::{opcode, squeue};

use crate::uring::ring::{GROUP, Ring, fd};
use crate::uring::tag::{Op, Owner, Tag};

/// Bytes after which a multishot receive ends by itself, where the kernel can (Linux 6.17). What
/// has been received cannot be refused any more: without an end, up to 32 buffers come at once,
/// also for somebody who cannot pass them on.
const LIMIT: u32 = 64 << 10;

/// Where an entry has its `optlen`, which the crate does not know of a receive: the union of
/// `splice_fd_in`, `file_index` and their like (linux/io_uring.h).
const OPTLEN: usize = 44;

impl Ring {
    /// Receives whatever comes, until a completion without `more`. At most one at a time for each
    /// owner: the tags of two would be the same.
    pub(crate) fn receive(&mut self, owner: Owner, socket: BorrowedFd<'_>) {
        let mut entry = opcode::RecvMulti::new(fd(socket), GROUP).build();
        if self.limits_receives {
            limit(&mut entry);
        }
        // SAFETY: it points at nothing; the kernel writes into provided buffers, which are its own
        // until a completion names them and live as long as the ring.
        unsafe { self.push(entry, Tag::new(Op::Receive, owner)) }
    }

    /// Ends it; what came before that is still told of, and its end.
    pub(crate) fn cancel_receive(&mut self, owner: Owner) {
        self.cancel(Tag::new(Op::Receive, owner));
    }
}

fn limit(entry: &mut squeue::Entry) {
    const { assert!(size_of::<squeue::Entry>() == 64) };
    // SAFETY: an entry is the kernel's structure of 64 bytes and nothing else, any four bytes of
    // which may have any value; the place is aligned, for the structure is aligned to eight.
    unsafe {
        let bytes = std::ptr::from_mut(entry).cast::<u8>();
        bytes.add(OPTLEN).cast::<u32>().write(LIMIT);
    }
}
