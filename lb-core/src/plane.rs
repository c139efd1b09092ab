//! The public face of the data plane: start it, publish tables to it, hear what its workers run,
//! drain it, stop it.
//!
//! Nothing here waits for a worker but [`Handle::wait`] and [`Plane::stop`], and no worker waits
//! for anything here.

mod engine;
mod handle;
pub mod memory;
mod port_use;
mod probe;
mod watchers;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::stats::WorkerCounters;
use crate::sys::epoll::Poller;
use crate::sys::eventfd::Wake;
use crate::sys::rotation::Rotation;
use crate::sys::{clock, process};
use crate::table::Table;
use crate::uring::{Ring, Size};
use crate::worker::descriptors::Descriptors;
use crate::worker::{Budget, Ports, Published, Seat, Shared, TooFew, Worker, WorkerState};
use handle::Inner;
use watchers::Watchers;

pub use engine::{Chosen, Driver, Engine, choose};
pub use handle::Handle;
pub use port_use::PortUse;
pub use probe::{Finding, Lack, Probe};

pub use crate::worker::{BindError, ListenerState, Report, WorkerReport};

/// Bounds of [`Limits::peer_timeout`]. Below the first, keepalive's whole seconds cannot follow; the second is far from where the
/// kernel's numbers end.
pub const PEER_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(86_400);

/// What the process allows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// UDP flows per worker.
    pub flows: usize,
    /// UDP flows per worker from one client address.
    pub flows_per_source: usize,
    /// Bytes per worker for copies of flows' latest datagrams.
    pub copy_bytes: usize,
    /// Clients that stay with a backend, per worker and frontend with affinity.
    pub pins: usize,
    /// Descriptors kept for what is not traffic: admin, sources, logs, state. At most a quarter of
    /// the process's limit is taken for them.
    pub reserved_descriptors: u64,
    /// A TCP peer that acknowledges nothing for this long is given up, idle or not: 1 s to 24 h.
    ///
    /// Linux counts a window that stays shut as such silence, though the peer answers: so this is
    /// also how long a reader may pause, and the default is no less than the time that Linux
    /// itself goes on sending to a peer that does not answer (tcp_retries2: some 15 minutes).
    pub peer_timeout: Duration,
    /// Up to where memory may fill before new work waits, and before idle connections are closed.
    pub memory: memory::Watermarks,
    /// Addresses of this machine that backends are dialled from, by chance; one without a port
    /// left gives way to the next. None of a backend's family: the kernel's choice.
    pub source_addresses: Vec<IpAddr>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            flows: 65_536,
            flows_per_source: 16_384,
            copy_bytes: 4 << 20,
            pins: 65_536,
            reserved_descriptors: 64,
            peer_timeout: Duration::from_secs(900),
            memory: memory::Watermarks::default(),
            source_addresses: Vec::new(),
        }
    }
}

/// How a plane runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Worker threads, at least 1; one per CPU is what it was made for.
    pub workers: usize,
    /// Pin worker n to the nth CPU that the process may use.
    pub pin: bool,
    /// Which I/O driver runs.
    pub engine: Engine,
    /// What the process allows itself.
    pub limits: Limits,
}

impl Default for Config {
    /// A pinned worker for each CPU that the process may use.
    fn default() -> Config {
        Config {
            workers: thread::available_parallelism().map_or(1, |n| n.get()),
            pin: true,
            engine: Engine::Auto,
            limits: Limits::default(),
        }
    }
}

