//! The ring itself: set-up, submission, completions, the end.

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use io_uring::types::{CancelBuilder, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};
use rustix::io::Errno;

use super::buffers::{Buffers, Chain};
use super::completion::{Completion, Got};
use super::flights::{Backlog, Flights, Payload};
use super::tag::{Owner, Tag};
use crate::conn::Side;
use crate::slab::Key;

/// Completions taken from the queue at once.
const BATCH: usize = 512;
/// How long the end of a ring waits for what is under way to be cancelled.
const END: Duration = Duration::from_secs(2);
/// The provided-buffer group that receives pick from.
pub(super) const GROUP: u16 = 0;

/// How large a ring is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Entries of the submission queue; the completion queue has `completions`.
    pub(crate) submissions: u32,
    /// A power of two, at least twice the submissions.
    pub(crate) completions: u32,
    /// Provided buffers: a power of two up to 32,768.
    pub(crate) buffers: u16,
    /// Bytes in each.
    pub(crate) buffer_size: u32,
}

impl Size {
    /// What a worker gets; in tests also a tiny one.
    pub(crate) fn of_worker() -> Size {
        #[cfg(feature = "failpoints")]
        if let Some((submissions, buffers)) = crate::failpoint::ring() {
            return Size {
                submissions,
                completions: 2 * submissions,
                buffers,
                ..Size::default()
            };
        }
        Size::default()
    }
}

impl Default for Size {
    fn default() -> Size {
        Size {
            submissions: 4_096,
            completions: 16_384,
            buffers: 512,
            buffer_size: 16 << 10,
        }
    }
}

/// The step of the set-up that the kernel refused.
#[derive(Debug)]
pub(crate) struct SetUpError {
    pub(crate) step: &'static str,
    pub(crate) source: io::Error,
}

impl From<SetUpError> for io::Error {
    fn from(SetUpError { step, source }: SetUpError) -> io::Error {
        io::Error::new(source.kind(), format!("{step}: {source}"))
    }
}

fn step(step: &'static str) -> impl Fn(io::Error) -> SetUpError {
    move |source| SetUpError { step, source }
}

/// What has happened to a ring that its users need not know of, but may count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// The submission queue was full and had to be submitted before its time.
    pub(crate) submissions_full: u64,
    /// A multishot receive found no provided buffer.
    pub(crate) no_buffers: u64,
    /// Cancels asked for.
    pub(crate) cancels: u64,
    /// Waits after which the completion queue was full and the kernel kept more aside, which it
    /// hands out with the next wait. (The ring's own overflow word counts what was lost, for want of
    /// memory: io_uring_setup(2), IORING_FEAT_NODROP.)
    pub(crate) overflows: u64,
}

/// One worker's ring, used by the thread that made it alone.
pub(crate) struct Ring {
    uring: IoUring,
    /// Freed only after the kernel has finished with them; see `drop`.
    pub(super) buffers: ManuallyDrop<Buffers>,
    pub(super) flights: ManuallyDrop<Flights>,
    /// Entries that found the submission queue full.
    overflow: VecDeque<squeue::Entry>,
    batch: VecDeque<cqueue::Entry>,
    pub(super) polls_readiness: bool,
    /// A multishot receive can be made to end by itself.
    pub(super) limits_receives: bool,
    pub(super) counts: Counts,
}

