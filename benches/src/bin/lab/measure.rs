//! One measurement: a row, a variant, some seconds.

use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::cli::Mode;
use crate::figures::percentile;
use crate::load::client::{self, Group, Task};
use crate::load::server::Server;
use crate::load::udp;
use crate::load::{Counters, Route, oneway};
use crate::memory;
use crate::meter::Meter;
use crate::net::{LB_CPU, LOAD_CPU, Place, Topology};
use crate::peers::{Running, Variant};
use crate::rows::{Metric, Row, Work};
use crate::stop::Stop;

/// How long a variant may take until it forwards: 10,000 Services take some seconds.
const START: Duration = Duration::from_secs(60);
/// How long idle connections may take to be made.
const OPEN: Duration = Duration::from_secs(30);

/// How long the command of --during may take to end.
const PROFILER: Duration = Duration::from_secs(20);

/// What one measurement found. Counts are of the measured time alone.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// The round it belongs to, from 1.
    pub round: usize,
    /// In the row's unit.
    pub value: f64,
    /// CPU of the load balancer's host in mode isolate, of the load balancer's threads in mode
    /// spread: microseconds per operation, or milliseconds per GiB. 0: not known.
    pub cpu_each: f64,
    /// How much of the CPU (of the load balancer's host; of all CPUs in mode spread) was in use.
    pub lb_used: f64,
    /// How much of the load's CPU was in use.
    pub load_used: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub lost: u64,
    pub errors: u64,
}

/// What all measurements share.
pub struct Bench<'a> {
    pub meter: &'a Meter,
    pub stop: &'a Stop,
    pub weir: &'a Path,
    pub warmup: Duration,
    pub time: Duration,
    pub during: Option<&'a str>,
}

impl Bench<'_> {
    /// Starts the variant, measures, and ends it.
    pub fn measure(&self, row: &Row, variant: &Variant, topology: &Topology) -> Result<Sample> {
        let server = Server::start(topology)?;
        let mut running = variant.start(topology, row, self.weir)?;
        let outcome = self
            .wait_until_it_forwards(row, variant, topology, &mut running)
            .and_then(|()| self.load(row, variant, topology, &server, &mut running))
            .with_context(|| format!("{} of {variant}", row.name));
        running.stop(topology);
        server.finish()?;
        outcome
    }

    fn wait_until_it_forwards(
        &self,
        row: &Row,
        variant: &Variant,
        topology: &Topology,
        running: &mut Running,
    ) -> Result<()> {
        let deadline = Instant::now() + START;
        while row.services > 1 && listeners(topology)? < row.services {
            self.stop.sleep(Duration::from_millis(50))?;
            running.check()?;
            ensure!(
                Instant::now() < deadline,
                "not all listeners within {START:?}"
            );
        }
        let group = Group {
            conns: 1,
            task: Task::ConnectClose,
        };
        let load = Load::start(&Work::Tcp(vec![group]), topology, variant.route())?;
        while load.counters.answered.load(Ordering::Relaxed) == 0 {
            self.stop.sleep(Duration::from_millis(5))?;
            running.check()?;
            ensure!(
                Instant::now() < deadline,
                "it does not forward within {START:?}: {}",
                running.log()
            );
        }
        load.finish()?;
        if row.services > 1 {
            self.wait_until_it_rests(running, deadline)?;
        }
        Ok(())
    }

    /// A large table is not done when the last listener is open: status, log, memory given back.
    fn wait_until_it_rests(&self, running: &Running, deadline: Instant) -> Result<()> {
        let Some(pid) = running.pid() else {
            return Ok(());
        };
        let mut last = None;
        while last != Some(memory::ticks(pid)) {
            last = Some(memory::ticks(pid));
            self.stop.sleep(Duration::from_millis(500))?;
            ensure!(Instant::now() < deadline, "it is busy after {START:?}");
        }
        Ok(())
    }

    fn load(
        &self,
        row: &Row,
        variant: &Variant,
        topology: &Topology,
        server: &Server,
        running: &mut Running,
    ) -> Result<Sample> {
        let before = memory::pss(running.pid());
        let load = Load::start(&row.work, topology, variant.route())?;
        if let Work::Idle(conns) = row.work {
            let sample = self.idle(conns, before, &load, running);
            load.finish()?;
            return sample;
        }
        self.stop.sleep(self.warmup)?;
        let during = self.start_during(row, variant, running)?;
        let take = || Snapshot::take(self.meter, &load.counters, server, running.pid());
        let before = take();
        load.counters.recording.store(true, Ordering::Relaxed);
        self.stop.sleep(self.time)?;
        load.counters.recording.store(false, Ordering::Relaxed);
        let after = take();
        end_during(during);
        running.check()?;
        let mut times = load.finish()?;
        Ok(sample(row, topology, &before, &after, &mut times))
    }

    /// Bytes of the load balancer's processes for each connection that keeps silent.
    fn idle(
        &self,
        conns: usize,
        before: u64,
        load: &Load,
        running: &mut Running,
    ) -> Result<Sample> {
        let deadline = Instant::now() + OPEN;
        while load.counters.answered.load(Ordering::Relaxed) < conns as u64 {
            self.stop.sleep(Duration::from_millis(5))?;
            running.check()?;
            ensure!(
                Instant::now() < deadline,
                "{} of {conns} connections after {OPEN:?}, {} errors",
                load.counters.answered.load(Ordering::Relaxed),
                load.counters.errors.load(Ordering::Relaxed)
            );
        }
        // What the last answers left behind is put away.
        self.stop.sleep(Duration::from_millis(500))?;
        let grown = memory::pss(running.pid()).saturating_sub(before);
        Ok(Sample {
            value: grown as f64 / conns as f64,
            errors: load.counters.errors.load(Ordering::Relaxed),
            ..Sample::default()
        })
    }

    fn start_during(
        &self,
        row: &Row,
        variant: &Variant,
        running: &Running,
    ) -> Result<Option<Child>> {
        let Some(command) = self.during else {
            return Ok(None);
        };
        let pid = running.pid().map(|pid| pid.to_string());
        let child = Command::new("sh")
            .args(["-c", command])
            .env("LB_PID", pid.unwrap_or_default())
            .env("VARIANT", &variant.label)
            .env("ROW", row.name)
            .spawn()
            .context("cannot run the command of --during")?;
        Ok(Some(child))
    }
}

