//! The Kubernetes API server as a source of the same events as a directory.
//!
//! ```text
//!   watcher (one for each kind and namespace)          source (one task)
//!     list:  request -> items -> reading --.
//!     watch: request -> lines -> reading --+- reports -> store -> events -> control task
//!                                                          '----> snapshot (state directory)
//! ```
//!
//! - `access`: kubeconfig or service account -> what a client is made of; nothing in clear;
//! - `connection`: the one client that all share, its runtime, and when it is made anew;
//! - `request`: a GET whose every wait has an end;
//! - `items`, `lines`, `reading` (PURE): what is sent -> objects, each bounded and judged alone;
//! - `watcher`: list, watch, and when to try again (`backoff`, `failure`);
//! - `store` (PURE): what was said last, and what the control task hears of it;
//! - `snapshot`, `saving`, `encode`: the objects last seen, for a start while no API server answers;
//! - `health`: how each watch fares, for readiness and metrics; `pace`: does it answer in time?
//!
//! # What holds
//!
//! Nothing is handed on of a kind before its first complete list, or the restored snapshot. A list
//! is handed on whole, as a difference for the store behind: there is never an empty moment. An API
//! server that is silent, gone or mad costs freshness and nothing else. One object that cannot be
//! read is skipped, and keeps its last good version; all others go on.
//!
//! Nodes are watched once a Service is dialled by way of them: the base role cannot read them. Nobody
//! waits for them longer than a moment: they concern no other Service.

mod access;
mod backoff;
mod connection;
mod encode;
mod failure;
mod health;
mod items;
mod lines;
mod pace;
mod reading;
mod request;
mod saving;
mod scope;
mod snapshot;
mod store;
#[cfg(test)]
pub(crate) use self::reading::objects_of_a_list;
#[cfg(test)]
pub(crate) mod tests;
mod watcher;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

pub(crate) use self::access::current_token;
pub use self::access::{Access, AccessError, IN_CLUSTER_VARIABLE};
pub use self::connection::{Connection, ConnectionError, Lease};
pub use self::failure::Failure;
pub use self::health::{Origin, STALE_AFTER, Watch, Watches};
pub use self::pace::{Answers, LATE, Pace};
pub use self::reading::Refusal;
use self::saving::Saving;
pub use self::scope::Scope;
use self::snapshot::Snapshot;
use self::store::Store;
use self::watcher::{Report, Watcher};
use crate::object::{Event, Kind, Object, SourceId};
use crate::source::parse::Reader;
use crate::source::{Level, Problem};

/// The source of an API server's objects; directories count from 0.
pub const SOURCE: SourceId = SourceId(1_000);
/// The kinds that forwarding to pods needs.
pub const KINDS: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];

/// Reports that wait for the source; watchers that are faster wait.
const REPORTS: usize = 256;

/// What the source has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The way to the API server.
    pub connection: Connection,
    /// How each watch fares; to be looked at by anybody.
    pub watches: Watches,
    /// What is watched from the start.
    pub kinds: Vec<Kind>,
    /// Nodes are watched too.
    nodes: watch::Sender<bool>,
    /// Where; empty: everywhere.
    pub namespaces: Vec<Arc<str>>,
    /// Where the objects last seen are kept; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
    /// How long it waits for what.
    pub times: Times,
}

/// How long the source waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// A watch is asked to last this long.
    pub watch: Duration,
    /// And is given up when it lasts so much longer: a connection that died without a word.
    pub slack: Duration,
    /// An answer begins within this.
    pub begin: Duration,
    /// A page of a list is complete within this, however slowly it drips.
    pub page: Duration,
    /// The API server is waited for this long before the objects of the last run are used.
    pub restore: Duration,
    /// The objects last seen are written this often at most.
    pub save: Duration,
    /// EndpointSlices that vanished wait this long for word of their Services.
    pub settle: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            watch: Duration::from_secs(8),
            slack: Duration::from_secs(5),
            begin: Duration::from_secs(10),
            page: Duration::from_secs(60),
            restore: Duration::from_secs(2),
            save: Duration::from_secs(5),
            settle: Duration::from_secs(15),
        }
    }
}

