//! What the admin listener sees: snapshots of the control plane and the data plane, shaped for the
//! wire at the moment somebody asks.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use admin_api::metrics::{Kind, Page, Registry};
use admin_api::view::{Check, Endpoints, Level, Port, Reason, Service, State, Version};
use controlplane::control::{Command, Desk};
use controlplane::credential::Health as TokenHealth;
use controlplane::provider::Health;
use controlplane::reason::{self, CONFIRM};
use controlplane::source;
use controlplane::status::{self, ServiceStatus, Snapshot};
use lb_core::plane::{Chosen, Handle, ListenerState, Report};
use lb_core::table::Protocol;

use super::ports::Ports;
use super::{cluster, credential, gauges, memory};
use crate::telemetry::Dropped;
use crate::version::VERSION;

/// A worker that has not begun a turn for this long is in trouble: it turns once a second at the
/// least.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// So many of one kind are listed one by one.
const LISTED: usize = 10;

/// The appliance as the admin listener sees it.
#[derive(Debug)]
pub struct View {
    plane: Handle,
    desk: Desk,
    registry: Registry,
    dropped: Dropped,
    ports: Arc<Ports>,
    provider: Option<Health>,
    token: Option<TokenHealth>,
    draining: AtomicBool,
}

impl View {
    /// `registry` is the one that the control plane behind `desk` records into.
    pub fn new(
        plane: Handle,
        desk: Desk,
        registry: Registry,
        dropped: Dropped,
        ports: Arc<Ports>,
        provider: Option<Health>,
    ) -> View {
        registry.record(|| {
            gauges::describe();
            cluster::describe();
            memory::describe();
            controlplane::credential::describe();
        });
        View {
            plane,
            desk,
            registry,
            dropped,
            ports,
            provider,
            token: None,
            draining: AtomicBool::new(false),
        }
    }

    /// And how its own token fares, if it has one.
    pub fn with_token(self, token: Option<TokenHealth>) -> View {
        View { token, ..self }
    }

    /// From now on it is not ready.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The checks that are not as they should be.
    pub fn failures(&self) -> Vec<String> {
        let checks = admin_api::Appliance::readiness(self).into_iter();
        let failed = checks.filter(|check| check.level == Level::Failed);
        failed
            .map(|check| format!("{}: {}", check.name, check.message))
            .collect()
    }
}

impl admin_api::Appliance for View {
    fn version(&self) -> Version {
        Version {
            name: "weir",
            version: VERSION,
            engine: self.plane.engine().driver.label().to_owned(),
        }
    }

    fn liveness(&self) -> Vec<Check> {
        let longest = self.plane.report().heartbeat();
        let message = format!(
            "the slowest worker began a turn {} ms ago",
            longest.as_millis()
        );
        vec![match longest < HEARTBEAT {
            true => Check::good("workers", message),
            false => Check::failed(
                "workers",
                format!("{message}: restart the process and report this"),
            ),
        }]
    }

    fn readiness(&self) -> Vec<Check> {
        let (snapshot, report) = (self.desk.snapshot(), self.plane.report());
        let mut checks = vec![
            engine(self.plane.engine()),
            first_list(&snapshot),
            table(&snapshot, &report),
            listeners(&report),
            services(&snapshot),
            addresses(&snapshot),
            state(&snapshot),
            manifests(&snapshot),
            deletions(&snapshot),
            self.ports.seen().check(),
            memory::check(&self.plane.memory()),
        ];
        checks.extend(cluster::check(&self.desk.watches(), Instant::now()));
        checks.extend(self.desk.answers().as_ref().map(cluster::answers));
        checks.extend(self.provider.as_ref().map(|health| match health.say() {
            (true, text) => Check::good("provider", text),
            (false, text) => Check::warning("provider", text),
        }));
        checks.extend(self.token.as_ref().and_then(credential::check));
        if snapshot.restarts > 0 {
            let message = format!(
                "the control task was started anew {} times after a panic: please report it",
                snapshot.restarts
            );
            checks.push(Check::warning("control", message));
        }
        if self.draining.load(Ordering::Relaxed) {
            checks.push(Check::failed("drain", "draining: no new work is taken"));
        }
        checks
    }