impl Ring {
    /// A ring of the calling thread.
    ///
    /// # Errors
    /// Of io_uring_setup(2) and io_uring_register(2): EPERM and ENOSYS where it is forbidden or
    /// absent, EINVAL before Linux 6.1, ENOMEM past the limit of locked memory.
    pub(crate) fn new(size: Size) -> Result<Ring, SetUpError> {
        let uring: IoUring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(size.completions)
            .build(size.submissions)
            .map_err(step("io_uring_setup"))?;
        let buffers = Buffers::new(size.buffers, size.buffer_size);
        let (address, entries) = buffers.ring();
        // SAFETY: the ring's memory is page-aligned, has `entries` entries and lives as long as
        // `buffers`, which `drop` frees after the ring is closed, or never.
        unsafe {
            uring
                .submitter()
                .register_buf_ring_with_flags(address, entries, GROUP, 0)
        }
        .map_err(step("IORING_REGISTER_PBUF_RING"))?;
        let mut ring = Ring {
            uring,
            buffers: ManuallyDrop::new(buffers),
            flights: ManuallyDrop::new(Flights::default()),
            overflow: VecDeque::new(),
            batch: VecDeque::with_capacity(BATCH),
            polls_readiness: false,
            limits_receives: true,
            counts: Counts::default(),
        };
        ring.limits_receives = ring.can_limit_receives().map_err(step("recv"))?;
        Ok(ring)
    }

    /// Tries a multishot receive with a limit, which Linux before 6.17 refuses with EINVAL.
    fn can_limit_receives(&mut self) -> io::Result<bool> {
        let nobody = Owner {
            key: Key::from_parts(0, 0),
            side: Side::Downstream,
        };
        let (ours, theirs) = UnixStream::pair()?;
        drop(theirs);
        self.receive(nobody, ours.as_fd());
        self.wait(END)?;
        let mut can = false;
        while let Some(completion) = self.next() {
            if let Completion::Received { got, .. } = completion {
                can = matches!(got, Got::End);
            }
        }
        Ok(can)
    }

    /// Submits what was asked for, and waits until something has completed or `timeout` has
    /// passed. With completions at hand it does not wait.
    ///
    /// # Errors
    /// None that could heal: EINTR, ETIME and a full completion queue are none.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<(), Errno> {
        self.push_overflow();
        let idle = self.batch.is_empty() && self.uring.completion().is_empty();
        let want = usize::from(idle && !timeout.is_zero() && self.overflow.is_empty());
        let limit = Timespec::new()
            .sec(timeout.as_secs())
            .nsec(timeout.subsec_nanos());
        let args = SubmitArgs::new().timespec(&limit);
        let entered = match want {
            0 => self.uring.submitter().submit(),
            _ => self.uring.submitter().submit_with_args(want, &args),
        };
        self.counts.overflows += u64::from(self.uring.submission().cq_overflow());
        tolerate(entered)
    }

    /// The next completion, until there is none for now.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        if self.batch.is_empty() {
            self.batch.extend(self.uring.completion().take(BATCH));
        }
        let entry = self.batch.pop_front()?;
        Some(self.decode(&entry))
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Operations that have lent something and have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// The provided buffers.
    pub(crate) fn buffers(&mut self) -> &mut Buffers {
        &mut self.buffers
    }

    /// Nobody wants it any more.
    pub(crate) fn discard(&mut self, payload: Payload) {
        if let Payload::Chain(chain) = payload {
            self.buffers.give(chain);
        }
    }

    /// The bytes of `payload` in memory of their own, the buffers given back.
    pub(crate) fn copy_out(&mut self, payload: Payload) -> Box<Backlog> {
        match payload {
            Payload::Backlog(backlog) => backlog,
            Payload::Chain(chain) => {
                let mut bytes = Vec::new();
                self.buffers.move_to(chain, &mut bytes);
                Backlog::new(bytes)
            }
        }
    }

    /// As [`Ring::copy_out`], behind what is in `to` already.
    pub(crate) fn move_to(&mut self, chain: Chain, to: &mut Vec<u8>) {
        self.buffers.move_to(chain, to);
    }

    /// Queues one entry under its tag.
    ///
    /// # Safety
    /// What the entry points at must stay valid and unchanged until its final completion; the
    /// descriptor it names must be open until the next [`Ring::wait`], or be closed by
    /// [`Ring::close`].
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry, tag: Tag) {
        let entry = entry.user_data(tag.bits());
        self.push_overflow();
        // SAFETY: the caller's promise.
        if self.overflow.is_empty() && unsafe { self.uring.submission().push(&entry) }.is_ok() {
            return;
        }
        self.counts.submissions_full += 1;
        let _ = tolerate(self.uring.submitter().submit());
        self.overflow.push_back(entry);
        self.push_overflow();
    }

    fn push_overflow(&mut self) {
        while let Some(entry) = self.overflow.front() {
            // SAFETY: the promise that came with the entry to `push`.
            if unsafe { self.uring.submission().push(entry) }.is_err() {
                return;
            }
            self.overflow.pop_front();
        }
    }

    /// Ends every operation; says whether the kernel has let go of all that it was lent.
    fn end(&mut self) -> bool {
        let limit = Timespec::new().sec(END.as_secs());
        let all = CancelBuilder::any();
        let cancelled = self
            .uring
            .submitter()
            .register_sync_cancel(Some(limit), all);
        if cancelled.is_err_and(|e| e.raw_os_error() != Some(libc::ENOENT)) {
            return false;
        }
        for _ in 0..64 {
            while self.next().is_some() {}
            if self.flights.is_empty() {
                return true;
            }
            if self.wait(END / 64).is_err() {
                return false;
            }
        }
        false
    }
}

