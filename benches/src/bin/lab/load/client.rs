//! The TCP generator: one thread in the client's namespace.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Socket, Type};

use super::poll::{EventFlags, Poll};
use super::{Counters, ECHO, ECHO_CLOSE, Route, SINK, SMALL, SOURCE};

/// Receive and send buffer, and what one read of bulk discards.
const BUFFER: usize = 256 << 10;
/// Connects under way while idle connections are built up.
const OPENING: usize = 128;
/// Answers up to this size are compared with what was sent.
const COMPARED: usize = 4 << 10;
/// No more times than this are noted.
const MOST_TIMES: usize = 4_000_000;

/// What one connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Sends so many bytes and waits until they are back, again and again.
    Request(usize),
    /// Connects, has one small request answered, closes, and again.
    ConnectClose,
    /// The same, but waits for the server to close.
    ConnectServerCloses,
    /// One small request, then silence.
    Idle,
    /// Reads what a source writes.
    Down,
    /// Writes to a sink.
    Up,
}

impl Task {
    fn port(self) -> u16 {
        match self {
            Task::Request(_) | Task::ConnectClose | Task::Idle => ECHO,
            Task::ConnectServerCloses => ECHO_CLOSE,
            Task::Down => SOURCE,
            Task::Up => SINK,
        }
    }

    fn request(self) -> usize {
        match self {
            Task::Request(size) => size,
            Task::ConnectClose | Task::ConnectServerCloses | Task::Idle => SMALL,
            Task::Down | Task::Up => 0,
        }
    }

    /// Bulk is level-triggered, so that streams take turns; the rest is registered once.
    fn interest(self) -> EventFlags {
        match self {
            Task::Down => EventFlags::IN,
            Task::Up => EventFlags::OUT,
            _ => EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
        }
    }
}

/// So many connections with one task.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub conns: usize,
    pub task: Task,
}

/// Runs all groups until it is told to stop; the times of requests in nanoseconds, not in order.
pub fn run(groups: &[Group], route: &Route, counters: &Counters) -> Result<Vec<u32>> {
    let mut client = Client::new(groups, route, counters)?;
    while !counters.stopped() {
        client.turn()?;
    }
    Ok(client.times)
}

struct Conn {
    task: Task,
    socket: Option<OwnedFd>,
    connected: bool,
    request: Request,
}

/// How far a request has come.
struct Request {
    sent: usize,
    received: usize,
    since: Instant,
}

impl Request {
    fn new(since: Instant) -> Request {
        Request {
            sent: 0,
            received: 0,
            since,
        }
    }
}

/// What is to be done with a connection after an event.
enum Next {
    Wait,
    /// It has done what it was for: the next one.
    Renew,
    /// It failed: count, and another.
    Failed,
}

struct Client<'a> {
    poll: Poll,
    conns: Vec<Conn>,
    /// Not connecting yet.
    waiting: Vec<usize>,
    opening: usize,
    made: usize,
    route: &'a Route,
    counters: &'a Counters,
    pattern: Vec<u8>,
    buffer: Vec<u8>,
    times: Vec<u32>,
}

