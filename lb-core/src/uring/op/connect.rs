//! IORING_OP_CONNECT.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use io_uring::opcode;

use crate::slab::Key;
use crate::uring::ring::{Ring, fd};
use crate::uring::tag::{Op, Owner, Tag};

impl Ring {
    /// Connects `socket`; the key tells this try's completion from another's.
    pub(crate) fn connect(&mut self, owner: Owner, socket: BorrowedFd<'_>, to: SocketAddr) -> Key {
        let (key, address, len) = self.flights.connect(owner, to);
        let entry = opcode::Connect::new(fd(socket), address, len).build();
        // SAFETY: `address` points at `len` bytes that the in-flight slab keeps, unchanged and in
        // their place, until this operation's only completion.
        unsafe { self.push(entry, Tag::keyed(Op::Flight, key)) }
        key
    }
}
