//! IORING_OP_ASYNC_CANCEL. What is cancelled completes by itself; the cancel's own completion
//! comes only if there was nothing to cancel, and means nothing then.

use std::os::fd::BorrowedFd;

use io_uring::types::CancelBuilder;
use io_uring::{opcode, squeue};

use crate::uring::ring::{Ring, fd};
use crate::uring::tag::Tag;

impl Ring {
    /// Ends the operation of this tag.
    pub(super) fn cancel(&mut self, tag: Tag) {
        let entry = opcode::AsyncCancel::new(tag.bits())
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.counts.cancels += 1;
        // SAFETY: it points at nothing.
        unsafe { self.push(entry, Tag::NOBODY) }
    }

    /// Ends every operation on `socket`.
    pub(crate) fn cancel_all(&mut self, socket: BorrowedFd<'_>) {
        let on_it = CancelBuilder::fd(fd(socket)).all();
        let entry = opcode::AsyncCancel2::new(on_it)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.counts.cancels += 1;
        // SAFETY: it points at nothing.
        unsafe { self.push(entry, Tag::NOBODY) }
    }
}
