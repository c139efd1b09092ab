//! eventfd(2): how one thread wakes another that sleeps in epoll.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// Wakes the one thread that polls it. Any thread may ring it; nothing blocks.
#[derive(Debug)]
pub(crate) struct Wake {
    fd: OwnedFd,
}

impl Wake {
    pub(crate) fn new() -> Result<Wake, Errno> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Wake { fd })
    }

    /// Makes it readable. That it rang already is no error, and the count cannot overflow: it
    /// would take 2^64 - 1 rings without a drain.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Takes every ring so far; true if there was one.
    pub(crate) fn drain(&self) -> bool {
        rustix::io::read(&self.fd, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_add_up_to_one_wake() {
        let wake = Wake::new().expect("eventfd");
        assert!(!wake.drain());
        wake.ring();
        wake.ring();
        assert!(wake.drain());
        assert!(!wake.drain());
    }
}
