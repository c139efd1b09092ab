//! From the client to the backend.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

use super::{Driver, SendError, Upstream};
use crate::flow::{Admission, FlowId, Refusal, Verdict};
use crate::stats::{CloseReason, ConnectError, DropReason};
use crate::sys::epoll::Interest;
use crate::sys::udp::{self, Datagram};
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
    /// A datagram has come in by a listener.
    pub(super) fn on_datagram(&mut self, cx: &mut Cx, local: &Rc<Local>, datagram: Datagram<'_>) {
        let Some(client) = datagram.from else {
            return; // an unconnected socket names every sender
        };
        self.last_used = cx.now;
        local.counters.datagrams_downstream.add(1);
        let bytes = datagram.payload.len() as u64;
        local.counters.bytes_downstream.add(bytes);
        let done = if datagram.truncated {
            Err(DropReason::TooLarge)
        } else {
            self.route(cx, local, client, datagram.payload)
        };
        if let Err(reason) = done {
            local.counters.dropped(reason).add(1);
        }
    }

    fn route(
        &mut self,
        cx: &mut Cx,
        local: &Rc<Local>,
        client: SocketAddr,
        payload: &[u8],
    ) -> Result<(), DropReason> {
        if cx.draining && !self.flows.contains(client, &**local) {
            return Err(DropReason::Draining);
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
        self.forward(cx, flow, payload)
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
        match udp::connect(backend) {
            Err(Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::ADDRNOTAVAIL)
                if self.shed(cx) =>
            {
                udp::connect(backend)
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

    /// Sends a datagram to the flow's backend. Where the call reports that an earlier one was
    /// refused, this one has not been sent: it goes to another backend, after the kept copy of
    /// the earlier one.
    fn forward(&mut self, cx: &mut Cx, flow: FlowId, payload: &[u8]) -> Result<(), DropReason> {
        for _ in 0..MAX_TRIES {
            let Some(upstream) = self.flows.part(flow) else {
                return Err(DropReason::NoFlow);
            };
            match udp::send(upstream.socket.as_fd(), payload).map_err(SendError::from) {
                Ok(()) => {
                    if self.flows.sent(flow, payload) {
                        cx.counters.copies_refused.add(1);
                    }
                    return Ok(());
                }
                Err(SendError::Lost(reason)) => return Err(reason),
                Err(SendError::Unreachable(why)) => {
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
                }
            }
        }
        Err(DropReason::Refused)
    }
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
