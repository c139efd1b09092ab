//! Saves the latest document from a thread of its own: a slow or dead disk delays nobody.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use super::{Disk, Document, SaveError, StateFile};

/// The pause after the first failure; it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(250);
/// A disk that has room again is used after this at the latest.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// How far saving got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaveState {
    /// The number of the latest document on the disk; 0 before the first.
    pub saved: u64,
    /// The number of the latest document asked for.
    pub wanted: u64,
    /// Why the last try failed; `None` again after a good one.
    pub error: Option<Arc<str>>,
}

struct Shared<T> {
    state: SaveState,
    pending: Option<Arc<T>>,
    closing: bool,
}

struct Board<T> {
    shared: Mutex<Shared<T>>,
    changed: Condvar,
}

impl<T> Board<T> {
    fn lock(&self) -> MutexGuard<'_, Shared<T>> {
        // Nothing panics while it holds the lock; were it so, the data would still be whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Owns the file; `weir-state` is its thread.
pub struct Saver<T: Document + Send + Sync + 'static> {
    board: Arc<Board<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Document + Send + Sync + 'static> Saver<T> {
    /// `report` is told, on the saver's thread, when saving begins to fail or fails otherwise
    /// (`Some`), and when it works again (`None`).
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start<D: Disk + 'static>(
        file: StateFile<D>,
        report: impl Fn(Option<&SaveError>) + Send + 'static,
    ) -> io::Result<Saver<T>> {
        let board = Arc::new(Board {
            shared: Mutex::new(Shared {
                state: SaveState::default(),
                pending: None,
                closing: false,
            }),
            changed: Condvar::new(),
        });
        let thread = {
            let board = board.clone();
            thread::Builder::new()
                .name("weir-state".into())
                .spawn(move || run(&board, file, report))?
        };
        Ok(Saver {
            board,
            thread: Some(thread),
        })
    }

    /// Asks for `document` to be on the disk soon; a later one replaces one not yet written.
    /// Returns its number. Never blocks.
    pub fn save(&self, document: Arc<T>) -> u64 {
        let mut shared = self.board.lock();
        shared.pending = Some(document);
        shared.state.wanted += 1;
        self.board.changed.notify_all();
        shared.state.wanted
    }

    /// How far it got.
    pub fn state(&self) -> SaveState {
        self.board.lock().state.clone()
    }

    /// Blocks until everything asked for is on the disk, at most `timeout`. False if it is not.
    pub fn flush(&self, timeout: Duration) -> bool {
        let shared = self.board.lock();
        let (shared, _) = self
            .board
            .changed
            .wait_timeout_while(shared, timeout, |shared| {
                shared.state.saved < shared.state.wanted
            })
            .unwrap_or_else(PoisonError::into_inner);
        shared.state.saved == shared.state.wanted
    }
}

impl<T: Document + Send + Sync + 'static> Drop for Saver<T> {
    /// Tries what is pending once more and ends the thread.
    fn drop(&mut self) {
        self.board.lock().closing = true;
        self.board.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was reported by its own hook.
            let _ = thread.join();
        }
    }
}

fn run<T: Document, D: Disk>(
    board: &Board<T>,
    mut file: StateFile<D>,
    report: impl Fn(Option<&SaveError>),
) {
    let mut pause = MIN_PAUSE;
    loop {
        let (document, number, closing) = {
            let mut shared = board.lock();
            while shared.pending.is_none() && !shared.closing {
                shared = board
                    .changed
                    .wait(shared)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let Some(document) = shared.pending.take() else {
                return;
            };
            (document, shared.state.wanted, shared.closing)
        };
        let outcome = file.save(&*document);
        let failed = outcome.is_err();
        tell(board, number, &outcome, &report);
        if !failed {
            pause = MIN_PAUSE;
            continue;
        }
        if closing {
            return;
        }
        let mut shared = board.lock();
        shared.pending.get_or_insert(document);
        let end = Instant::now() + pause;
        pause = (pause * 2).min(MAX_PAUSE);
        while !shared.closing {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (shared, _) = board
                .changed
                .wait_timeout(shared, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn tell<T>(
    board: &Board<T>,
    number: u64,
    outcome: &Result<(), SaveError>,
    report: impl Fn(Option<&SaveError>),
) {
    let error: Option<Arc<str>> = outcome.as_ref().err().map(|error| error.to_string().into());
    let is_news = {
        let mut shared = board.lock();
        if error.is_none() {
            shared.state.saved = number;
        }
        let is_news = shared.state.error != error;
        shared.state.error = error;
        is_news
    };
    if is_news {
        report(outcome.as_ref().err());
    }
    board.changed.notify_all();
}
