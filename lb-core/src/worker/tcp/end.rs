//! One socket of a connection, as edge-triggered epoll shows it: what it is ready for, which
//! operations of the machine are held back until it is, and the bytes that wait for room.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::backlog::{Backlog, Fresh};
use crate::conn::{Event, Operation, Side};
use crate::sys::epoll::Readiness;
use crate::sys::stream;
use crate::worker::cx::Cx;
use crate::worker::pace::Pace;
use crate::worker::pipes::{self, Bulk, Filled, Pipes};
use crate::worker::session::cause;

/// The most that one copying receive takes, and so the most that ever waits for a slow receiver:
/// per direction, in our memory, beside the kernel's own buffers.
pub(super) const RECEIVE_SIZE: usize = 64 << 10;

/// One socket and what is known about it.
#[derive(Debug)]
pub(super) struct End {
    side: Side,
    socket: Option<OwnedFd>,
    readable: bool,
    writable: bool,
    /// The kernel reported an error that nobody has taken yet.
    error: bool,
    /// An event told of room to write and of nothing else that could end a connect: it is done.
    connected: bool,
    /// A FIN, an error or urgent data was announced: a short receive does not mean that there is
    /// no more. (Linux ends a receive at the urgent mark, also in line; tcp(7).)
    beyond: bool,
    /// A receive is outstanding.
    pub(super) receiving: bool,
    /// A send of what waits for this socket is outstanding.
    pub(super) sending: bool,
    /// The last splice to it moved less than there was: if an error ended it, the kernel has told
    /// nobody (splice(2) says how much it moved, and forgets why no more).
    cut_short: bool,
    /// How what comes from this socket has come of late.
    pace: Pace,
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
            connected: false,
            beyond: false,
            receiving: false,
            sending: false,
            cut_short: false,
            pace: Pace::new(),
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

    /// An end that was taken over, with what waits for it.
    pub(super) fn adopted(side: Side, socket: OwnedFd, waiting: &[u8]) -> End {
        let mut end = End::new(side, Some(socket));
        end.backlog = Backlog::of_bytes(waiting);
        end
    }

    /// Gives up what waits for this socket.
    ///
    /// # Errors
    /// As [`Bulk::read_out`].
    pub(super) fn take_waiting(&mut self) -> Result<Vec<u8>, Errno> {
        match self.backlog.take().map(|backlog| *backlog) {
            None => Ok(Vec::new()),
            Some(Backlog::Bytes { bytes, sent }) => Ok(bytes[sent..].to_vec()),
            Some(Backlog::Pipe(mut bulk)) => bulk.read_out().map(Into::into),
        }
    }

    /// Takes note of an event of epoll.
    pub(super) fn note(&mut self, ready: Readiness) {
        let over = ready.read_closed() || ready.hung_up() || ready.error();
        self.readable |= ready.readable() || over;
        self.writable |= ready.writable() || ready.error() || ready.hung_up();
        self.error |= ready.error();
        // tcp_poll: no room to write is told of before a connect has ended.
        self.connected = ready.writable() && !(ready.error() || ready.hung_up());
        self.beyond |= over || ready.urgent();
    }

    /// Has the next operation ask the kernel, whatever events have told.
    pub(super) fn expect_writable(&mut self) {
        self.writable = true;
        self.connected = false;
    }

