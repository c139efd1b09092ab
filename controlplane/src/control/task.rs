//! The loop of the control task, on a runtime of its own: waits, lets bursts settle, and does for
//! real what `line` decides.

mod problems;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lb_core::table::{FrontendKey, Slot};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::burst::Burst;
use super::causes::Causes;
use super::denied::Denied;
use super::files::StatusFiles;
use super::line::{Line, Turn};
use super::said::{malformed, stale, stale_slice};
use super::sources::{Sources, changed, problems, source_ended};
use super::vips::Vips;
use super::voice::Voice;
use super::{Command, Keep, Settings};
use crate::addresses::Own;
use crate::allocate::Allocator;
use crate::compile::Compiler;
use crate::kube_proxy;
use crate::measure;
use crate::object::{Event, Key, Kind, Object, SourceId};
use crate::probe::{self, Prober, Target};
use crate::provider::{Intent, Provided, Standing};
use crate::publish::Publisher;
use crate::reason::CONFIRM;
use crate::source::scan::KINDS;
use crate::source::{Problem, kubernetes};
use crate::status::{Front, ServiceStatus, Snapshot, State, Statuses};

/// Events that wait for the task; a source that is faster waits.
const EVENTS: usize = 4096;
/// An address is served once it is written down, or the disk had this long to do so.
const WRITE_PATIENCE: Duration = Duration::from_millis(250);

/// Runs until it is told to stop.
pub(super) async fn run(settings: &Settings, keep: &mut Keep) {
    let (events, mut waiting) = mpsc::channel(EVENTS);
    let Sources {
        mut tasks,
        rescan,
        mut said,
    } = Sources::start(settings, &events);
    let prober = probe::start(&mut tasks, probe::NODES);
    let checker = probe::start(&mut tasks, probe::ENDPOINTS);
    let mut kube_proxy = settings
        .kubernetes
        .is_some()
        .then(|| kube_proxy::start(&mut tasks));
    let mut task = Task::new(settings, keep, prober, checker).await;
    task.show();
    let mut burst: Option<Burst> = None;
    let mut batch = Vec::new();
    let reported = Arc::clone(&task.keep.reported);
    loop {
        let due = burst.as_ref().map(Burst::due);
        tokio::select! {
            biased;
            command = task.keep.commands.recv() => match command {
                Some(Command::Rescan) => rescan.iter().for_each(|rescan| rescan.notify_one()),
                Some(Command::ConfirmDeletions) => task.confirm_deletions(),
                Some(Command::Drain) => task.voice.draining = true,
                Some(Command::Stop) | None => return task.vips.release_all().await,
                #[cfg(test)]
                Some(Command::Panic) => panic!("planted"),
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Some(burst) = burst.take() {
                    task.decide(burst.first.into_std());
                }
            }
            () = reported.notified() => task.hear(),
            verdicts = task.prober.news() => {
                measure::targets(&Target::NODE_KINDS, &verdicts);
                task.line.found(verdicts);
                task.decide(std::time::Instant::now());
            }
            verdicts = task.checker.news() => {
                measure::targets(&Target::ENDPOINT_KINDS, &verdicts);
                task.line.found_health(verdicts);
                task.decide(std::time::Instant::now());
            }
            () = task.vips.changed() => task.placed(),
            () = task.vips.due() => task.let_go(),
            _ = waiting.recv_many(&mut batch, EVENTS) => {
                Burst::note(&mut burst);
                task.take(&mut batch);
            }
            () = moved(&mut task.standing) => Burst::note(&mut burst),
            () = moved(&mut kube_proxy) => {
                let mode = kube_proxy.as_ref().and_then(|mode| *mode.borrow());
                let touched = task.line.kube_proxy(mode);
                task.refresh(&touched);
                task.show();
            }
            given_up = given_up(settings) => {
                task.line.give_up(given_up);
                Burst::note(&mut burst);
            }
            () = changed(&mut said) => task.problems(problems(&mut said)),
            Some(ended) = tasks.join_next(), if !tasks.is_empty() => source_ended(ended),
        }
    }
}

