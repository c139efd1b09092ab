//! Datagrams: batches of a socket, and the generator that waits for echoes.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno as NixErrno;
use nix::sys::socket::sockopt::{RcvBufForce, SndBufForce};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg, setsockopt};
use socket2::{Domain, Socket, Type};

use super::poll::{EventFlags, Poll};
use super::server::UDP_BUFFER;
use super::{Counters, Route, SMALL, UDP_ECHO};

/// Datagrams of one call.
pub const BATCH: usize = 64;
/// A flow that hears nothing for this long has lost what it sent.
const PATIENCE: Duration = Duration::from_millis(200);

/// A nonblocking UDP socket at `address` with room for bursts.
pub fn bind(address: SocketAddr) -> Result<OwnedFd> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), None)?;
    socket
        .bind(&address.into())
        .with_context(|| format!("cannot bind {address}/udp"))?;
    setsockopt(&socket, RcvBufForce, &UDP_BUFFER)?;
    setsockopt(&socket, SndBufForce, &UDP_BUFFER)?;
    Ok(socket.into())
}

/// A socket from `source` that talks to `target` alone.
pub fn connect(source: SocketAddr, target: SocketAddr) -> Result<OwnedFd> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), None)?;
    socket
        .bind(&source.into())
        .with_context(|| format!("cannot bind {source}/udp"))?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

/// Buffers for one recvmmsg(2) or sendmmsg(2).
pub struct Batch {
    received: MultiHeaders<SockaddrIn>,
    sent: MultiHeaders<SockaddrIn>,
    payloads: Vec<[u8; SMALL]>,
    senders: Vec<Option<SockaddrIn>>,
}

impl Batch {
    pub fn new() -> Batch {
        Batch {
            received: MultiHeaders::preallocate(BATCH, None),
            sent: MultiHeaders::preallocate(BATCH, None),
            payloads: vec![[0; SMALL]; BATCH],
            senders: vec![None; BATCH],
        }
    }

    /// Takes what has come, at most a batch; how many.
    pub fn receive(&mut self, socket: &OwnedFd) -> Result<usize> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = self
            .payloads
            .iter_mut()
            .map(|payload| [IoSliceMut::new(payload)])
            .collect();
        let outcome = recvmmsg(
            socket.as_raw_fd(),
            &mut self.received,
            slices.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        );
        match outcome {
            Ok(messages) => {
                let mut count = 0;
                for (message, sender) in messages.zip(&mut self.senders) {
                    *sender = message.address;
                    count += 1;
                }
                Ok(count)
            }
            // A refusal of an earlier datagram: nothing has come.
            Err(NixErrno::EAGAIN | NixErrno::EINTR | NixErrno::ECONNREFUSED) => Ok(0),
            Err(error) => Err(error).context("recvmmsg"),
        }
    }

    /// Sends `count` datagrams: to those that the last batch came from, or, if the socket is
    /// connected, to its peer. How many went.
    pub fn send(&mut self, socket: &OwnedFd, count: usize, connected: bool) -> Result<usize> {
        let slices: Vec<[IoSlice<'_>; 1]> = self.payloads[..count]
            .iter()
            .map(|payload| [IoSlice::new(payload)])
            .collect();
        if connected {
            self.senders[..count].fill(None);
        }
        let outcome = sendmmsg(
            socket.as_raw_fd(),
            &mut self.sent,
            slices.iter(),
            &self.senders[..count],
            [],
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
        );
        match outcome {
            Ok(sent) => Ok(sent.count()),
            Err(
                NixErrno::EAGAIN | NixErrno::EINTR | NixErrno::ECONNREFUSED | NixErrno::ENOBUFS,
            ) => Ok(0),
            Err(error) => Err(error).context("sendmmsg"),
        }
    }

    /// Sends everything that has come back to where it came from.
    pub fn echo(&mut self, socket: &OwnedFd) -> Result<()> {
        loop {
            let count = self.receive(socket)?;
            self.send(socket, count, false)?;
            if count < BATCH {
                return Ok(());
            }
        }
    }
}

