//! Watches how many local ports are in use towards backends, and says so before there is none left.
//!
//! A look walks the kernel's whole table of sockets: 10 ms of CPU with 20,000 in TIME_WAIT, several
//! times that where the kernel gives it as text alone. So it is taken seldom, on a thread of its own,
//! and anew for who asks for metrics; and not at the start, when clients that waited for us come all
//! at once.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use admin_api::view::Check;
use anyhow::Context;
use arc_swap::ArcSwap;
use lb_core::plane::PortUse;
use rustix::time::{ClockId, clock_gettime};

/// Between two looks of the thread, at the least; and so many times as long as a look ran: one
/// percent of a CPU at the most.
const LOOK: (Duration, u32) = (Duration::from_secs(10), 100);
/// How old a look may be for who asks; likewise.
const FRESH: (Duration, u32) = (Duration::from_secs(2), 20);
/// The share of the ports in use from which on somebody should do something.
const HIGH: f64 = 0.8;
/// The share below which it is over: apart from the first, so that one that stands there is not
/// told again and again.
const LOW: f64 = 0.7;

/// What a look found.
#[derive(Debug)]
pub struct Seen {
    /// The ports in use; `None`: the kernel's books cannot be read, or were not yet.
    pub used: Option<PortUse>,
    /// It was a look, and not the time before the first.
    looked: bool,
    /// Source addresses that are not on the machine.
    missing: Vec<IpAddr>,
    at: Instant,
    /// How long it ran.
    cost: Duration,
}

impl Seen {
    /// Before the first look: the sources alone.
    fn nothing(sources: &[IpAddr]) -> Seen {
        // Bound for a moment, to no port that anybody asks for.
        let is_missing = |source: &IpAddr| UdpSocket::bind((*source, 0)).is_err();
        Seen {
            used: None,
            looked: false,
            missing: sources.iter().copied().filter(is_missing).collect(),
            at: Instant::now(),
            cost: Duration::ZERO,
        }
    }

    fn look(sources: &[IpAddr]) -> Seen {
        let before = cpu_time();
        Seen {
            used: PortUse::read(sources).ok(),
            looked: true,
            cost: cpu_time().saturating_sub(before),
            ..Seen::nothing(sources)
        }
    }

    /// The time that it is good for.
    fn times(&self, (least, share): (Duration, u32)) -> Duration {
        least.max(self.cost * share)
    }

    /// How it stands.
    pub fn check(&self) -> Check {
        if !self.missing.is_empty() {
            let missing: Vec<_> = self.missing.iter().map(IpAddr::to_string).collect();
            let message = format!(
                "not on this machine, so that no backend is dialled from there: {}; add it (`ip addr add`) or take it out of --source-address",
                missing.join(", ")
            );
            return Check::warning("ports", message);
        }
        let Some(used) = self.used else {
            if !self.looked {
                return Check::good("ports", "not counted yet");
            }
            let message =
                "nobody knows how many are in use: neither sock_diag nor /proc can be read";
            return Check::warning("ports", message);
        };
        let text = text(&used);
        match share(&used) >= HIGH {
            true => Check::warning("ports", format!("{text}; {WAY_OUT}")),
            false => Check::good("ports", text),
        }
    }
}

const WAY_OUT: &str = "widen net.ipv4.ip_local_port_range, or add addresses to this machine and name them in --source-address";

fn share(used: &PortUse) -> f64 {
    used.tcp.max(used.udp)
}

fn text(used: &PortUse) -> String {
    let percent = |share: f64| (share * 100.0).round();
    let busiest = match used.busiest {
        Some(backend) => format!(" towards {backend}"),
        None => String::new(),
    };
    format!(
        "{} % of the local ports are in use by TCP{busiest}, {} % by UDP",
        percent(used.tcp),
        percent(used.udp)
    )
}

/// The last look, for all who want to know.
#[derive(Debug)]
pub struct Ports {
    sources: Vec<IpAddr>,
    seen: ArcSwap<Seen>,
}

impl Ports {
    /// `sources` are where backends are dialled from; none: the kernel's choice. Looks at nothing
    /// but these yet.
    pub fn new(sources: Vec<IpAddr>) -> Arc<Ports> {
        let seen = ArcSwap::from_pointee(Seen::nothing(&sources));
        Arc::new(Ports { sources, seen })
    }

    /// What the last look found.
    pub fn seen(&self) -> Arc<Seen> {
        self.seen.load_full()
    }

    /// The same, after another look if that one is old.
    pub fn fresh(&self) -> Arc<Seen> {
        let seen = self.seen();
        match seen.looked && seen.at.elapsed() < seen.times(FRESH) {
            true => seen,
            false => self.look(),
        }
    }