    /// Completes the outstanding connect to `address`, if it can be.
    pub(super) fn end_connect(&mut self, address: SocketAddr) -> Option<Result<(), Errno>> {
        if !(self.writable || self.error) {
            return None;
        }
        let socket = self.socket()?;
        let result = match self.connected {
            true => stream::check_other(socket, address),
            false => stream::connect_again(socket, address),
        };
        match result {
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

    /// Completes the outstanding receive, if it can be. What it brings is to be sent, or kept, at
    /// once: it is in the worker's scratch buffer, or in a pipe that others need.
    pub(super) fn receive(&mut self, cx: &mut Cx) -> Option<(Event, Fresh)> {
        if !(self.receiving && self.readable) {
            return None;
        }
        let (event, fresh) = match self.pace.is_bulk() {
            true => self.splice(cx)?,
            false => self.copy(cx)?,
        };
        self.receiving = false;
        if let Event::Received { n, .. } = event {
            self.pace.note(n as usize);
        }
        Some((event, fresh))
    }

    fn copy(&mut self, cx: &mut Cx) -> Option<(Event, Fresh)> {
        let side = self.side;
        match stream::receive(self.socket()?, &mut cx.scratch[..RECEIVE_SIZE]) {
            Ok(n) => {
                self.readable = n == RECEIVE_SIZE || self.beyond;
                Some((Event::Received { side, n: n as u32 }, Fresh::Copied(n)))
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                None
            }
            Err(errno) => Some((self.failed(Operation::Receive, errno), Fresh::None)),
        }
    }

    fn splice(&mut self, cx: &mut Cx) -> Option<(Event, Fresh)> {
        let side = self.side;
        let filled = cx.pipes.fill(&mut cx.descriptors, cx.now, self.socket()?);
        match filled {
            // The pipe may have been full before the socket was empty: the next one tells.
            Filled::Bytes(bulk) => {
                let n = bulk.held();
                Some((Event::Received { side, n }, Fresh::Piped(bulk)))
            }
            // A FIN or an urgent mark: a copy tells which, and takes the byte behind the mark.
            Filled::Nothing if self.beyond => self.copy(cx),
            Filled::Nothing => {
                self.readable = false;
                None
            }
            Filled::NoPipe => {
                cx.counters.bulk_copied.add(1);
                self.copy(cx)
            }
            Filled::Failed(errno) => Some((self.failed(Operation::Receive, errno), Fresh::None)),
        }
    }

    /// Completes the outstanding send of what waits, if it can be.
    pub(super) fn send_backlog(&mut self, pipes: &mut Pipes) -> Option<Event> {
        if !(self.sending && self.writable) {
            return None;
        }
        let mut backlog = self.backlog.take()?;
        let result = match &mut *backlog {
            Backlog::Bytes { bytes, sent } => {
                self.transmit(&bytes[*sent..]).inspect(|n| *sent += n)
            }
            Backlog::Pipe(bulk) => self.drain(bulk),
        };
        let n = match result {
            Ok(n) => n,
            Err(errno) => {
                self.sending = false;
                return Some(self.failed(Operation::SendOrWatch, errno));
            }
        };
        match *backlog {
            Backlog::Pipe(bulk) if bulk.held() == 0 => pipes.give(bulk),
            _ if backlog.left() == 0 => {}
            _ => self.backlog = Some(backlog),
        }
        self.took(n)
    }

    /// Sends what a receive has just brought; what finds no room waits. Nothing else is waiting:
    /// the machine does not receive while something is.
    pub(super) fn send_fresh(&mut self, bytes: &[u8]) -> Option<Event> {
        self.sending = true;
        let result = match self.writable {
            true => self.transmit(bytes),
            false => Ok(0),
        };
        match result {
            Ok(n) => {
                self.backlog = Backlog::of_bytes(&bytes[n..]);
                self.took(n)
            }
            Err(errno) => {
                self.sending = false;
                Some(self.failed(Operation::SendOrWatch, errno))
            }
        }
    }

    /// As [`End::send_fresh`], of bytes in a pipe. After an error nobody will have them: the pipe
    /// is closed, not pooled.
    pub(super) fn send_piped(&mut self, cx: &mut Cx, mut bulk: Bulk) -> Option<Event> {
        self.sending = true;
        let result = match self.writable {
            true => self.drain(&mut bulk),
            false => Ok(0),
        };
        let result = result.and_then(|n| {
            match bulk.held() {
                0 => cx.pipes.give(bulk),
                _ => {
                    let kept = cx.pipes.keep(&cx.descriptors, bulk)?;
                    self.backlog = Some(Backlog::of_kept(kept));
                }
            }
            Ok(n)
        });
        match result {
            Ok(n) => self.took(n),
            Err(errno) => {
                self.sending = false;
                Some(self.failed(Operation::SendOrWatch, errno))
            }
        }
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
                self.cut_short = false;
                Ok(n)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(errno) => Err(pipes::told(errno, self.cut_short)),
        }
    }

    /// As [`End::transmit`], out of a pipe. After less than all the kernel is asked once more: a
    /// splice may end early for other reasons than room, and then no event would come.
    fn drain(&mut self, bulk: &mut Bulk) -> Result<usize, Errno> {
        let Some(socket) = self.socket() else {
            return Ok(0);
        };
        match bulk.drain(socket) {
            Ok(n) => {
                self.cut_short = bulk.held() > 0;
                Ok(n)
            }
            Err(Errno::AGAIN) => {
                self.writable = false;
                Ok(0)
            }
            Err(errno) => Err(pipes::told(errno, self.cut_short)),
        }
    }

    /// The kernel took `n` bytes: the outstanding send completes, unless that is none.
    fn took(&mut self, n: usize) -> Option<Event> {
        if n == 0 {
            return None;
        }
        self.sending = false;
        Some(self.sent(n))
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::conn::Cause;
    use crate::sys::socket;

    /// A socket whose peer has reset and whose error somebody took: a send says EPIPE then, as it
    /// does after a FIN.
    fn robbed() -> OwnedFd {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let own = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        socket::reset(listener.accept().expect("it called").0.into());
        let own = OwnedFd::from(own);
        for _ in 0..10_000 {
            if stream::take_error(own.as_fd()).is_err() {
                return own;
            }
            std::thread::yield_now();
        }
        panic!("no reset came");
    }

    #[test]
    fn a_reset_that_a_splice_kept_to_itself_is_none_after_a_fin() {
        for (cut_short, cause) in [(false, Cause::BrokenPipe), (true, Cause::Reset)] {
            let mut end = End::new(Side::Upstream, Some(robbed()));
            (end.writable, end.cut_short) = (true, cut_short);
            let event = end.send_fresh(b"more").expect("it fails");
            let failed = end.failed(Operation::SendOrWatch, Errno::PIPE);
            let expected = match cause {
                Cause::BrokenPipe => failed,
                _ => end.failed(Operation::SendOrWatch, Errno::CONNRESET),
            };
            assert_eq!(event, expected, "cut short: {cut_short}");
        }
    }
}
