//! Replies on their way to clients: received into one batch, sent by the listeners that they
//! belong to when the turn ends or the batch is full.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

use super::SendError;
use crate::stats::DropReason;
use crate::sys::udp::{self, BATCH, Batch};
use crate::worker::local::Local;

#[derive(Debug)]
struct Envelope {
    local: Rc<Local>,
    listener: Rc<OwnedFd>,
    client: SocketAddr,
}

/// Each datagram of the batch has its envelope; `None` for one that is not to be sent.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    batch: Batch,
    envelopes: Vec<Option<Envelope>>,
}

impl Outbox {
    /// How many more replies it takes before it must be flushed.
    pub(super) fn room(&self) -> usize {
        self.batch.room()
    }

    /// Takes up to `limit` replies from a flow's socket; [`Outbox::address`] or
    /// [`Outbox::discard`] must follow.
    ///
    /// # Errors
    ///
    /// As [`Batch::receive`].
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, limit: usize) -> Result<(), Errno> {
        self.batch.receive(socket, limit).map(drop)
    }

    /// Those just received go to `client`.
    pub(super) fn address(&mut self, local: &Rc<Local>, from: &Rc<OwnedFd>, client: SocketAddr) {
        for n in self.envelopes.len()..self.batch.len() {
            let datagram = self.batch.datagram(n);
            local.counters.datagrams_upstream.add(1);
            let bytes = datagram.payload.len() as u64;
            local.counters.bytes_upstream.add(bytes);
            if datagram.truncated {
                local.counters.dropped(DropReason::TooLarge).add(1);
                self.envelopes.push(None);
                continue;
            }
            self.envelopes.push(Some(Envelope {
                local: Rc::clone(local),
                listener: Rc::clone(from),
                client,
            }));
        }
    }

    /// Those just received go nowhere.
    pub(super) fn discard(&mut self, local: &Local, reason: DropReason) {
        let count = self.batch.len() - self.envelopes.len();
        local.counters.dropped(reason).add(count as u64);
        self.envelopes.resize_with(self.batch.len(), || None);
    }

    /// Sends everything, with one call for each listener. Replies of one flow keep their order.
    pub(super) fn flush(&mut self) {
        let socket = |n: usize| self.envelopes[n].as_ref().map(|e| Rc::as_ptr(&e.listener));
        let mut order: Vec<usize> = (0..self.envelopes.len()).collect();
        if !order.is_sorted_by_key(|&n| socket(n)) {
            order.sort_by_key(|&n| socket(n)); // stable
        }
        for run in order.chunk_by(|&a, &b| socket(a) == socket(b)) {
            self.send(run);
        }
        self.batch.clear();
        self.envelopes.clear();
    }

    /// Sends replies that leave by one listener.
    fn send(&self, run: &[usize]) {
        let mut datagrams: Vec<(SocketAddr, &[u8])> = Vec::with_capacity(BATCH);
        let mut envelopes = Vec::with_capacity(BATCH);
        for &n in run {
            if let Some(envelope) = &self.envelopes[n] {
                datagrams.push((envelope.client, self.batch.datagram(n).payload));
                envelopes.push(envelope);
            }
        }
        let mut done = 0;
        while let Some(envelope) = envelopes.get(done) {
            match udp::send_to(envelope.listener.as_fd(), &datagrams[done..]) {
                Ok(sent) => done += sent,
                Err(errno) => {
                    let reason = match SendError::from(errno) {
                        SendError::Lost(reason) => reason,
                        SendError::Unreachable(_) => DropReason::SendFailed,
                    };
                    envelope.local.counters.dropped(reason).add(1);
                    done += 1;
                }
            }
        }
    }
}
