//! Does what `plan` says, one step of a Service at a time, and writes down its events. Thin I/O,
//! on the connection's own runtime.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::api::{Refusal, Write, send};
use super::contest::News;
use super::events::{self, Event, Story};
use super::health::Health;
use super::held::Held;
use super::outbox::{Intent, Outbox};
use super::patch::{Patch, STRATEGIC_MERGE, patch};
use super::plan::Step;
use super::queue::Queue;
use super::standing::Standing;
use super::yielded::Yielded;
use crate::measure::{self, Recorder};
use crate::object::{Key, Object, Service};
use crate::reason::Reason;
use crate::source::kubernetes::Connection;
use crate::source::parse::Reader;
use crate::translate::shown;

/// Writes under way at once.
const AT_ONCE: usize = 8;
/// Events that wait to be written; more are dropped and counted.
const EVENTS: usize = 1_024;
/// Between two events, so that a list of 10,000 Services is no flood.
const EVENT_PACE: Duration = Duration::from_millis(20);

/// What the provider has to know.
#[derive(Clone)]
pub struct Settings {
    /// The way to the API server.
    pub connection: Connection,
    /// What the control task hands over.
    pub outbox: Outbox,
    /// What is given up to others.
    pub yielded: Yielded,
    /// Who writes, for events: the host's name.
    pub identity: Arc<str>,
    /// Is it this process that writes?
    pub standing: watch::Receiver<Standing>,
    /// How it fares.
    pub health: Health,
    /// Where counts go: the appliance's own, for the connection's threads have none.
    pub recorder: Recorder,
}

