//! What the control task hands over: the latest word of each Service, and nothing before it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use super::{Standing, Yielded};
use crate::object::{Key, Service, SourceId};
use crate::status::ServiceStatus;

/// The cluster that is provided for, as the control task knows it.
#[derive(Clone, Debug)]
pub struct Provided {
    /// Whose Services they are.
    pub source: SourceId,
    /// Where what became of them goes.
    pub outbox: Outbox,
    /// Whether this process may give them addresses, and put these on its interfaces.
    pub standing: watch::Receiver<Standing>,
    /// What is given up to others.
    pub yielded: Yielded,
}

/// One Service as it is stored, and what became of it here.
#[derive(Clone, Debug)]
pub struct Intent {
    /// As last seen.
    pub service: Arc<Service>,
    /// What became of it; `None`: nothing yet.
    pub status: Option<Arc<ServiceStatus>>,
    /// It is ours to serve, as it stands.
    pub ours: bool,
    /// Not everything was listed yet: what became of it is told, and nothing is written.
    pub early: bool,
}

/// Where they wait; clones are one place. Never more than there are Services.
#[derive(Clone, Debug, Default)]
pub struct Outbox(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// `None`: the Service is gone.
    waiting: Mutex<BTreeMap<Key, Option<Intent>>>,
    news: Notify,
}

impl Outbox {
    /// The latest word of `key`; `None` if it is gone.
    pub fn put(&self, key: Key, intent: Option<Intent>) {
        self.lock().insert(key, intent);
        self.0.news.notify_one();
    }

    /// All that came since the last call; waits for some.
    pub(super) async fn take(&self) -> BTreeMap<Key, Option<Intent>> {
        loop {
            let news = self.0.news.notified();
            let waiting = std::mem::take(&mut *self.lock());
            if !waiting.is_empty() {
                return waiting;
            }
            news.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Option<Intent>>> {
        // A map is whole between any two statements.
        self.0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
