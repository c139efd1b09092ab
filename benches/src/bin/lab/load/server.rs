//! The servers behind the load balancer: one thread in the server's namespace.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use socket2::{Domain, Socket, Type};

use super::poll::{EventFlags, Poll};
use super::udp::Batch;
use super::{Counters, ECHO, ECHO_CLOSE, SINK, SMALL, SOURCE, TCP_PORTS, UDP_ECHO};
use crate::net::{Topology, backends};

/// Receive and send buffer, and what one read of a sink discards.
const BUFFER: usize = 256 << 10;
/// Tokens from here on are listeners.
const LISTENERS: usize = 1 << 32;
/// Tokens from here on are UDP sockets.
const UDP: usize = 1 << 33;
/// A datagram socket's receive buffer.
pub const UDP_BUFFER: usize = 8 << 20;

/// The running servers; they end when dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    /// Bytes that sinks have thrown away.
    pub sunk: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Result<()>>>>,
}

impl Server {
    pub fn start(topology: &Topology) -> Result<Server> {
        let (stop, sunk) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (quit, bytes) = (stop.clone(), sunk.clone());
        let (ready, started) = std::sync::mpsc::channel();
        let thread = topology.server.spawn(topology.load_place(), move || {
            let mut state = State::new(bytes)?;
            let _ = ready.send(());
            while !quit.load(Ordering::Relaxed) {
                state.turn()?;
            }
            Ok(())
        })?;
        let mut server = Server {
            stop,
            sunk,
            thread: Some(thread),
        };
        if started.recv().is_err() {
            server.end()?;
        }
        Ok(server)
    }

    /// Ends it and says what went wrong, if anything did.
    pub fn finish(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome?.context("the load tool's server"),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// What a connection is there for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Echo,
    EchoClose,
    Sink,
    Source,
}

struct Conn {
    fd: OwnedFd,
    kind: Kind,
    /// Read, but not yet echoed: there was no room.
    pending: Vec<u8>,
    echoed: usize,
}

/// What became of a connection.
#[derive(PartialEq, Eq)]
enum Next {
    Keep,
    Close,
}

struct State {
    poll: Poll,
    listeners: Vec<(Socket, Kind)>,
    udp: Vec<OwnedFd>,
    batch: Batch,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
    sunk: Arc<AtomicU64>,
}

impl State {
    fn new(sunk: Arc<AtomicU64>) -> Result<State> {
        let poll = Poll::new()?;
        let mut listeners = Vec::new();
        for port in TCP_PORTS {
            let socket = listen(port)?;
            poll.add(&socket, LISTENERS + listeners.len(), EventFlags::IN)?;
            listeners.push((socket, kind_of(port)));
        }
        let mut udp = Vec::new();
        // A socket per address, so that replies come from the address that was asked.
        for address in backends() {
            let socket = super::udp::bind(SocketAddr::new(address.into(), UDP_ECHO))?;
            poll.add(&socket, UDP + udp.len(), EventFlags::IN)?;
            udp.push(socket);
        }
        Ok(State {
            poll,
            listeners,
            udp,
            batch: Batch::new(),
            conns: Vec::new(),
            free: Vec::new(),
            buffer: vec![0x5a; BUFFER],
            sunk,
        })
    }

    fn turn(&mut self) -> Result<()> {
        for n in 0..self.poll.wait(Duration::from_millis(20))? {
            match self.poll.at(n) {
                (token, _) if token >= UDP => self.batch.echo(&self.udp[token - UDP])?,
                (token, _) if token >= LISTENERS => self.accept(token - LISTENERS)?,
                (token, flags) => self.serve(token, flags)?,
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) -> Result<()> {
        let (socket, kind) = &self.listeners[listener];
        let kind = *kind;
        loop {
            let fd = match accept_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(fd) => fd,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(error) => return Err(error).context("accept"),
            };
            let token = self.free.pop().unwrap_or_else(|| {
                self.conns.push(None);
                self.conns.len() - 1
            });
            let interest = match kind {
                Kind::Source => EventFlags::OUT,
                Kind::Echo | Kind::EchoClose | Kind::Sink => EventFlags::IN,
            };
            self.poll.add(&fd, token, interest)?;
            self.conns[token] = Some(Conn {
                fd,
                kind,
                pending: Vec::new(),
                echoed: 0,
            });
        }
    }

    fn serve(&mut self, token: usize, flags: EventFlags) -> Result<()> {
        let Some(conn) = self.conns[token].as_mut() else {
            return Ok(());
        };
        let next = if flags.contains(EventFlags::ERR) {
            Next::Close
        } else {
            match conn.kind {
                Kind::Sink => sink(conn, &mut self.buffer, &self.sunk),
                Kind::Source => source(conn, &self.buffer),
                Kind::Echo | Kind::EchoClose => echo(conn, token, &self.poll, &mut self.buffer)?,
            }
        };
        if next == Next::Close {
            self.conns[token] = None;
            self.free.push(token);
        }
        Ok(())
    }
}

fn kind_of(port: u16) -> Kind {
    match port {
        ECHO => Kind::Echo,
        ECHO_CLOSE => Kind::EchoClose,
        SINK => Kind::Sink,
        SOURCE => Kind::Source,
        other => unreachable!("no server at port {other}"),
    }
}

fn listen(port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    let address = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    socket
        .bind(&address.into())
        .with_context(|| format!("cannot bind {address}"))?;
    socket.listen(65_535)?;
    Ok(socket)
}

/// Throws away what has come, without copying it (MSG_TRUNC, tcp(7)).
fn sink(conn: &Conn, buffer: &mut [u8], sunk: &AtomicU64) -> Next {
    match recv(&conn.fd, buffer, RecvFlags::TRUNC) {
        Ok((_, 0)) => Next::Close,
        Ok((_, n)) => {
            Counters::add(sunk, n as u64);
            Next::Keep
        }
        Err(Errno::AGAIN | Errno::INTR) => Next::Keep,
        Err(_) => Next::Close,
    }
}

fn source(conn: &Conn, buffer: &[u8]) -> Next {
    match send(&conn.fd, buffer, SendFlags::NOSIGNAL) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Next::Keep,
        Err(_) => Next::Close,
    }
}

fn echo(conn: &mut Conn, token: usize, poll: &Poll, buffer: &mut [u8]) -> Result<Next> {
    if !conn.pending.is_empty() {
        match send(&conn.fd, &conn.pending, SendFlags::NOSIGNAL) {
            Ok(n) => conn.pending.drain(..n),
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Next::Keep),
            Err(_) => return Ok(Next::Close),
        };
        if conn.pending.is_empty() {
            poll.modify(conn.fd.as_fd(), token, EventFlags::IN)?;
        }
        return Ok(Next::Keep);
    }
    let n = match recv(&conn.fd, &mut *buffer, RecvFlags::empty()) {
        Ok((_, 0)) => return Ok(Next::Close),
        Ok((_, n)) => n,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Next::Keep),
        Err(_) => return Ok(Next::Close),
    };
    let sent = match send(&conn.fd, &buffer[..n], SendFlags::NOSIGNAL) {
        Ok(sent) => sent,
        Err(Errno::AGAIN | Errno::INTR) => 0,
        Err(_) => return Ok(Next::Close),
    };
    if sent < n {
        conn.pending.extend_from_slice(&buffer[sent..n]);
        poll.modify(conn.fd.as_fd(), token, EventFlags::OUT)?;
    }
    conn.echoed += n;
    let done = conn.kind == Kind::EchoClose && conn.echoed >= SMALL;
    Ok(if done { Next::Close } else { Next::Keep })
}