/// Outcomes of a submission after which the next one goes on.
fn tolerate(entered: io::Result<usize>) -> Result<(), Errno> {
    match entered.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO)) {
        Ok(_) | Err(Errno::INTR | Errno::TIME | Errno::BUSY | Errno::AGAIN) => Ok(()),
        Err(errno) => Err(errno),
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // What was queued and never submitted lends nothing; but its flight is in the slab.
        self.overflow.clear();
        if !self.end() {
            // The kernel may still write: what it was lent is left to it.
            return;
        }
        // SAFETY: neither is used again. Every operation has ended, so that the kernel reads and
        // writes none of their memory; the buffer group is used by receives alone, and the ring
        // goes right after this.
        unsafe {
            ManuallyDrop::drop(&mut self.flights);
            ManuallyDrop::drop(&mut self.buffers);
        }
    }
}

/// The number by which an entry names a descriptor.
pub(super) fn fd(socket: BorrowedFd<'_>) -> io_uring::types::Fd {
    use std::os::fd::AsRawFd;
    io_uring::types::Fd(socket.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// R8: more completes at once than the queue holds. Nothing is lost, and it is counted.
    #[test]
    fn r8_what_does_not_fit_the_completion_queue_comes_later() {
        const SOCKETS: u32 = 40;
        let size = Size {
            submissions: 2,
            completions: 4,
            buffers: 64,
            ..Size::default()
        };
        let mut ring = match Ring::new(size) {
            Ok(ring) => ring,
            Err(error) => {
                println!(
                    "SKIP: r8 completion queue: {}: {}",
                    error.step, error.source
                );
                return;
            }
        };
        let pairs: Vec<_> = (0..SOCKETS)
            .map(|_| UnixStream::pair().expect("a pair"))
            .collect();
        for (n, (ours, theirs)) in (0..).zip(&pairs) {
            let owner = Owner {
                key: Key::from_parts(n, 0),
                side: Side::Downstream,
            };
            ring.receive(owner, ours.as_fd());
            let mut theirs = theirs;
            theirs.write_all(&n.to_ne_bytes()).expect("room");
        }
        let mut seen = Vec::new();
        for _ in 0..1_000 {
            ring.wait(Duration::from_millis(10)).expect("it waits");
            while let Some(completion) = ring.next() {
                if let Completion::Received { owner, got, .. } = completion
                    && let Got::Data(chain) = got
                {
                    let index = owner.key.index().to_ne_bytes();
                    let bytes: Vec<u8> = ring.buffers().pieces(&chain).flatten().copied().collect();
                    assert_eq!(bytes, index, "its own bytes");
                    seen.push(owner.key.index());
                    ring.discard(Payload::Chain(chain));
                }
            }
            if seen.len() == SOCKETS as usize {
                break;
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..SOCKETS).collect::<Vec<_>>());
        assert!(ring.counts().overflows > 0, "{:?}", ring.counts());
    }
}
