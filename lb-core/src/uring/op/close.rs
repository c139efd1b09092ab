//! IORING_OP_CLOSE.

use std::os::fd::{IntoRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};

use crate::uring::ring::Ring;
use crate::uring::tag::Tag;

impl Ring {
    /// Closes `socket` after everything that was submitted on it before: the one way to close a
    /// socket that an entry may name which the kernel has not seen yet.
    pub(crate) fn close(&mut self, socket: OwnedFd) {
        let entry = opcode::Close::new(types::Fd(socket.into_raw_fd()))
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: it points at nothing. The descriptor is open, ours, and from here on the
        // kernel's to close: `into_raw_fd` gave up the right to.
        unsafe { self.push(entry, Tag::NOBODY) }
    }
}