    fn services(&self) -> Arc<[Service]> {
        let snapshot = self.desk.snapshot();
        let mut statuses: Vec<&Arc<ServiceStatus>> = snapshot.services().collect();
        let name = |status: &ServiceStatus| {
            let key = &status.key;
            (key.namespace.clone(), key.name.clone(), key.clone())
        };
        statuses.sort_by_cached_key(|status| name(status));
        let health = self.provider.as_ref();
        let unwritten = |status: &ServiceStatus| {
            health
                .map(|health| health.of(&status.key))
                .unwrap_or_default()
        };
        let services = statuses.into_iter();
        services
            .map(|status| service(status, unwritten(status)))
            .collect()
    }

    fn stats(&self) -> lb_core::stats::Snapshot {
        self.plane.stats()
    }

    fn recorded(&self) -> String {
        let (snapshot, report) = (self.desk.snapshot(), self.plane.report());
        let rejected = errors(&snapshot).count();
        let (driver, ports) = (self.plane.engine().driver, self.ports.fresh());
        self.registry.record(|| {
            gauges::set(&snapshot, &report, driver, rejected, self.dropped.count());
            gauges::set_ports(ports.used.as_ref());
            memory::set(&self.plane.memory());
            cluster::set(&self.desk.watches(), Instant::now());
            self.desk.answers().iter().for_each(cluster::set_answers);
            self.token.iter().for_each(TokenHealth::measure);
            self.provider.iter().for_each(Health::measure);
        });
        self.registry.render()
    }

    fn metrics(&self, page: &mut Page) {
        backends(page, &self.desk.snapshot());
    }

    fn confirm_deletions(&self) -> usize {
        let held = self.desk.snapshot().held;
        match held > 0 && self.desk.command(Command::ConfirmDeletions) {
            true => held,
            false => 0,
        }
    }
}

/// A state here and on the wire.
pub(super) const STATES: [(status::State, State); 5] = [
    (status::State::Serving, State::Serving),
    (status::State::Degraded, State::Degraded),
    (status::State::Closed, State::Closed),
    (status::State::Pending, State::Pending),
    (status::State::Refused, State::Refused),
];

fn backends(page: &mut Page, snapshot: &Snapshot) {
    let mut family = page.family(
        "weir_backends",
        Kind::Gauge,
        "Endpoints of a Service, by state.",
    );
    for status in snapshot
        .services()
        .filter(|status| status.state != status::State::Refused)
    {
        let Endpoints {
            ready,
            serving,
            terminating,
            not_ready,
            refused,
            unhealthy,
        } = endpoints(status);
        let states = [
            ("ready", ready),
            ("serving", serving),
            ("terminating", terminating),
            ("not_ready", not_ready),
            ("refused", refused),
            ("unhealthy", unhealthy),
        ];
        for (state, count) in states {
            let labels = [
                ("namespace", &*status.key.namespace),
                ("service", &*status.key.name),
                ("state", state),
            ];
            family.sample(&labels, count);
        }
    }
}

fn service(status: &ServiceStatus, unwritten: Vec<reason::Reason>) -> Service {
    let ports = status.ports.iter().map(|port| Port {
        name: port.name.to_string(),
        port: port.port.get(),
        protocol: match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        },
    });
    let reasons = status.reasons.iter().chain(&unwritten);
    let reasons = reasons.map(|reason| Reason {
        code: reason.code(),
        message: reason.to_string(),
    });
    let state = STATES.iter().find(|(state, _)| *state == status.state);
    Service {
        namespace: status.key.namespace.to_string(),
        name: status.key.name.to_string(),
        state: state.map_or(State::Refused, |(_, wire)| *wire),
        addresses: status.addresses.clone(),
        ports: ports.collect(),
        endpoints: endpoints(status),
        reasons: reasons.collect(),
    }
}

