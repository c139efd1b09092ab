//! epoll(7): which descriptors are ready.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;

/// What to be told about a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interest(epoll::EventFlags);

impl Interest {
    /// Each time there is more to read, more room to write, or an end of either: edge-triggered,
    /// registered once. The owner must go on until it is told that there is no more.
    pub(crate) const STREAM: Interest = Interest(
        epoll::EventFlags::IN
            .union(epoll::EventFlags::OUT)
            .union(epoll::EventFlags::RDHUP)
            .union(epoll::EventFlags::PRI)
            .union(epoll::EventFlags::ET),
    );
    /// As long as there is something to read: level-triggered.
    pub(crate) const READ: Interest = Interest(epoll::EventFlags::IN);
    /// An error, or the end of both directions, once.
    pub(crate) const ERRORS: Interest = Interest(epoll::EventFlags::ET);
    /// Nothing for now (errors come all the same).
    pub(crate) const NONE: Interest = Interest(epoll::EventFlags::empty());
}

/// What one descriptor is ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Readiness(epoll::EventFlags);

impl Readiness {
    /// Data, a FIN or a connection is there to be read.
    pub(crate) fn readable(self) -> bool {
        self.0.contains(epoll::EventFlags::IN)
    }

    /// There is room to write, or a connect has ended.
    pub(crate) fn writable(self) -> bool {
        self.0.contains(epoll::EventFlags::OUT)
    }

    /// The peer sent its FIN.
    pub(crate) fn read_closed(self) -> bool {
        self.0.contains(epoll::EventFlags::RDHUP)
    }

    /// The peer has sent urgent data.
    pub(crate) fn urgent(self) -> bool {
        self.0.contains(epoll::EventFlags::PRI)
    }

    /// Both directions are over.
    pub(crate) fn hung_up(self) -> bool {
        self.0.contains(epoll::EventFlags::HUP)
    }

    /// SO_ERROR has something to tell.
    pub(crate) fn error(self) -> bool {
        self.0.contains(epoll::EventFlags::ERR)
    }
}

/// An epoll instance. Each descriptor goes by a number that its owner chose.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    pub(crate) fn new() -> Result<Poller, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Poller { epoll })
    }

    /// Begins to watch `fd`. Closing the last copy of a descriptor ends it.
    ///
    /// # Errors
    /// ENOSPC past fs.epoll.max_user_watches, ENOMEM; both leave `fd` as it was.
    pub(crate) fn add(
        &self,
        fd: BorrowedFd<'_>,
        token: u64,
        interest: Interest,
    ) -> Result<(), Errno> {
        epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            interest.0,
        )
    }

    /// Changes what a watched `fd` is watched for.
    pub(crate) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: u64,
        interest: Interest,
    ) -> Result<(), Errno> {
        epoll::modify(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            interest.0,
        )
    }

    /// Ends watching `fd`.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        epoll::delete(&self.epoll, fd)
    }

    /// Waits until something is ready or `timeout` has passed (rounded up to a millisecond, so
    /// that a timer has come when we wake for it), and replaces what `events` held.
    pub(crate) fn wait(&self, events: &mut Events, timeout: Duration) -> Result<(), Errno> {
        events.list.clear();
        let millis = timeout.as_micros().div_ceil(1_000).min(60_000) as i64;
        let timeout = Timespec {
            tv_sec: millis / 1_000,
            tv_nsec: millis % 1_000 * 1_000_000,
        };
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut events.list),
            Some(&timeout),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// What one wait found.
pub(crate) struct Events {
    list: Vec<epoll::Event>,
}

impl Events {
    /// Room for `capacity` events of one wait.
    pub(crate) fn with_capacity(capacity: usize) -> Events {
        Events {
            list: Vec::with_capacity(capacity),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Forgets them.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    /// The number and readiness of the `index`th event.
    pub(crate) fn at(&self, index: usize) -> Option<(u64, Readiness)> {
        let event = self.list.get(index)?;
        // The kernel's struct is packed: copy the fields out.
        let (data, flags) = (event.data, event.flags);
        Some((data.u64(), Readiness(flags)))
    }
}
