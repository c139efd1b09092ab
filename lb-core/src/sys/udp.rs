//! UDP sockets: how a listener and a flow are set up, and datagrams received and sent in batches.

use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SendFlags;
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

use super::stream;

/// Room for one datagram. UDP's length field is 16 bits and counts its own 8 bytes, so that no
/// datagram without a jumbogram option (RFC 2675) fills it: 65,507 bytes over IPv4, 65,527 over
/// IPv6.
pub(crate) const DATAGRAM_ROOM: usize = 65_536;

/// Datagrams per system call at most.
pub(crate) const BATCH: usize = 32;

/// Bytes that wait in a listener's queue in either direction. A flood's worth of a few
/// milliseconds at 10 Gbit/s; taken from the kernel only while something waits.
const LISTENER_BUFFER: libc::c_int = 4 << 20;

/// Bytes of replies that wait for one flow. The kernel counts what an skb takes, so that this is
/// about eight of the largest datagrams.
const FLOW_BUFFER: libc::c_int = 1 << 20;

/// Prepares a listener's socket: deep queues, and no path-MTU errors.
///
/// # Errors
///
/// Of setsockopt(2). A queue that the system's `net.core.rmem_max` cuts short is none.
pub(crate) fn prepare_listener(socket: BorrowedFd<'_>, address: SocketAddr) -> Result<(), Errno> {
    deepen(
        socket,
        libc::SO_RCVBUFFORCE,
        libc::SO_RCVBUF,
        LISTENER_BUFFER,
    )?;
    deepen(
        socket,
        libc::SO_SNDBUFFORCE,
        libc::SO_SNDBUF,
        LISTENER_BUFFER,
    )?;
    let_routers_fragment(socket, address)
}

/// A non-blocking socket connected to `backend`, so that ICMP errors come back to it and nobody
/// else's datagrams do.
///
/// # Errors
///
/// Of socket(2), setsockopt(2) and connect(2); `EAGAIN` from the last means that no local port is
/// left, `ENETUNREACH` or `EHOSTUNREACH` that there is no route, `ECONNREFUSED` that the backend's
/// port was free and the kernel gave it to this socket, which would talk to itself.
pub(crate) fn connect(backend: SocketAddr) -> Result<OwnedFd, Errno> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(backend), kind, None).map_err(errno)?;
    deepen(
        socket.as_fd(),
        libc::SO_RCVBUFFORCE,
        libc::SO_RCVBUF,
        FLOW_BUFFER,
    )?;
    let_routers_fragment(socket.as_fd(), backend)?;
    socket.connect(&backend.into()).map_err(errno)?;
    if stream::is_own(socket.as_fd(), backend) {
        return Err(Errno::CONNREFUSED);
    }
    Ok(socket.into())
}

/// Sends one datagram on a connected socket; an empty one too.
///
/// # Errors
///
/// Of send(2). An error may be of an earlier datagram (`ECONNREFUSED` from an ICMP message since
/// then); then this one has not been sent, and the next call may succeed.
pub(crate) fn send(socket: BorrowedFd<'_>, payload: &[u8]) -> Result<(), Errno> {
    rustix::net::send(socket, payload, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
}

/// Sends datagrams, each to its own address, in one call; at most [`BATCH`]. Returns how many
/// were taken, which is at least one.
///
/// # Errors
///
/// Of sendmmsg(2), about the first datagram.
pub(crate) fn send_to(
    socket: BorrowedFd<'_>,
    datagrams: &[(SocketAddr, &[u8])],
) -> Result<usize, Errno> {
    let count = datagrams.len().min(BATCH);
    let mut addresses = [const { MaybeUninit::<SockAddr>::uninit() }; BATCH];
    // SAFETY: all-zero is a valid value of both plain C structures.
    let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
    // SAFETY: as above.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
    for (n, (to, payload)) in datagrams[..count].iter().enumerate() {
        let address = addresses[n].write(SockAddr::from(*to));
        vectors[n].iov_base = payload.as_ptr().cast_mut().cast();
        vectors[n].iov_len = payload.len();
        let header = &mut headers[n].msg_hdr;
        header.msg_name = address.as_ptr().cast_mut().cast();
        header.msg_namelen = address.len();
        header.msg_iov = &raw mut vectors[n];
        header.msg_iovlen = 1;
    }
    // SAFETY: the first `count` headers point at addresses, vectors and payloads that are
    // initialised above and outlive the call; sendmmsg(2) only reads through them, and writes
    // `msg_len` of those headers.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    usize::try_from(sent).map_err(|_| last_error())
}

/// A received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Datagram<'a> {
    /// The sender; `None` from a connected socket.
    pub(crate) from: Option<SocketAddr>,
    /// The datagram, whole unless `truncated`.
    pub(crate) payload: &'a [u8],
    /// It was larger than [`DATAGRAM_ROOM`].
    pub(crate) truncated: bool,
}