fn endpoints(status: &ServiceStatus) -> Endpoints {
    let counts = status.endpoints;
    Endpoints {
        ready: counts.ready,
        serving: counts.serving,
        terminating: counts.terminating,
        not_ready: counts.not_ready,
        refused: counts.refused,
        unhealthy: counts.unhealthy,
    }
}

/// Whichever runs serves; the reason says what would have to change for another.
fn engine(chosen: &Chosen) -> Check {
    Check::good("engine", format!("{}: {}", chosen.driver, chosen.why))
}

fn first_list(snapshot: &Snapshot) -> Check {
    match snapshot.complete {
        true => Check::good("first-list", "complete"),
        false => Check::failed(
            "first-list",
            "no complete list of the sources was seen yet; check that the directory of --manifests exists and can be read, and what the check watches says of a cluster",
        ),
    }
}

fn table(snapshot: &Snapshot, report: &Report) -> Check {
    let (published, running) = (snapshot.published, report.generation());
    match published <= running {
        true => Check::good("table", format!("generation {running} runs in all workers")),
        false => Check::failed(
            "table",
            format!(
                "generation {published} is published, and not every worker runs more than {running}"
            ),
        ),
    }
}

fn listeners(report: &Report) -> Check {
    let (mut open, mut problems) = (0, Vec::new());
    for worker in &report.workers {
        for (_, state) in worker.listeners.iter() {
            match state {
                ListenerState::Listening => open += 1,
                ListenerState::Closed => {}
                ListenerState::Pending => problems.push("a listener is not open yet".to_owned()),
                ListenerState::OverLimit => {
                    problems.push("a listener does not fit the descriptor limit: raise LimitNOFILE or use fewer workers".to_owned());
                }
                ListenerState::Failed(error) => problems.push(error.to_string()),
            }
        }
    }
    problems.sort();
    problems.dedup();
    match problems.is_empty() {
        true => Check::good("listeners", format!("{open} open")),
        false => Check::failed("listeners", list(problems.iter())),
    }
}

/// What is published is served only once its address is on the machine, too.
fn services(snapshot: &Snapshot) -> Check {
    match snapshot.settling {
        0 => Check::good("services", "none is on its way"),
        settling => Check::failed(
            "services",
            format!("{settling} are on their way to listening"),
        ),
    }
}

fn addresses(snapshot: &Snapshot) -> Check {
    let reasons = snapshot.services().flat_map(|status| &status.reasons);
    let missing = reasons.filter(|reason| reason.code() == "AddressNotAdded");
    let missing: Vec<_> = missing.collect();
    match missing.is_empty() {
        true => Check::good("addresses", "on the machine"),
        false => Check::warning("addresses", list(missing.iter())),
    }
}

fn state(snapshot: &Snapshot) -> Check {
    if let Some(problem) = &snapshot.state_problem {
        return Check::warning("state", &**problem);
    }
    match snapshot.state_notes.is_empty() {
        true => Check::good("state", "written"),
        false => Check::warning("state", list(snapshot.state_notes.iter())),
    }
}

fn errors(snapshot: &Snapshot) -> impl Iterator<Item = &source::Problem> {
    let problems = snapshot.problems.iter();
    problems.filter(|problem| problem.level == source::Level::Error)
}

fn manifests(snapshot: &Snapshot) -> Check {
    let problems: Vec<_> = errors(snapshot).collect();
    match problems.is_empty() {
        true => Check::good("manifests", "no mistake found"),
        false => Check::warning("manifests", list(problems.iter())),
    }
}

fn deletions(snapshot: &Snapshot) -> Check {
    match snapshot.held {
        0 => Check::good("deletions", "none waits for a word"),
        held => Check::warning(
            "deletions",
            format!(
                "{held} Services vanished at once and are held: bring them back, or confirm: {CONFIRM}"
            ),
        ),
    }
}

/// The first of them, and how many more there are.
fn list(items: impl ExactSizeIterator<Item = impl Display>) -> String {
    let count = items.len();
    let shown: Vec<String> = items.take(LISTED).map(|item| item.to_string()).collect();
    let mut text = shown.join("; ");
    if count > LISTED {
        text.push_str(&format!("; and {} more", count - LISTED));
    }
    text
}
