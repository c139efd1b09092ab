//! Replies on their way to clients: received into one batch, sent by the listeners that they
//! belong to when the turn ends or the batch is full.

use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::io::Errno;

use super::runs::{Piece, Run, Runs};
use super::{SendError, Upstream};
use crate::flow::{FlowId, Flows};
use crate::stats::DropReason;
use crate::sys::udp::{self, BATCH, Batch, Draft, Sheet};
use crate::worker::local::Local;

/// Replies of one flow that were received together.
#[derive(Debug)]
struct Envelope {
    local: Rc<Local>,
    listener: Rc<OwnedFd>,
    client: SocketAddr,
    flow: FlowId,
    /// Which of the batch.
    replies: Range<usize>,
}

/// What one message of a sheet is.
struct Stub<'p, 'a> {
    envelope: &'p Envelope,
    /// Where its run begins.
    here: Runs<'p, 'a>,
    segment: usize,
    count: usize,
}

#[derive(Debug)]
pub(super) struct Outbox {
    batch: Batch,
    sheet: Sheet,
    /// Of all that is in the batch but what goes nowhere.
    envelopes: Vec<Envelope>,
    /// How many of the batch have their envelope, or go nowhere.
    addressed: usize,
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox {
            batch: Batch::without_senders(),
            sheet: Sheet::default(),
            envelopes: Vec::with_capacity(BATCH),
            addressed: 0,
        }
    }
}

impl Outbox {
    /// How many more receives it takes before it must be flushed.
    pub(super) fn room(&self) -> usize {
        self.batch.room()
    }

    /// Receives up to `limit` times from a flow's socket; [`Outbox::address`] or
    /// [`Outbox::discard`] must follow. Returns how often.
    ///
    /// # Errors
    ///
    /// As [`Batch::receive`].
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>, limit: usize) -> Result<usize, Errno> {
        self.batch.receive(socket, limit).map(|got| got.len())
    }

    /// As [`Outbox::receive`], once; `joins` if [`udp::join_received`] was called for the socket.
    pub(super) fn receive_one(
        &mut self,
        socket: BorrowedFd<'_>,
        joins: bool,
    ) -> Result<usize, Errno> {
        match joins {
            true => self.batch.receive_joined(socket),
            false => self.batch.receive_one(socket),
        }
        .map(|()| 1)
    }

    /// Those just received go to `client`.
    pub(super) fn address(
        &mut self,
        local: &Rc<Local>,
        listener: Rc<OwnedFd>,
        client: SocketAddr,
        flow: FlowId,
    ) {
        let replies = self.addressed..self.batch.len();
        self.addressed = self.batch.len();
        let (mut count, mut bytes, mut too_large) = (0, 0, 0);
        for n in replies.clone() {
            let piece = piece(&self.batch, n);
            count += piece.count() as u64;
            bytes += piece.bytes() as u64;
            if self.batch.datagram(n).truncated {
                too_large += piece.count() as u64;
            }
        }
        if too_large > 0 {
            local.counters.dropped(DropReason::TooLarge).add(too_large);
        }
        local.counters.datagrams_upstream.add(count);
        local.counters.bytes_upstream.add(bytes);
        self.envelopes.push(Envelope {
            local: Rc::clone(local),
            listener,
            client,
            flow,
            replies,
        });
    }

    /// Those just received go nowhere.
    pub(super) fn discard(&mut self, local: &Local, reason: DropReason) {
        let replies = self.addressed..self.batch.len();
        self.addressed = self.batch.len();
        let count: usize = replies.map(|n| piece(&self.batch, n).count()).sum();
        local.counters.dropped(reason).add(count as u64);
    }

    /// Sends everything, with as few calls as may be for each listener. Replies of one flow keep
    /// their order.
    pub(super) fn flush(&mut self, flows: &mut Flows<Upstream>) {
        let socket = |envelope: &Envelope| Rc::as_ptr(&envelope.listener);
        let mut envelopes = std::mem::take(&mut self.envelopes);
        if !envelopes.is_sorted_by_key(socket) {
            envelopes.sort_by_key(socket); // stable
        }
        for envelopes in envelopes.chunk_by(|a, b| socket(a) == socket(b)) {
            self.send(envelopes, flows);
        }
        envelopes.clear();
        self.envelopes = envelopes;
        self.batch.clear();
        self.addressed = 0;
    }

    /// Sends replies that leave by one listener.
    fn send(&mut self, envelopes: &[Envelope], flows: &mut Flows<Upstream>) {
        let Outbox { batch, sheet, .. } = self;
        let mut pieces = Vec::with_capacity(BATCH);
        let mut ranges = Vec::with_capacity(envelopes.len());
        for envelope in envelopes {
            let first = pieces.len();
            let whole = envelope.replies.clone();
            let whole = whole.filter(|&n| !batch.datagram(n).truncated);
            pieces.extend(whole.map(|n| piece(batch, n)));
            ranges.push(first..pieces.len());
        }
        let (mut run, mut stubs) = (Run::default(), Vec::with_capacity(BATCH));
        let mut draft = sheet.start();
        for (envelope, range) in envelopes.iter().zip(ranges) {
            let mut runs = Runs::new(&pieces[range]);
            let largest = flows.part(envelope.flow).map_or(0, |u| u.largest_back);
            loop {
                let here = runs.clone();
                if !runs.next(largest, &mut run) {
                    break;
                }
                let segment = (run.count > 1).then_some(run.segment);
                draft.add(envelope.client, &run.slices, segment);
                stubs.push(Stub {
                    envelope,
                    here,
                    segment: run.segment,
                    count: run.count,
                });
                if draft.is_full() {
                    post(&mut draft, &stubs, flows);
                    draft.clear();
                    stubs.clear();
                }
            }
        }
        post(&mut draft, &stubs, flows);
    }
}