impl Times {
    /// A connection that says nothing for so long is dead.
    fn idle(&self) -> Duration {
        self.watch + self.slack
    }
}

impl Settings {
    /// The usual, for pods: see [`KINDS`].
    pub fn new(
        connection: Connection,
        namespaces: Vec<Arc<str>>,
        state_dir: Option<PathBuf>,
    ) -> Settings {
        Settings {
            connection,
            watches: Watches::default(),
            kinds: KINDS.to_vec(),
            nodes: watch::channel(false).0,
            namespaces,
            state_dir,
            times: Times::default(),
        }
    }

    /// From now on nodes are watched too.
    pub fn watch_nodes(&self) {
        self.nodes.send_replace(true);
    }

    /// Are nodes watched?
    pub fn watches_nodes(&self) -> bool {
        *self.nodes.borrow()
    }

    /// What [`crate::cluster::Cluster`] is to expect.
    pub fn expected(&self) -> impl Iterator<Item = (SourceId, Kind)> + use<> {
        let kinds = self.kinds.clone();
        kinds.into_iter().map(|kind| (SOURCE, kind))
    }
}

/// Watches until `events` is closed, on the runtime of its connection. `problems` always holds
/// everything there is to say; `rescan` asks for lists now.
///
/// # Panics
/// If the source does.
pub async fn run(
    settings: Settings,
    events: mpsc::Sender<(SourceId, Event)>,
    problems: watch::Sender<Vec<Problem>>,
    rescan: Arc<Notify>,
) {
    let handle = settings.connection.handle().clone();
    let source = Source::start(settings, events, problems);
    // In a set, so that it ends with whoever waits here.
    let mut task = JoinSet::new();
    task.spawn_on(source.run(rescan), &handle);
    if let Some(Err(error)) = task.join_next().await
        && let Ok(cause) = error.try_into_panic()
    {
        resume_unwind(cause);
    }
}

/// The one task that owns the store.
struct Source {
    settings: Settings,
    store: Store,
    events: mpsc::Sender<(SourceId, Event)>,
    problems: watch::Sender<Vec<Problem>>,
    /// Asks the watchers of a kind to list anew.
    orders: BTreeMap<Kind, watch::Sender<u64>>,
    /// What is wrong with whole scopes.
    failures: BTreeMap<Scope, Failure>,
    /// Of the last run, until it is used or of no use.
    kept: Option<Vec<Object>>,
    /// When EndpointSlices that vanished have waited enough.
    settle: Option<Instant>,
    /// Nodes are watched.
    with_nodes: bool,
    /// When they have been waited for enough.
    nodes_due: Option<Instant>,
    saving: Saving,
}

/// Nobody takes the events any more.
struct Closed;

impl Source {
    fn start(
        settings: Settings,
        events: mpsc::Sender<(SourceId, Event)>,
        problems: watch::Sender<Vec<Problem>>,
    ) -> Source {
        let scopes = Scope::all(&settings.kinds, &settings.namespaces);
        scopes
            .iter()
            .for_each(|scope| settings.watches.begin(scope));
        Source {
            store: Store::new(&scopes),
            saving: Saving::new(settings.times.save),
            settings,
            events,
            problems,
            orders: scopes
                .iter()
                .map(|scope| (scope.kind, watch::channel(0).0))
                .collect(),
            failures: BTreeMap::new(),
            kept: None,
            settle: None,
            with_nodes: false,
            nodes_due: None,
        }
    }

