//! IORING_OP_RECV, multishot, into provided buffers.

use std::os::fd::BorrowedFd;

use io_uring::opcode;

use crate::uring::ring::{GROUP, Ring, fd};
use crate::uring::tag::{Op, Owner, Tag};

impl Ring {
    /// Receives whatever comes, until a completion without `more`. At most one at a time for each
    /// owner: the tags of two would be the same.
    pub(crate) fn receive(&mut self, owner: Owner, socket: BorrowedFd<'_>) {
        let entry = opcode::RecvMulti::new(fd(socket), GROUP).build();
        // SAFETY: it points at nothing; the kernel writes into provided buffers, which are its own
        // until a completion names them and live as long as the ring.
        unsafe { self.push(entry, Tag::new(Op::Receive, owner)) }
    }

    /// Ends it; what came before that is still told of, and its end.
    pub(crate) fn cancel_receive(&mut self, owner: Owner) {
        self.cancel(Tag::new(Op::Receive, owner));
    }
}
