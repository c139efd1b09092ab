//! What a worker lends its drivers for the length of a call.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;

use rustix::io::Errno;

use super::descriptors::{Accepted, Descriptors};
use super::local::Local;
use super::pipes::{self, Pipes};
use super::room::Room;
use super::sources::Sources;
use super::token::Token;
use crate::balance::HashKey;
use crate::plane::Limits;
use crate::stats::WorkerCounters;
use crate::sys::epoll::{Interest, Poller};
use crate::time::Time;
use crate::timer::Wheel;

/// Size of the scratch buffer in bytes: the largest datagram, and a full socket read of what the
/// copy path moves at once.
pub(crate) const SCRATCH: usize = 128 << 10;

/// The parts of a worker that every driver uses. One per worker, on its thread.
pub(crate) struct Cx {
    /// The time as this turn sees it: read at its start, and again every few events.
    pub(crate) now: Time,
    poller: Poller,
    /// Fires by `on_timer` of the driver that the token's kind names.
    pub(crate) timers: Wheel<Token>,
    /// What this worker counts for itself.
    pub(crate) counters: Arc<WorkerCounters>,
    /// What may still be opened.
    pub(crate) descriptors: Descriptors,
    /// What memory allows.
    pub(crate) room: Room,
    /// What bulk is spliced through.
    pub(crate) pipes: Pipes,
    /// Not for secrets.
    pub(crate) rng: Rng,
    /// [`SCRATCH`] bytes for the length of one call; nobody's contents outlive it.
    pub(crate) scratch: Box<[u8]>,
    /// The key of the table that this turn runs.
    pub(crate) hash_key: HashKey,
    /// The key of this worker's own maps: clients cannot know it, and no other worker needs it.
    pub(crate) pin_key: HashKey,
    /// What the process allows itself.
    pub(crate) limits: Rc<Limits>,
    /// Where backends are dialled from.
    pub(crate) sources: Sources,
    /// New work is refused: the live is finished.
    pub(crate) draining: bool,
}

impl Cx {
    pub(super) fn new(
        now: Time,
        poller: Poller,
        descriptors: Descriptors,
        counters: Arc<WorkerCounters>,
        hash_key: HashKey,
        limits: Rc<Limits>,
        seed: u64,
    ) -> Cx {
        let mut rng = Rng(seed);
        Cx {
            now,
            poller,
            timers: Wheel::new(now),
            counters,
            descriptors,
            room: Room::new(),
            pipes: Pipes::new(pipes::SIZE),
            pin_key: HashKey(rng.bytes()),
            rng,
            scratch: vec![0; SCRATCH].into(),
            hash_key,
            sources: Sources::new(&limits.source_addresses),
            limits,
            draining: false,
        }
    }

    /// Begins to watch `fd` under `token`.
    ///
    /// # Errors
    /// As [`Poller::add`].
    pub(crate) fn watch(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
    ) -> Result<(), Errno> {
        self.poller.add(fd, token.bits(), interest)
    }

    /// Changes what `fd` is watched for.
    ///
    /// # Errors
    /// ENOENT for one that is not watched.
    pub(crate) fn rewatch(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
    ) -> Result<(), Errno> {
        self.poller.modify(fd, token.bits(), interest)
    }

    /// Ends watching `fd`; needed only while another copy of the descriptor stays open.
    pub(crate) fn unwatch(&self, fd: BorrowedFd<'_>) {
        // That it was not watched is as good.
        let _ = self.poller.remove(fd);
    }

    /// Is there memory for one more connection or flow?
    pub(crate) fn has_place(&self) -> bool {
        self.room.has_place(&self.counters)
    }

    /// The next connection at `listener`, if there is room for it.
    pub(super) fn accept(&mut self, local: &Local, listener: BorrowedFd<'_>) -> Accepted {
        match self.has_place() {
            true => self.descriptors.accept(local, listener),
            false => Accepted::Empty,
        }
    }

    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough chance to balance by, and no system call.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    /// 16 random bytes.
    fn bytes(&mut self) -> [u8; 16] {
        (u128::from(self.next()) << 64 | u128::from(self.next())).to_le_bytes()
    }
}