    async fn run(mut self, rescan: Arc<Notify>) {
        let (reports, mut waiting) = mpsc::channel(REPORTS);
        let mut tasks = JoinSet::new();
        for scope in Scope::all(&self.settings.kinds, &self.settings.namespaces) {
            if let Some(orders) = self.orders.get(&scope.kind) {
                tasks.spawn(self.watcher(scope, orders, reports.clone()).run());
            }
        }
        let mut nodes = self.settings.nodes.subscribe();
        let mut loading = self.load();
        let restore = Instant::now() + self.settings.times.restore;
        let mut batch = Vec::new();
        let events = self.events.clone();
        loop {
            let due = self.due(restore);
            let done = tokio::select! {
                biased;
                () = events.closed() => Err(Closed),
                loaded = &mut loading, if !self.saving.loaded => {
                    self.kept = loaded.unwrap_or_default();
                    self.saving.loaded = true;
                    let kept = self.kept.iter().flatten();
                    if kept.map(Object::key).any(|key| key.kind == Kind::Node) {
                        // The last run looked at them.
                        self.settings.watch_nodes();
                    }
                    Ok(())
                }
                () = wanted(&mut nodes), if !self.with_nodes => {
                    self.add_nodes(&mut tasks, &reports);
                    Ok(())
                }
                written = self.saving.ended(), if self.saving.writing.is_some() => {
                    self.saving.written(written);
                    Ok(())
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.act(restore).await
                }
                () = rescan.notified() => {
                    self.order();
                    Ok(())
                }
                count = waiting.recv_many(&mut batch, REPORTS) => match count {
                    0 => Err(Closed),
                    _ => self.take(&mut batch).await,
                },
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => {
                    match ended.map_err(tokio::task::JoinError::try_into_panic) {
                        Err(Ok(cause)) => resume_unwind(cause),
                        _ => Ok(()),
                    }
                }
            };
            if done.is_err() {
                return;
            }
            self.say();
        }
    }

    fn watcher(
        &self,
        scope: Scope,
        orders: &watch::Sender<u64>,
        reports: mpsc::Sender<(Scope, Report)>,
    ) -> Watcher {
        Watcher::new(
            self.settings.connection.clone(),
            scope,
            self.settings.times,
            Reader::new(SOURCE, Arc::default()).with_status(),
            orders.subscribe(),
            reports,
            self.settings.watches.clone(),
        )
    }

    /// Watches nodes too.
    fn add_nodes(&mut self, tasks: &mut JoinSet<()>, reports: &mpsc::Sender<(Scope, Report)>) {
        self.with_nodes = true;
        self.nodes_due = Some(Instant::now() + self.settings.times.restore);
        let (orders, _) = watch::channel(0);
        for scope in Scope::all(&[Kind::Node], &[]) {
            self.store.add(&scope);
            self.settings.watches.begin(&scope);
            tasks.spawn(self.watcher(scope, &orders, reports.clone()).run());
        }
        self.orders.insert(Kind::Node, orders);
    }

    /// Nodes are not waited for any longer.
    async fn without_nodes(&mut self) -> Result<(), Closed> {
        self.nodes_due = None;
        match self.store.has(Kind::Node) {
            true => Ok(()),
            false => self.hand_on(vec![Event::Unavailable(Kind::Node)]).await,
        }
    }

    /// When there is something to do, though nothing is heard.
    fn due(&self, restore: Instant) -> Option<Instant> {
        let restore = self.kept.is_some().then_some(restore);
        let save = self.saving.due();
        let others = self.settle.into_iter().chain(self.nodes_due);
        restore.into_iter().chain(save).chain(others).min()
    }

    /// Does what is due.
    async fn act(&mut self, restore: Instant) -> Result<(), Closed> {
        let now = Instant::now();
        if now >= restore {
            self.restore().await?;
        }
        if self.settle.is_some_and(|settle| now >= settle) {
            self.settle = None;
            let events = self.store.wait_no_longer();
            self.hand_on(events).await?;
        }
        if self.nodes_due.is_some_and(|due| now >= due) {
            self.without_nodes().await?;
        }
        if self.saving.due().is_some_and(|due| now >= due) {
            self.save();
        }
        Ok(())
    }