/// Why a plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Zero workers.
    #[error("cannot start with 0 workers; ask for at least 1")]
    NoWorkers,
    /// The engine that was asked for is not there.
    #[error("cannot run the io_uring engine: {why}; or use `--engine auto` or `--engine epoll`")]
    NoIoUring {
        /// The first thing missing, and how to get it.
        why: String,
    },
    /// The peer timeout is out of bounds.
    #[error("cannot give up silent peers after {0:?}; choose a peer timeout from 1s to 24h")]
    PeerTimeout(Duration),
    /// The limit of open descriptors is too low.
    #[error(
        "the limit of open files is {limit}, and {workers} workers need {needed}; raise it (LimitNOFILE, ulimit -n) or run fewer workers"
    )]
    TooFewDescriptors {
        /// The limit, after raising it as far as allowed.
        limit: u64,
        /// The workers asked for.
        workers: usize,
        /// The least limit that will do.
        needed: u64,
    },
    /// The kernel refused a worker's epoll instance or eventfd.
    #[error(
        "cannot set up worker {worker}: {source}; check the limit of open files and the seccomp profile"
    )]
    Poller {
        /// Which worker.
        worker: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused a thread.
    #[error(
        "cannot start the thread of {name}: {source}; check the limit of processes (TasksMax, ulimit -u) and memory"
    )]
    Thread {
        /// The thread's name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A running data plane. Dropping it stops it.
#[derive(Debug)]
pub struct Plane {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

impl Plane {
    /// Starts the workers on `table`. Their listeners open from now on; [`Handle::wait`] tells
    /// when they have.
    ///
    /// Raises the soft limit of open descriptors to the hard one.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing runs then.
    pub fn start(config: Config, table: Arc<Table>) -> Result<Plane, StartError> {
        let Config {
            workers,
            pin,
            engine,
            limits,
        } = config;
        if workers == 0 {
            return Err(StartError::NoWorkers);
        }
        let probe = match engine {
            // Not even tried: a seccomp profile may kill who calls io_uring_setup.
            Engine::Epoll => Probe::default(),
            Engine::Auto | Engine::IoUring => Probe::run(),
        };
        let engine = choose(engine, &probe)?;
        let driver = engine.driver;
        if !PEER_TIMEOUTS.contains(&limits.peer_timeout) {
            return Err(StartError::PeerTimeout(limits.peer_timeout));
        }
        process::give_memory_back();
        let limit = process::raise_nofile();
        let budget = Budget::new(limit, workers, limits.reserved_descriptors);
        let budget = budget.map_err(|TooFew { needed }| StartError::TooFewDescriptors {
            limit,
            workers,
            needed,
        })?;
        let watchers = Arc::new(Watchers::default());
        let reporter = spawn("lb-report".into(), {
            let watchers = Arc::clone(&watchers);
            move || watchers.run()
        })?;
        let shared = shared(workers, reporter.thread().clone(), budget, table)
            .inspect_err(|_| watchers.end(reporter.thread()))?;
        let mut plane = Plane {
            handle: Handle(Arc::new(Inner {
                shared,
                budget,
                watchers,
                engine,
                memory: Arc::default(),
            })),
            threads: vec![reporter],
        };
        // From here on a failure drops the plane, which stops what has started.
        plane.start_workers(pin, &limits, driver)?;
        plane.watch_memory(limits.memory)?;
        Ok(plane)
    }

    fn start_workers(
        &mut self,
        pin: bool,
        limits: &Limits,
        driver: Driver,
    ) -> Result<(), StartError> {
        let cpus = process::allowed_cpus();
        let seed = RandomState::new();
        for index in 0..self.handle.0.shared.wakes.len() {
            let cpu = (pin && !cpus.is_empty()).then(|| cpus[index % cpus.len()]);
            let shared = Arc::clone(&self.handle.0.shared);
            let (limits, seed) = (limits.clone(), seed.clone());
            let (seated, answer) = mpsc::sync_channel(1);
            let thread = spawn(format!("lb-worker-{index}"), move || {
                if let Some(cpu) = cpu {
                    // Only speed is lost without it: a CPU that was taken off line since we asked.
                    let _ = process::pin(cpu);
                }
                match seat(&shared, index, limits, &seed, driver) {
                    Ok(seat) => {
                        let _ = seated.send(Ok(()));
                        drop((shared, seated));
                        work(seat);
                    }
                    Err(error) => {
                        let _ = seated.send(Err(error));
                    }
                }
            })?;
            self.threads.push(thread);
            let answer = answer.recv().unwrap_or_else(|_| {
                let early = "its thread ended before it had begun";
                Err(io::Error::other(early))
            });
            answer.map_err(|source| StartError::Poller {
                worker: index,
                source,
            })?;
        }
        Ok(())
    }

    fn watch_memory(&mut self, watermarks: memory::Watermarks) -> Result<(), StartError> {
        let Inner { shared, memory, .. } = &*self.handle.0;
        let (shared, memory) = (Arc::clone(shared), Arc::clone(memory));
        if let Some(body) = memory::watcher(watermarks, Path::new("/"), shared, memory) {
            self.threads.push(spawn("lb-memory".into(), body)?);
        }
        Ok(())
    }

    /// The way to talk to it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends it at once: what still lives is reset. [Drain](Handle::drain) first to finish it.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let Inner {
            shared, watchers, ..
        } = &*self.handle.0;
        shared.announce(|| shared.stop.store(true, Ordering::Release));
        watchers.end(&shared.reporter);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A worker does not return from a panic; a watcher's was caught.
            let _ = thread.join();
        }
    }
}

