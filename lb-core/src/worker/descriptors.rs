//! The descriptors that connections and flows may hold, and accept when there are none.
//!
//! All workers share one allowance. Each publishes what it holds (its counter, one writer), reads
//! the others' once a turn, and takes at most an even share of what is left in that turn: no
//! atomic read-modify-write, and an overdraft small enough for the reserve.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::local::Local;
use crate::stats::{CloseReason, WorkerCounters};
use crate::sys::socket;

/// Descriptors that a TCP connection holds: the client's socket and the backend's.
pub(crate) const PER_CONNECTION: u64 = 2;
/// Errors in a row of which each may mean that this caller is gone and the next is well. After so
/// many it is the listener that is not.
const MAX_ABORTED: usize = 64;

/// What [`Descriptors::accept`] found.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection; [`PER_CONNECTION`] are taken from the budget, to be given back at its end.
    /// It counts as opened.
    Connection(OwnedFd, std::net::SocketAddr),
    /// One that there was no room for: accepted, reset and counted.
    Shed,
    /// Nobody waits (or nobody can be let in just now).
    Empty,
}

/// One worker's view of the allowance.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// Of every worker; ours is at `own`.
    workers: Arc<[Arc<WorkerCounters>]>,
    own: usize,
    /// What all workers together may hold.
    allowance: u64,
    /// What we may still take in this turn.
    room: u64,
    /// Held so that it can be let go when there is no other: the only way to take a caller off
    /// the queue and tell him, once the process may open nothing more.
    reserve: Option<OwnedFd>,
    /// Neither accept nor the reserve works: listeners must rest for a while.
    exhausted: bool,
}

impl Descriptors {
    pub(crate) fn new(
        workers: Arc<[Arc<WorkerCounters>]>,
        own: usize,
    ) -> Result<Descriptors, Errno> {
        Ok(Descriptors {
            workers,
            own,
            allowance: 0,
            room: 0,
            reserve: Some(socket::placeholder()?),
            exhausted: false,
        })
    }

    /// Sets what all workers together may hold.
    pub(super) fn allow(&mut self, allowance: u64) {
        self.allowance = allowance;
    }

    /// At the start of a turn: sees what the others hold.
    pub(super) fn begin_turn(&mut self) {
        let held: u64 = self.workers.iter().map(|w| w.descriptors.value()).sum();
        let left = self.allowance.saturating_sub(held);
        // Rounded up, so that the last ones are not out of everyone's reach.
        self.room = left.div_ceil(self.workers.len().max(1) as u64);
        if left >= PER_CONNECTION {
            self.room = self.room.max(PER_CONNECTION);
        }
        if self.reserve.is_none() {
            self.reserve = socket::placeholder().ok();
        }
    }

    /// Takes `n` for sockets about to be opened; false if there is no room for them.
    pub(crate) fn take(&mut self, n: u64) -> bool {
        if self.room < n {
            return false;
        }
        self.room -= n;
        self.workers[self.own].descriptors.add(n);
        true
    }

    /// Gives back `n` that are closed.
    pub(crate) fn give(&mut self, n: u64) {
        self.room += n;
        self.workers[self.own].descriptors.sub(n);
    }

    /// The next connection at `listener`, if there is room for it. Past the budget, or the
    /// kernel's limits, the newest is shed: what lives is not touched.
    pub(crate) fn accept(&mut self, local: &Local, listener: BorrowedFd<'_>) -> Accepted {
        for _ in 0..MAX_ABORTED {
            match socket::accept(listener) {
                Ok((socket, client)) => return self.admit(local, socket, client),
                Err(Errno::AGAIN) => return Accepted::Empty,
                Err(Errno::MFILE | Errno::NFILE) => return self.shed_by_reserve(local, listener),
                // accept(2): the caller's own error, or the network's; the next may be well.
                Err(_) => {}
            }
        }
        // No memory, or a listener that was shut from outside: it stays readable and would spin.
        self.exhausted = true;
        Accepted::Empty
    }

    fn admit(&mut self, local: &Local, socket: OwnedFd, client: std::net::SocketAddr) -> Accepted {
        local.counters.connections_opened.add(1);
        if self.take(PER_CONNECTION) {
            return Accepted::Connection(socket, client);
        }
        local.counters.closed(CloseReason::DescriptorLimit).add(1);
        self.workers[self.own].shed_budget.add(1);
        socket::reset(socket);
        Accepted::Shed
    }

    /// EMFILE or ENFILE: the caller at the head of the queue would make the listener readable for
    /// ever. Let the reserve go, take him, reset him, and take the reserve back.
    fn shed_by_reserve(&mut self, local: &Local, listener: BorrowedFd<'_>) -> Accepted {
        self.reserve = None;
        let taken = socket::accept(listener);
        let found = match taken {
            Ok((socket, _)) => {
                local.counters.connections_opened.add(1);
                local.counters.closed(CloseReason::DescriptorLimit).add(1);
                self.workers[self.own].shed_exhausted.add(1);
                socket::reset(socket);
                Accepted::Shed
            }
            Err(errno) => {
                // Another thread was quicker to the place that we let go.
                self.exhausted |= matches!(errno, Errno::MFILE | Errno::NFILE);
                Accepted::Empty
            }
        };
        self.reserve = socket::placeholder().ok();
        found
    }

