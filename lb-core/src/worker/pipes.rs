//! The pipes of one worker, through which it splices bulk.
//!
//! Owned by a worker, used on its thread, by whichever driver moves TCP bytes. A pipe is taken to
//! be filled and comes back as soon as it is empty: so one pipe serves any number of connections
//! whose receivers keep up, and only what waits for a slow receiver holds one. One that still holds
//! bytes is never pooled: dropped, it is closed, and its bytes with it. When slow receivers hold
//! more than half of what there may be, less is taken at a time and what waits is copied out
//! ([`Pipes::keep`]): they cannot take bulk's pipes from the others.
//!
//! Spare pipes that a second had no use for are closed.
//!
//! No pipe is no error: there may be no descriptor left, or the user may have used up the pages
//! that the kernel lets it have in pipes (fs.pipe-user-pages-soft). Then bulk is copied.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;

use super::descriptors::{Descriptors, Lease};
use crate::sys::pipe::Pipe;
use crate::time::Time;

/// What a pipe shall hold, in bytes.
pub(crate) const SIZE: usize = 256 << 10;
/// One that holds less costs more calls than a copy does.
const LEAST: usize = 64 << 10;
/// Pipes that exist at once, full and spare: 64 MiB of the kernel's pages, and as many pipes as a
/// user without privileges may have of this size (fs.pipe-user-pages-soft is 16,384 pages).
const MOST: u32 = 256;
/// Spare pipes kept: a turn needs one at a time, and more only while receivers are slow by turns.
const SPARE: usize = 16;
/// After the kernel refused a pipe, it is not asked again for this long.
const PAUSE: Duration = Duration::from_secs(1);

/// The spare pipes of one worker, and how many there may be.
#[derive(Debug)]
pub(crate) struct Pipes {
    spare: Vec<Bulk>,
    /// The fewest that were spare since the last [`Pipes::tidy`].
    unused: usize,
    /// The kernel is not asked for another pipe before.
    pause_ends: Time,
    /// What is asked for, in bytes.
    size: usize,
}

/// Bytes on their way, in a pipe.
#[derive(Debug)]
pub(crate) struct Bulk {
    pipe: Pipe,
    held: u32,
    /// Its two descriptors, accounted for until it is dropped.
    _lease: Lease,
}

/// What [`Pipes::fill`] found.
#[derive(Debug)]
pub(crate) enum Filled {
    /// Bytes, at least one. The socket may have more, whatever their number.
    Bytes(Bulk),
    /// The socket has nothing that could be spliced: nothing, a FIN, or an urgent mark next. Only
    /// a receive can tell these apart.
    Nothing,
    /// There is no pipe to be had: copy.
    NoPipe,
    /// What a receive would say, other than EAGAIN.
    Failed(Errno),
}

/// Where bytes wait.
#[derive(Debug)]
pub(crate) enum Kept {
    Piped(Bulk),
    Copied(Box<[u8]>),
}

impl Pipes {
    /// Of which each shall hold `size` bytes: [`SIZE`].
    pub(crate) fn new(size: usize) -> Pipes {
        Pipes {
            spare: Vec::new(),
            unused: 0,
            pause_ends: Time::ZERO,
            size,
        }
    }

    /// Moves what `from` has into a pipe, as far as it has room.
    pub(crate) fn fill(
        &mut self,
        descriptors: &mut Descriptors,
        now: Time,
        from: BorrowedFd<'_>,
    ) -> Filled {
        let Some(mut bulk) = self.take(descriptors, now) else {
            return Filled::NoPipe;
        };
        let most = match self.is_short(descriptors) {
            true => LEAST,
            false => bulk.pipe.size(),
        };
        match bulk.pipe.fill(from, most) {
            Ok(n @ 1..) => {
                bulk.held = n as u32;
                Filled::Bytes(bulk)
            }
            Ok(0) | Err(Errno::AGAIN) => {
                self.give(bulk);
                Filled::Nothing
            }
            // Not a socket that can be spliced, or no memory for it: a copy may do.
            Err(Errno::INVAL | Errno::NOMEM) => {
                self.give(bulk);
                self.pause_ends = now + PAUSE;
                Filled::NoPipe
            }
            Err(errno) => {
                self.give(bulk);
                Filled::Failed(errno)
            }
        }
    }

