//! epoll(7), as the load tool needs it.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
pub use rustix::event::epoll::EventFlags;
use rustix::event::epoll::{self, CreateFlags, Event, EventData};
use rustix::io::Errno;
use rustix::time::Timespec;

pub struct Poll {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poll {
    pub fn new() -> Result<Poll> {
        Ok(Poll {
            epoll: epoll::create(CreateFlags::CLOEXEC).context("epoll_create")?,
            events: Vec::with_capacity(512),
        })
    }

    pub fn add(&self, fd: impl AsFd, token: usize, flags: EventFlags) -> Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token as u64), flags).context("epoll_ctl")
    }

    pub fn modify(&self, fd: impl AsFd, token: usize, flags: EventFlags) -> Result<()> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(token as u64), flags).context("epoll_ctl")
    }

    /// Waits; the number of events that [`Poll::at`] then gives.
    pub fn wait(&mut self, timeout: Duration) -> Result<usize> {
        self.events.clear();
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.events),
            Some(&timeout),
        ) {
            Ok(_) | Err(Errno::INTR) => Ok(self.events.len()),
            Err(error) => Err(error).context("epoll_wait"),
        }
    }

    /// Token and readiness of the `n`th event.
    pub fn at(&self, n: usize) -> (usize, EventFlags) {
        // The kernel's struct is packed: copy the fields out.
        let (data, flags) = (self.events[n].data, self.events[n].flags);
        (data.u64() as usize, flags)
    }
}