/// What all threads share, before any of them runs.
fn shared(
    workers: usize,
    reporter: thread::Thread,
    budget: Budget,
    table: Arc<Table>,
) -> Result<Arc<Shared>, StartError> {
    let plan = budget.plan(&table);
    let wake = |worker| {
        Wake::new().map_err(|errno| StartError::Poller {
            worker,
            source: errno.into(),
        })
    };
    let now = clock::now().as_micros();
    let counters = (0..workers).map(|_| {
        let counters = WorkerCounters::default();
        counters.heartbeat.set(now);
        Arc::new(counters)
    });
    Ok(Arc::new(Shared {
        published: Arc::new(ArcSwap::from_pointee(Published { table, plan })),
        states: (0..workers)
            .map(|_| ArcSwap::from_pointee(WorkerState::default()))
            .collect(),
        counters: counters.collect(),
        wakes: (0..workers).map(wake).collect::<Result<_, _>>()?,
        // Refused, the hash spreads connections, and the probe says what is missing.
        rotation: (workers > 1)
            .then(|| Rotation::new(workers as u32).ok().map(Arc::new))
            .flatten(),
        ports: Arc::new(Ports::default()),
        memory: Arc::new(ArcSwap::from_pointee(memory::Order::NONE)),
        drain_until: AtomicU64::new(Shared::NO_DRAIN),
        stop: AtomicBool::new(false),
        reporter,
    }))
}

/// What a worker needs of the kernel, taken by its own thread: a ring belongs to the one that made
/// it, which the kernel interrupts when the ring ends.
fn seat(
    shared: &Arc<Shared>,
    index: usize,
    limits: Limits,
    seed: &RandomState,
    driver: Driver,
) -> io::Result<Seat> {
    let random = |salt: u64| {
        let mut hasher = seed.build_hasher();
        hasher.write_u64(salt);
        hasher.finish()
    };
    let poller = Poller::new()?;
    Worker::watch_wake(&poller, shared, index)?;
    let ring = match driver {
        Driver::IoUring => Some(Ring::new(Size::of_worker()).map_err(io::Error::from)?),
        Driver::Epoll => None,
    };
    Ok(Seat {
        index,
        shared: Arc::clone(shared),
        poller,
        ring,
        descriptors: Descriptors::new(Arc::clone(&shared.counters), index)?,
        limits,
        seed: random(index as u64),
        selector_seed: random(u64::MAX) as u32,
    })
}

/// The life of a worker's thread. A panic there is a bug of ours, and half a data plane is worse
/// than none: the process ends, and whoever supervises it starts it anew.
fn work(seat: Seat) {
    let index = seat.index;
    if catch_unwind(AssertUnwindSafe(|| Worker::new(seat).run())).is_err() {
        // The panic's own message stands above this one.
        eprintln!("worker {index} panicked; this is a bug: the process aborts to be restarted");
        std::process::abort();
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let builder = thread::Builder::new().name(name.clone());
    builder
        .spawn(body)
        .map_err(|source| StartError::Thread { name, source })
}
