//! One cluster at a time in a process.

use std::sync::{Condvar, Mutex};

static TAKEN: Mutex<bool> = Mutex::new(false);
static GIVEN_BACK: Condvar = Condvar::new();

/// The right to have a cluster, until it is dropped. No MutexGuard, which has to stay on its thread.
pub struct Turn(());

impl Turn {
    /// Waits until no other cluster is there.
    pub fn wait() -> Turn {
        let taken = TAKEN.lock().unwrap();
        let mut taken = GIVEN_BACK.wait_while(taken, |taken| *taken).unwrap();
        *taken = true;
        Turn(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap() = false;
        GIVEN_BACK.notify_one();
    }
}
