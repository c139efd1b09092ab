//! Connected TCP sockets: dial, receive, send, close, ask.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, bind, connect,
    getsockname, recv, send, shutdown, socket_with, sockopt,
};

use super::udp::set_int;

/// SIOCOUTQ of linux/sockios.h, which has TIOCOUTQ's number.
const SIOCOUTQ: rustix::ioctl::Opcode = libc::TIOCOUTQ as rustix::ioctl::Opcode;

/// A nonblocking TCP socket, not connected, with the options that accepted ones inherit from
/// their listener.
///
/// # Errors
/// EMFILE, ENFILE, ENOBUFS, ENOMEM; EAFNOSUPPORT where a family is off.
pub(crate) fn tcp_socket(family_of: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match family_of {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_oobinline(&socket, true)?;
    Ok(socket)
}

/// An idle peer is asked for a sign of life after this, or half of the peer timeout if that is
/// less: before a firewall on the way forgets the connection.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// And then as often as this, or a quarter of the peer timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Gives up a peer that acknowledges nothing for `timeout` (TCP_USER_TIMEOUT, tcp(7), RFC 5482).
/// With data on its way it is silence that counts; since Linux 5.11 a window that stays shut too,
/// though the peer answers the probes. Without, it is asked for a sign of life meanwhile
/// (keepalive, in whole seconds, at least one: an idle peer may last a second or two longer).
///
/// # Errors
/// EINVAL past 24 days; none else that a TCP socket gives.
pub(crate) fn bound_silence(socket: BorrowedFd<'_>, timeout: Duration) -> Result<(), Errno> {
    let (idle, interval) = keepalive(timeout);
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, interval)?;
    sockopt::set_socket_keepalive(socket, true)?;
    let millis = u32::try_from(timeout.as_millis()).map_err(|_| Errno::INVAL)?;
    sockopt::set_tcp_user_timeout(socket, millis)
}

/// When a silent peer is asked for the first time, and how often then.
fn keepalive(timeout: Duration) -> (Duration, Duration) {
    let whole = |time: Duration| Duration::from_secs(time.as_secs().max(1));
    (
        whole(KEEPALIVE_IDLE.min(timeout / 2)),
        whole(KEEPALIVE_INTERVAL.min(timeout / 4)),
    )
}