    /// Must listeners rest, because accept can only fail? Asked once.
    pub(super) fn take_exhausted(&mut self) -> bool {
        std::mem::take(&mut self.exhausted)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::TcpStream;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::table::Slot;
    use crate::worker::testing;

    fn workers(n: usize, allowance: u64) -> Vec<Descriptors> {
        let counters: Arc<[_]> = (0..n)
            .map(|_| Arc::new(WorkerCounters::default()))
            .collect();
        (0..n)
            .map(|own| {
                let mut worker = Descriptors::new(Arc::clone(&counters), own).expect("a spare");
                worker.allow(allowance);
                worker
            })
            .collect()
    }

    proptest! {
        /// Whatever the order of turns, takes and returns: what all hold together passes the
        /// allowance by no more than what was promised to turns begun before.
        #[test]
        fn the_allowance_holds(
            n in 1usize..5,
            allowance in 0u64..60,
            steps in prop::collection::vec((any::<u8>(), 0u8..4, 1u64..3), 1..200),
        ) {
            let mut workers = workers(n, allowance);
            let mut held = vec![0; n];
            for (who, what, amount) in steps {
                let who = usize::from(who) % n;
                match what {
                    // Every turn begins with this; all workers' are in step here.
                    0 => workers.iter_mut().for_each(Descriptors::begin_turn),
                    1 if held[who] >= amount => {
                        workers[who].give(amount);
                        held[who] -= amount;
                    }
                    _ => {
                        if workers[who].take(amount) {
                            held[who] += amount;
                        }
                    }
                }
                let total: u64 = held.iter().sum();
                prop_assert!(total <= allowance + PER_CONNECTION * n as u64);
            }
        }
    }

    #[test]
    fn one_worker_may_take_everything_in_a_few_turns() {
        let mut workers = workers(4, 1_001);
        let mut turns = 0;
        let mut held = 0;
        while held < 1_001 {
            workers[2].begin_turn();
            while workers[2].take(1) {
                held += 1;
            }
            turns += 1;
            assert!(turns < 40, "{held} after {turns} turns");
        }
        workers[2].begin_turn();
        assert!(!workers[2].take(1));
        workers[0].begin_turn();
        assert!(!workers[0].take(1));
        workers[2].give(2);
        workers[0].begin_turn();
        assert!(workers[0].take(2), "the last ones are out of reach");
    }

    #[test]
    fn a_listener_whose_every_accept_fails_rests() {
        let spec = testing::spec("127.0.0.1:1", &[]);
        let table = testing::table(&[spec]);
        let local = Local::new(Slot(0), table.get(Slot(0)).expect("one frontend"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        listener.set_nonblocking(true).expect("an option");
        let mut worker = workers(1, 10).remove(0);
        worker.begin_turn();
        let found = worker.accept(&local, listener.as_fd());
        assert!(matches!(found, Accepted::Empty));
        assert!(!worker.take_exhausted(), "nobody waits, and that is well");
        // As `ss -K` does.
        let socket = socket2::SockRef::from(&listener);
        socket.shutdown(std::net::Shutdown::Both).expect("listens");
        assert!(socket::is_readable(listener.as_fd()));
        let found = worker.accept(&local, listener.as_fd());
        assert!(matches!(found, Accepted::Empty));
        assert!(worker.take_exhausted());
    }

    #[test]
    fn past_the_budget_the_newest_is_reset_and_counted() {
        let spec = testing::spec("127.0.0.1:1", &[]);
        let table = testing::table(&[spec]);
        let local = Local::new(Slot(0), table.get(Slot(0)).expect("one frontend"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        listener.set_nonblocking(true).expect("an option");
        let address = listener.local_addr().expect("its address");
        let mut callers: Vec<_> = (0..3)
            .map(|_| TcpStream::connect(address).expect("it listens"))
            .collect();
        let mut worker = workers(1, 2 * PER_CONNECTION + 1).remove(0);
        worker.begin_turn();
        let mut accept = || worker.accept(&local, listener.as_fd());
        let (first, second) = (accept(), accept());
        assert!(matches!(first, Accepted::Connection(..)));
        assert!(matches!(second, Accepted::Connection(..)));
        assert!(matches!(accept(), Accepted::Shed));
        assert!(matches!(accept(), Accepted::Empty));
        let patience = Some(Duration::from_secs(10));
        callers[2].set_read_timeout(patience).expect("an option");
        let reset = callers[2].read(&mut [0; 1]).expect_err("it was shed");
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
        assert_eq!(local.counters.connections_opened.value(), 3);
        assert_eq!(
            local.counters.closed(CloseReason::DescriptorLimit).value(),
            1
        );
        assert_eq!(worker.workers[0].shed_budget.value(), 1);
        assert_eq!(worker.workers[0].descriptors.value(), 2 * PER_CONNECTION);
    }
}
