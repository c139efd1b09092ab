//! The process and its threads: CPUs, descriptor limits, descriptors in use, the allocator.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs this thread may run on, in rising order.
pub(crate) fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect(),
        // More CPUs than the set holds: no pinning then.
        Err(_) => Vec::new(),
    }
}

/// Pins the calling thread to `cpu`.
pub(crate) fn pin(cpu: usize) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set)
}

/// Raises the soft limit of open descriptors to the hard one, and says what it is now.
///
/// The soft limit is 1,024 by default for the sake of select(2), which nothing here calls.
pub(crate) fn raise_nofile() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        // Refused: we live with the soft limit, as the budget does.
        let _ = setrlimit(Resource::Nofile, raised);
    }
    // None is "unlimited", which the kernel caps at fs.nr_open: no budget needs more than this.
    getrlimit(Resource::Nofile).current.unwrap_or(1 << 30)
}

/// Makes the allocator give back what is free: large blocks as they are freed, the end of the heap from 1 MiB on.
///
/// By itself glibc raises both bounds with the largest block that was ever freed (mallopt(3), "dynamic mmap threshold"):
/// one list of a large cluster, and what the next ones leave behind stays for good (`make bench-scale`: 269 MiB
/// resident where 249 are with this). Another libc has other rules, and is left to them.
pub(crate) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    for (option, bytes) in [
        (libc::M_MMAP_THRESHOLD, 256 << 10),
        (libc::M_TRIM_THRESHOLD, 1 << 20),
    ] {
        // SAFETY: mallopt(3) takes two integers and locks the allocator for itself; both options are sizes in bytes, and
        // these are within their limits. A refusal (0) changes nothing.
        unsafe { libc::mallopt(option, bytes) };
    }
}
