//! The descriptors that connections and flows may hold, and accept when there are none.
//!
//! All workers share one allowance. Each publishes what it holds (its counter, one writer), reads
//! the others' once a turn, and takes at most an even share of what is left in that turn: no
//! atomic read-modify-write, and an overdraft small enough for the reserve.
//!
//! Neither kind of traffic may have it all, or a flood of datagrams at one frontend would close
//! every TCP port, and idle connections every UDP one: flows stop at [`Use::Flow`]'s share,
//! connections at [`Use::Connection`]'s. Pipes have what connections cannot, and no more: bulk is
//! copied when there is none.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::local::Local;
use crate::stats::{CloseReason, Counter, WorkerCounters};
use crate::sys::socket;

/// What descriptors are held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A TCP connection: the client's socket and the backend's.
    Connection,
    /// A UDP flow: the backend's socket.
    Flow,
    /// A pipe that bulk is spliced through: both ends.
    Pipe,
}

impl Use {
    /// How many one holds.
    pub(crate) const fn count(self) -> u64 {
        match self {
            Use::Connection | Use::Pipe => 2,
            Use::Flow => 1,
        }
    }

    /// What all of a kind may hold, in percent of the allowance. Connections are the larger part
    /// of what a load balancer holds, and cannot be shed once they live; a flood of flows can.
    const fn percent(self) -> u64 {
        match self {
            Use::Connection => 95,
            Use::Flow => 60,
            Use::Pipe => 5,
        }
    }

    const ALL: [Use; 3] = [Use::Connection, Use::Flow, Use::Pipe];
}

/// Errors in a row of which each may mean that this caller is gone and the next is well. After so
/// many it is the listener that is not.
const MAX_ABORTED: usize = 64;

/// What [`Descriptors::accept`] found.
#[derive(Debug)]
pub(crate) enum Accepted {
    /// A connection; what it holds is taken from the budget, to be given back at its end.
    /// It counts as opened.
    Connection(OwnedFd, std::net::SocketAddr),
    /// One that there was no room for: accepted, reset and counted.
    Shed,
    /// Nobody waits (or nobody can be let in just now).
    Empty,
}

