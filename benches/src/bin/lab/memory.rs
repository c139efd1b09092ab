//! What processes hold: their proportional share of memory.

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
    fn a_process_is_in_its_own_tree_and_has_memory() {
        let own = std::process::id();
        assert!(tree(own).contains(&own));
        assert!(pss(Some(own)) > 1 << 16);
        assert_eq!(pss(None), 0);
    }
}
