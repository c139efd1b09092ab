//! What is given up: Services without a class that another provider writes too. The control task refuses them from
//! then on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::object::Key;

/// Where they wait for the control task; clones are one place.
#[derive(Clone, Debug, Default)]
pub struct Yielded(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// With the name of who has it now.
    waiting: Mutex<BTreeMap<Key, Arc<str>>>,
    news: Notify,
}

impl Yielded {
    /// `key` is given up to `rival`.
    pub(super) fn put(&self, key: Key, rival: Arc<str>) {
        self.waiting().insert(key, rival);
        self.0.news.notify_one();
    }

    /// All that were given up since the last call; waits for some.
    pub(crate) async fn take(&self) -> BTreeMap<Key, Arc<str>> {
        loop {
            let news = self.0.news.notified();
            let waiting = std::mem::take(&mut *self.waiting());
            if !waiting.is_empty() {
                return waiting;
            }
            news.await;
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, BTreeMap<Key, Arc<str>>> {
        // A map is whole between any two statements.
        let waiting = &self.0.waiting;
        waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
