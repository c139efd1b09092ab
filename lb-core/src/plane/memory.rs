//! Memory pressure: before the kernel kills the process, it takes no more work, and then lets go of
//! work that stands idle.
//!
//! A thread of its own looks at the kernel's books ([`Books`]), more often the less there is; the
//! judge says what follows, and the workers hear of it as they hear of a table. While memory is
//! [`Level::Scarce`] callers wait in the listeners' queues and no flow is opened; while it is
//! [`Level::Critical`] each worker also closes those of its connections that have been idle for the
//! longest. So that not even a burst between two looks can pass the limit, a worker's connections
//! and flows grow by no more than half of what is left has room for.

mod books;
mod judge;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::sys::clock;
use crate::worker::Shared;

pub use books::Books;
use judge::Judge;
pub(crate) use judge::Order;

/// Growth of a worker's connections between two looks below which it is told of each: until then
/// it finds out at its next turn, which is soon enough.
const NARROW: u64 = 4_096;

/// How scarce memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing is short.
    #[default]
    Ample,
    /// No new connection is accepted and no new flow opened.
    Scarce,
    /// Idle connections are closed, too.
    Critical,
}

impl Level {
    /// As it stands in the log and the admin interface.
    pub const fn label(self) -> &'static str {
        match self {
            Level::Ample => "ample",
            Level::Scarce => "scarce",
            Level::Critical => "critical",
        }
    }
}

/// Whose memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// That of the memory cgroup of this process, or of one above it.
    Group,
    /// The machine's.
    Machine,
    /// What the kernel allows all TCP sockets together for their buffers.
    Tcp,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Group, Kind::Machine, Kind::Tcp];

    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Kind::Group => "cgroup",
            Kind::Machine => "machine",
            Kind::Tcp => "tcp",
        }
    }
}

/// One kind of memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stock {
    /// Whose.
    pub kind: Kind,
    /// What is in use and cannot be had back for the asking.
    pub used: u64,
    /// Past this the kernel refuses, or kills.
    pub limit: u64,
}

impl Stock {
    /// Bytes up to the limit.
    pub const fn left(self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// From which share of a limit on, in percent, memory is short. Of a limit above 4 GiB it is as
/// much as would be left of 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    stop: u8,
    shed: u8,
}

/// Watermarks that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatermarkError {
    /// A number that is neither 0 nor from 50 to 99.
    #[error("{0} percent is out of bounds; write a number from 50 to 99, or 0 for never")]
    OutOfBounds(u8),
    /// Closes before it stops.
    #[error(
        "idle connections would be closed at {shed} percent before accepting stops at {stop}; raise the first or lower the second"
    )]
    Order {
        /// Where accepting stops.
        stop: u8,
        /// Where connections are closed.
        shed: u8,
    },
}

impl Watermarks {
    /// Accepting stops at `stop` percent of a limit and idle connections are closed at `shed`; 0:
    /// never.
    ///
    /// # Errors
    /// See [`WatermarkError`].
    pub const fn new(stop: u8, shed: u8) -> Result<Watermarks, WatermarkError> {
        if stop != 0 && (stop < 50 || stop > 99) {
            return Err(WatermarkError::OutOfBounds(stop));
        }
        if shed != 0 && (shed < 50 || shed > 99) {
            return Err(WatermarkError::OutOfBounds(shed));
        }
        if shed != 0 && shed < stop {
            return Err(WatermarkError::Order { stop, shed });
        }
        Ok(Watermarks { stop, shed })
    }

    /// How scarce `stocks` would be for a process that has just come.
    pub fn level(self, stocks: &[Stock]) -> Level {
        Judge::new(self, 1)
            .step(crate::time::Time::ZERO, stocks)
            .level
    }

    const fn is_off(self) -> bool {
        self.stop == 0 && self.shed == 0
    }
}

impl Default for Watermarks {
    /// 90 and 95 percent.
    fn default() -> Watermarks {
        Watermarks { stop: 90, shed: 95 }
    }
}

/// What the last look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// How scarce it is.
    pub level: Level,
    /// All that is known.
    pub stocks: Vec<Stock>,
}

type Callback = Arc<dyn Fn(&Memory) + Send + Sync>;

/// The last look, and those who want to hear of a change.
#[derive(Default)]
pub(super) struct Watch {
    seen: Mutex<Memory>,
    callbacks: Mutex<Vec<Callback>>,
}

impl Watch {
    pub(super) fn seen(&self) -> Memory {
        let seen = self.seen.lock();
        seen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn on_change(&self, callback: Callback) {
        let mut callbacks = self
            .callbacks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        callbacks.push(callback);
    }

    fn note(&self, memory: Memory) {
        let changed = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = seen.level != memory.level;
            *seen = memory.clone();
            changed
        };
        if !changed {
            return;
        }
        let callbacks = self.callbacks.lock();
        let callbacks = callbacks.unwrap_or_else(PoisonError::into_inner).clone();
        for callback in callbacks {
            // A callback that panics is its owner's bug, and no reason to stop looking.
            let _ = catch_unwind(AssertUnwindSafe(|| callback(&memory)));
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// What the thread needs; `None` where nobody asked for it.
pub(super) fn watcher(
    watermarks: Watermarks,
    root: &Path,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
) -> Option<impl FnOnce() + Send + 'static> {
    if watermarks.is_off() {
        return None;
    }
    let root: PathBuf = root.to_owned();
    Some(move || run(watermarks, &Books::open(&root), &shared, &watch))
}

/// The life of the thread that looks.
fn run(watermarks: Watermarks, books: &Books, shared: &Shared, watch: &Watch) {
    let mut judge = Judge::new(watermarks, shared.wakes.len());
    let mut last = Level::Ample;
    while !shared.stop.load(Ordering::Acquire) {
        let stocks = books.read();
        let order = judge.step(clock::now(), &stocks);
        let waits = shared
            .counters
            .iter()
            .any(|c| c.listeners_waiting.value() > 0);
        let store = || shared.memory.store(Arc::new(order));
        match order.growth < NARROW || order.level != last || waits {
            true => shared.announce(store),
            false => store(),
        }
        last = order.level;
        let pause = judge.pause(&stocks);
        let level = order.level;
        watch.note(Memory { level, stocks });
        thread::park_timeout(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks_that_cannot_work_are_refused() {
        for (stop, shed) in [(0, 0), (90, 95), (90, 90), (50, 99), (0, 80), (80, 0)] {
            assert!(Watermarks::new(stop, shed).is_ok(), "{stop} {shed}");
        }
        for (stop, shed) in [(49, 90), (100, 0), (1, 0), (90, 100), (95, 90), (60, 59)] {
            let error = Watermarks::new(stop, shed)
                .expect_err("refused")
                .to_string();
            assert!(error.contains("; "), "{error}");
        }
        assert_eq!(Watermarks::new(90, 95), Ok(Watermarks::default()));
    }
}