/// Lets a profiler write what it has: SIGINT, then wait.
fn end_during(child: Option<Child>) {
    let Some(mut child) = child else { return };
    if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
    }
    let deadline = Instant::now() + PROFILER;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Counters at one moment.
struct Snapshot {
    at: Instant,
    cpu: crate::meter::Reading,
    /// What the load balancer's threads have run.
    ran_ns: u64,
    ops: u64,
    bytes: u64,
    lost: u64,
    errors: u64,
}

impl Snapshot {
    fn take(meter: &Meter, counters: &Counters, server: &Server, pid: Option<u32>) -> Snapshot {
        let sunk = server.sunk.load(Ordering::Relaxed);
        Snapshot {
            at: Instant::now(),
            cpu: meter.read(),
            ran_ns: memory::ran_ns(pid),
            ops: counters.ops.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed) + sunk,
            lost: counters.lost.load(Ordering::Relaxed),
            errors: counters.errors.load(Ordering::Relaxed),
        }
    }
}

fn sample(
    row: &Row,
    topology: &Topology,
    before: &Snapshot,
    after: &Snapshot,
    times: &mut [u32],
) -> Sample {
    let seconds = (after.at - before.at).as_secs_f64();
    let ops = (after.ops - before.ops) as f64;
    let bytes = (after.bytes - before.bytes) as f64;
    let used = after.cpu.used_since(&before.cpu);
    let (lb_used, load_used, cpu_seconds) = match topology.mode {
        Mode::Isolate => (used[LB_CPU], used[LOAD_CPU], used[LB_CPU] * seconds),
        Mode::Spread => {
            let mean = used.iter().sum::<f64>() / used.len() as f64;
            (mean, mean, (after.ran_ns - before.ran_ns) as f64 / 1e9)
        }
    };
    let p50_us = f64::from(percentile(times, 50.0)) / 1e3;
    let p99_us = f64::from(percentile(times, 99.0)) / 1e3;
    let (value, cpu_each) = match row.metric {
        Metric::Bulk => (
            bytes * 8.0 / seconds / 1e9,
            cpu_seconds * 1e3 / (bytes / (1u64 << 30) as f64),
        ),
        Metric::P50 => (p50_us, cpu_seconds * 1e6 / ops),
        Metric::P99 => (p99_us, cpu_seconds * 1e6 / ops),
        Metric::Rate | Metric::Memory => (ops / seconds / 1e3, cpu_seconds * 1e6 / ops),
    };
    Sample {
        round: 0,
        value,
        cpu_each: if cpu_each.is_finite() { cpu_each } else { 0.0 },
        lb_used,
        load_used,
        p50_us,
        p99_us,
        lost: after.lost - before.lost,
        errors: after.errors - before.errors,
    }
}

/// How many TCP ports somebody listens at in the load balancer's namespace.
fn listeners(topology: &Topology) -> Result<usize> {
    topology.lb.run(Place::default(), || {
        let text = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
        text.lines()
            .filter(|line| line.split_whitespace().nth(3) == Some("0A"))
            .count()
    })
}

/// A generator at work.
struct Load {
    counters: Arc<Counters>,
    thread: Option<JoinHandle<Result<Result<Vec<u32>>>>>,
}

impl Load {
    fn start(work: &Work, topology: &Topology, route: Route) -> Result<Load> {
        let counters = Arc::<Counters>::default();
        let shared = counters.clone();
        let work = work.clone();
        let (client, server) = (topology.client.door()?, topology.server.door()?);
        let thread = topology.client.spawn(topology.load_place(), move || {
            let none = |()| Vec::new();
            match work {
                Work::Tcp(groups) => client::run(&groups, &route, &shared),
                Work::Idle(conns) => {
                    let task = Task::Idle;
                    client::run(&[Group { conns, task }], &route, &shared)
                }
                Work::Flows(flows) => udp::run(flows, &route, &shared).map(none),
                Work::OneWay => oneway::run(&server, &client, &route, &shared).map(none),
            }
        })?;
        Ok(Load {
            counters,
            thread: Some(thread),
        })
    }

    /// Ends it; the times of requests.
    fn finish(mut self) -> Result<Vec<u32>> {
        self.end()
    }

    fn end(&mut self) -> Result<Vec<u32>> {
        self.counters.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(outcome)) => outcome?.context("the load generator"),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => bail!("the load generator had ended"),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = self.end();
        }
    }
}