/// Returns when it is another: where this process stands among those of its cluster, how kube-proxy works here.
async fn moved<T>(watched: &mut Option<watch::Receiver<T>>) {
    if let Some(watched) = watched
        && watched.changed().await.is_ok()
    {
        return;
    }
    // Nobody says, or nobody any more: it goes on as it is.
    std::future::pending().await
}

/// Services that another provider has now.
async fn given_up(settings: &Settings) -> BTreeMap<Key, Arc<str>> {
    match &settings.provider {
        Some(provided) => provided.yielded.take().await,
        None => std::future::pending().await,
    }
}

fn status_files(directory: &Path) -> Option<StatusFiles> {
    let started = StatusFiles::start(directory);
    started
        .inspect_err(|error| {
            tracing::error!("no thread can be started to write status files: {error}")
        })
        .ok()
}

fn microseconds_since_1970() -> i64 {
    jiff::Timestamp::now().as_microsecond()
}

struct Task<'a> {
    keep: &'a mut Keep,
    settings: &'a Settings,
    line: Line,
    publisher: Publisher,
    vips: Vips,
    prober: Prober,
    checker: Prober,
    statuses: Statuses,
    files: Option<StatusFiles>,
    problems: Arc<[Problem]>,
    /// What the sources say of single Services.
    said: BTreeMap<Key, Vec<Problem>>,
    /// And of the EndpointSlices of single Services, by these, without uid.
    said_of_slices: BTreeMap<Key, Vec<Problem>>,
    /// What the API server does not let us read.
    denied: Denied,
    /// Among the processes of the cluster.
    standing: Option<watch::Receiver<Standing>>,
    held: usize,
    voice: Voice,
    causes: Causes,
    /// The first complete list is decided on.
    listed: bool,
}

