//! The machine: what it is, and the settings that every variant shares.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::stop::Stop;

/// What stands beside every table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    pub date: String,
}

impl Machine {
    pub fn look() -> Machine {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib: u64 = meminfo
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or_default();
        let date = Command::new("date").arg("+%-d %B %Y %H:%M").output();
        Machine {
            cpu: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            date: date.map_or_else(
                |_| String::new(),
                |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            ),
        }
    }
}

fn cpu_model(cpuinfo: &str) -> String {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| "unknown CPU".into(), |(_, name)| name.trim().to_owned())
}

/// Whoever measures holds it.
const LOCK: &str = "/run/weir-bench.lock";

/// Settings of the whole machine while it measures; put back when dropped.
pub struct Settings {
    before: Vec<(String, String)>,
    /// Held, so that a second run does not take our settings for the machine's.
    _lock: File,
}

impl Settings {
    /// Waits for its turn, then sets them.
    pub fn apply(stop: &Stop) -> Result<Settings> {
        raise_nofile();
        let lock = lock(stop)?;
        let mut settings = Settings {
            before: Vec::new(),
            _lock: lock,
        };
        for (key, value) in [
            // Groups of processes would share CPUs by session, not by what they do.
            ("kernel/sched_autogroup_enabled", "0"),
            // Bursts of datagrams are to be lost by the load balancer's fault alone.
            ("net/core/rmem_max", "16777216"),
            ("net/core/wmem_max", "16777216"),
            ("net/core/rmem_default", "4194304"),
            ("net/core/wmem_default", "4194304"),
            ("net/core/netdev_max_backlog", "20000"),
        ] {
            let path = format!("/proc/sys/{key}");
            // Not every kernel has every one of them.
            let Ok(before) = fs::read_to_string(&path) else {
                continue;
            };
            settings.set(path, before, value)?;
        }
        settings.allow_cubic()?;
        Ok(settings)
    }

    /// A namespace may only choose among what is allowed for all.
    fn allow_cubic(&mut self) -> Result<()> {
        let path = String::from("/proc/sys/net/ipv4/tcp_allowed_congestion_control");
        let before = fs::read_to_string(&path).unwrap_or_default();
        let value = format!("{} cubic", before.trim());
        self.set(path, before, &value)
    }

    fn set(&mut self, path: String, before: String, value: &str) -> Result<()> {
        fs::write(&path, value).with_context(|| format!("cannot set {path}; are you root?"))?;
        self.before.push((path, before));
        Ok(())
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        for (path, value) in &self.before {
            let _ = fs::write(path, value.trim());
        }
    }
}

/// Two runs at once would measure each other: the second waits.
fn lock(stop: &Stop) -> Result<File> {
    let lock = File::create(LOCK).with_context(|| format!("cannot make {LOCK}"))?;
    let mut said = false;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if !said {
            eprintln!("another bench is running on this machine: waiting for its end");
            said = true;
        }
        stop.sleep(Duration::from_millis(200))?;
    }
    Ok(lock)
}

/// The load needs two descriptors for each idle connection.
fn raise_nofile() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_called_what_the_kernel_calls_it() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\ncache size\t: 512 KB\n";
        assert_eq!(cpu_model(text), "AMD EPYC");
        assert_eq!(cpu_model(""), "unknown CPU");
    }
}
