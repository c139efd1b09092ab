//! How something new reaches a worker that sleeps: who has news stores it, then rings; the worker
//! takes the rings, then looks. See the [worker](super)'s head for why no wake is lost. Both orders
//! stand here alone, so that the model below (`make loom`) runs the very code that the product runs.

use crate::sys::eventfd::Wake;

/// What a worker sleeps on.
pub(crate) trait Bell {
    /// Wakes the worker, now or when it next goes to sleep. Never blocks.
    fn ring(&self);

    /// Takes every ring so far; true if there was one.
    fn drain(&self) -> bool;
}

impl Bell for Wake {
    fn ring(&self) {
        Wake::ring(self);
    }

    fn drain(&self) -> bool {
        Wake::drain(self)
    }
}

/// Stores news and tells every worker: in the order that loses no wake.
pub(crate) fn announce<'a, B: Bell + 'a>(
    store: impl FnOnce(),
    bells: impl IntoIterator<Item = &'a B>,
) {
    store();
    for bell in bells {
        bell.ring();
    }
}

/// Looks at what is new after `bell` `rang`: in the order that loses no wake.
pub(crate) fn heed<B: Bell, T>(bell: &B, rang: bool, look: impl FnOnce() -> T) -> T {
    if rang {
        bell.drain();
    }
    look()
}

/// Every interleaving of publishers and one worker, by loom.
#[cfg(all(test, loom))]
mod model {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use loom::sync::atomic::{AtomicU64, Ordering};
    use loom::sync::{Arc, Mutex};
    use loom::thread;

    use super::*;

    /// eventfd(2), level-triggered in epoll: a count under a lock of the kernel's.
    struct Eventfd(Mutex<u64>);

    impl Eventfd {
        /// Would epoll_wait(2) return at once?
        fn is_readable(&self) -> bool {
            *self.0.lock().expect("nobody panics") > 0
        }
    }

    impl Bell for Eventfd {
        fn ring(&self) {
            *self.0.lock().expect("nobody panics") += 1;
        }

        fn drain(&self) -> bool {
            std::mem::take(&mut *self.0.lock().expect("nobody panics")) > 0
        }
    }

    /// What crosses to a worker: a table and a flag. Loaded relaxed, as arc-swap's cache looks
    /// whether its pointer changed: the order comes from the bell alone.
    struct Shared {
        bell: Eventfd,
        table: AtomicU64,
        drain: AtomicU64,
    }

    impl Shared {
        fn publish(&self, generation: u64) {
            let store = || self.table.store(generation, Ordering::Release);
            announce(store, [&self.bell]);
        }

        fn drain(&self) {
            let store = || self.drain.store(1, Ordering::Release);
            announce(store, [&self.bell]);
        }

        fn look(&self) -> (u64, u64) {
            let table = self.table.load(Relaxed);
            (table, self.drain.load(Relaxed))
        }
    }

    type Seen = (u64, u64);

    fn turn(shared: &Shared) -> Seen {
        heed(&shared.bell, true, || shared.look())
    }

    /// Can the worker sleep for ever without having seen `last`?
    fn loses_a_wake(last: Seen, turn: fn(&Shared) -> Seen, others: &'static [fn(&Shared)]) -> bool {
        static LOST: AtomicBool = AtomicBool::new(false);
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().expect("nobody panics");
        LOST.store(false, Relaxed);
        loom::model(move || {
            let shared = Arc::new(Shared {
                bell: Eventfd(Mutex::new(0)),
                table: AtomicU64::new(0),
                drain: AtomicU64::new(0),
            });
            let others: Vec<_> = others
                .iter()
                .map(|other| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || other(&shared))
                })
                .collect();
            let mut seen = (0, 0);
            // Some turns while the others are at it.
            for _ in 0..2 {
                if shared.bell.is_readable() {
                    seen = turn(&shared);
                } else {
                    thread::yield_now();
                }
            }
            for other in others {
                other.join().expect("nobody panics");
            }
            // And as many more as the bell gives reason to; then it sleeps.
            while shared.bell.is_readable() {
                seen = turn(&shared);
            }
            LOST.fetch_or(seen != last, Relaxed);
        });
        LOST.load(Relaxed)
    }

    fn two_tables(shared: &Shared) {
        shared.publish(1);
        shared.publish(2);
    }

    #[test]
    fn the_last_table_is_always_seen() {
        assert!(!loses_a_wake((2, 0), turn, &[two_tables]));
    }

    #[test]
    fn a_table_and_a_drain_from_two_threads_are_both_seen() {
        let others: &[fn(&Shared)] = &[|s| s.publish(1), |s| s.drain()];
        assert!(!loses_a_wake((1, 1), turn, others));
    }

    /// Planted: the model sees it.
    #[test]
    fn to_ring_before_the_store_loses_a_wake() {
        let wrong: &[fn(&Shared)] = &[|s| {
            s.bell.ring();
            s.table.store(1, Ordering::Release);
        }];
        assert!(loses_a_wake((1, 0), turn, wrong));
    }

    /// Planted: the model sees it.
    #[test]
    fn to_look_before_the_drain_loses_a_wake() {
        let wrong: fn(&Shared) -> Seen = |s| {
            let seen = s.look();
            s.bell.drain();
            seen
        };
        assert!(loses_a_wake((2, 0), wrong, &[two_tables]));
    }
}