    /// Takes in what the watchers say.
    async fn take(&mut self, batch: &mut Vec<(Scope, Report)>) -> Result<(), Closed> {
        for (scope, report) in batch.drain(..) {
            let events = match report {
                Report::Listed(list) => self.store.listed(&scope, list),
                Report::Applied(object) => match self.store.applied(object) {
                    Ok(event) => event.into_iter().collect(),
                    Err(refused) => {
                        self.settings.watches.refused(&scope, refused.refusal);
                        self.store.refused(&scope, &refused);
                        Vec::new()
                    }
                },
                Report::Refused(refused) => {
                    self.store.refused(&scope, &refused);
                    Vec::new()
                }
                Report::Deleted(key) => self.store.deleted(&key).into_iter().collect(),
                Report::Fares(Some(failure)) => {
                    if scope.kind == Kind::Node && matches!(failure, Failure::Forbidden { .. }) {
                        self.without_nodes().await?;
                    }
                    self.failures.insert(scope, failure);
                    Vec::new()
                }
                Report::Fares(None) => {
                    self.failures.remove(&scope);
                    Vec::new()
                }
            };
            if self.store.complete() {
                self.kept = None;
            }
            self.hand_on(events).await?;
        }
        self.settle = match self.store.waiting() {
            Some(order) => {
                if let Some(services) = self.orders.get(&Kind::Service) {
                    give(services, order);
                }
                let settle = Instant::now() + self.settings.times.settle;
                Some(self.settle.unwrap_or(settle))
            }
            None => None,
        };
        Ok(())
    }

    fn order(&mut self) {
        let order = self.store.order();
        self.orders.values().for_each(|orders| give(orders, order));
    }

    async fn hand_on(&mut self, events: Vec<Event>) -> Result<(), Closed> {
        if !events.is_empty() {
            self.saving.changed = true;
        }
        for event in events {
            let sent = self.events.send((SOURCE, event)).await;
            sent.map_err(|_| Closed)?;
        }
        Ok(())
    }

    /// Replaces what there is to say, if it is another than before.
    fn say(&self) {
        let failures = self.failures.iter();
        let all = failures.map(|(scope, failure)| Problem {
            level: Level::Outage,
            ..store::at(scope.path(), failure.to_string())
        });
        let all: Vec<Problem> = all.chain(self.store.problems()).collect();
        self.problems.send_if_modified(|said| {
            let news = *said != all;
            *said = all;
            news
        });
    }

    fn snapshot(&self) -> Option<Snapshot> {
        let Settings {
            state_dir,
            namespaces,
            ..
        } = &self.settings;
        let origin = snapshot::Origin {
            server: self.settings.connection.server().to_string(),
            namespaces: namespaces.clone(),
        };
        Some(Snapshot::new(state_dir.as_deref()?, origin))
    }

    /// Reads what was kept, beside everything else.
    fn load(&self) -> JoinHandle<Option<Vec<Object>>> {
        let snapshot = self.snapshot();
        tokio::task::spawn_blocking(move || {
            let snapshot = snapshot?;
            match snapshot.load(SOURCE) {
                Ok(objects) => objects,
                Err(error) => {
                    let path = snapshot.path();
                    tracing::warn!(
                        "{} {error}; it is not used, and replaced once the API server answers",
                        path.display()
                    );
                    None
                }
            }
        })
    }

    /// The API server did not answer in time: what was kept stands in.
    async fn restore(&mut self) -> Result<(), Closed> {
        let Some(objects) = self.kept.take() else {
            return Ok(());
        };
        tracing::warn!(
            objects = objects.len(),
            server = %self.settings.connection.server(),
            "the API server gave no complete list within {}s: the objects last seen are served until it does, and they may be out of date",
            self.settings.times.restore.as_secs()
        );
        self.settings.watches.kept();
        let events = self.store.restore(objects);
        let changed = self.saving.changed;
        self.hand_on(events).await?;
        // It is what is on the disk.
        self.saving.changed = changed;
        Ok(())
    }

    /// Keeps what was seen last, once the API server has said all of it.
    fn save(&mut self) {
        self.saving.changed = false;
        // What is not whole yet is looked at again when there is more.
        if let Some(snapshot) = self.snapshot()
            && self.store.is_listed()
        {
            let objects: Vec<Object> = self.store.objects().cloned().collect();
            self.saving.write(snapshot, objects);
        }
    }
}

/// Returns once nodes are to be watched.
async fn wanted(nodes: &mut watch::Receiver<bool>) {
    if nodes.wait_for(|wanted| *wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Gives the watchers an order, if they have none that is newer.
fn give(orders: &watch::Sender<u64>, order: u64) {
    orders.send_if_modified(|last| {
        let is_newer = *last < order;
        *last = order.max(*last);
        is_newer
    });
}
