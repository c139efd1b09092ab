//! The clock that every worker shares.

use rustix::time::{ClockId, clock_gettime};

use crate::time::Time;

/// Now, by CLOCK_MONOTONIC: steps of the wall clock do not move it, and it stands still while the
/// machine is suspended.
pub(crate) fn now() -> Time {
    let now = clock_gettime(ClockId::Monotonic);
    Time::from_micros(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000)
}