#[derive(Clone, Copy, Debug)]
struct Received {
    from: Option<SocketAddr>,
    len: usize,
    truncated: bool,
}

/// Room for [`BATCH`] datagrams of any size: 2 MiB of addresses, of which only what datagrams
/// have touched takes memory.
#[derive(Debug)]
pub(crate) struct Batch {
    data: Vec<u8>,
    received: Vec<Received>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            data: vec![0; BATCH * DATAGRAM_ROOM],
            received: Vec::with_capacity(BATCH),
        }
    }
}

impl Batch {
    /// How many more datagrams it takes.
    pub(crate) fn room(&self) -> usize {
        BATCH - self.received.len()
    }

    /// How many datagrams it holds.
    pub(crate) fn len(&self) -> usize {
        self.received.len()
    }

    /// Forgets them all.
    pub(crate) fn clear(&mut self) {
        self.received.clear();
    }

    /// One of the datagrams held.
    ///
    /// # Panics
    ///
    /// If it holds fewer.
    pub(crate) fn datagram(&self, n: usize) -> Datagram<'_> {
        let Received {
            from,
            len,
            truncated,
        } = self.received[n];
        Datagram {
            from,
            payload: &self.data[n * DATAGRAM_ROOM..][..len],
            truncated,
        }
    }

    /// Takes up to `limit` datagrams from a socket, as far as there is room, without waiting.
    /// Returns which they are.
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
        let mut names: [SockAddrStorage; BATCH] =
            std::array::from_fn(|_| SockAddrStorage::zeroed());
        // SAFETY: all-zero is a valid value of both plain C structures.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let rooms = self.data.chunks_exact_mut(DATAGRAM_ROOM).skip(first);
        for (n, room) in rooms.take(count).enumerate() {
            vectors[n].iov_base = room.as_mut_ptr().cast();
            vectors[n].iov_len = room.len();
            let header = &mut headers[n].msg_hdr;
            header.msg_name = (&raw mut names[n]).cast();
            header.msg_namelen = names[n].size_of();
            header.msg_iov = &raw mut vectors[n];
            header.msg_iovlen = 1;
        }
        // SAFETY: the first `count` headers point at names, vectors and rooms that outlive the
        // call, of the sizes that they say; the rooms are disjoint parts of `self.data`, which is
        // borrowed mutably. No timeout is given.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| last_error())?;
        for (header, name) in headers[..got].iter().zip(names) {
            self.received.push(Received {
                from: sender(name, header.msg_hdr.msg_namelen),
                len: (header.msg_len as usize).min(DATAGRAM_ROOM),
                truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            });
        }
        Ok(first..self.len())
    }
}

fn sender(name: SockAddrStorage, len: libc::socklen_t) -> Option<SocketAddr> {
    if len == 0 || len > name.size_of() {
        return None;
    }
    // SAFETY: the kernel wrote an address of `len` bytes there, and the rest is zero.
    unsafe { SockAddr::new(name, len) }.as_socket()
}

/// Asks for a queue of `bytes`; without CAP_NET_ADMIN for as much of it as the system allows.
fn deepen(
    socket: BorrowedFd<'_>,
    force: libc::c_int,
    ask: libc::c_int,
    bytes: libc::c_int,
) -> Result<(), Errno> {
    set_int(socket, libc::SOL_SOCKET, force, bytes)
        .or_else(|_| set_int(socket, libc::SOL_SOCKET, ask, bytes))
}

