//! Receiving many datagrams in one call.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::{mem, ptr};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::address::{Address, CONTROL, Control};
use super::last_error;

/// Room for one receive. UDP's length field is 16 bits and counts its own 8 bytes, so that no
/// datagram without a jumbogram option (RFC 2675) fills it: 65,507 bytes over IPv4, 65,527 over
/// IPv6. What UDP_GRO joins is one IP packet's worth, too.
pub(crate) const DATAGRAM_ROOM: usize = 65_536;

/// Receives per system call at most.
pub(crate) const BATCH: usize = 64;

/// From one room to the next. Not a power of two: then the beginnings of all rooms, which is what
/// small datagrams use of them, would fall into one set of the processor's caches.
const STRIDE: usize = DATAGRAM_ROOM + 1_600;

/// What one receive gave: a datagram, or several in a row that UDP_GRO has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    /// The sender; `None` from a connected socket.
    pub(crate) from: Option<SocketAddr>,
    /// The bytes, whole unless `truncated`.
    pub(crate) payload: &'a [u8],
    /// The size of each datagram in `payload` but the last, which may be shorter; 0: it is one.
    pub(crate) segment: usize,
    /// It was larger than [`DATAGRAM_ROOM`].
    pub(crate) truncated: bool,
}

#[derive(Clone, Copy, Debug)]
struct Received {
    from: Option<SocketAddr>,
    len: usize,
    segment: usize,
    truncated: bool,
}

/// Room for [`BATCH`] receives of any size: 4 MiB of addresses, of which only what datagrams have
/// touched takes memory.
pub(crate) struct Batch {
    data: Vec<u8>,
    names: Vec<Address>,
    controls: Vec<Control>,
    // Read through `headers` alone.
    _vectors: Vec<libc::iovec>,
    /// Header `n` points at vector, name and control `n`, and that at room `n`. What a receive
    /// changes in them is put back after it, so that a call prepares nothing. The vectors above
    /// keep their length, hence their place in memory, for as long as we live.
    headers: Vec<libc::mmsghdr>,
    received: Vec<Received>,
}

impl Batch {
    /// Of a socket without a peer: every datagram has its sender's name.
    pub(crate) fn with_senders() -> Batch {
        Batch::new(true)
    }

    /// Of connected sockets.
    pub(crate) fn without_senders() -> Batch {
        Batch::new(false)
    }

