//! From the client to the backend.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

use super::runs::{Piece, Run, Runs};
use super::upstream::Pace;
use super::{Driver, SendError, Upstream};
use crate::flow::{Admission, FlowId, Refusal, Verdict};
use crate::stats::{CloseReason, ConnectError, DropReason};
use crate::sys::epoll::Interest;
use crate::sys::udp;
use crate::worker::cx::Cx;
use crate::worker::descriptors::Use;
use crate::worker::local::Local;
use crate::worker::token::{Kind, Token};

/// Backends that one datagram is tried on: each has said that it is not there.
const MAX_TRIES: usize = 4;

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> DropReason {
        match refusal {
            Refusal::SourceDenied => DropReason::SourceDenied,
            Refusal::FlowLimit => DropReason::FlowLimit,
            Refusal::SourceFlowLimit => DropReason::SourceFlowLimit,
        }
    }
}

impl Driver {
    /// What a batch of a listener holds of one client, in order.
    pub(super) fn on_datagrams(
        &mut self,
        cx: &mut Cx,
        local: &Rc<Local>,
        client: SocketAddr,
        pieces: &[Piece<'_>],
    ) {
        self.last_used = cx.now;
        match self.route(cx, local, client) {
            Ok(flow) => self.forward(cx, local, flow, pieces),
            Err(reason) => {
                let count: usize = pieces.iter().map(Piece::count).sum();
                local.counters.dropped(reason).add(count as u64);
            }
        }
    }

    /// The flow that the client's datagrams leave by.
    fn route(
        &mut self,
        cx: &mut Cx,
        local: &Rc<Local>,
        client: SocketAddr,
    ) -> Result<FlowId, DropReason> {
        let refused = if cx.draining {
            Some(DropReason::Draining)
        } else if !cx.has_place() {
            Some(DropReason::MemoryPressure)
        } else {
            None
        };
        if let Some(reason) = refused
            && !self.flows.contains(client, &**local)
        {
            return Err(reason);
        }
        let flow = match self.flows.datagram(cx.now, client, &**local) {
            Verdict::Forward(flow) => flow,
            Verdict::Move {
                flow,
                avoid: Some(refused),
            } => {
                if self.relocate(cx, flow, Some(refused)).is_err() {
                    self.flows.stayed(flow);
                }
                flow
            }
            Verdict::Move { flow, avoid: None } => {
                if let Err(reason) = self.relocate(cx, flow, None) {
                    // The old backend must not see one more datagram.
                    if let Some(closed) = self.flows.close(flow) {
                        self.end(cx, closed, CloseReason::Removed);
                    }
                    return Err(reason);
                }
                flow
            }
            Verdict::Open { admission, shed } => {
                if let Some(shed) = shed {
                    self.end(cx, shed, CloseReason::Shed);
                }
                self.open(cx, local, client, admission)?
            }
            Verdict::Drop { reason, closed } => {
                if let Some(closed) = closed {
                    self.end(cx, closed, CloseReason::SourceDenied);
                }
                return Err(reason.into());
            }
        };
        Ok(flow)
    }

    fn open(
        &mut self,
        cx: &mut Cx,
        local: &Rc<Local>,
        client: SocketAddr,
        admission: Admission,
    ) -> Result<FlowId, DropReason> {
        if !(cx.descriptors.take(Use::Flow) || self.shed(cx) && cx.descriptors.take(Use::Flow)) {
            return Err(DropReason::DescriptorLimit);
        }
        let upstream = match self.dial(cx, local, client, None) {
            Ok(upstream) => upstream,
            Err(reason) => {
                cx.descriptors.give(Use::Flow);
                return Err(reason);
            }
        };
        local.counters.flows_opened.add(1);
        local.counters.flows_active.add(1);
        cx.counters.flows_active.add(1);
        let backend = upstream.backend.address;
        let flow = self.flows.open(cx.now, admission, backend, upstream);
        if let Some(upstream) = self.flows.part(flow)
            && watch(cx, flow, &upstream.socket).is_err()
        {
            if let Some(closed) = self.flows.close(flow) {
                self.end(cx, closed, CloseReason::LocalError);
            }
            return Err(DropReason::DescriptorLimit);
        }
        Ok(flow)
    }

    /// Gives a flow another backend than `avoid`, and a new socket. As it was if that fails.
    pub(super) fn relocate(
        &mut self,
        cx: &mut Cx,
        flow: FlowId,
        avoid: Option<SocketAddr>,
    ) -> Result<(), DropReason> {
        let (Some(old), Some(client)) = (self.flows.part(flow), self.flows.client(flow)) else {
            return Err(DropReason::NoFlow);
        };
        let local = Rc::clone(&old.local);
        let upstream = self.dial(cx, &local, client, avoid)?;
        if watch(cx, flow, &upstream.socket).is_err() {
            return Err(DropReason::DescriptorLimit);
        }
        let backend = upstream.backend.address;
        // What comes back is the old socket, which closes here.
        drop(self.flows.moved(cx.now, flow, backend, &*local, upstream));
        Ok(())
    }

    /// A socket connected to a backend that is not `avoid`.
    fn dial(
        &mut self,
        cx: &mut Cx,
        local: &Rc<Local>,
        client: SocketAddr,
        avoid: Option<SocketAddr>,
    ) -> Result<Upstream, DropReason> {
        let mut tried = Vec::from_iter(avoid);
        for _ in 0..MAX_TRIES {
            let Some(backend) = local.pick(cx, client, &tried) else {
                break;
            };
            match self.connect(cx, backend.address) {
                Ok(socket) => {
                    return Ok(Upstream {
                        socket,
                        backend,
                        local: Rc::clone(local),
                        largest_out: self.largest,
                        largest_back: self.largest,
                        pace: Pace::default(),
                    });
                }
                Err(Errno::MFILE | Errno::NFILE) => return Err(DropReason::DescriptorLimit),
                // udp(7) gives EAGAIN when no local port is left.
                Err(Errno::AGAIN | Errno::ADDRNOTAVAIL) => {
                    return Err(DropReason::PortsExhausted);
                }
                Err(errno) => match SendError::from(errno) {
                    SendError::Unreachable(why) => {
                        backend.failed(cx.now);
                        local.counters.connect_failed(why).add(1);
                        tried.push(backend.address);
                    }
                    SendError::Lost(reason) => return Err(reason),
                },
            }
        }
        Err(match tried.is_empty() {
            true => DropReason::NoBackend,
            false => DropReason::Refused,
        })
    }

    /// As [`udp::connect`]; out of descriptors or ports, the oldest unanswered flow gives its own.
    fn connect(&mut self, cx: &mut Cx, backend: SocketAddr) -> Result<OwnedFd, Errno> {
        let random = cx.rng.next();
        match udp::connect(backend, cx.sources.order(backend, random)) {
            Err(Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::ADDRNOTAVAIL)
                if self.shed(cx) =>
            {
                udp::connect(backend, cx.sources.order(backend, random))
            }
            result => result,
        }
    }

    fn shed(&mut self, cx: &mut Cx) -> bool {
        let shed = self.flows.shed(cx.now);
        let found = shed.is_some();
        if let Some(shed) = shed {
            self.end(cx, shed, CloseReason::Shed);
        }
        found
    }

    /// Sends datagrams to the flow's backend, run by run.
    ///
    /// The first that a backend gets goes alone: should it be refused at once, the next send hears
    /// of it, and the kept copy is all that was lost.
    fn forward(&mut self, cx: &mut Cx, local: &Local, flow: FlowId, pieces: &[Piece<'_>]) {
        let (mut runs, mut run) = (Runs::new(pieces), Run::default());
        loop {
            let here = runs.clone();
            let largest = match self.flows.has_sent(flow) {
                true => self.flows.part(flow).map_or(0, |u| u.largest_out),
                false => 0,
            };
            if !runs.next(largest, &mut run) {
                return;
            }
            match self.send(cx, flow, &run) {
                Ok(()) => {}
                // To be cut anew: singly now, or from now on.
                Err(NotSent::Apart) => runs = here,
                Err(NotSent::Dropped(reason)) => {
                    local.counters.dropped(reason).add(run.count as u64);
                }
            }
        }
    }

    /// Sends a run to the flow's backend. Where the call reports that an earlier datagram was
    /// refused, this one has not been sent: it goes to another backend, after the kept copy of
    /// the earlier one.
    fn send(&mut self, cx: &mut Cx, flow: FlowId, run: &Run<'_>) -> Result<(), NotSent> {
        for _ in 0..MAX_TRIES {
            let Some(upstream) = self.flows.part(flow) else {
                return Err(NotSent::Dropped(DropReason::NoFlow));
            };
            let socket = upstream.socket.as_fd();
            let sent = match run.count {
                1 => udp::send(socket, run.last()),
                _ => udp::send_run(socket, &run.slices, run.segment),
            };
            let Err(errno) = sent else {
                if self.flows.sent(flow, run.last()) {
                    cx.counters.copies_refused.add(1);
                }
                return Ok(());
            };
            if run.count > 1 && udp::is_unsegmentable(errno) {
                if let Some(upstream) = self.flows.part_mut(flow) {
                    upstream.largest_out = run.segment - 1;
                }
                return Err(NotSent::Apart);
            }
            match SendError::from(errno) {
                SendError::Lost(reason) => return Err(NotSent::Dropped(reason)),
                SendError::Unreachable(why) => {
                    let left = self.leave(cx, flow, why);
                    let moved = self.relocate(cx, flow, left.backend).is_ok();
                    if !moved {
                        // The only one there is: maybe it is back.
                        self.flows.stayed(flow);
                    }
                    match left.payload {
                        Some(copy) if moved => self.send_copy(cx, flow, &copy),
                        _ => self.count_lost(flow),
                    }
                    if run.count > 1 && !self.flows.has_sent(flow) {
                        return Err(NotSent::Apart);
                    }
                }
            }
        }
        Err(NotSent::Dropped(DropReason::Refused))
    }
}

/// Why a run was not sent.
enum NotSent {
    /// Its datagrams may well go, one by one or in smaller runs.
    Apart,
    /// They are lost.
    Dropped(DropReason),
}

/// Who refused, and what.
pub(super) struct Left {
    pub(super) backend: Option<SocketAddr>,
    pub(super) payload: Option<Vec<u8>>,
}

impl Driver {
    /// Notes that the flow's backend has refused, and takes the copy of what it refused.
    pub(super) fn leave(&mut self, cx: &Cx, flow: FlowId, why: ConnectError) -> Left {
        if let Some(upstream) = self.flows.part(flow) {
            upstream.backend.failed(cx.now);
            upstream.local.counters.connect_failed(why).add(1);
        }
        let refused = self.flows.refused(flow);
        Left {
            backend: refused.as_ref().map(|r| r.backend),
            payload: refused.and_then(|r| r.copy),
        }
    }

    /// Sends a kept datagram to the backend that the flow has moved to.
    pub(super) fn send_copy(&mut self, cx: &Cx, flow: FlowId, copy: &[u8]) {
        let Some(upstream) = self.flows.part(flow) else {
            return;
        };
        if udp::send(upstream.socket.as_fd(), copy).is_err() {
            self.count_lost(flow);
        } else if self.flows.resent(flow, copy) {
            cx.counters.copies_refused.add(1);
        }
    }

    /// A datagram was refused, and there is no copy of it or nobody else to send it to.
    pub(super) fn count_lost(&self, flow: FlowId) {
        if let Some(upstream) = self.flows.part(flow) {
            let counters = &upstream.local.counters;
            counters.dropped(DropReason::Refused).add(1);
        }
    }
}

fn watch(cx: &Cx, flow: FlowId, socket: &OwnedFd) -> Result<(), Errno> {
    cx.watch(socket.as_fd(), Token::new(Kind::Flow, flow), Interest::READ)
}