impl Task<'_> {
    async fn new<'a>(
        settings: &'a Settings,
        keep: &'a mut Keep,
        prober: Prober,
        checker: Prober,
    ) -> Task<'a> {
        let expected = settings
            .directories
            .iter()
            .flat_map(|directory| KINDS.map(|kind| (directory.source, kind)));
        let cluster = settings.kubernetes.iter();
        let expected = expected.chain(cluster.flat_map(|cluster| cluster.expected()));
        let line = Line::new(
            settings.rules.clone(),
            expected.collect::<Vec<_>>(),
            Allocator::new(
                settings.pools.clone(),
                Arc::unwrap_or_clone(Arc::clone(&keep.record)),
            ),
            Compiler::resume(&keep.table, settings.defaults.clone()),
        );
        let publisher = Publisher::new(keep.plane.clone(), Arc::clone(&keep.table));
        let own = Own::new(settings.pools.clone(), &keep.record);
        Task {
            files: settings.status_dir.as_deref().and_then(status_files),
            settings,
            line,
            publisher,
            vips: Vips::start(settings.vip_interface.clone(), own, settings.drain_timeout).await,
            prober,
            checker,
            statuses: Statuses::default(),
            problems: Arc::default(),
            said: BTreeMap::new(),
            said_of_slices: BTreeMap::new(),
            denied: Denied::default(),
            standing: settings.provider.as_ref().map(|p| p.standing.clone()),
            held: 0,
            voice: Voice::default(),
            causes: Causes::new(microseconds_since_1970()),
            listed: false,
            keep,
        }
    }

    fn take(&mut self, batch: &mut Vec<(SourceId, Event)>) {
        for (source, event) in batch.drain(..) {
            tracing::trace!(source = source.0, ?event, "event");
            // What the first list has is no change.
            if let Event::Apply(Object::EndpointSlice(slice)) = &event
                && self.listed
            {
                let before = self.line.slice(&slice.meta.key);
                let (now, heard) = (microseconds_since_1970(), std::time::Instant::now());
                self.causes.note(slice, before, now, heard);
            }
            self.line.apply(source, event);
        }
    }

    /// Decides on what changed, does it, and shows it.
    fn decide(&mut self, since: std::time::Instant) {
        let Some(moved) = self.follow() else {
            // The first word of the Lease is on its way: two appliances must not both begin to give addresses.
            return;
        };
        if self.settings.confirm_deletions {
            self.line.confirm_deletions();
        }
        self.watch_nodes();
        let Turn {
            table,
            touched,
            record,
            vips,
            wanted,
            checks,
            nodes,
        } = self.line.decide();
        let causes = self.causes.take(|service| self.line.balances(service));
        if let Some(wanted) = wanted {
            self.prober.want(wanted);
        }
        if let Some(checks) = checks {
            self.checker.want(checks.wanted);
            measure::omitted(checks.omitted);
        }
        if let Some(nodes) = nodes {
            measure::nodes(&nodes);
        }
        if let Some(record) = record {
            self.write_down(record);
        }
        if let Some(table) = table {
            self.publisher.publish(table, since, causes);
            self.keep.table = Arc::clone(self.publisher.table());
        }
        if vips || (moved && self.line.is_complete()) {
            let elsewhere = self.line.vips_elsewhere();
            self.vips.want(self.line.vips(), elsewhere);
        }
        self.tell_held();
        self.refresh(&touched);
        if !self.line.is_complete() && !self.denied.is_empty() {
            // Without a list of what is denied nothing is decided on; why is said.
            self.refresh(&self.line.keys(kubernetes::SOURCE));
        }
        if moved {
            self.show_moved();
        }
        self.listed = self.line.is_complete();
        self.show();
    }

    /// Nodes of the API server are watched once a Service looks at them.
    fn watch_nodes(&self) {
        if let Some(cluster) = &self.settings.kubernetes
            && !cluster.watches_nodes()
            && self.line.begins_to_look_at_nodes(kubernetes::SOURCE)
        {
            cluster.watch_nodes();
        }
    }

    /// Goes by where this process stands; `None`: that is not known yet. True: it moved.
    fn follow(&mut self) -> Option<bool> {
        let Some(provided) = &self.settings.provider else {
            return Some(false);
        };
        let standing = *provided.standing.borrow();
        let followed = match standing {
            Standing::Unknown => return None,
            Standing::Follower => Some(provided.source),
            Standing::Alone | Standing::Holder => None,
        };
        Some(self.line.follow(followed))
    }

    /// Whether an address has to be on the machine is another question now.
    fn show_moved(&mut self) {
        let vips = self.line.vips();
        let holders = vips.iter().flat_map(|vip| self.line.holders(vip));
        let touched = holders.cloned().collect();
        self.refresh(&touched);
    }

    /// A VIP that is served is written down, as far as the disk lets us.
    fn write_down(&mut self, record: Arc<crate::allocate::Record>) {
        self.keep.record = Arc::clone(&record);
        if let Some(saver) = &self.keep.saver {
            let failing = saver.state().error.is_some();
            saver.save(record);
            if !failing {
                saver.flush(WRITE_PATIENCE);
            }
        }
    }

    /// The workers have something new to report.
    fn hear(&mut self) {
        let news = self.publisher.hear();
        let touched = news
            .iter()
            .filter_map(|frontend| self.line.owner(frontend).cloned());
        let touched = touched.collect();
        self.refresh(&touched);
        self.show();
    }

    fn confirm_deletions(&mut self) {
        let gone = self.line.confirm_deletions();
        tracing::warn!(
            services = gone,
            "the deletion of held Services is confirmed"
        );
        self.decide(std::time::Instant::now());
    }

    fn tell_held(&mut self) {
        let held = self.line.held();
        if held > self.held {
            tracing::warn!(
                services = held,
                "most Services vanished at once: they are held and served on until they return, or their deletion is confirmed: {CONFIRM}"
            );
        } else if held == 0 && self.held > 0 {
            tracing::info!("the deletion guard holds nothing any more");
        }
        self.held = held;
    }

    /// Says anew what became of these.
    fn refresh(&mut self, keys: &BTreeSet<Key>) {
        for key in keys {
            let status = self.status(key);
            if self.line.is_complete() {
                self.voice.tell(key, status.as_ref());
            }
            let changed = self.statuses.set(key, status);
            if changed && let Some(files) = &mut self.files {
                files.set(key, self.statuses.of(key).cloned());
            }
            self.hand_over(key);
        }
    }

    /// A Service of an API server: what became of it is written back.
    fn hand_over(&self, key: &Key) {
        let Some(Provided { source, outbox, .. }) = &self.settings.provider else {
            return;
        };
        if key.source != *source || key.kind != Kind::Service {
            return;
        }
        let intent = self.line.service(key).map(|service| Intent {
            ours: self.line.is_ours(service),
            service: Arc::clone(service),
            status: self.statuses.of(key).cloned(),
            early: !self.line.is_complete(),
        });
        outbox.put(key.clone(), intent);
    }

    /// What there is to say of a Service; one that never parsed is seen, and refused.
    fn status(&self, key: &Key) -> Option<ServiceStatus> {
        let said = self.said.get(key).map_or(&[][..], Vec::as_slice);
        let without_uid = Key {
            uid: Arc::default(),
            ..key.clone()
        };
        let of_slices = self.said_of_slices.get(&without_uid).into_iter().flatten();
        let denied = self.line.denied(key, &self.denied);
        let stale = said.iter().map(stale).chain(of_slices.map(stale_slice));
        let other = stale.chain(denied.iter().cloned());
        let front = |frontend: &_, slot| self.front(frontend, slot);
        self.line.status(key, front, other).or_else(|| match said {
            // It was seen, and what it needs beside cannot be.
            [] if !denied.is_empty() => Some(ServiceStatus {
                ports: self.line.ports_asked(key),
                ..ServiceStatus::without(key, State::Pending, denied)
            }),
            [] => None,
            _ if key.kind != Kind::Service => None,
            _ => {
                let reasons = said.iter().map(malformed).collect();
                Some(ServiceStatus::without(key, State::Refused, reasons))
            }
        })
    }

    /// How a frontend stands, its address included. Nothing is said of it before both are known.
    fn front(&self, frontend: &FrontendKey, slot: Slot) -> Front {
        let front = self.publisher.front(frontend, slot);
        let is_elsewhere = self.vips.is_elsewhere(frontend.address);
        if is_elsewhere || matches!(front, Front::Closed | Front::Waiting) {
            return front;
        }
        match (self.vips.placed(frontend.address), front) {
            (None, _) => Front::Waiting,
            (Some(Err(reason)), Front::Open) => Front::Failed(reason),
            (_, front) => front,
        }
    }

    /// VIPs came to the machine, left it, or could not.
    fn placed(&mut self) {
        let news = self.vips.news();
        let holders = news.iter().flat_map(|vip| self.line.holders(vip));
        let touched = holders.cloned().collect();
        self.refresh(&touched);
        self.show();
    }

    /// Lets go of the VIPs whose last connection ended.
    fn let_go(&mut self) {
        let stats = self.keep.plane.stats();
        let live = stats
            .frontends
            .iter()
            .filter(|(_, totals)| totals.connections_active > 0);
        self.vips
            .let_go(&live.map(|((frontend, _), _)| frontend.address).collect());
    }

    /// Shows what there is to see now.
    fn show(&mut self) {
        if !self.line.is_complete() && self.keep.restarts > 0 {
            // What the task before this one showed is the better answer until the first list.
            return;
        }
        let saving = self
            .keep
            .saver
            .as_ref()
            .and_then(|saver| saver.state().error);
        let mut snapshot = Snapshot {
            complete: self.line.is_complete(),
            held: self.held,
            problems: Arc::clone(&self.problems),
            state_problem: saving,
            state_notes: Arc::clone(&self.keep.state_notes),
            published: self.publisher.table().generation,
            restarts: self.keep.restarts,
            ..Snapshot::default()
        };
        self.statuses.fill(&mut snapshot);
        if self.listed && snapshot.settling == 0 && !self.voice.has_summed() {
            let sum = self.voice.sum(snapshot.services());
            sum.iter().for_each(|sum| tracing::info!("{sum}"));
        }
        self.keep.board.show(snapshot);
    }
}