fn piece(batch: &Batch, n: usize) -> Piece<'_> {
    let datagram = batch.datagram(n);
    Piece::new(datagram.payload, datagram.segment)
}

/// Sends the messages of `draft`, which are what `stubs` say.
fn post(draft: &mut Draft<'_, '_>, stubs: &[Stub<'_, '_>], flows: &mut Flows<Upstream>) {
    let mut done = 0;
    while let Some(stub) = stubs.get(done) {
        match draft.send(stub.envelope.listener.as_fd(), done) {
            Ok(sent) => done += sent,
            Err(errno) => {
                if stub.count > 1 && udp::is_unsegmentable(errno) {
                    if let Some(upstream) = flows.part_mut(stub.envelope.flow) {
                        upstream.largest_back = stub.segment - 1;
                    }
                    stub.send_singly();
                } else {
                    stub.envelope.count_lost(errno, stub.count);
                }
                done += 1;
            }
        }
    }
}

impl Stub<'_, '_> {
    /// Its datagrams one by one: the device or the route takes them only so.
    fn send_singly(&self) {
        let (mut sheet, mut run) = (Sheet::default(), Run::default());
        self.here.clone().next(self.segment, &mut run);
        let mut draft = sheet.start();
        run.datagrams()
            .for_each(|datagram| draft.add(self.envelope.client, &[datagram], None));
        let mut done = 0;
        while done < draft.len() {
            match draft.send(self.envelope.listener.as_fd(), done) {
                Ok(sent) => done += sent,
                Err(errno) => {
                    self.envelope.count_lost(errno, 1);
                    done += 1;
                }
            }
        }
    }
}

impl Envelope {
    fn count_lost(&self, errno: Errno, count: usize) {
        let reason = match SendError::from(errno) {
            SendError::Lost(reason) => reason,
            SendError::Unreachable(_) => DropReason::SendFailed,
        };
        self.local.counters.dropped(reason).add(count as u64);
    }
}