/// Begins to connect. `Ok(true)` if it is done at once, `Ok(false)` while it goes on: the socket
/// becomes writable then, and [`connect_again`] tells.
pub(crate) fn start_connect(socket: BorrowedFd<'_>, to: SocketAddr) -> Result<bool, Errno> {
    match connect(socket, &to) {
        Ok(()) => check_other(socket, to).map(|()| true),
        Err(Errno::INPROGRESS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// As [`start_connect`], from the first of `sources` that is on this machine and has a port left
/// towards `to`; from the kernel's own choice where there are none.
///
/// # Errors
/// As [`start_connect`] and [`bind_source`], about the last of them.
pub(crate) fn start_connect_from(
    socket: BorrowedFd<'_>,
    to: SocketAddr,
    sources: impl Iterator<Item = IpAddr>,
) -> Result<bool, Errno> {
    let mut failed = None;
    for source in sources {
        // One that found no port is as it was: bound to an address alone, it can be bound anew.
        match bind_source(socket, source).and_then(|()| start_connect(socket, to)) {
            Err(errno @ (Errno::ADDRNOTAVAIL | Errno::NODEV)) => failed = Some(errno),
            result => return result,
        }
    }
    failed.map_or_else(|| start_connect(socket, to), Err)
}

/// Binds to an address of this machine and to no port: the kernel chooses one when it knows whom
/// the socket dials, so that connections to other backends may have the same
/// (IP_BIND_ADDRESS_NO_PORT, ip(7), Linux 4.2).
///
/// # Errors
/// ENODEV: `source` is not on this machine. (bind(2) says EADDRNOTAVAIL, by which connect(2) means
/// that no port is left.)
pub(crate) fn bind_source(socket: BorrowedFd<'_>, source: IpAddr) -> Result<(), Errno> {
    set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    bind(socket, &SocketAddr::new(source, 0)).map_err(|errno| match errno {
        Errno::ADDRNOTAVAIL => Errno::NODEV,
        other => other,
    })
}

/// How a connect that goes on has ended (connect(2) on a connecting socket; unlike SO_ERROR it
/// cannot take "still going on" for success).
///
/// # Errors
/// EALREADY while it still goes on; else why it failed.
pub(crate) fn connect_again(socket: BorrowedFd<'_>, to: SocketAddr) -> Result<(), Errno> {
    match connect(socket, &to) {
        Ok(()) | Err(Errno::ISCONN) => check_other(socket, to),
        Err(Errno::INPROGRESS) => Err(Errno::ALREADY),
        Err(errno) => Err(errno),
    }
}

/// The end of a connect that is known to have succeeded: refuses a connection of a socket with
/// itself. The kernel makes one (RFC 9293 section 3.5, both
/// ends open at once) when it gives the port dialled, which is on this machine and nobody's, to
/// the dialling socket. Reset, so that no TIME-WAIT keeps the backend from its port.
pub(crate) fn check_other(socket: BorrowedFd<'_>, to: SocketAddr) -> Result<(), Errno> {
    if !is_own(socket, to) {
        return Ok(());
    }
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    Err(Errno::CONNREFUSED)
}

/// Is `address` the one that `socket` itself is bound to?
pub(super) fn is_own(socket: BorrowedFd<'_>, address: SocketAddr) -> bool {
    getsockname(socket)
        .ok()
        .and_then(|own| SocketAddr::try_from(own).ok())
        .is_some_and(|own| own.port() == address.port() && own.ip() == address.ip())
}

/// Receives what is there, up to the size of `buffer`; 0 is a FIN.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    retry_on_intr(|| recv(socket, &mut *buffer, RecvFlags::empty())).map(|(n, _)| n)
}

/// Sends as much of `bytes` as there is room for.
pub(crate) fn transmit(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    retry_on_intr(|| send(socket, bytes, SendFlags::NOSIGNAL))
}

/// Sends FIN after what was sent. That the peer has reset already is told elsewhere.
pub(crate) fn shutdown_write(socket: BorrowedFd<'_>) {
    let _ = shutdown(socket, Shutdown::Write);
}

/// Takes the pending error (SO_ERROR), if there is one.
pub(crate) fn take_error(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    sockopt::socket_error(socket)?
}

/// Bytes that wait to be received (SIOCINQ).
pub(crate) fn unread(socket: BorrowedFd<'_>) -> u64 {
    rustix::io::ioctl_fionread(socket.as_fd()).unwrap_or(0)
}

/// Bytes sent that the peer has not acknowledged, a FIN counting as one (SIOCOUTQ, tcp(7)).
pub(crate) fn unacknowledged(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    // SAFETY: SIOCOUTQ writes one int through its argument and does nothing else; the getter
    // hands it the place of one c_int and reads that back only when the call succeeded.
    unsafe {
        let getter = rustix::ioctl::Getter::<SIOCOUTQ, libc::c_int>::new();
        rustix::ioctl::ioctl(socket, getter)
    }
    .map(|n| u32::try_from(n).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::sys::socket::{accept, listen_tcp};

    /// What no stream can show here: that a peer which vanishes is given up, and on both sides.
    #[test]
    fn accepted_and_dialled_sockets_have_the_same_options() {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let timeout = Duration::from_secs(900);
        let listener = listen_tcp(any, timeout).expect("a listener");
        let to = getsockname(&listener).expect("bound");
        let to = SocketAddr::try_from(to).expect("an address");
        let dialled = tcp_socket(to).expect("a socket");
        bound_silence(dialled.as_fd(), timeout).expect("options");
        let _ = start_connect(dialled.as_fd(), to);
        let (accepted, _) = accept(listener.as_fd()).expect("it calls");
        for socket in [&dialled, &accepted] {
            assert_eq!(sockopt::tcp_user_timeout(socket), Ok(900_000));
            assert_eq!(sockopt::tcp_keepidle(socket), Ok(KEEPALIVE_IDLE));
            assert_eq!(sockopt::tcp_keepintvl(socket), Ok(KEEPALIVE_INTERVAL));
            assert_eq!(sockopt::socket_keepalive(socket), Ok(true));
            assert_eq!(sockopt::tcp_nodelay(socket), Ok(true));
            assert_eq!(sockopt::socket_oobinline(socket), Ok(true));
        }
    }

    #[test]
    fn a_source_that_is_not_here_is_passed_over_and_told_from_a_want_of_ports() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = listener.local_addr().expect("bound");
        let (absent, here) = ([192, 0, 2, 1].into(), [127, 0, 0, 9].into());
        let dial = |sources: &[IpAddr]| {
            let socket = tcp_socket(to).expect("a socket");
            start_connect_from(socket.as_fd(), to, sources.iter().copied())?;
            let (_, from) = listener.accept().expect("it calls");
            Ok(from.ip())
        };
        assert_eq!(dial(&[absent]), Err(Errno::NODEV));
        assert_eq!(dial(&[absent, here]), Ok(here));
        assert_eq!(dial(&[]), Ok(to.ip()));
    }

    #[test]
    fn a_silent_peer_is_asked_before_it_is_given_up() {
        let seconds = |(idle, interval): (Duration, Duration)| (idle.as_secs(), interval.as_secs());
        for (timeout, expected) in [(900, (60, 15)), (60, (30, 15)), (20, (10, 5)), (2, (1, 1))] {
            assert_eq!(seconds(keepalive(Duration::from_secs(timeout))), expected);
        }
    }

    /// A socket that dials a free port of its own machine may be given that very port and meet
    /// itself: the kernel goes through its ports, so that some ten thousand tries find it.
    #[test]
    fn a_dial_that_meets_itself_is_refused() {
        let dead = (20_000u16..)
            .map(|n| SocketAddr::from((Ipv4Addr::LOCALHOST, 2 * n)))
            .find(|&to| std::net::TcpListener::bind(to).is_ok())
            .expect("a free port");
        for n in 0..30_000 {
            let socket = tcp_socket(dead).expect("a socket");
            let result = match start_connect(socket.as_fd(), dead) {
                Ok(false) => connect_again(socket.as_fd(), dead),
                result => result.map(drop),
            };
            assert_eq!(result, Err(Errno::CONNREFUSED), "try {n}");
        }
        std::net::TcpListener::bind(dead).expect("the port is free still");
    }
}
