//! What the kernel is, and what it gives this process: descriptors, pipes, memory, the clock.

use super::Rights;
use super::check::{Check, Verdict};
use super::tree::Tree;
use lb_core::plane::memory::{Kind, Level, Stock, Watermarks};

/// Below this a start with a few workers and ports leaves nothing for connections.
const FILES_LEAST: u64 = 1_024;
/// Some 30,000 connections.
const FILES_GOOD: u64 = 65_536;
/// Below this the tables and buffers of a worker or two do not fit beside the kernel's sockets,
/// which a memory cgroup counts too.
const MEMORY_LEAST: u64 = 64 << 20;
const MEMORY_GOOD: u64 = 512 << 20;
/// What a spliced direction asks for, in bytes.
const PIPE: u64 = 256 << 10;
/// Pages that hold 1,024 such pipes.
const PIPE_PAGES: u64 = 1_024 * PIPE / 4_096;
/// Clocks that the vDSO reads without a system call.
const FAST_CLOCKS: [&str; 4] = [
    "tsc",
    "kvm-clock",
    "arch_sys_counter",
    "hyperv_clocksource_tsc_page",
];

pub fn checks(tree: &Tree, rights: Rights) -> Vec<Check> {
    let all = [
        kernel(tree),
        files(tree),
        pipe_size(tree, rights),
        pipe_pages(tree, rights),
        memory(tree),
        clock(tree),
    ];
    all.into_iter().flatten().collect()
}

fn kernel(tree: &Tree) -> Option<Check> {
    let release = tree.sysctl("kernel.osrelease")?;
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
    let version: (u32, u32) = (numbers.next()?, numbers.next().unwrap_or(0));
    let check = Check::ok("kernel", release);
    Some(match version {
        (6, 1..) | (7.., _) => check,
        (5, 18..) | (6, 0) => check.but(
            Verdict::Warn,
            "io_uring as Weir uses it began with 6.1",
            "boot 6.1 or later",
        ),
        _ => check.but(
            Verdict::Warn,
            "addresses are not marked before 5.18: after a kill, VIPs of this process stay behind; io_uring as Weir uses it began with 6.1",
            "boot 6.1 or later",
        ),
    })
}

fn files(tree: &Tree) -> Option<Check> {
    let limits = tree.text("proc/self/limits")?;
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"));
    let mut words = line?.split_whitespace();
    let (soft, hard) = (words.next()?, words.next()?);
    let check = Check::ok("nofile", format!("soft {soft}, hard {hard}"));
    let hard = match hard {
        "unlimited" => u64::MAX,
        number => number.parse().ok()?,
    };
    let fix = "LimitNOFILE=1048576 in the unit, or ulimit -Hn 1048576";
    Some(if hard < FILES_LEAST {
        let why = "a connection takes two, and a listener one per worker";
        check.but(Verdict::Fail, why, fix)
    } else if hard < FILES_GOOD {
        let why = format!("some {} connections at most: each takes two", hard / 2);
        check.but(Verdict::Warn, why, fix)
    } else {
        check.noting("the soft limit is raised to the hard one at the start")
    })
}

fn pipe_size(tree: &Tree, rights: Rights) -> Option<Check> {
    let most = tree.number("fs.pipe-max-size")?;
    let check = Check::ok("fs.pipe-max-size", most.to_string());
    Some(match most < PIPE && !rights.sys_resource {
        true => check.but(
            Verdict::Warn,
            "bulk is copied where no pipe of 256 KiB can be had",
            "sysctl -w fs.pipe-max-size=1048576",
        ),
        false => check,
    })
}

fn pipe_pages(tree: &Tree, rights: Rights) -> Option<Check> {
    let pages = tree.number("fs.pipe-user-pages-soft")?;
    let check = Check::ok("fs.pipe-user-pages-soft", pages.to_string());
    Some(if pages == 0 || pages >= PIPE_PAGES {
        check
    } else if rights.sys_resource || rights.sys_admin {
        check.noting("does not bind CAP_SYS_RESOURCE and CAP_SYS_ADMIN")
    } else {
        let pipes = pages * 4_096 / PIPE;
        let why = format!("past {pipes} pipes in use at once, bulk is copied");
        let fix = format!("sysctl -w fs.pipe-user-pages-soft={PIPE_PAGES}");
        check.but(Verdict::Warn, why, fix)
    })
}

