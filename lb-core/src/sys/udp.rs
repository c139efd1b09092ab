//! UDP sockets: how a listener and a flow are set up, and datagrams received and sent in batches.

mod address;
mod batch;
mod sheet;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::stream;

pub(crate) use batch::{BATCH, Batch};
pub(crate) use sheet::{Draft, Sheet, is_unsegmentable, send, send_run};

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
    join_received(socket);
    let_routers_fragment(socket, address)
}

/// A non-blocking socket connected to `backend`, so that ICMP errors come back to it and nobody
/// else's datagrams do; bound to the first of `sources` that is of its family and has a port left,
/// or to none where there are none.
///
/// # Errors
///
/// Of socket(2), setsockopt(2), bind(2) and connect(2); `EAGAIN` means that no local port is left,
/// `ENODEV` that no source is on this machine, `ENETUNREACH` or `EHOSTUNREACH` that there is no route, `ECONNREFUSED` that the backend's
/// port was free and the kernel gave it to this socket, which would talk to itself.
pub(crate) fn connect(
    backend: SocketAddr,
    sources: impl Iterator<Item = IpAddr>,
) -> Result<OwnedFd, Errno> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(backend), kind, None).map_err(errno)?;
    deepen(
        socket.as_fd(),
        libc::SO_RCVBUFFORCE,
        libc::SO_RCVBUF,
        FLOW_BUFFER,
    )?;
    let_routers_fragment(socket.as_fd(), backend)?;
    bind_one_of(&socket, sources)?;
    socket.connect(&backend.into()).map_err(errno)?;
    if stream::is_own(socket.as_fd(), backend) {
        return Err(Errno::CONNREFUSED);
    }
    Ok(socket.into())
}

/// Unlike TCP's, these ports are given by bind(2) already, one socket each.
fn bind_one_of(socket: &Socket, sources: impl Iterator<Item = IpAddr>) -> Result<(), Errno> {
    let mut result = Ok(());
    for source in sources {
        let bound = socket.bind(&SocketAddr::new(source, 0).into());
        result = bound.map_err(|error| match errno(error) {
            Errno::ADDRINUSE => Errno::AGAIN,
            Errno::ADDRNOTAVAIL => Errno::NODEV,
            other => other,
        });
        if result.is_ok() {
            break;
        }
    }
    result
}

/// Lets receives of this socket give several datagrams in a row at once ([`batch::Datagram::segment`]),
/// where the network, or a sender on this machine, has left them joined. Kernels that cannot
/// (before Linux 5.0) take them apart, as they did before.
pub(crate) fn join_received(socket: BorrowedFd<'_>) {
    let _ = set_int(socket, libc::SOL_UDP, libc::UDP_GRO, 1);
}

