//! IORING_OP_ACCEPT, multishot.

use std::os::fd::BorrowedFd;

use io_uring::opcode;

use crate::slab::Key;
use crate::uring::ring::{Ring, fd};
use crate::uring::tag::{Op, Tag};

impl Ring {
    /// Accepts whoever calls at `socket`, until a completion without `more`. What is accepted is
    /// nonblocking.
    pub(crate) fn accept(&mut self, listener: Key, socket: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(fd(socket))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build();
        // SAFETY: it points at nothing (no address is asked for).
        unsafe { self.push(entry, Tag::keyed(Op::Accept, listener)) }
    }

    /// Ends the accept of `listener`; who was accepted before that is still told of.
    pub(crate) fn cancel_accept(&mut self, listener: Key) {
        self.cancel(Tag::keyed(Op::Accept, listener));
    }
}