/// Echo over many flows.
#[derive(Clone, Copy, Debug)]
pub struct Flows {
    pub flows: usize,
    /// Datagrams in flight of one flow.
    pub window: usize,
    /// Datagrams in flight of all flows together.
    pub total: usize,
}

struct Flow {
    socket: OwnedFd,
    in_flight: usize,
    since: Instant,
}

/// Sends windows of datagrams and waits for them to come back, until it is told to stop.
pub fn run(work: Flows, route: &Route, counters: &Counters) -> Result<()> {
    Echo::new(work, route)?.run(counters)
}

struct Echo {
    work: Flows,
    poll: Poll,
    flows: Vec<Flow>,
    /// Flows with nothing in flight, the longest idle first.
    idle: VecDeque<usize>,
    in_flight: usize,
    batch: Batch,
}

impl Echo {
    fn new(work: Flows, route: &Route) -> Result<Echo> {
        let poll = Poll::new()?;
        let mut flows = Vec::with_capacity(work.flows);
        for n in 0..work.flows {
            let (source, target) = route.pair(n, UDP_ECHO);
            let socket = connect(source.into(), target.into())?;
            poll.add(&socket, n, EventFlags::IN)?;
            flows.push(Flow {
                socket,
                in_flight: 0,
                since: Instant::now(),
            });
        }
        Ok(Echo {
            work,
            poll,
            flows,
            idle: (0..work.flows).collect(),
            in_flight: 0,
            batch: Batch::new(),
        })
    }

    fn run(mut self, counters: &Counters) -> Result<()> {
        let mut looked = Instant::now();
        while !counters.stopped() {
            self.start_idle()?;
            for n in 0..self.poll.wait(Duration::from_millis(20))? {
                let (flow, _) = self.poll.at(n);
                self.receive(flow, counters)?;
            }
            let now = Instant::now();
            if now - looked > PATIENCE / 2 {
                looked = now;
                self.give_up(now, counters);
            }
        }
        Ok(())
    }

    /// Lets idle flows send their window while the total allows it.
    fn start_idle(&mut self) -> Result<()> {
        while self.in_flight + self.work.window <= self.work.total {
            let Some(n) = self.idle.pop_front() else {
                return Ok(());
            };
            self.flows[n].since = Instant::now();
            if self.send(n, self.work.window)? == 0 {
                self.idle.push_back(n);
                return Ok(());
            }
        }
        Ok(())
    }

    fn send(&mut self, n: usize, count: usize) -> Result<usize> {
        let flow = &mut self.flows[n];
        let sent = self.batch.send(&flow.socket, count, true)?;
        flow.in_flight += sent;
        self.in_flight += sent;
        Ok(sent)
    }

    fn receive(&mut self, n: usize, counters: &Counters) -> Result<()> {
        let came = self.batch.receive(&self.flows[n].socket)?;
        let flow = &mut self.flows[n];
        // Fewer: some that were given up came late.
        let known = came.min(flow.in_flight);
        if known == 0 {
            return Ok(());
        }
        Counters::add(&counters.ops, known as u64);
        flow.in_flight -= known;
        self.in_flight -= known;
        flow.since = Instant::now();
        if self.work.flows * self.work.window > self.work.total {
            if flow.in_flight == 0 {
                self.idle.push_back(n);
            }
            return Ok(());
        }
        let again = self.work.window - flow.in_flight;
        if self.send(n, again)? == 0 && self.flows[n].in_flight == 0 {
            self.idle.push_back(n);
        }
        Ok(())
    }

    fn give_up(&mut self, now: Instant, counters: &Counters) {
        for (n, flow) in self.flows.iter_mut().enumerate() {
            if flow.in_flight > 0 && now - flow.since > PATIENCE {
                Counters::add(&counters.lost, flow.in_flight as u64);
                self.in_flight -= flow.in_flight;
                flow.in_flight = 0;
                self.idle.push_back(n);
            }
        }
    }
}
