//! Listening sockets, accept, reset.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::udp;
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use socket2::{Domain, SockRef, Socket, Type};

use super::stream;

/// Connections that may wait for accept, capped by net.core.somaxconn (4,096 since Linux 5.4).
const BACKLOG: i32 = 65_535;

/// The call that failed while a listening socket was made, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenError {
    pub(crate) step: &'static str,
    pub(crate) errno: Errno,
}

/// Names the call that failed.
fn step(step: &'static str) -> impl Fn(io::Error) -> ListenError {
    move |error| ListenError {
        step,
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    }
}

/// A nonblocking TCP socket that listens at `address` beside those of the other workers.
///
/// What accepted sockets inherit is set here once: TCP_NODELAY (a proxy must not add Nagle's
/// delay), SO_OOBINLINE (the urgent byte stays in its place), keepalive and the user timeout (a
/// peer that vanished is given up after `peer_timeout`).
pub(crate) fn listen_tcp(
    address: SocketAddr,
    peer_timeout: Duration,
) -> Result<OwnedFd, ListenError> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        None,
    )
    .map_err(step("socket"))?;
    // So that connections of an earlier process in TIME_WAIT do not keep us from the port.
    socket
        .set_reuse_address(true)
        .map_err(step("SO_REUSEADDR"))?;
    socket.set_tcp_nodelay(true).map_err(step("TCP_NODELAY"))?;
    socket
        .set_out_of_band_inline(true)
        .map_err(step("SO_OOBINLINE"))?;
    stream::bound_silence(socket.as_fd(), peer_timeout).map_err(|errno| ListenError {
        step: "TCP_USER_TIMEOUT",
        errno,
    })?;
    bind_shared(&socket, address)?;
    socket.listen(BACKLOG).map_err(step("listen"))?;
    Ok(socket.into())
}

/// A nonblocking UDP socket bound to `address` beside those of the other workers.
pub(crate) fn listen_udp(address: SocketAddr) -> Result<OwnedFd, ListenError> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM.nonblocking(),
        None,
    )
    .map_err(step("socket"))?;
    udp::prepare_listener(socket.as_fd(), address).map_err(|errno| ListenError {
        step: "setsockopt",
        errno,
    })?;
    bind_shared(&socket, address)?;
    Ok(socket.into())
}

/// Finds that nobody listens for TCP at `address`, sharing the port or not.
///
/// # Errors
/// EADDRINUSE if somebody does; whatever else keeps this process from binding there.
pub(crate) fn find_tcp_free(address: SocketAddr) -> Result<(), ListenError> {
    let kind = Type::STREAM.cloexec();
    let probe = Socket::new(Domain::for_address(address), kind, None).map_err(step("socket"))?;
    // Connections that outlived their listener, or are in TIME_WAIT, are no listener.
    probe
        .set_reuse_address(true)
        .map_err(step("SO_REUSEADDR"))?;
    bind(&probe, address)
}

/// As [`find_tcp_free`], for UDP.
pub(crate) fn find_udp_free(address: SocketAddr) -> Result<(), ListenError> {
    let kind = Type::DGRAM.cloexec();
    let probe = Socket::new(Domain::for_address(address), kind, None).map_err(step("socket"))?;
    bind(&probe, address)
}

/// Lets other sockets of this user bind to the same address, then binds.
fn bind_shared(socket: &Socket, address: SocketAddr) -> Result<(), ListenError> {
    socket.set_reuse_port(true).map_err(step("SO_REUSEPORT"))?;
    bind(socket, address)
}

/// Binds to an address that need not be on the machine yet.
fn bind(socket: &Socket, address: SocketAddr) -> Result<(), ListenError> {
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true).map_err(step("IP_FREEBIND"))?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true).map_err(step("IPV6_V6ONLY"))?;
            socket
                .set_freebind_v6(true)
                .map_err(step("IPV6_FREEBIND"))?;
        }
    }
    socket.bind(&address.into()).map_err(step("bind"))
}

/// The next connection that waits at `listener`, nonblocking, and who called.
///
/// # Errors
/// EAGAIN when none waits; ECONNABORTED and other transient ones of accept(2); EMFILE, ENFILE.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<(OwnedFd, SocketAddr), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (socket, client) = acceptfrom_with(listener, flags)?;
    let client = client.and_then(|client: SocketAddrAny| SocketAddr::try_from(client).ok());
    // A peer that reset before we came may leave no address.
    client
        .map(|client| (socket, client))
        .ok_or(Errno::CONNABORTED)
}

/// Closes a TCP connection with RST.
pub(crate) fn reset(socket: OwnedFd) {
    linger_none(socket.as_fd());
}

/// Has the close of a TCP connection send RST (SO_LINGER of zero).
pub(crate) fn linger_none(socket: BorrowedFd<'_>) {
    let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
}

/// A descriptor that does nothing but hold its place.
pub(crate) fn placeholder() -> Result<OwnedFd, Errno> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
}

/// Is there a caller, or a datagram, at `listener`?
pub(crate) fn is_readable(listener: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}
