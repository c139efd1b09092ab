//! The sources of the control task, each a task of its runtime.

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::task::Poll;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::Settings;
use crate::object::{Event, SourceId};
use crate::source::{Problem, directory, kubernetes};

/// The sources, each a task of this runtime.
pub(super) struct Sources {
    pub tasks: JoinSet<()>,
    /// Asks each to list anew.
    pub rescan: Vec<Arc<Notify>>,
    /// What each has to say about what it reads.
    pub said: Vec<watch::Receiver<Vec<Problem>>>,
}

impl Sources {
    pub(super) fn start(settings: &Settings, events: &mpsc::Sender<(SourceId, Event)>) -> Sources {
        let mut sources = Sources {
            tasks: JoinSet::new(),
            rescan: Vec::new(),
            said: Vec::new(),
        };
        for directory in &settings.directories {
            let (say, rescan) = sources.add();
            let run = directory::run(directory.clone(), events.clone(), say, rescan);
            sources.tasks.spawn(run);
        }
        if let Some(cluster) = &settings.kubernetes {
            let (say, rescan) = sources.add();
            let run = kubernetes::run(cluster.clone(), events.clone(), say, rescan);
            sources.tasks.spawn(run);
        }
        sources
    }

    /// What one more says its problems by, and is asked by to list anew.
    fn add(&mut self) -> (watch::Sender<Vec<Problem>>, Arc<Notify>) {
        let (say, said) = watch::channel(Vec::new());
        let rescan = Arc::new(Notify::new());
        self.rescan.push(Arc::clone(&rescan));
        self.said.push(said);
        (say, rescan)
    }
}

/// Returns when a source has something new to say.
pub(super) async fn changed(said: &mut [watch::Receiver<Vec<Problem>>]) {
    let mut waits: Vec<_> = said
        .iter_mut()
        .map(|said| Box::pin(said.changed()))
        .collect();
    poll_fn(|cx| {
        for wait in &mut waits {
            // A source that ended says nothing more; its end is told elsewhere.
            if let Poll::Ready(Ok(())) = wait.as_mut().poll(cx) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
}

/// Everything that they have to say.
pub(super) fn problems(said: &mut [watch::Receiver<Vec<Problem>>]) -> Vec<Problem> {
    let said = said.iter_mut();
    said.flat_map(|said| said.borrow_and_update().clone())
        .collect()
}

/// A source never ends while we take its events: a panic in one is a panic of ours.
pub(super) fn source_ended(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && let Ok(cause) = error.try_into_panic()
    {
        resume_unwind(cause);
    }
}