    fn new(senders: bool) -> Batch {
        let mut data = vec![0; BATCH * STRIDE];
        let mut names = vec![Address::default(); BATCH];
        let mut controls = vec![Control::default(); BATCH];
        let base = data.as_mut_ptr();
        let mut vectors = Vec::from_iter((0..BATCH).map(|n| libc::iovec {
            iov_base: base.wrapping_add(n * STRIDE).cast(),
            iov_len: DATAGRAM_ROOM,
        }));
        let (name, control) = (names.as_mut_ptr(), controls.as_mut_ptr());
        let vector = vectors.as_mut_ptr();
        let headers = Vec::from_iter((0..BATCH).map(|n| {
            // SAFETY: all-zero is a valid value of this plain C structure.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            if senders {
                header.msg_hdr.msg_name = name.wrapping_add(n).cast();
                header.msg_hdr.msg_namelen = size_of::<Address>() as libc::socklen_t;
            }
            header.msg_hdr.msg_iov = vector.wrapping_add(n);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.wrapping_add(n).cast();
            header.msg_hdr.msg_controllen = CONTROL as _;
            header
        }));
        Batch {
            data,
            names,
            controls,
            _vectors: vectors,
            headers,
            received: Vec::with_capacity(BATCH),
        }
    }

    /// How many more receives it takes.
    pub(crate) fn room(&self) -> usize {
        BATCH - self.received.len()
    }

    /// How many receives it holds.
    pub(crate) fn len(&self) -> usize {
        self.received.len()
    }

    /// Forgets them all.
    pub(crate) fn clear(&mut self) {
        self.received.clear();
    }

    /// One of those held.
    ///
    /// # Panics
    ///
    /// If it holds fewer.
    pub(crate) fn datagram(&self, n: usize) -> Datagram<'_> {
        let Received {
            from,
            len,
            segment,
            truncated,
        } = self.received[n];
        Datagram {
            from,
            payload: &self.data[n * STRIDE..][..len],
            segment,
            truncated,
        }
    }

    /// Receives up to `limit` times from a socket, as far as there is room, without waiting.
    /// Returns which they are; fewer than asked for means that the socket was found empty.
    ///
    /// # Errors
    ///
    /// Of recvmmsg(2): `EAGAIN` when there are none; `ECONNREFUSED` and its like from an ICMP
    /// message about an earlier datagram sent on this socket, which is thereby consumed.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        limit: usize,
    ) -> Result<Range<usize>, Errno> {
        let first = self.len();
        let count = limit.min(self.room());
        if count == 0 {
            return Ok(first..first);
        }
        // SAFETY: the `count` headers from `first` on exist. Each points at a name (or none), a
        // vector, a control buffer and by way of the vector at a room, of the sizes that they say
        // and that no other header points at, in vectors that have not moved since `new`: their
        // lengths never change. We are borrowed mutably, so that nobody looks at any of it. The
        // call keeps nothing of it. No timeout is given.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr().add(first),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| last_error())?;
        for n in first..first + got {
            self.take(n);
        }
        Ok(first..first + got)
    }

    /// Receives once from a connected socket of which [`join_received`] was not asked: the quickest
    /// way for a single datagram.
    ///
    /// # Errors
    ///
    /// As [`Batch::receive`]; `ENOBUFS` without room.
    ///
    /// [`join_received`]: super::join_received
    pub(crate) fn receive_one(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let n = self.len();
        let room = self.data.get_mut(n * STRIDE..).ok_or(Errno::NOBUFS)?;
        let room = room.get_mut(..DATAGRAM_ROOM).ok_or(Errno::NOBUFS)?;
        // TRUNC: the length that the datagram has, whatever of it there was room for.
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (_, len) = rustix::net::recv(socket, room, flags)?;
        self.received.push(Received {
            from: None,
            len: len.min(DATAGRAM_ROOM),
            segment: 0,
            truncated: len > DATAGRAM_ROOM,
        });
        Ok(())
    }

    /// Receives once from a connected socket, maybe several datagrams in a row.
    ///
    /// # Errors
    ///
    /// As [`Batch::receive_one`].
    pub(crate) fn receive_joined(&mut self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        let n = self.len();
        let header = self.headers.get_mut(n).ok_or(Errno::NOBUFS)?;
        // SAFETY: as in `receive`, for this one header.
        let len = unsafe {
            libc::recvmsg(
                socket.as_raw_fd(),
                &raw mut header.msg_hdr,
                libc::MSG_DONTWAIT,
            )
        };
        let len = usize::try_from(len).map_err(|_| last_error())?;
        header.msg_len = len as libc::c_uint;
        self.take(n);
        Ok(())
    }

    /// Notes what the kernel has put into header `n`, and makes that ready for the next time.
    fn take(&mut self, n: usize) {
        let mmsghdr = &mut self.headers[n];
        let header = &mut mmsghdr.msg_hdr;
        self.received.push(Received {
            from: match header.msg_namelen {
                0 => None,
                _ => self.names[n].socket_addr(),
            },
            len: (mmsghdr.msg_len as usize).min(DATAGRAM_ROOM),
            segment: match header.msg_controllen {
                0 => 0,
                _ => self.controls[n].gro_segment(),
            },
            truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        });
        if header.msg_namelen != 0 {
            header.msg_namelen = size_of::<Address>() as libc::socklen_t;
            self.names[n] = Address::default();
        }
        if header.msg_controllen != 0 {
            self.controls[n] = Control::default();
        }
        header.msg_controllen = CONTROL as _;
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.received).finish()
    }
}
