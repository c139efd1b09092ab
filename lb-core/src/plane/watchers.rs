//! Those who want to hear of changed reports, and the thread that tells them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

type Callback = Arc<dyn Fn() + Send + Sync>;

/// Those who want to hear of changed reports. Workers only unpark the thread that tells them.
#[derive(Default)]
pub(super) struct Watchers {
    state: Mutex<WatcherState>,
    told: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
pub(super) struct WatcherState {
    pub(super) callbacks: Vec<Callback>,
}

impl Watchers {
    pub(super) fn lock(&self) -> MutexGuard<'_, WatcherState> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(
        &self,
        state: MutexGuard<'a, WatcherState>,
        timeout: Duration,
    ) -> MutexGuard<'a, WatcherState> {
        let waited = self.told.wait_timeout(state, timeout);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Ends the thread that tells them.
    pub(super) fn end(&self, reporter: &thread::Thread) {
        self.stop.store(true, Ordering::Release);
        reporter.unpark();
    }

    /// The life of the thread that tells them.
    pub(super) fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            // An unpark between here and the park makes that return at once.
            let callbacks = {
                let state = self.lock();
                self.told.notify_all();
                state.callbacks.clone()
            };
            for callback in callbacks {
                // A callback that panics is its owner's bug, and no reason to fall silent.
                let _ = catch_unwind(AssertUnwindSafe(|| callback()));
            }
            thread::park();
        }
    }
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}