/// Writes until it is dropped.
pub async fn run(settings: Settings) {
    let (record, recorded) = mpsc::channel(EVENTS);
    let writer = tokio::spawn(write_events(settings.clone(), recorded));
    let mut provider = Provider {
        connection: settings.connection,
        recorder: settings.recorder,
        health: settings.health,
        leads: *settings.standing.borrow() == Standing::Holder,
        yielded: settings.yielded.clone(),
        all: BTreeMap::new(),
        queue: Queue::default(),
        story: Story::default(),
        record,
        writes: JoinSet::new(),
        busy: HashMap::new(),
    };
    let _writer = AbortOnDrop(writer);
    let mut standing = settings.standing;
    loop {
        let due = provider.queue.next();
        let free = provider.writes.len() < AT_ONCE;
        tokio::select! {
            news = settings.outbox.take() => provider.take(news),
            Ok(()) = standing.changed() => {
                let now = *standing.borrow_and_update();
                provider.lead(now == Standing::Holder);
            }
            Some(ended) = provider.writes.join_next_with_id(), if !provider.writes.is_empty() => {
                match ended {
                    Ok((id, done)) => provider.done(id, done),
                    // A panic in a write is a bug that its own hook has reported.
                    Err(error) => provider.failed(error.id()),
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && free => {
                provider.begin();
            }
        }
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An event and whose it is.
type Told = (Arc<Service>, Event);

struct Done {
    key: Key,
    step: Step,
    result: Result<Option<Arc<Service>>, Refusal>,
}

struct Provider {
    connection: Connection,
    recorder: Recorder,
    health: Health,
    leads: bool,
    yielded: Yielded,
    all: BTreeMap<Key, Held>,
    queue: Queue,
    story: Story,
    record: mpsc::Sender<Told>,
    writes: JoinSet<Done>,
    /// Whose write each is.
    busy: HashMap<Id, Key>,
}

impl Provider {
    fn take(&mut self, news: BTreeMap<Key, Option<Intent>>) {
        for (key, intent) in news {
            let Some(intent) = intent else {
                self.all.remove(&key);
                self.queue.forget(&key);
                self.story.forget(&key);
                self.health.forget(&key);
                continue;
            };
            if self.health.left(&key, events::rival(&intent)) {
                tracing::warn!(
                    "another provider of load balancers is at work: Services of its are left alone; /readyz?verbose and their reasons say who and what to do"
                );
            }
            match self.all.get_mut(&key) {
                Some(held) => held.hear(intent, Instant::now()),
                None => drop(self.all.insert(key.clone(), Held::new(intent))),
            }
            self.judge(&key);
            self.look(&key);
        }
    }

    /// Was what we wrote of `key` undone?
    fn judge(&mut self, key: &Key) {
        let undone = self
            .all
            .get_mut(key)
            .and_then(|held| held.judge(Instant::now()));
        if let Some(undone) = undone {
            metrics::with_local_recorder(&*self.recorder, measure::overwritten);
            undone
                .news
                .iter()
                .for_each(|news| self.contested(key, *news));
        }
    }

    /// Somebody undoes what we write of `key`, again and again, or does so no more.
    fn contested(&mut self, key: &Key, news: News) {
        let Some(held) = self.all.get(key) else {
            return;
        };
        let service = Arc::clone(&held.intent.service);
        let (namespace, name) = (&*key.namespace, &*key.name);
        let pause = match news {
            News::Begins(pause) | News::GoesOn(pause) => pause.as_secs(),
            News::Ends => {
                self.health.contest(key, None);
                tracing::info!(
                    namespace,
                    service = name,
                    "nobody undoes any more what is written"
                );
                return;
            }
        };
        let rival = service.stored.rival.as_ref();
        let rival = rival.map_or("somebody".into(), |rival| shown(&rival.name));
        let reason = Reason::Contested {
            rival: Arc::clone(&rival),
            pause,
        };
        tracing::warn!(namespace, service = name, "{reason}");
        self.tell(&service, events::of_reason(&reason));
        self.health.contest(key, Some(reason));
        if held.intent.ours && service.class.is_none() {
            // Whoever else takes Services without a class may have it.
            self.yielded.put(key.clone(), rival);
        }
    }

    /// Whoever leads sees to everything anew.
    fn lead(&mut self, leads: bool) {
        self.leads = leads;
        if !leads {
            // What could not be written is another's to write.
            self.all.keys().for_each(|key| self.health.forget(key));
        }
        if leads {
            let keys: Vec<Key> = self.all.keys().cloned().collect();
            keys.iter().for_each(|key| self.look(key));
        }
    }

    /// Something about `key` may have to be written.
    fn look(&mut self, key: &Key) {
        let Some(held) = self.all.get(key).filter(|_| self.leads) else {
            return;
        };
        for event in self.story.next(&held.intent) {
            self.tell(&held.intent.service, event);
        }
        if let Some((at, urgent)) = held.due(Instant::now()) {
            self.queue.add(key, urgent, at);
        }
    }

    /// Ends the contest about `key` if it is time, else looks again when it is.
    fn watch_contest(&mut self, key: &Key, now: Instant) {
        let Some(held) = self.all.get_mut(key) else {
            return;
        };
        if let Some(news) = held.contest.look(now) {
            self.contested(key, news);
        } else if let Some(ends) = held.contest.ends() {
            self.queue.add(key, true, ends);
        }
    }

    /// Begins the write that has been due longest.
    fn begin(&mut self) {
        let now = Instant::now();
        let Some(key) = self.queue.pop(now) else {
            return;
        };
        self.watch_contest(&key, now);
        if !self.leads || self.busy.values().any(|busy| *busy == key) {
            // Looked at again when that one is done.
            return;
        }
        let Some(held) = self.all.get(&key) else {
            return;
        };
        let (Some(step), Some((at, urgent))) = (held.next(), held.due(now)) else {
            return;
        };
        if at > now {
            return self.queue.add(&key, urgent, at);
        }
        let now = jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let patch = patch(&held.intent.service, &step, &now);
        let connection = self.connection.clone();
        let busy = key.clone();
        let write = self.writes.spawn(async move {
            let result = write(&connection, &key, &patch).await;
            Done { key, step, result }
        });
        self.busy.insert(write.id(), busy);
    }

    fn tell(&self, service: &Arc<Service>, event: Event) {
        if self.record.try_send((Arc::clone(service), event)).is_err() {
            metrics::with_local_recorder(&*self.recorder, || measure::event("dropped"));
        }
    }

    fn count(&self, result: &'static str) {
        metrics::with_local_recorder(&*self.recorder, || measure::wrote(result));
    }

    /// A write panicked: tried again like one that was refused.
    fn failed(&mut self, id: Id) {
        if let Some(key) = self.busy.remove(&id) {
            self.count("error");
            self.queue.failed(&key, Instant::now());
        }
    }

    fn done(&mut self, id: Id, done: Done) {
        let Done { key, step, result } = done;
        self.busy.remove(&id);
        let now = Instant::now();
        let what = match step {
            Step::Publish(_) => "services/status",
            Step::Claim(_) | Step::Release(_) => "services",
        };
        self.health.wrote_of(&key, what, result.as_ref().err());
        match result {
            Ok(service) => {
                self.count("ok");
                self.queue.succeeded(&key, now);
                if let Some(held) = self.all.get_mut(&key) {
                    held.wrote(&step, service.as_ref(), now);
                }
                if matches!(step, Step::Release(_)) {
                    self.health.contest(&key, None);
                    // The watch may have said already that it is gone.
                    if let Some(service) = &service {
                        let event = self.story.released(&key);
                        self.tell(service, event);
                    }
                }
                self.judge(&key);
                self.watch_contest(&key, now);
                self.look(&key);
            }
            // The watch tells of it; until then there is nothing to do.
            Err(Refusal::NotFound) => self.count("gone"),
            Err(refusal) => {
                self.count(match &refusal {
                    Refusal::Conflict(_) => "conflict",
                    Refusal::Forbidden(_) => "forbidden",
                    Refusal::NotFound | Refusal::Other(_) => "error",
                });
                let pause = self.queue.failed(&key, now);
                tracing::warn!(
                    namespace = &*key.namespace,
                    service = &*key.name,
                    "cannot write to the API server, next try in {}s: {refusal}",
                    pause.as_secs()
                );
                if let Some(held) = self.all.get(&key)
                    && !matches!(refusal, Refusal::Conflict(_))
                {
                    self.tell(&held.intent.service, events::failed(&refusal.to_string()));
                }
            }
        }
    }
}

async fn write(
    connection: &Connection,
    key: &Key,
    patch: &Patch,
) -> Result<Option<Arc<Service>>, Refusal> {
    let Patch { path, body } = patch;
    let write = Write {
        method: Method::PATCH,
        path,
        content: STRATEGIC_MERGE,
        body,
    };
    let value = send(connection, write).await?;
    let mut reader = Reader::new(key.source, Arc::clone(&key.cluster)).with_status();
    Ok(match reader.object(&value, None) {
        Ok(Object::Service(service)) if service.meta.key == *key => Some(service),
        // The watch brings it.
        _ => None,
    })
}

async fn write_events(settings: Settings, mut events: mpsc::Receiver<Told>) {
    while let Some((service, event)) = events.recv().await {
        let key = &service.meta.key;
        let path = format!("/api/v1/namespaces/{}/events", key.namespace);
        let now = jiff::Timestamp::now();
        let body = body_of(&service, &event, &settings.identity, now);
        let write = Write {
            method: Method::POST,
            path: &path,
            content: "application/json",
            body: &body,
        };
        let sent = send(&settings.connection, write).await;
        settings.health.wrote("events", sent.as_ref().err());
        let result = match sent {
            Ok(_) => "ok",
            Err(refusal) => {
                tracing::debug!(
                    namespace = &*key.namespace,
                    service = &*key.name,
                    "event not written: {refusal}"
                );
                "failed"
            }
        };
        metrics::with_local_recorder(&*settings.recorder, || measure::event(result));
        tokio::time::sleep(EVENT_PACE).await;
    }
}

fn body_of(
    service: &Service,
    event: &Event,
    identity: &str,
    now: jiff::Timestamp,
) -> serde_json::Value {
    let key = &service.meta.key;
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // As client-go names them. A name has 253 characters at most.
    let name: String = key.name.chars().take(200).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": format!("{name}.{:x}", now.as_nanosecond()), "namespace": &*key.namespace },
        "involvedObject": {
            "apiVersion": "v1", "kind": "Service",
            "namespace": &*key.namespace, "name": &*key.name, "uid": &*key.uid,
        },
        "type": if event.warning { "Warning" } else { "Normal" },
        "reason": event.reason,
        "message": event.message,
        "count": 1,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "source": { "component": "weir", "host": identity },
    })
}