    /// Takes a pipe back. One that still holds bytes is closed, and they are gone.
    pub(crate) fn give(&mut self, bulk: Bulk) {
        if bulk.held == 0 && self.spare.len() < SPARE {
            self.spare.push(bulk);
        }
    }

    /// What to do with bytes that wait for their receiver: they stay in their pipe, or are copied
    /// out of it (at most [`LEAST`] bytes), when pipes are short.
    ///
    /// # Errors
    /// As [`Bulk::read_out`]; the bytes are lost.
    pub(crate) fn keep(
        &mut self,
        descriptors: &Descriptors,
        mut bulk: Bulk,
    ) -> Result<Kept, Errno> {
        if bulk.held as usize > LEAST || !self.is_short(descriptors) {
            return Ok(Kept::Piped(bulk));
        }
        let bytes = bulk.read_out()?;
        self.give(bulk);
        Ok(Kept::Copied(bytes))
    }

    /// Do slow receivers hold more pipes than there are left?
    fn is_short(&self, descriptors: &Descriptors) -> bool {
        let spare = self.spare.len() as u64;
        let open = descriptors.pipes();
        let more = descriptors.room_for_pipes();
        let left = spare + more.min(u64::from(MOST).saturating_sub(open));
        open.saturating_sub(spare) > left
    }

    /// Closes the spare pipes that nobody had a use for since the last call: without bulk there
    /// are none after two.
    pub(crate) fn tidy(&mut self) {
        self.spare.truncate(self.spare.len() - self.unused);
        self.unused = self.spare.len();
    }

    /// An empty pipe.
    fn take(&mut self, descriptors: &mut Descriptors, now: Time) -> Option<Bulk> {
        let spare = self.spare.pop();
        self.unused = self.unused.min(self.spare.len());
        spare.or_else(|| self.open(descriptors, now))
    }

    fn open(&mut self, descriptors: &mut Descriptors, now: Time) -> Option<Bulk> {
        if now < self.pause_ends {
            return None;
        }
        let lease = descriptors.lease_pipe(MOST)?;
        match Pipe::new(self.size) {
            Ok(pipe) if pipe.size() >= LEAST => Some(Bulk {
                pipe,
                held: 0,
                _lease: lease,
            }),
            Ok(_) | Err(_) => {
                self.pause_ends = now + PAUSE;
                None
            }
        }
    }
}

impl Bulk {
    /// How many bytes it holds.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Moves what it holds into `to`, as far as there is room; how much that was.
    ///
    /// # Errors
    /// EAGAIN when there is no room; what a send would say.
    pub(crate) fn drain(&mut self, to: BorrowedFd<'_>) -> Result<usize, Errno> {
        let n = self.pipe.drain(to, self.held as usize)?;
        self.held = self.held.saturating_sub(n as u32);
        Ok(n)
    }

    /// Takes all that it holds out into memory.
    ///
    /// # Errors
    /// None that a pipe of which we hold both ends gives; it cannot be used any more then.
    pub(crate) fn read_out(&mut self) -> Result<Box<[u8]>, Errno> {
        let mut bytes = vec![0; self.held as usize];
        let mut at = 0;
        while at < bytes.len() {
            let n = self.pipe.read(&mut bytes[at..])?;
            at += n;
        }
        self.held = 0;
        Ok(bytes.into())
    }
}