/// We forward datagrams whose size is the peers' choice. With path-MTU discovery (the default,
/// ip(7)) the first one past a narrower link would be lost, and the ICMP message about it would
/// fail a later, innocent send with EMSGSIZE. Without it we or a router fragment, and the
/// datagram arrives.
fn let_routers_fragment(socket: BorrowedFd<'_>, address: SocketAddr) -> Result<(), Errno> {
    match address {
        SocketAddr::V4(_) => set_int(
            socket,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DONT,
        ),
        SocketAddr::V6(_) => set_int(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DONT,
        ),
    }
}

fn set_int(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> Result<(), Errno> {
    // SAFETY: the option value is an int that outlives the call, of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

fn last_error() -> Errno {
    errno(std::io::Error::last_os_error())
}

/// The number in an error that a system call gave.
fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn pair() -> (UdpSocket, UdpSocket) {
        let a = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let b = UdpSocket::bind("127.0.0.1:0").expect("bind");
        (a, b)
    }

    #[test]
    fn a_batch_keeps_boundaries_senders_and_sizes_from_0_to_the_largest() {
        let (a, b) = pair();
        prepare_listener(b.as_fd(), b.local_addr().expect("address")).expect("options");
        let sizes = [0, 1, 65_507, 1472, 0, 1473];
        for (n, size) in sizes.into_iter().enumerate() {
            a.send_to(&vec![n as u8; size], b.local_addr().expect("address"))
                .expect("send");
        }
        let mut batch = Batch::default();
        assert_eq!(batch.receive(b.as_fd(), 2).expect("two"), 0..2);
        assert_eq!(batch.receive(b.as_fd(), BATCH).expect("rest"), 2..6);
        for (n, size) in sizes.into_iter().enumerate() {
            let got = batch.datagram(n);
            assert_eq!(got.from, a.local_addr().ok());
            assert_eq!(got.payload, vec![n as u8; size]);
            assert!(!got.truncated);
        }
        let empty = batch.receive(b.as_fd(), BATCH).expect_err("nothing left");
        assert_eq!(empty, Errno::AGAIN);
        assert_eq!(batch.room(), BATCH - 6);
    }

    #[test]
    fn one_call_sends_to_several_and_stops_before_what_fails() {
        let (a, b) = pair();
        let c = UdpSocket::bind("127.0.0.1:0").expect("bind");
        let (to_b, to_c) = (b.local_addr().expect("b"), c.local_addr().expect("c"));
        let large = vec![0; 65_508];
        let batch: [(SocketAddr, &[u8]); 4] =
            [(to_b, b"one"), (to_c, b""), (to_b, &large), (to_b, b"two")];
        assert_eq!(send_to(a.as_fd(), &batch).expect("two go"), 2);
        let error = send_to(a.as_fd(), &batch[2..]).expect_err("too large");
        assert_eq!(error, Errno::MSGSIZE);
        assert_eq!(send_to(a.as_fd(), &batch[3..]).expect("last"), 1);
        let mut buffer = [0; 8];
        assert_eq!(b.recv(&mut buffer).expect("one"), 3);
        assert_eq!(b.recv(&mut buffer).expect("two"), 3);
        assert_eq!(c.recv(&mut buffer).expect("empty"), 0);
    }

    #[test]
    fn a_refusal_is_reported_once_by_send_or_by_receive() {
        let dead = pair().0.local_addr().expect("address");
        let socket = connect(dead).expect("connect");
        send(socket.as_fd(), b"x").expect("nobody has refused yet");
        let refused = send(socket.as_fd(), b"y").expect_err("refused");
        assert_eq!(refused, Errno::CONNREFUSED);
        send(socket.as_fd(), b"z").expect("consumed");
        let mut batch = Batch::default();
        let refused = batch.receive(socket.as_fd(), 1).expect_err("refused");
        assert_eq!(refused, Errno::CONNREFUSED);
        let empty = batch.receive(socket.as_fd(), 1).expect_err("nothing");
        assert_eq!(empty, Errno::AGAIN);
    }

    /// The kernel may give the socket the very port that it is to be connected to, when that is
    /// free on this machine: some hundred thousand tries find it.
    #[test]
    fn a_socket_that_meets_itself_is_refused() {
        let dead = pair().0.local_addr().expect("address");
        for n in 0..100_000 {
            match connect(dead) {
                Ok(socket) => assert!(!stream::is_own(socket.as_fd(), dead), "try {n}"),
                Err(errno) => return assert_eq!(errno, Errno::CONNREFUSED),
            }
        }
    }
}
