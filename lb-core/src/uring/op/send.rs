//! IORING_OP_SEND and IORING_OP_SENDMSG.

use std::os::fd::BorrowedFd;

use io_uring::opcode;

use crate::uring::flights::{Lent, Payload};
use crate::uring::ring::{Ring, fd};
use crate::uring::tag::{Op, Owner, Tag};

impl Ring {
    /// Sends `payload` on `socket` for `owner`: of a chain, which must not have more than
    /// [`MAX_PIECES`](crate::uring::MAX_PIECES) pieces, as much as finds room now; of a backlog as
    /// much as finds room once there is any. One at a time for each socket, or their order is lost.
    pub(crate) fn send(&mut self, owner: Owner, socket: BorrowedFd<'_>, payload: Payload) {
        let flags = match payload {
            // Provided buffers are everybody's: they do not wait for a slow receiver.
            Payload::Chain(_) => libc::MSG_DONTWAIT,
            Payload::Backlog(_) => 0,
        } | libc::MSG_NOSIGNAL;
        let (key, lent) = self.flights.send(owner, payload, &self.buffers);
        let entry = match lent {
            Lent::Bytes(at, len) => opcode::Send::new(fd(socket), at, len).flags(flags).build(),
            Lent::Message(header) => opcode::SendMsg::new(fd(socket), header)
                .flags(flags as u32)
                .build(),
        };
        // SAFETY: the bytes, or the header, its vector and the bytes that it names, are kept by the
        // in-flight slab, unchanged and in their place, until this operation's only completion:
        // a backlog and a message are boxed, and the buffers of a chain are not given back.
        unsafe { self.push(entry, Tag::keyed(Op::Flight, key)) }
    }
}