/// What a send's error means on a socket whose last splice was cut short. EPIPE, which says "reset
/// after its FIN" of a socket that nothing was hidden from, may there be a reset whose error the
/// splice took: it is one, for a reset must not become a FIN.
pub(crate) fn told(errno: Errno, cut_short: bool) -> Errno {
    match errno {
        Errno::PIPE if cut_short => Errno::CONNRESET,
        errno => errno,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::stats::WorkerCounters;

    const NOW: Time = Time::ZERO;

    struct Bench {
        pipes: Pipes,
        descriptors: Descriptors,
        counters: Arc<WorkerCounters>,
    }

    impl Bench {
        fn new(allowance: u64) -> Bench {
            let counters = Arc::new(WorkerCounters::default());
            let all: Arc<[_]> = [Arc::clone(&counters)].into();
            let mut descriptors = Descriptors::new(all, 0).expect("a spare");
            descriptors.allow(allowance);
            descriptors.begin_turn();
            Bench {
                pipes: Pipes::new(SIZE),
                descriptors,
                counters,
            }
        }

        /// What arrives at `from` within some time.
        fn fill(&mut self, from: &TcpStream) -> Filled {
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                self.descriptors.begin_turn();
                match self.pipes.fill(&mut self.descriptors, NOW, from.as_fd()) {
                    Filled::Nothing if Instant::now() < end => std::thread::yield_now(),
                    filled => return filled,
                }
            }
        }

        #[track_caller]
        fn filled(&mut self, from: &TcpStream) -> Bulk {
            match self.fill(from) {
                Filled::Bytes(bulk) => bulk,
                other => panic!("no bytes: {other:?}"),
            }
        }

        fn pipes(&self) -> u64 {
            self.counters.pipe_descriptors.value() / 2
        }
    }

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (own, _) = listener.accept().expect("it called");
        own.set_nonblocking(true).expect("an option");
        (peer, own)
    }

    fn until(done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < end, "not in time");
            std::thread::yield_now();
        }
    }

    #[test]
    fn an_empty_pipe_serves_the_next_and_a_dirty_one_nobody() {
        let mut bench = Bench::new(1_000);
        let (mut sender, from) = pair();
        let (mut receiver, to) = pair();
        for word in ["first", "other"] {
            sender.write_all(word.as_bytes()).expect("open");
            let mut bulk = bench.filled(&from);
            assert_eq!(bulk.held(), 5);
            assert_eq!(bulk.drain(to.as_fd()), Ok(5));
            bench.pipes.give(bulk);
            assert_eq!((bench.pipes(), bench.pipes.spare.len()), (1, 1));
            let mut got = [0; 5];
            receiver.read_exact(&mut got).expect("it comes");
            assert_eq!(got, word.as_bytes());
        }
        sender.write_all(b"never sent").expect("open");
        let dirty = bench.filled(&from);
        bench.pipes.give(dirty);
        assert_eq!((bench.pipes(), bench.pipes.spare.len()), (0, 0));
        // Nobody else gets to see those bytes.
        sender.write_all(b"new").expect("open");
        let mut bulk = bench.filled(&from);
        assert_eq!(bulk.held(), 3);
        assert_eq!(&*bulk.read_out().expect("both ends are ours"), b"new");
        assert_eq!(bulk.held(), 0);
        drop(bulk);
        assert_eq!(bench.pipes(), 0);
    }

    #[test]
    fn pipes_stay_within_their_part_of_the_descriptors() {
        // A twentieth of 100 descriptors: two pipes.
        let mut bench = Bench::new(100);
        let pairs: Vec<_> = (0..3).map(|_| pair()).collect();
        for (sender, _) in &pairs {
            (&*sender).write_all(b"waits").expect("open");
        }
        let first = bench.filled(&pairs[0].1);
        let second = bench.filled(&pairs[1].1);
        assert!(matches!(bench.fill(&pairs[2].1), Filled::NoPipe));
        assert_eq!(bench.pipes(), 2);
        drop(first);
        let third = bench.filled(&pairs[2].1);
        assert_eq!(bench.pipes(), 2);
        drop((second, third));
        assert_eq!(bench.pipes(), 0);
    }

    #[test]
    fn slow_receivers_do_not_take_every_pipe() {
        // Ten pipes in all.
        let mut bench = Bench::new(400);
        let pairs: Vec<_> = (0..12).map(|_| pair()).collect();
        let mut kept = Vec::new();
        for (sender, from) in &pairs {
            (&*sender).write_all(&[5; 1_000]).expect("open");
            let bulk = bench.filled(from);
            kept.push(bench.pipes.keep(&bench.descriptors, bulk).expect("a pipe"));
        }
        let copied = kept.iter().filter_map(|kept| match kept {
            Kept::Copied(bytes) => Some(&**bytes),
            Kept::Piped(bulk) => {
                assert_eq!(bulk.held(), 1_000);
                None
            }
        });
        let copied: Vec<_> = copied.collect();
        assert_eq!(
            copied.len(),
            12 - 5,
            "half of the pipes are for those that flow"
        );
        assert!(copied.iter().all(|bytes| bytes == &[5; 1_000]));
        // And then no more is taken than may be copied.
        let (sender, from) = &pairs[0];
        socket2::SockRef::from(from)
            .set_recv_buffer_size(4 * LEAST)
            .expect("an option");
        (&*sender).write_all(&[6; LEAST]).expect("open");
        let unread = || crate::sys::stream::unread(from.as_fd());
        until(|| unread() == LEAST as u64);
        (&*sender).write_all(&[6; 100]).expect("open");
        until(|| unread() > LEAST as u64);
        assert_eq!(bench.filled(&pairs[0].1).held() as usize, LEAST);
    }

    #[test]
    fn no_more_pipes_than_a_worker_may_have_and_few_spare() {
        let mut bench = Bench::new(100_000);
        let all: Vec<_> = (0..MOST + 1)
            .map_while(|_| bench.pipes.take(&mut bench.descriptors, NOW))
            .collect();
        assert!(all.len() <= MOST as usize);
        assert_eq!(bench.pipes(), all.len() as u64);
        for bulk in all {
            bench.pipes.give(bulk);
        }
        assert_eq!(bench.pipes.spare.len(), SPARE);
        assert_eq!(bench.pipes(), SPARE as u64);
    }

    #[test]
    fn spare_pipes_that_nobody_uses_are_closed() {
        let mut bench = Bench::new(100_000);
        let Bench {
            pipes, descriptors, ..
        } = &mut bench;
        let all: Vec<_> = (0..5).map_while(|_| pipes.take(descriptors, NOW)).collect();
        assert_eq!(all.len(), 5);
        all.into_iter().for_each(|bulk| pipes.give(bulk));
        pipes.tidy();
        assert_eq!(pipes.spare.len(), 5, "all were used");
        // Two at once are enough from now on.
        for _ in 0..3 {
            let two: Vec<_> = (0..2).map_while(|_| pipes.take(descriptors, NOW)).collect();
            two.into_iter().for_each(|bulk| pipes.give(bulk));
            pipes.tidy();
            assert_eq!(pipes.spare.len(), 2);
        }
        pipes.tidy();
        assert_eq!(pipes.spare.len(), 0);
        assert_eq!(bench.pipes(), 0);
    }

    /// As a user past fs.pipe-user-pages-soft gets them.
    #[test]
    fn a_pipe_that_came_too_small_is_none() {
        let mut bench = Bench::new(1_000);
        bench.pipes = Pipes::new(4_096);
        let (mut sender, from) = pair();
        sender.write_all(b"copy me").expect("open");
        let found = bench.fill(&from);
        assert!(matches!(found, Filled::NoPipe), "{found:?}");
        assert_eq!(bench.pipes(), 0);
    }

    #[test]
    fn a_refusal_is_not_asked_for_again_at_once() {
        let mut bench = Bench::new(1_000);
        let (mut sender, from) = pair();
        sender.write_all(b"copy me").expect("open");
        bench.pipes.pause_ends = NOW + PAUSE;
        assert!(matches!(bench.fill(&from), Filled::NoPipe));
        assert_eq!(bench.pipes(), 0);
        let later = NOW + PAUSE;
        let found = bench
            .pipes
            .fill(&mut bench.descriptors, later, from.as_fd());
        assert!(matches!(found, Filled::Bytes(_)), "{found:?}");
    }
}