impl<'a> Client<'a> {
    fn new(groups: &[Group], route: &'a Route, counters: &'a Counters) -> Result<Client<'a>> {
        let tasks = groups
            .iter()
            .flat_map(|group| std::iter::repeat_n(group.task, group.conns));
        let conns: Vec<Conn> = tasks
            .map(|task| Conn {
                task,
                socket: None,
                connected: false,
                request: Request::new(Instant::now()),
            })
            .collect();
        Ok(Client {
            poll: Poll::new()?,
            waiting: (0..conns.len()).rev().collect(),
            conns,
            opening: 0,
            made: 0,
            route,
            counters,
            pattern: (0..BUFFER).map(|n| (n * 31 % 251) as u8).collect(),
            buffer: vec![0; BUFFER],
            times: Vec::new(),
        })
    }

    fn turn(&mut self) -> Result<()> {
        while self.opening < OPENING {
            let Some(n) = self.waiting.pop() else { break };
            if !self.open(n)? {
                break;
            }
        }
        let patience = Duration::from_millis(if self.waiting.is_empty() { 20 } else { 1 });
        for n in 0..self.poll.wait(patience)? {
            let (conn, flags) = self.poll.at(n);
            match self.event(conn, flags) {
                Next::Wait => {}
                Next::Renew => self.renew(conn)?,
                Next::Failed => {
                    Counters::add(&self.counters.errors, 1);
                    self.close(conn);
                    self.waiting.push(conn);
                }
            }
        }
        Ok(())
    }

    /// Begins to connect; false if the kernel had no port or no memory for it.
    fn open(&mut self, n: usize) -> Result<bool> {
        let conn = &mut self.conns[n];
        let (source, target) = self.route.pair(self.made, conn.task.port());
        self.made += 1;
        let Some(socket) = dial(source.into(), target.into())? else {
            Counters::add(&self.counters.errors, 1);
            self.waiting.push(n);
            return Ok(false);
        };
        self.poll
            .add(&socket, n, EventFlags::OUT | conn.task.interest())?;
        *conn = Conn {
            task: conn.task,
            socket: Some(socket),
            connected: false,
            request: Request::new(Instant::now()),
        };
        self.opening += 1;
        Ok(true)
    }

    fn close(&mut self, n: usize) {
        let conn = &mut self.conns[n];
        if conn.socket.take().is_some() && !conn.connected {
            self.opening -= 1;
        }
    }

    /// A connection has served: count it, and make the next at once.
    fn renew(&mut self, n: usize) -> Result<()> {
        Counters::add(&self.counters.ops, 1);
        self.close(n);
        self.open(n).map(drop)
    }

    fn event(&mut self, n: usize, flags: EventFlags) -> Next {
        let conn = &mut self.conns[n];
        let Some(socket) = conn.socket.as_ref() else {
            return Next::Wait;
        };
        if flags.contains(EventFlags::ERR) {
            return Next::Failed;
        }
        if !conn.connected {
            if !flags.contains(EventFlags::OUT) {
                return Next::Wait;
            }
            conn.connected = true;
            self.opening -= 1;
            conn.request.since = Instant::now();
            let bulk = matches!(conn.task, Task::Down | Task::Up);
            if bulk
                && self
                    .poll
                    .modify(socket.as_fd(), n, conn.task.interest())
                    .is_err()
            {
                return Next::Failed;
            }
        }
        match conn.task {
            Task::Down => self.down(n),
            Task::Up => self.up(n),
            _ => self.exchange(n, flags),
        }
    }

    /// Throws away what has come, without copying it (MSG_TRUNC, tcp(7)).
    fn down(&mut self, n: usize) -> Next {
        let Some(socket) = &self.conns[n].socket else {
            return Next::Wait;
        };
        match recv(socket, &mut self.buffer[..], RecvFlags::TRUNC) {
            Ok((_, 0)) => Next::Failed,
            Ok((_, got)) => {
                Counters::add(&self.counters.bytes, got as u64);
                Next::Wait
            }
            Err(Errno::AGAIN | Errno::INTR) => Next::Wait,
            Err(_) => Next::Failed,
        }
    }

    fn up(&mut self, n: usize) -> Next {
        let Some(socket) = &self.conns[n].socket else {
            return Next::Wait;
        };
        match send(socket, &self.pattern, SendFlags::NOSIGNAL) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Next::Wait,
            Err(_) => Next::Failed,
        }
    }

    /// Sends and receives as much as goes.
    fn exchange(&mut self, n: usize, flags: EventFlags) -> Next {
        let Conn {
            task,
            socket: Some(socket),
            request,
            ..
        } = &mut self.conns[n]
        else {
            return Next::Wait;
        };
        let size = task.request();
        loop {
            while request.sent < size {
                match send(
                    &*socket,
                    &self.pattern[request.sent..size],
                    SendFlags::NOSIGNAL,
                ) {
                    Ok(sent) => request.sent += sent,
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(_) => return Next::Failed,
                }
            }
            let got = match recv(&*socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((_, 0)) => return at_end(*task, request),
                Ok((_, got)) => got,
                Err(Errno::AGAIN | Errno::INTR) => return Next::Wait,
                Err(_) => return Next::Failed,
            };
            let whole = request.received + got;
            if whole > size
                || size <= COMPARED && self.buffer[..got] != self.pattern[request.received..whole]
            {
                return Next::Failed;
            }
            request.received = whole;
            if whole == size {
                match answered(*task, request, self.counters, &mut self.times) {
                    Next::Wait => {}
                    other => return other,
                }
                // A new request goes out at once; its answer is another event.
                if request.sent < size
                    && let Ok(sent) = send(&*socket, &self.pattern[..size], SendFlags::NOSIGNAL)
                {
                    request.sent = sent;
                }
            }
            // A short read has emptied the socket: what comes later is a new event.
            let emptied = got < self.buffer.len() && !flags.contains(EventFlags::RDHUP);
            if emptied && request.sent == size {
                return Next::Wait;
            }
        }
    }
}

/// The stream ended.
fn at_end(task: Task, request: &Request) -> Next {
    if task == Task::ConnectServerCloses && request.received == SMALL {
        Next::Renew
    } else {
        Next::Failed
    }
}

/// The whole answer is there.
fn answered(task: Task, request: &mut Request, counters: &Counters, times: &mut Vec<u32>) -> Next {
    Counters::add(&counters.answered, 1);
    match task {
        Task::ConnectClose => Next::Renew,
        Task::Request(_) => {
            let now = Instant::now();
            if counters.recording.load(Ordering::Relaxed) && times.len() < MOST_TIMES {
                let time = now - request.since;
                times.push(time.as_nanos().min(u32::MAX.into()) as u32);
            }
            Counters::add(&counters.ops, 1);
            *request = Request::new(now);
            Next::Wait
        }
        Task::ConnectServerCloses | Task::Idle | Task::Down | Task::Up => Next::Wait,
    }
}

/// A socket that connects from `source`, whose port the kernel chooses with the target in mind.
fn dial(source: SocketAddr, target: SocketAddr) -> Result<Option<OwnedFd>> {
    let socket =
        Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None).context("socket")?;
    setsockopt(&socket, IpBindAddressNoPort, &true).context("IP_BIND_ADDRESS_NO_PORT")?;
    socket.set_tcp_nodelay(true)?;
    socket
        .bind(&source.into())
        .with_context(|| format!("cannot bind {source}"))?;
    match socket.connect(&target.into()) {
        Ok(()) => Ok(Some(socket.into())),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::INPROGRESS) => Ok(Some(socket.into())),
            Some(Errno::ADDRNOTAVAIL | Errno::CONNREFUSED | Errno::NETUNREACH) => Ok(None),
            _ => Err(error).with_context(|| format!("cannot connect to {target}")),
        },
    }
}