    fn look(&self) -> Arc<Seen> {
        let seen = Arc::new(Seen::look(&self.sources));
        self.seen.store(Arc::clone(&seen));
        seen
    }
}

/// The thread that looks; ended by [`Watch::stop`].
#[derive(Debug)]
pub struct Watch {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Looks from now on, and writes to the log.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub fn start(ports: Arc<Ports>) -> anyhow::Result<Watch> {
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("weir-ports".to_owned());
        let thread = thread.spawn(move || {
            let (mut seen, mut high) = (ports.seen(), false);
            tell(&seen, &mut high);
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(seen.times(LOOK)) {
                seen = ports.look();
                tell(&seen, &mut high);
            }
        });
        Ok(Watch {
            stop,
            thread: thread.context("cannot start the thread that watches the ports")?,
        })
    }

    /// Ends it.
    pub fn stop(self) {
        let Watch { stop, thread } = self;
        drop(stop);
        // It does not panic, and if it did the rest still ends.
        let _ = thread.join();
    }
}

/// The time that this thread has run: unlike a wall clock's it leaves out what others took.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// A line when it begins to be high, and when it is over.
fn tell(seen: &Seen, high: &mut bool) {
    let Some(used) = seen.used else { return };
    match turn(share(&used), *high) {
        Some(true) => tracing::warn!("{}; {WAY_OUT}", text(&used)),
        Some(false) => tracing::info!("{}", text(&used)),
        None => return,
    }
    *high = !*high;
}

/// Does a share turn what is low high, or the other way?
fn turn(share: f64, high: bool) -> Option<bool> {
    match high {
        false if share >= HIGH => Some(true),
        true if share < LOW => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use admin_api::view::Level;

    use super::*;

    fn seen(tcp: f64, udp: f64) -> Seen {
        Seen {
            used: Some(PortUse {
                tcp,
                udp,
                busiest: "10.2.0.11:80".parse().ok(),
            }),
            looked: true,
            missing: Vec::new(),
            at: Instant::now(),
            cost: Duration::ZERO,
        }
    }

    #[test]
    fn the_check_warns_before_there_is_no_port_left() {
        for (tcp, udp, level) in [
            (0.0, 0.0, Level::Good),
            (0.79, 0.5, Level::Good),
            (0.8, 0.0, Level::Warning),
            (0.1, 0.95, Level::Warning),
        ] {
            let check = seen(tcp, udp).check();
            assert_eq!(check.level, level, "{tcp} {udp}: {}", check.message);
        }
        let message = seen(0.8449, 0.0).check().message;
        let text = "84 % of the local ports are in use by TCP towards 10.2.0.11:80, 0 % by UDP; ";
        assert!(message.starts_with(text), "{message}");
        assert!(message.contains("--source-address"), "{message}");
    }

    #[test]
    fn a_share_that_stands_is_told_once() {
        let mut high = false;
        let mut told = Vec::new();
        for share in [0.5, 0.79, 0.8, 0.9, 0.75, 0.81, 0.69, 0.71, 0.85] {
            if let Some(now) = turn(share, high) {
                told.push((share, now));
                high = now;
            }
        }
        assert_eq!(told, [(0.8, true), (0.69, false), (0.85, true)]);
    }

    #[test]
    fn a_source_that_is_not_here_is_named() {
        let (here, absent) = ([127, 0, 0, 1].into(), [192, 0, 2, 1].into());
        let ports = Ports::new(vec![here, absent]);
        let watch = Watch::start(Arc::clone(&ports)).expect("a thread");
        let check = ports.seen().check();
        assert_eq!(check.level, Level::Warning);
        assert!(
            check.message.contains("192.0.2.1; add it"),
            "{}",
            check.message
        );
        assert!(!check.message.contains("127.0.0.1"), "{}", check.message);
        watch.stop();
    }

    #[test]
    fn who_asks_again_soon_gets_the_same_look() {
        let ports = Ports::new(Vec::new());
        let first = ports.fresh();
        assert!(Arc::ptr_eq(&first, &ports.fresh()));
        let mut old = seen(0.5, 0.0);
        old.at = Instant::now()
            .checked_sub(FRESH.0 * 2)
            .expect("the machine has run for as long");
        ports.seen.store(Arc::new(old));
        assert_ne!(ports.fresh().used.map(|used| used.tcp), Some(0.5));
        // One that cost a second is good for 20.
        let mut dear = seen(0.5, 0.0);
        (dear.at, dear.cost) = (Instant::now() - FRESH.0 * 2, Duration::from_secs(1));
        ports.seen.store(Arc::new(dear));
        assert_eq!(ports.fresh().used.map(|used| used.tcp), Some(0.5));
    }
}