/// A pipe's descriptors. Whoever holds the pipe holds this beside it, on the worker's thread, and
/// drops it after: so no way for a pipe to end can forget them.
#[derive(Debug)]
pub(crate) struct Lease(Arc<WorkerCounters>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.pipe_descriptors.sub(Use::Pipe.count());
    }
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
    /// And of that for each use, in the order of [`Use::ALL`].
    share: [u64; 3],
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
            share: [0; 3],
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
        let sum = |counter: fn(&WorkerCounters) -> &Counter| -> u64 {
            self.workers.iter().map(|w| counter(w).value()).sum()
        };
        let held = sum(|w| &w.descriptors);
        let flows = sum(|w| &w.flow_descriptors);
        let pipes = sum(|w| &w.pipe_descriptors);
        self.room = self.even(self.allowance.saturating_sub(held + pipes));
        self.share = Use::ALL.map(|kind| {
            let held = match kind {
                Use::Connection => held.saturating_sub(flows),
                Use::Flow => flows,
                Use::Pipe => pipes,
            };
            // Rounded up: with a handful of descriptors each kind has at least one.
            let most = (self.allowance * kind.percent()).div_ceil(100);
            self.even(most.saturating_sub(held))
        });
        if self.reserve.is_none() {
            self.reserve = socket::placeholder().ok();
        }
    }

    /// Our part of `left`: rounded up, so that the last ones are not out of everyone's reach.
    fn even(&self, left: u64) -> u64 {
        let part = left.div_ceil(self.workers.len().max(1) as u64);
        let least = Use::Connection.count();
        if left >= least { part.max(least) } else { part }
    }

    /// Takes what one of `kind` holds, for sockets about to be opened; false if there is no room.
    pub(crate) fn take(&mut self, kind: Use) -> bool {
        let n = kind.count();
        if self.room < n || self.share[kind as usize] < n {
            return false;
        }
        self.room -= n;
        self.share[kind as usize] -= n;
        let counters = &self.workers[self.own];
        match kind {
            Use::Connection => counters.descriptors.add(n),
            Use::Flow => {
                counters.descriptors.add(n);
                counters.flow_descriptors.add(n);
            }
            Use::Pipe => counters.pipe_descriptors.add(n),
        }
        true
    }

    /// Takes what a pipe holds, for one about to be opened, unless this worker has `most` of them
    /// or there is no room. Given back by dropping the lease; seen from the next turn on.
    pub(crate) fn lease_pipe(&mut self, most: u32) -> Option<Lease> {
        let fits = self.pipes() < u64::from(most);
        (fits && self.take(Use::Pipe)).then(|| Lease(Arc::clone(&self.workers[self.own])))
    }

    /// How many pipes this worker has.
    pub(crate) fn pipes(&self) -> u64 {
        self.workers[self.own].pipe_descriptors.value() / Use::Pipe.count()
    }

    /// How many more it could have now, were it for descriptors alone.
    pub(crate) fn room_for_pipes(&self) -> u64 {
        self.room.min(self.share[Use::Pipe as usize]) / Use::Pipe.count()
    }

    /// Gives back what one of `kind` held: its sockets are closed.
    pub(crate) fn give(&mut self, kind: Use) {
        let n = kind.count();
        self.room += n;
        self.share[kind as usize] += n;
        let counters = &self.workers[self.own];
        match kind {
            Use::Connection => counters.descriptors.sub(n),
            Use::Flow => {
                counters.descriptors.sub(n);
                counters.flow_descriptors.sub(n);
            }
            Use::Pipe => counters.pipe_descriptors.sub(n),
        }
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
        if self.take(Use::Connection) {
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

    /// Of one worker, in the test below.
    const MOST_PIPES: u32 = 3;

    proptest! {
        /// Whatever the order of turns, takes and returns: what all hold together passes the
        /// allowance by no more than what was promised to turns begun before.
        #[test]
        fn the_allowance_holds(
            n in 1usize..5,
            allowance in 0u64..200,
            steps in prop::collection::vec((any::<u8>(), 0u8..4, 0usize..3), 1..200),
        ) {
            let mut workers = workers(n, allowance);
            let mut held = vec![[0u64; 3]; n];
            let mut pipes: Vec<Vec<Lease>> = (0..n).map(|_| Vec::new()).collect();
            for (who, what, kind) in steps {
                let who = usize::from(who) % n;
                let kind = Use::ALL[kind];
                let of_kind = kind as usize;
                match what {
                    // Every turn begins with this; all workers' are in step here.
                    0 => workers.iter_mut().for_each(Descriptors::begin_turn),
                    1 if held[who][of_kind] > 0 => {
                        match kind {
                            Use::Pipe => drop(pipes[who].pop()),
                            _ => workers[who].give(kind),
                        }
                        held[who][of_kind] -= kind.count();
                    }
                    _ => {
                        let taken = match kind {
                            Use::Pipe => {
                                let lease = workers[who].lease_pipe(MOST_PIPES);
                                let taken = lease.is_some();
                                pipes[who].extend(lease);
                                taken
                            }
                            _ => workers[who].take(kind),
                        };
                        if taken {
                            held[who][of_kind] += kind.count();
                        }
                    }
                }
                let overdraft = Use::Connection.count() * n as u64;
                let total: u64 = held.iter().flatten().sum();
                prop_assert!(total <= allowance + overdraft);
                let counted = workers[0].workers.iter();
                let counted = counted.map(|w| w.descriptors.value() + w.pipe_descriptors.value());
                prop_assert_eq!(counted.sum::<u64>(), total);
                for (held, worker) in held.iter().zip(workers[0].workers.iter()) {
                    let pipes = held[Use::Pipe as usize];
                    prop_assert_eq!(worker.pipe_descriptors.value(), pipes);
                    prop_assert!(pipes <= u64::from(MOST_PIPES) * Use::Pipe.count());
                }
                for kind in Use::ALL {
                    let total: u64 = held.iter().map(|h| h[kind as usize]).sum();
                    prop_assert!(total <= (allowance * kind.percent()).div_ceil(100) + overdraft);
                }
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
            while workers[2].take(Use::Flow) {
                held += 1;
            }
            while workers[2].take(Use::Connection) {
                held += 2;
            }
            turns += 1;
            assert!(turns < 60, "{held} after {turns} turns");
        }
        for full in [2, 0] {
            workers[full].begin_turn();
            assert!(!workers[full].take(Use::Flow) && !workers[full].take(Use::Connection));
        }
        workers[2].give(Use::Connection);
        workers[0].begin_turn();
        assert!(
            workers[0].take(Use::Connection),
            "the last ones are out of reach"
        );
    }

    #[test]
    fn neither_kind_of_traffic_can_have_it_all() {
        for (greedy, other) in [(Use::Flow, Use::Connection), (Use::Connection, Use::Flow)] {
            let mut worker = workers(1, 1_000).remove(0);
            let mut held = 0;
            for _ in 0..20 {
                worker.begin_turn();
                while worker.take(greedy) {
                    held += greedy.count();
                }
            }
            assert_eq!(held, 10 * greedy.percent());
            assert!(worker.take(other), "{greedy:?} left nothing for {other:?}");
        }
    }

    #[test]
    fn pipes_have_their_part_and_leave_the_others_theirs() {
        let mut worker = workers(1, 1_000).remove(0);
        let mut leases = Vec::new();
        for _ in 0..20 {
            worker.begin_turn();
            leases.extend(std::iter::from_fn(|| worker.lease_pipe(u32::MAX)));
        }
        assert_eq!(leases.len(), 25);
        let mut connections = 0;
        for _ in 0..20 {
            worker.begin_turn();
            while worker.take(Use::Connection) {
                connections += 1;
            }
        }
        assert_eq!(connections, 475, "pipes took what is not theirs");
        assert_eq!(worker.workers[0].descriptors.value(), 950);
        drop(leases);
        assert_eq!(worker.workers[0].pipe_descriptors.value(), 0);
        // And without room there is none.
        let mut worker = workers(1, 10).remove(0);
        worker.begin_turn();
        assert!(worker.lease_pipe(u32::MAX).is_none());
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
        let mut worker = workers(1, 5).remove(0);
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
        assert_eq!(worker.workers[0].descriptors.value(), 4);
    }
}