/// How full the memory is that Weir watches, by the watermarks that it has unless told otherwise.
pub fn stocks(stocks: &[Stock]) -> Vec<Check> {
    let check = |stock: &Stock| {
        let (name, fix) = match stock.kind {
            Kind::Group => ("memory of the cgroup", "raise MemoryMax of the unit"),
            Kind::Machine => ("memory of the machine", "end or move what takes it"),
            Kind::Tcp => (
                "memory of TCP",
                "sysctl -w net.ipv4.tcp_mem=..., its third number, in pages",
            ),
        };
        let found = format!("{} of {} MiB", stock.used >> 20, stock.limit >> 20);
        let check = Check::ok(name, found);
        match Watermarks::default().level(&[*stock]) {
            Level::Ample => check,
            Level::Scarce => check.but(Verdict::Warn, "new connections would wait", fix),
            Level::Critical => check.but(
                Verdict::Warn,
                "new connections would wait, and idle ones be closed",
                fix,
            ),
        }
    };
    stocks.iter().map(check).collect()
}

/// The tightest limit of the memory cgroup and of those above it (cgroups(7); both versions).
fn memory(tree: &Tree) -> Option<Check> {
    let groups = tree.text("proc/self/cgroup")?;
    let mut lines = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        rest.split_once(':')
    });
    let of_memory = |kinds: &str| kinds.split(',').any(|kind| kind == "memory");
    let first = lines.clone().find(|(kinds, _)| of_memory(kinds));
    let (base, file, path) = match first {
        Some((_, path)) => ("sys/fs/cgroup/memory", "memory.limit_in_bytes", path),
        None => {
            let (_, path) = lines.find(|(kinds, _)| kinds.is_empty())?;
            ("sys/fs/cgroup", "memory.max", path)
        }
    };
    let mut path = path.trim_matches('/');
    let mut least: Option<u64> = None;
    loop {
        let limit = tree.text(&format!("{base}/{path}/{file}"));
        let limit = limit.and_then(|text| text.parse::<u64>().ok());
        least = least.into_iter().chain(limit).min();
        match path.rsplit_once('/') {
            Some((above, _)) => path = above,
            None if path.is_empty() => break,
            None => path = "",
        }
    }
    // Version 1 says "none" by the largest number of whole pages.
    let Some(limit) = least.filter(|limit| *limit < 1 << 60) else {
        return Some(Check::ok("memory limit", "none"));
    };
    let check = Check::ok("memory limit", format!("{} MiB", limit >> 20));
    let why = "the kernel's socket buffers count against it, and past it the process is killed";
    let fix = "MemoryMax=1G in the unit, or a larger limit of the container";
    Some(if limit < MEMORY_LEAST {
        check.but(Verdict::Fail, why, fix)
    } else if limit < MEMORY_GOOD {
        check.but(Verdict::Warn, why, fix)
    } else {
        check
    })
}

fn clock(tree: &Tree) -> Option<Check> {
    let base = "sys/devices/system/clocksource/clocksource0";
    let current = tree.text(&format!("{base}/current_clocksource"))?;
    let check = Check::ok("clocksource", &*current);
    if FAST_CLOCKS.contains(&&*current) {
        return Some(check);
    }
    let others = tree.text(&format!("{base}/available_clocksource"));
    let others = others.unwrap_or_default();
    let better = FAST_CLOCKS
        .iter()
        .find(|fast| others.split(' ').any(|o| o == **fast));
    let fix = match better {
        Some(fast) => format!("echo {fast} > /{base}/current_clocksource"),
        None => "boot with tsc=reliable clocksource=tsc, if the machine's TSC is sound".to_owned(),
    };
    let why = "each look at the time is a system call, and there is one a turn";
    Some(check.but(Verdict::Warn, why, fix))
}
