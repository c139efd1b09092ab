//! The CPU meter: how many cycles of each CPU nobody else wanted.
//!
//! A thread per CPU spins under SCHED_IDLE and adds up the time between two looks at the clock, as
//! long as they are close together. A gap is time that somebody else had: a process, an interrupt,
//! softirq work, the hypervisor. /proc/stat would not do: without CONFIG_IRQ_TIME_ACCOUNTING,
//! softirq work on an idle CPU is nobody's.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::net;

/// Two looks at the clock that are further apart had something between them. A turn of the loop
/// takes some 50 ns, the shortest interrupt more than a microsecond.
const GAP: Duration = Duration::from_nanos(700);

/// The spinners; they end when dropped.
pub struct Meter {
    spare_ns: Vec<Arc<AtomicU64>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// The spare time of each CPU so far.
#[derive(Clone, Debug)]
pub struct Reading {
    at: Instant,
    spare_ns: Vec<u64>,
}

impl Meter {
    /// Starts a spinner on each of the first `cpus` CPUs.
    pub fn start(cpus: usize) -> Result<Meter> {
        let mut meter = Meter {
            spare_ns: Vec::new(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for cpu in 0..cpus {
            let spare = Arc::new(AtomicU64::new(0));
            meter.spare_ns.push(spare.clone());
            let (stop, (ready, started)) = (meter.stop.clone(), std::sync::mpsc::channel());
            meter.threads.push(std::thread::spawn(move || {
                let outcome = net::pin(cpu).and_then(|()| idle_class());
                let go = outcome.is_ok();
                let _ = ready.send(outcome);
                if go {
                    spin(&spare, &stop);
                }
            }));
            started.recv().context("a spinner ended")??;
        }
        Ok(meter)
    }

    /// The spare time now.
    pub fn read(&self) -> Reading {
        Reading {
            at: Instant::now(),
            spare_ns: self
                .spare_ns
                .iter()
                .map(|spare| spare.load(Ordering::Relaxed))
                .collect(),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Reading {
    /// How much of each CPU was in use since `before`, from 0 to 1.
    pub fn used_since(&self, before: &Reading) -> Vec<f64> {
        let elapsed = (self.at - before.at).as_nanos().max(1) as f64;
        self.spare_ns
            .iter()
            .zip(&before.spare_ns)
            .map(|(now, then)| (1.0 - (now - then) as f64 / elapsed).clamp(0.0, 1.0))
            .collect()
    }
}

/// Puts the calling thread into SCHED_IDLE, which runs only when nothing else wants to.
fn idle_class() -> Result<()> {
    let tid = rustix::thread::gettid().as_raw_nonzero().to_string();
    let output = Command::new("chrt")
        .args(["--idle", "--pid", "0", &tid])
        .output()
        .context("cannot run chrt; install util-linux")?;
    ensure!(
        output.status.success(),
        "chrt: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn spin(spare_ns: &AtomicU64, stop: &AtomicBool) {
    let mut last = Instant::now();
    let mut sum = 0;
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let step = now - last;
        if step < GAP {
            sum += step.as_nanos() as u64;
            spare_ns.store(sum, Ordering::Relaxed);
        }
        last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_spare_was_used() {
        let at = Instant::now();
        let before = Reading {
            at,
            spare_ns: vec![5, 1_000],
        };
        let after = Reading {
            at: at + Duration::from_nanos(1_000),
            spare_ns: vec![755, 3_000],
        };
        assert_eq!(after.used_since(&before), [0.25, 0.0]);
    }
}