/// Does this kernel know UDP_SEGMENT (Linux 4.18)? An older one would ignore the control message
/// and send what should be many datagrams as one.
pub(crate) fn can_segment() -> bool {
    let Ok(socket) = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None) else {
        return false;
    };
    // Zero: no segments but those that a send asks for itself.
    set_int(socket.as_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
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

/// Sets an option whose value is an int.
pub(super) fn set_int(
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

/// Turns UDP's checksum off, and with it what the kernel builds on it.
#[cfg(test)]
pub(crate) fn without_checksums(socket: BorrowedFd<'_>) {
    set_int(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).expect("a socket's own choice");
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
    use std::iter;
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
        let mut batch = Batch::with_senders();
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
        let mut sheet = Sheet::default();
        let mut draft = sheet.start();
        for (to, payload) in batch {
            draft.add(to, &[payload], None);
        }
        assert_eq!(draft.send(a.as_fd(), 0).expect("two go"), 2);
        let error = draft.send(a.as_fd(), 2).expect_err("too large");
        assert_eq!(error, Errno::MSGSIZE);
        assert_eq!(draft.send(a.as_fd(), 3).expect("last"), 1);
        let mut buffer = [0; 8];
        assert_eq!(b.recv(&mut buffer).expect("one"), 3);
        assert_eq!(b.recv(&mut buffer).expect("two"), 3);
        assert_eq!(c.recv(&mut buffer).expect("empty"), 0);
    }

    #[test]
    fn a_refusal_is_reported_once_by_send_or_by_receive() {
        let dead = pair().0.local_addr().expect("address");
        let socket = connect(dead, iter::empty()).expect("connect");
        send(socket.as_fd(), b"x").expect("nobody has refused yet");
        let refused = send(socket.as_fd(), b"y").expect_err("refused");
        assert_eq!(refused, Errno::CONNREFUSED);
        send(socket.as_fd(), b"z").expect("consumed");
        let mut batch = Batch::without_senders();
        let refused = batch.receive(socket.as_fd(), 1).expect_err("refused");
        assert_eq!(refused, Errno::CONNREFUSED);
        let empty = batch.receive(socket.as_fd(), 1).expect_err("nothing");
        assert_eq!(empty, Errno::AGAIN);
    }

    #[test]
    fn a_run_arrives_joined_where_that_was_asked_for_and_as_single_datagrams_elsewhere() {
        let data: Vec<u8> = (0..=255).cycle().take(64 * 1_000 + 500).collect();
        for (bytes, segment, slices) in [
            (2500, 1000, 3),
            (64_000, 1000, 64),
            (64, 1, 1),
            (500, 500, 1),
        ] {
            let (joins, apart) = pair();
            join_received(joins.as_fd());
            for receiver in [&joins, &apart] {
                let sender = connect(receiver.local_addr().expect("address"), iter::empty())
                    .expect("connect");
                let data = &data[..bytes];
                let slices: Vec<&[u8]> = data.chunks(bytes.div_ceil(slices)).collect();
                send_run(sender.as_fd(), &slices, segment).expect("sent");
            }
            let mut batch = Batch::with_senders();
            assert_eq!(batch.receive(joins.as_fd(), BATCH), Ok(0..1));
            let got = batch.datagram(0);
            assert!(got.payload == &data[..bytes] && got.from.is_some());
            assert_eq!(got.segment, if bytes > segment { segment } else { 0 });
            batch.clear();
            let count = bytes.div_ceil(segment);
            assert_eq!(batch.receive(apart.as_fd(), BATCH), Ok(0..count));
            for (n, expected) in data[..bytes].chunks(segment).enumerate() {
                let got = batch.datagram(n);
                assert!(got.payload == expected && got.segment == 0);
            }
        }
    }

    #[test]
    fn every_way_to_receive_gives_the_same() {
        let (a, b) = pair();
        join_received(b.as_fd());
        let (to_a, to_b) = (a.local_addr().expect("a"), b.local_addr().expect("b"));
        a.connect(to_b).expect("connect");
        b.connect(to_a).expect("connect");
        let mut batch = Batch::without_senders();
        for size in [0, 1, 1472, 65_507] {
            a.send(&vec![7; size]).expect("send");
            b.send(&vec![7; size]).expect("send");
            batch.receive_joined(b.as_fd()).expect("one");
            batch.receive_one(a.as_fd()).expect("one");
            for n in batch.len() - 2..batch.len() {
                let got = batch.datagram(n);
                assert!(got.payload == vec![7; size] && !got.truncated);
                assert_eq!((got.from, got.segment), (None, 0));
            }
        }
        send_run(a.as_fd(), &[&[1; 10], &[2; 5]], 10).expect("two");
        batch.receive_joined(b.as_fd()).expect("both at once");
        assert_eq!(batch.datagram(8).segment, 10);
        assert_eq!(batch.datagram(8).payload.len(), 15);
        for empty in [
            batch.receive_joined(b.as_fd()),
            batch.receive_one(a.as_fd()),
        ] {
            assert_eq!(empty, Err(Errno::AGAIN));
        }
        while batch.room() > 0 {
            a.send(b"x").expect("send");
            batch.receive_joined(b.as_fd()).expect("one");
        }
        a.send(b"x").expect("send");
        let full = Err(Errno::NOBUFS);
        assert_eq!(batch.receive_joined(b.as_fd()), full);
        assert_eq!(batch.receive_one(b.as_fd()), full);
        batch.clear();
        batch.receive_joined(b.as_fd()).expect("it waited");
    }

    #[test]
    fn what_cannot_be_segmented_is_refused_whole() {
        let (a, b) = pair();
        let sender = connect(b.local_addr().expect("address"), iter::empty()).expect("connect");
        without_checksums(sender.as_fd());
        let error = send_run(sender.as_fd(), &[&[1; 30]], 10).expect_err("no checksums");
        assert!(is_unsegmentable(error), "{error}");
        assert!(!is_unsegmentable(Errno::CONNREFUSED) && !is_unsegmentable(Errno::AGAIN));
        let mut sheet = Sheet::default();
        let mut draft = sheet.start();
        without_checksums(a.as_fd());
        draft.add(b.local_addr().expect("address"), &[&[1; 30]], Some(10));
        let error = draft.send(a.as_fd(), 0).expect_err("no checksums");
        assert!(is_unsegmentable(error), "{error}");
        b.set_nonblocking(true).expect("nonblocking");
        assert!(b.recv(&mut [0; 100]).is_err(), "nothing was sent");
        assert!(can_segment());
    }

    /// The kernel may give the socket the very port that it is to be connected to, when that is
    /// free on this machine: some hundred thousand tries find it.
    #[test]
    fn a_socket_that_meets_itself_is_refused() {
        let dead = pair().0.local_addr().expect("address");
        for n in 0..100_000 {
            match connect(dead, iter::empty()) {
                Ok(socket) => assert!(!stream::is_own(socket.as_fd(), dead), "try {n}"),
                Err(errno) => return assert_eq!(errno, Errno::CONNREFUSED),
            }
        }
    }
}
