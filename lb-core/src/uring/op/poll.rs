//! IORING_OP_POLL_ADD, one shot. (Not for errors alone: the kernel always tells of a FIN too.)

use std::os::fd::BorrowedFd;

use io_uring::opcode;

use crate::uring::completion::Readable;
use crate::uring::ring::{Ring, fd};
use crate::uring::tag::{Op, Owner, Tag};

impl Ring {
    /// Tells once that `socket` is ready for `what`, or has failed.
    pub(crate) fn poll(&mut self, owner: Owner, socket: BorrowedFd<'_>, what: Readable) {
        let (op, events) = match what {
            Readable::In => (Op::PollIn, libc::POLLIN | libc::POLLRDHUP),
            Readable::Out => (Op::PollOut, libc::POLLOUT),
        };
        self.poll_for(socket, events, Tag::new(op, owner));
    }

    /// Tells once, as [`Completion::Readiness`](crate::uring::Completion::Readiness), that the
    /// epoll instance has events; nothing if it is asked already.
    pub(crate) fn poll_readiness(&mut self, epoll: BorrowedFd<'_>) {
        if !self.polls_readiness {
            self.polls_readiness = true;
            self.poll_for(epoll, libc::POLLIN, Tag::READINESS);
        }
    }

    fn poll_for(&mut self, file: BorrowedFd<'_>, events: libc::c_short, tag: Tag) {
        let entry = opcode::PollAdd::new(fd(file), events as u32).build();
        // SAFETY: it points at nothing.
        unsafe { self.push(entry, tag) }
    }
}
