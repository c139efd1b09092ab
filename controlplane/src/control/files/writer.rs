//! What is to be written waits here for a thread of its own, `weir-status`: a slow or dead disk delays nobody.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::{io, mem};

use crate::object::Key;
use crate::status::ServiceStatus;

/// Services whose files may wait. Beyond it nothing new is taken until the disk answers.
const WAITING: usize = 100_000;

/// What became of a Service; `None`: it is gone.
type Latest = Option<Arc<ServiceStatus>>;

#[derive(Default)]
struct Shared {
    waiting: BTreeMap<Key, Latest>,
    closing: bool,
}

#[derive(Default)]
struct Board {
    shared: Mutex<Shared>,
    changed: Condvar,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Nothing panics while it holds the lock; were it so, the map would still be whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written next; `None`: nothing any more.
    fn next(&self) -> Option<BTreeMap<Key, Latest>> {
        let shared = self.lock();
        let idle = |shared: &mut Shared| shared.waiting.is_empty() && !shared.closing;
        let mut shared = self
            .changed
            .wait_while(shared, idle)
            .unwrap_or_else(PoisonError::into_inner);
        let batch = mem::take(&mut shared.waiting);
        (!batch.is_empty()).then_some(batch)
    }
}

/// Has the latest of each Service written by a thread. Dropped, it waits until that is done.
pub(super) struct Writer {
    board: Arc<Board>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread with what `begin` makes there, which then writes one Service a call.
    pub(super) fn start<W>(begin: impl FnOnce() -> W + Send + 'static) -> io::Result<Writer>
    where
        W: FnMut(&Key, Option<&ServiceStatus>),
    {
        let board = Arc::new(Board::default());
        let shared = Arc::clone(&board);
        let thread = Builder::new().name("weir-status".into()).spawn(move || {
            let mut write = begin();
            while let Some(batch) = shared.next() {
                for (key, latest) in &batch {
                    write(key, latest.as_deref());
                }
            }
        })?;
        let thread = Some(thread);
        Ok(Writer { board, thread })
    }

    /// Has this written, in place of what waits for the same Service. False: too many wait.
    pub(super) fn put(&self, key: &Key, latest: Latest) -> bool {
        let mut shared = self.board.lock();
        let full = shared.waiting.len() >= WAITING;
        match shared.waiting.entry(key.clone()) {
            Entry::Vacant(_) if full => return false,
            Entry::Vacant(entry) => _ = entry.insert(latest),
            Entry::Occupied(mut entry) => _ = entry.insert(latest),
        }
        self.board.changed.notify_all();
        true
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.board.lock().closing = true;
        self.board.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its own hook.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::control::files::tests::status;
    use crate::status::State;

    fn key(name: &str) -> Key {
        status(name, State::Serving).key
    }

    #[test]
    fn a_disk_that_hangs_delays_nobody_and_gets_the_latest_of_each() {
        let (written, heard) = mpsc::channel();
        let (let_go, held) = mpsc::channel::<()>();
        let writer = Writer::start(move || {
            move |key: &Key, latest: Option<&ServiceStatus>| {
                let _ = written.send((key.name.to_string(), latest.is_some()));
                let _ = held.recv();
            }
        });
        let writer = writer.expect("a thread");
        let soon = || {
            heard
                .recv_timeout(Duration::from_secs(20))
                .expect("written")
        };
        assert!(writer.put(&key("first"), None));
        assert_eq!(soon(), ("first".into(), false), "it hangs in this one");
        for n in 0..WAITING {
            assert!(writer.put(&key(&n.to_string()), None), "{n}");
        }
        assert!(!writer.put(&key("one too many"), None));
        let status = Arc::new(status("7", State::Serving));
        assert!(
            writer.put(&key("7"), Some(status)),
            "in place of what waits"
        );
        drop(let_go);
        let mut all: Vec<_> = (0..WAITING).map(|_| soon()).collect();
        all.retain(|(name, there)| name == "7" || *there);
        assert_eq!(all, [("7".into(), true)], "the latest alone");
        drop(writer);
        assert!(heard.recv().is_err(), "and nothing else");
    }
}
