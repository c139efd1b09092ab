//! When the objects last seen are written to the state directory, and what comes of it. Part of the
//! source's one task.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::snapshot::Snapshot;
use crate::object::Object;

/// How the writing of the snapshot goes.
pub(super) struct Saving {
    least: Duration,
    /// What was kept was read: it is no longer needed.
    pub loaded: bool,
    /// Something is to be written.
    pub changed: bool,
    next: Instant,
    failing: bool,
    pub writing: Option<JoinHandle<Written>>,
}

/// What became of one writing.
#[derive(Debug, Default)]
pub(super) struct Written {
    took: Duration,
    error: Option<String>,
}

impl Saving {
    pub(super) fn new(least: Duration) -> Saving {
        Saving {
            least,
            loaded: false,
            changed: false,
            next: Instant::now(),
            failing: false,
            writing: None,
        }
    }

    /// When to write next, if there is anything.
    pub(super) fn due(&self) -> Option<Instant> {
        let idle = self.loaded && self.writing.is_none();
        (self.changed && idle).then_some(self.next)
    }

    /// Returns when a writing ends; it stays if this is given up.
    pub(super) async fn ended(&mut self) -> Written {
        match &mut self.writing {
            Some(writing) => writing.await.unwrap_or_default(),
            None => std::future::pending().await,
        }
    }

    pub(super) fn write(&mut self, snapshot: Snapshot, objects: Vec<Object>) {
        self.next = Instant::now() + self.least;
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let error = snapshot.save(&objects).err();
            Written {
                took: begun.elapsed(),
                error: error.map(|error| {
                    format!("{} cannot be written: {error}", snapshot.path().display())
                }),
            }
        }));
    }

    /// A large cluster on a slow disk is written less often: a twentieth of the time at most.
    pub(super) fn written(&mut self, written: Written) {
        self.writing = None;
        self.next = self.next.max(Instant::now() + written.took * 20);
        let failed = written.error.is_some();
        self.changed |= failed;
        if let Some(error) = written.error
            && !self.failing
        {
            tracing::error!(
                "{error}; a start while no API server answers would find old objects or none"
            );
        }
        self.failing = failed;
    }
}
