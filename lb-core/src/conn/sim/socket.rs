//! One socket of ours, as Linux keeps it, and the peer behind it.

use crate::chance::Chance;
use crate::conn::Cause;

/// How a peer ends its stream, after all its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Fin,
    Reset,
    FinThenReset,
    Vanish,
    Silence,
}

/// What a receive took from the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// So many bytes.
    Bytes(u64),
    /// Nothing: a FIN, or the end of the queue of a dead socket.
    End,
    /// The socket's error.
    Failed(Cause),
}

#[derive(Debug)]
pub(super) struct Socket {
    ending: Ending,
    /// Bytes the peer has yet to send.
    pub(super) to_come: u64,
    /// In the receive queue.
    pub(super) queue: u64,
    pub(super) fin_arrived: bool,
    /// sk_err: taken by whoever asks first.
    pub(super) error: Option<Cause>,
    /// RST or timeout: nothing can be sent any more.
    pub(super) dead: bool,
    /// By its peer, or by the network.
    pub(super) was_reset: bool,
    /// We read the FIN.
    pub(super) fin_read: bool,
    /// Taken from the receive queue in all.
    pub(super) read: u64,
    /// In the send queue, not acknowledged.
    pub(super) unacked: u64,
    /// Taken by the send queue in all.
    pub(super) written: u64,
    /// What the send queue holds at most.
    room: u64,
    pub(super) fin_sent: bool,
    /// The peer acknowledges nothing any more.
    pub(super) stalled: bool,
}

impl Socket {
    pub(super) fn new(chance: &mut Chance<'_>) -> Socket {
        let ending = match chance.below(10) {
            0..=3 => Ending::Fin,
            4..=5 => Ending::Reset,
            6..=7 => Ending::FinThenReset,
            8 => Ending::Vanish,
            _ => Ending::Silence,
        };
        Socket {
            ending,
            to_come: chance.below(4) * chance.below(100_000) / 4,
            queue: 0,
            fin_arrived: false,
            error: None,
            dead: false,
            was_reset: false,
            fin_read: false,
            read: 0,
            unacked: 0,
            written: 0,
            room: 1 + chance.below(100_000) / 4,
            fin_sent: false,
            stalled: chance.percent(5),
        }
    }

    /// The peer, or the network, does something.
    pub(super) fn progress(&mut self, chance: &mut Chance<'_>) {
        if self.dead {
            return;
        }
        if !self.stalled && self.unacked > 0 && chance.percent(60) {
            self.unacked -= 1 + chance.below(self.unacked);
        }
        if self.to_come > 0 {
            let n = 1 + chance.below(self.to_come);
            self.to_come -= n;
            self.queue += n;
            return;
        }
        match self.ending {
            Ending::Fin => self.fin_arrived = true,
            Ending::FinThenReset if !self.fin_arrived => self.fin_arrived = true,
            Ending::FinThenReset | Ending::Reset => {
                // tcp_reset(): EPIPE in CLOSE-WAIT, ECONNRESET in all other states, also in the
                // one after our own FIN.
                let cause = match self.fin_arrived && !self.fin_sent {
                    true => Cause::BrokenPipe,
                    false => Cause::Reset,
                };
                self.die(cause);
            }
            Ending::Vanish => self.die(Cause::TimedOut),
            Ending::Silence => {}
        }
    }

    fn die(&mut self, cause: Cause) {
        self.dead = true;
        self.was_reset = true;
        self.error = Some(cause);
        self.unacked = 0;
    }

    /// recv(2) of up to `most`, in the order of tcp_recvmsg: queue, FIN, error, end. `None`: not
    /// yet.
    pub(super) fn receive(&mut self, most: u64, chance: &mut Chance<'_>) -> Option<Taken> {
        if self.queue > 0 {
            let n = 1 + chance.below(self.queue.min(most));
            self.queue -= n;
            self.read += n;
            return Some(Taken::Bytes(n));
        }
        if self.fin_arrived {
            self.fin_read = true;
            return Some(Taken::End);
        }
        if let Some(cause) = self.error.take() {
            return Some(Taken::Failed(cause));
        }
        self.dead.then_some(Taken::End)
    }

    /// send(2) of `waiting` bytes, of which it may take fewer. `None`: not yet.
    pub(super) fn send(
        &mut self,
        waiting: u64,
        chance: &mut Chance<'_>,
    ) -> Option<Result<u64, Cause>> {
        if self.dead {
            return Some(Err(self.error.take().unwrap_or(Cause::BrokenPipe)));
        }
        let room = self.room.saturating_sub(self.unacked).min(waiting);
        if room == 0 {
            return None;
        }
        let n = 1 + chance.below(room);
        self.unacked += n;
        self.written += n;
        Some(Ok(n))
    }
}
