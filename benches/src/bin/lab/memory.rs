//! What processes hold, and whether they work: proc(5).

use std::fs;

/// PSS of `pid` and of every process below it, in bytes (proc(5), smaps_rollup).
pub fn pss(pid: Option<u32>) -> u64 {
    pid.map_or(0, |pid| {
        tree(pid)
            .into_iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
            .map(|text| pss_of(&text))
            .sum()
    })
}

/// CPU time of `pid` and all its threads so far, in clock ticks.
pub fn ticks(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    ticks_of(&text)
}

/// What the threads of `pid` and of every process below it have run so far, in nanoseconds
/// (/proc/PID/task/TID/schedstat), softirqs in their time included.
pub fn ran_ns(pid: Option<u32>) -> u64 {
    let threads = pid.into_iter().flat_map(tree).flat_map(|pid| {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        tasks.into_iter().flatten().flatten()
    });
    threads
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

fn ticks_of(stat: &str) -> u64 {
    // utime and stime are the 14th and 15th field, the third stands after the name.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let times = rest.split_whitespace().skip(11).take(2);
    times.filter_map(|word| word.parse::<u64>().ok()).sum()
}

fn pss_of(rollup: &str) -> u64 {
    let kib: Option<u64> = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kib.unwrap_or_default() << 10
}

fn tree(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let children = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.extend(
            children
                .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
                .filter(|&child: &u32| parent(child) == Some(pid)),
        );
    }
    all
}

fn parent(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold spaces and parentheses.
    text.rsplit(')')
        .next()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_the_line_pss() {
        let text = "Rss:  9 kB\nPss:                1234 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(pss_of(text), 1234 << 10);
        assert_eq!(pss_of(""), 0);
    }

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14";
        assert_eq!(ticks_of(stat), 42);
        assert_eq!(ticks_of(""), 0);
    }

    #[test]
    fn what_a_thread_runs_is_counted() {
        let own = Some(std::process::id());
        let before = ran_ns(own);
        let begun = std::time::Instant::now();
        while begun.elapsed() < std::time::Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(before > 0 && ran_ns(own) > before);
        assert_eq!(ran_ns(None), 0);
    }

    #[test]
    fn a_process_is_in_its_own_tree_and_has_memory() {
        let own = std::process::id();
        assert!(tree(own).contains(&own));
        assert!(pss(Some(own)) > 1 << 16);
        assert_eq!(pss(None), 0);
    }
}
