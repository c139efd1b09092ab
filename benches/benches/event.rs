//! From an endpoint's event to the first pick of the new endpoint, with 10,000 Services and 100,000
//! endpoints: the whole control task and one worker, in this process, on loopback. Not criterion's:
//! what counts is the tail.
//!
//! Two directories: one holds all Services but one, the other that one. Its file is replaced again
//! and again by one that names the other of two backends, and a client dials until that answers.
//! Two figures of each change: from the first event that the control task took to the table in force
//! in the worker (what the product itself measures), and from the file to the client's answer, to
//! which the directory source adds its watch, its wait for silence, and its reading.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use benches::KEY;
use controlplane::allocate::Pools;
use controlplane::compile::Defaults;
use controlplane::control::{Control, Desk, Settings};
use controlplane::measure::PROGRAMMING;
use controlplane::object::SourceId;
use controlplane::source::directory;
use controlplane::status::State;
use controlplane::translate::Rules;
use lb_core::plane::{Config, Plane};
use lb_core::table::TableBuilder;
use metrics::{Counter, Gauge, Histogram, HistogramFn, KeyName, Metadata, SharedString, Unit};

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 10;
const FILES: u32 = 20;
const SAMPLES: usize = 300;
/// The directory source's wait for silence, here as short as it goes.
const SOURCE_SETTLE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if filter.is_some_and(|filter| !"event to first new pick".contains(&filter)) {
        return;
    }
    let taken = Taken::default();
    let world = World::start(&taken);
    let mut answered = Vec::new();
    taken.lock().clear();
    for n in 1..=SAMPLES {
        answered.push(world.change(n));
        // Every worker has it before the next: one sample each.
        until("the table is in force", || taken.lock().len() >= n);
    }
    println!(
        "event to first new pick: {SERVICES} Services, {} endpoints, {SAMPLES} changes",
        SERVICES * ENDPOINTS
    );
    report("event to table in force", &taken.lock());
    report("file to client's answer", &answered);
    world.control.stop();
    world.plane.stop();
}

fn report(name: &str, samples: &[Duration]) {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
    println!(
        "  {name}: p50 {:.2?}  p99 {:.2?}  max {:.2?}",
        at(50),
        at(99),
        at(100)
    );
}

struct World {
    plane: Plane,
    control: Control,
    one: std::path::PathBuf,
    vip: SocketAddr,
    backends: [SocketAddr; 2],
    /// Last: it removes the directories.
    _directory: tempfile::TempDir,
}

impl World {
    fn start(taken: &Taken) -> World {
        let directory = tempfile::tempdir().expect("a directory");
        let [many, one] = ["many", "one"].map(|name| {
            let path = directory.path().join(name);
            fs::create_dir(&path).expect("a directory");
            path
        });
        for file in 0..FILES {
            fs::write(many.join(format!("{file}.json")), list(file)).expect("written");
        }
        let backends = [backend(b'a'), backend(b'b')];
        replace(&one, backends[0]);

        let sources = [(many, 0), (one.clone(), 1)].map(|(path, id)| directory::Settings {
            settle: SOURCE_SETTLE,
            settle_at_most: SOURCE_SETTLE,
            rescan: Duration::from_secs(3_600),
            ..directory::Settings::new(path, SourceId(id))
        });
        let settings = Settings {
            rules: Rules {
                allow_endpoints: vec!["127.0.0.0/8".parse().expect("a range")],
                ..Rules::default()
            },
            pools: Pools::new(
                [(None, vec!["127.50.0.0/16".parse().expect("a range")])],
                [],
            )
            .expect("pools"),
            defaults: Defaults::default(),
            directories: sources.to_vec(),
            kubernetes: None,
            state_dir: None,
            status_dir: None,
            vip_interface: None,
            drain_timeout: Duration::from_secs(1),
            confirm_deletions: false,
            provider: None,
        };
        let table = TableBuilder::new(KEY).freeze();
        let config = Config {
            workers: 1,
            pin: false,
            ..Config::default()
        };
        let plane = Plane::start(config, Arc::clone(&table)).expect("a plane");
        let recorder = Arc::new(taken.clone());
        let control = Control::start(settings, plane.handle(), table, recorder).expect("control");
        let vip = settled(&control.desk());
        World {
            plane,
            control,
            one,
            vip,
            backends,
            _directory: directory,
        }
    }

