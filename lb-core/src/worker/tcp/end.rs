//! One socket of a connection, as edge-triggered epoll shows it: what it is ready for, which
//! operations of the machine are held back until it is, and the bytes that wait for room.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::conn::{Cause, Event, Operation, Side};
use crate::sys::epoll::Readiness;
use crate::sys::stream;

/// The most that one receive takes, and so the most that ever waits for a slow receiver: per
/// direction, in our memory, beside the kernel's own buffers.
pub(super) const RECEIVE_SIZE: usize = 64 << 10;

/// What was received and not yet sent: exactly as large as it has to be, there only while it waits.
#[derive(Debug)]
struct Backlog {
    bytes: Box<[u8]>,
    sent: usize,
}

/// One socket and what is known about it.
#[derive(Debug)]
pub(super) struct End {
    side: Side,
    socket: Option<OwnedFd>,
    readable: bool,
    writable: bool,
    /// The kernel reported an error that nobody has taken yet.
    error: bool,
    /// A FIN, an error or urgent data was announced: a short receive does not mean that there is
    /// no more. (Linux ends a receive at the urgent mark, also in line; tcp(7).)
    beyond: bool,
    /// A receive is outstanding.
    pub(super) receiving: bool,
    /// A send of what waits for this socket is outstanding.
    pub(super) sending: bool,
    /// What waits for this socket. Boxed: an idle connection has none.
    backlog: Option<Box<Backlog>>,
}

impl End {
    pub(super) fn new(side: Side, socket: Option<OwnedFd>) -> End {
        End {
            side,
            socket,
            readable: false,
            writable: false,
            error: false,
            beyond: false,
            receiving: false,
            sending: false,
            backlog: None,
        }
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Gives the socket away and forgets what was known about it.
    pub(super) fn take(&mut self) -> Option<OwnedFd> {
        let socket = self.socket.take();
        *self = End::new(self.side, None);
        socket
    }

    /// Takes note of an event of epoll.
    pub(super) fn note(&mut self, ready: Readiness) {
        let over = ready.read_closed() || ready.hung_up() || ready.error();
        self.readable |= ready.readable() || over;
        self.writable |= ready.writable() || ready.error() || ready.hung_up();
        self.error |= ready.error();
        self.beyond |= over || ready.urgent();
    }

    /// Has the next operation ask the kernel, whatever events have told.
    pub(super) fn expect_writable(&mut self) {
        self.writable = true;
    }

    /// Completes the outstanding connect to `address`, if it can be.
    pub(super) fn end_connect(&mut self, address: SocketAddr) -> Option<Result<(), Errno>> {
        if !(self.writable || self.error) {
            return None;
        }
        match stream::connect_again(self.socket()?, address) {
            Err(Errno::ALREADY) => {
                self.writable = false;
                None
            }
            result => {
                self.error = false;
                Some(result)
            }
        }
    }

    /// Was an error reported while bytes wait that nobody has read?
    pub(super) fn fails_with_unread(&self) -> bool {
        self.error && self.socket().is_some_and(|s| stream::unread(s) > 0)
    }

    /// The error that was reported, unless an operation has taken it since.
    pub(super) fn reported(&mut self) -> Option<Event> {
        if !self.error {
            return None;
        }
        self.error = false;
        let errno = stream::take_error(self.socket()?).err()?;
        Some(self.failed(Operation::SendOrWatch, errno))
    }

    /// Completes the outstanding receive, if it can be.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> Option<Event> {
        if !(self.receiving && self.readable) {
            return None;
        }
        let side = self.side;
        match stream::receive(self.socket()?, buffer) {
            Ok(n) => {
                self.receiving = false;
                self.readable = n == buffer.len() || self.beyond;
                Some(Event::Received { side, n: n as u32 })
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                None
            }
            Err(errno) => {
                self.receiving = false;
                Some(self.failed(Operation::Receive, errno))
            }
        }
    }

    /// Completes the outstanding send of what waits, if it can be.
    pub(super) fn send_backlog(&mut self) -> Option<Event> {
        if !(self.sending && self.writable) {
            return None;
        }
        let mut backlog = self.backlog.take()?;
        let result = self.transmit(&backlog.bytes[backlog.sent..]);
        match result {
            Ok(0) => {
                self.backlog = Some(backlog);
                None
            }
            Ok(n) => {
                self.sending = false;
                backlog.sent += n;
                if backlog.sent < backlog.bytes.len() {
                    self.backlog = Some(backlog);
                }
                Some(self.sent(n))
            }
            Err(errno) => {
                self.sending = false;
                Some(self.failed(Operation::SendOrWatch, errno))
            }
        }
    }

    /// Sends bytes fresh from a receive; what finds no room waits. Nothing else is waiting: the
    /// machine does not receive while something is.
    pub(super) fn send_fresh(&mut self, bytes: &[u8]) -> Option<Event> {
        self.sending = true;
        let result = match self.writable {
            true => self.transmit(bytes),
            false => Ok(0),
        };
        let n = match result {
            Ok(n) => n,
            Err(errno) => {
                self.sending = false;
                return Some(self.failed(Operation::SendOrWatch, errno));
            }
        };
        if n < bytes.len() {
            self.backlog = Some(Box::new(Backlog {
                bytes: bytes[n..].into(),
                sent: 0,
            }));
        }
        if n == 0 {
            return None;
        }
        self.sending = false;
        Some(self.sent(n))
    }

    /// How many bytes found room; none is no error. After less than all, epoll tells when there
    /// is room again.
    fn transmit(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        let Some(socket) = self.socket() else {
            return Ok(0);
        };
        match stream::transmit(socket, bytes) {
            Ok(n) => {
                self.writable = n == bytes.len();
                Ok(n)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(errno) => Err(errno),
        }
    }

    fn sent(&self, n: usize) -> Event {
        Event::Sent {
            side: self.side,
            n: n as u32,
        }
    }

    fn failed(&self, operation: Operation, errno: Errno) -> Event {
        Event::Failed {
            side: self.side,
            operation,
            cause: cause(errno),
        }
    }
}

/// What an error of a TCP socket means (tcp(7), connect(2), ip(7)).
pub(super) fn cause(errno: Errno) -> Cause {
    match errno {
        Errno::CONNREFUSED => Cause::Refused,
        Errno::CONNRESET | Errno::CONNABORTED => Cause::Reset,
        Errno::PIPE => Cause::BrokenPipe,
        Errno::TIMEDOUT => Cause::TimedOut,
        Errno::HOSTUNREACH
        | Errno::NETUNREACH
        | Errno::NETDOWN
        | Errno::HOSTDOWN
        | Errno::ACCESS
        | Errno::PERM => Cause::Unreachable,
        Errno::ADDRNOTAVAIL | Errno::ADDRINUSE | Errno::AGAIN => Cause::NoPort,
        // ENOSPC is fs.epoll.max_user_watches.
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::NOSPC => {
            Cause::Exhausted
        }
        _ => Cause::Unexpected,
    }
}
