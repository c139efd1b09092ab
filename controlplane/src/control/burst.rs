//! Events that come close together are decided on at once.

use std::time::Duration;

use tokio::time::Instant;

/// A burst is over when nothing came for this long.
const QUIET: Duration = Duration::from_millis(3);
/// And is decided on after this at the latest, over or not.
const LONGEST_BURST: Duration = Duration::from_millis(30);

/// Events that came close together.
pub(super) struct Burst {
    /// When the first came.
    pub first: Instant,
    last: Instant,
}

impl Burst {
    pub(super) fn note(burst: &mut Option<Burst>) {
        let now = Instant::now();
        let first = burst.as_ref().map_or(now, |burst| burst.first);
        *burst = Some(Burst { first, last: now });
    }

    pub(super) fn due(&self) -> Instant {
        (self.last + QUIET).min(self.first + LONGEST_BURST)
    }
}