    /// The other backend in the one's place: how long until it answers.
    fn change(&self, n: usize) -> Duration {
        let expected = [b'a', b'b'][n % 2];
        let begun = Instant::now();
        replace(&self.one, self.backends[n % 2]);
        until("the new backend answers", || ask(self.vip) == expected);
        begun.elapsed()
    }
}

/// Waits for every Service to be served; where the changing one is.
fn settled(desk: &Desk) -> SocketAddr {
    until("every Service is served", || {
        let snapshot = desk.snapshot();
        let serving = snapshot
            .services()
            .filter(|status| status.state == State::Serving);
        serving.count() == SERVICES as usize
    });
    let snapshot = desk.snapshot();
    let mut services = snapshot.services();
    let one = services.find(|status| &*status.key.name == "one");
    let address = one.expect("served").addresses[0];
    SocketAddr::new(address, 80)
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not in {PATIENCE:?}: {what}");
        thread::yield_now();
    }
}

/// Which backend answers at `vip`.
fn ask(vip: SocketAddr) -> u8 {
    let mut answer = [0];
    let mut stream = TcpStream::connect(vip).expect("it listens");
    stream.read_exact(&mut answer).expect("a backend answers");
    answer[0]
}

/// A backend that says its name and closes.
fn backend(name: u8) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 61, 0, name), 0)).expect("loopback");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(&[name]));
        }
    });
    address
}

/// The manifests of one file, all Services but the first: that is the changing one.
fn list(file: u32) -> String {
    let mut text = String::from(r#"{"apiVersion":"v1","kind":"List","items":["#);
    for n in (0..SERVICES).filter(|n| n % FILES == file && *n > 0) {
        let endpoints = (0..ENDPOINTS).map(|e| {
            let address = IpAddr::V4(Ipv4Addr::from(0x7f3c_0000 + n * ENDPOINTS + e));
            format!(r#"{{"addresses":["{address}"]}}"#)
        });
        let endpoints: Vec<_> = endpoints.collect();
        write_pair(
            &mut text,
            &format!("service-{n}"),
            8080,
            &endpoints.join(","),
        );
        text.push(',');
    }
    text.pop();
    text.push_str("]}");
    text
}

fn write_pair(text: &mut String, name: &str, port: u16, endpoints: &str) {
    write!(
        text,
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}"}},"spec":{{"type":"LoadBalancer","ports":[{{"name":"p","port":80}}]}}}},{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{{"name":"{name}-1","labels":{{"kubernetes.io/service-name":"{name}"}}}},"addressType":"IPv4","ports":[{{"name":"p","port":{port}}}],"endpoints":[{endpoints}]}}"#
    )
    .expect("a String takes it");
}

/// The file of the changing Service, whole at once.
fn replace(directory: &Path, backend: SocketAddr) {
    let mut text = String::from(r#"{"apiVersion":"v1","kind":"List","items":["#);
    let endpoint = format!(r#"{{"addresses":["{}"]}}"#, backend.ip());
    write_pair(&mut text, "one", backend.port(), &endpoint);
    text.push_str("]}");
    let hidden = directory.join(".one");
    fs::write(&hidden, text).expect("written");
    fs::rename(hidden, directory.join("one.json")).expect("renamed");
}

/// Keeps every duration that the control task records of its tables.
#[derive(Clone, Default)]
struct Taken(Arc<Mutex<Vec<Duration>>>);

impl Taken {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HistogramFn for Taken {
    fn record(&self, seconds: f64) {
        self.lock().push(Duration::from_secs_f64(seconds));
    }
}

impl metrics::Recorder for Taken {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &metrics::Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &metrics::Key, _: &Metadata<'_>) -> Histogram {
        match key.name() {
            PROGRAMMING => Histogram::from_arc(Arc::new(self.clone())),
            _ => Histogram::noop(),
        }
    }
}
