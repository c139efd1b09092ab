//! What the kernel's books say of memory: the memory cgroups above this process, the machine, and
//! TCP's buffers (cgroups(7), proc_meminfo(5), tcp(7)).

use std::fs;
use std::path::{Path, PathBuf};

use super::{Kind, Stock};

/// Where they are, found once.
#[derive(Clone, Debug)]
pub struct Books {
    proc: PathBuf,
    /// This process's memory cgroup, and those above it.
    groups: Vec<Group>,
}

/// One memory cgroup and how its version names things.
#[derive(Clone, Debug)]
struct Group {
    folder: PathBuf,
    names: &'static Names,
}

#[derive(Debug)]
struct Names {
    used: &'static str,
    limits: &'static [&'static str],
    /// The line of `memory.stat` that says what file cache can go at once.
    cache: &'static str,
}

/// Past `memory.high` a group is slowed until nothing is served in time: it is a limit too.
const V2: Names = Names {
    used: "memory.current",
    limits: &["memory.max", "memory.high"],
    cache: "inactive_file",
};
const V1: Names = Names {
    used: "memory.usage_in_bytes",
    limits: &["memory.limit_in_bytes"],
    cache: "total_inactive_file",
};
/// Version 1 says "none" by the largest number of whole pages.
const NO_LIMIT: u64 = 1 << 60;

impl Books {
    /// Of the machine whose files are below `root`: `/`, or a copy.
    pub fn open(root: &Path) -> Books {
        let proc = root.join("proc");
        let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        let (groups, mounts) = (text("self/cgroup"), text("self/mountinfo"));
        let place = place(&groups, &mounts);
        let groups = place.map_or_else(Vec::new, |(mount, path, names)| {
            let top = root.join(mount.trim_start_matches('/'));
            let folders = Path::new(path.trim_start_matches('/')).ancestors();
            let folders = folders.map(|below| top.join(below));
            folders.map(|folder| Group { folder, names }).collect()
        });
        Books { proc, groups }
    }

    /// What there is now; what cannot be read is left out. Of several cgroups the one that is
    /// nearest to its limit. TCP's limit can be read in the machine's first network namespace alone.
    pub fn read(&self) -> Vec<Stock> {
        let text = |name: &str| fs::read_to_string(self.proc.join(name)).ok();
        let group = self.groups.iter().filter_map(Group::read);
        let group =
            group.min_by_key(|stock| stock.left().saturating_mul(1_000) / stock.limit.max(1));
        let machine = text("meminfo").and_then(|text| machine(&text));
        let tcp = text("sys/net/ipv4/tcp_mem").zip(text("net/sockstat"));
        let tcp = tcp.and_then(|(limits, used)| self::tcp(&limits, &used));
        [group, machine, tcp].into_iter().flatten().collect()
    }
}

impl Group {
    fn read(&self) -> Option<Stock> {
        let text = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        let limits = self.names.limits.iter().filter_map(|name| number(name));
        let limit = limits.min().filter(|limit| *limit < NO_LIMIT)?;
        let mut used = number(self.names.used)?;
        // The kernel adds up all its CPUs' counts for this file: not unless it matters.
        if used > limit / 2 {
            let cache = text("memory.stat").and_then(|stat| line(&stat, self.names.cache));
            used = used.saturating_sub(cache.unwrap_or(0));
        }
        let kind = Kind::Group;
        Some(Stock { kind, used, limit })
    }
}

/// The mount, the path below it and the version of the hierarchy that holds this process's memory
/// cgroup.
fn place<'a>(groups: &'a str, mounts: &'a str) -> Option<(&'a str, &'a str, &'static Names)> {
    let mut of_v2 = None;
    let mut of_v1 = None;
    for entry in groups.lines() {
        let mut fields = entry.splitn(3, ':').skip(1);
        match (fields.next(), fields.next()) {
            (Some(""), Some(path)) => of_v2 = Some(path),
            (Some(kinds), Some(path)) if kinds.split(',').any(|kind| kind == "memory") => {
                of_v1 = Some(path);
            }
            _ => {}
        }
    }
    // With both, memory is where version 1 has it.
    let (path, names) = match (of_v1, of_v2) {
        (Some(path), _) => (path, &V1),
        (None, Some(path)) => (path, &V2),
        (None, None) => return None,
    };
    // The last one mounted at a place hides those before.
    let mounts = mounts.lines().rev().filter_map(mount);
    let mut mounts = mounts.filter(|(_, _, kind, options)| match names.cache == V1.cache {
        true => *kind == "cgroup" && options.split(',').any(|option| option == "memory"),
        false => *kind == "cgroup2",
    });
    let (top, point, _, _) = mounts.next()?;
    // A container may see a part of the hierarchy, mounted as if it were the whole.
    let below = path.strip_prefix(top.trim_end_matches('/')).unwrap_or("");
    Some((point, below, names))
}

/// What of the file system a line of mountinfo mounts, where, its kind and its options
/// (proc_pid_mountinfo(5)).
fn mount(line: &str) -> Option<(&str, &str, &str, &str)> {
    let (place, system) = line.split_once(" - ")?;
    let mut place = place.split(' ').skip(3);
    let mut system = system.split(' ');
    let (top, point) = (place.next()?, place.next()?);
    let (kind, _) = (system.next()?, system.next()?);
    Some((top, point, kind, system.next().unwrap_or("")))
}

/// The number behind `name` in a file of lines of them.
fn line(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let rest = lines.find_map(|rest| rest.strip_prefix([' ', ':']))?;
    rest.split_whitespace().next()?.parse().ok()
}

fn machine(meminfo: &str) -> Option<Stock> {
    let kib = |name| line(meminfo, name)?.checked_mul(1_024);
    let (limit, left) = (kib("MemTotal")?, kib("MemAvailable")?);
    Some(Stock {
        kind: Kind::Machine,
        used: limit.saturating_sub(left),
        limit,
    })
}

/// The third number of tcp_mem is where the kernel refuses memory to any socket; it and "mem" are
/// pages.
fn tcp(limits: &str, sockstat: &str) -> Option<Stock> {
    let page = rustix::param::page_size() as u64;
    let bytes = |pages: &str| pages.parse::<u64>().ok()?.checked_mul(page);
    let limit = bytes(limits.split_whitespace().nth(2)?)?;
    let line = sockstat
        .lines()
        .find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "mem");
    let used = bytes(words.nth(1)?)?;
    let kind = Kind::Tcp;
    Some(Stock { kind, used, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str =
        "MemTotal:       24684544 kB\nMemFree:  1 kB\nMemAvailable:   23999488 kB\n";
    const SOCKSTAT: &str =
        "sockets: used 29\nTCP: inuse 15 orphan 0 tw 737 alloc 16 mem 113\nUDP: inuse 0 mem 9\n";

    #[test]
    fn the_kernels_own_texts_are_read() {
        let machine = machine(MEMINFO).expect("of the machine");
        assert_eq!(machine.limit, 24_684_544 << 10);
        assert_eq!(machine.left(), 23_999_488 << 10);
        let page = rustix::param::page_size() as u64;
        let tcp = tcp("287901\t383869\t575802\n", SOCKSTAT).expect("of TCP");
        assert_eq!((tcp.used, tcp.limit), (113 * page, 575_802 * page));
        assert_eq!(line("a 1\nab 2\nb: 3 kB\n", "ab"), Some(2));
        assert_eq!(line("a 1\nab 2\nb: 3 kB\n", "b"), Some(3));
        for text in ["", "MemTotal: x kB", "MemTotal: 1 kB", "TCP: inuse 1 mem"] {
            assert_eq!(self::machine(text), None);
            assert_eq!(self::tcp("1 2 3", text), None);
            assert_eq!(self::tcp("1 2", SOCKSTAT), None);
        }
    }

    const V2_MOUNT: &str =
        "29 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNT: &str = "30 24 0:27 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu\n31 24 0:28 /docker/a /mnt/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn a_process_finds_its_own_group() {
        let found = |groups, mounts| place(groups, mounts).map(|(point, path, _)| (point, path));
        let own = found("0::/system.slice/weir.service\n", V2_MOUNT);
        assert_eq!(own, Some(("/sys/fs/cgroup", "/system.slice/weir.service")));
        // Both versions: memory is version 1's.
        let groups = "4:cpu,memory:/docker/a/b\n1:name=x:/\n0::/c\n";
        let both = format!("{V2_MOUNT}{V1_MOUNT}");
        assert_eq!(found(groups, &both), Some(("/mnt/memory", "/b")));
        // Another part of the hierarchy is mounted: its top is all there is to see.
        assert_eq!(found("4:memory:/x\n", V1_MOUNT), Some(("/mnt/memory", "")));
        assert_eq!(found("4:memory:/x\n", V2_MOUNT), None);
        assert_eq!(found("", V2_MOUNT), None);
        assert_eq!(found("nonsense\n::\n", "- \nx - y\n"), None);
    }

    /// A machine of files: (path, contents).
    fn machine_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        root
    }

    #[test]
    fn of_several_groups_the_one_nearest_to_its_limit_counts() {
        let group = "sys/fs/cgroup/a/b";
        let files = [
            ("proc/self/cgroup", "0::/a/b\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.high", "1000\n"),
            ("sys/fs/cgroup/a/b/memory.current", "300\n"),
            ("sys/fs/cgroup/a/memory.max", "2000\n"),
            ("sys/fs/cgroup/a/memory.high", "max\n"),
            ("sys/fs/cgroup/a/memory.current", "1900\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 100\n"),
        ];
        let root = machine_of(&files);
        let books = Books::open(root.path());
        let read = |books: &Books| {
            let stocks = books.read();
            assert!(stocks.len() < 2 && stocks.iter().all(|s| s.kind == Kind::Group));
            stocks.first().map(|stock| (stock.used, stock.limit))
        };
        // What is cached can go.
        assert_eq!(read(&books), Some((1_800, 2_000)));
        fs::write(root.path().join(group).join("memory.current"), "990").expect("written");
        assert_eq!(read(&books), Some((990, 1_000)));
        fs::write(root.path().join(group).join("memory.high"), "max").expect("written");
        fs::write(root.path().join("sys/fs/cgroup/a/memory.max"), "max").expect("written");
        assert_eq!(read(&books), None);
    }

    #[test]
    fn version_1_says_no_limit_by_a_large_number() {
        let root = machine_of(&[
            ("proc/self/cgroup", "4:memory:/docker/a/b\n0::/\n"),
            ("proc/self/mountinfo", V1_MOUNT),
            (
                "mnt/memory/b/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("mnt/memory/b/memory.usage_in_bytes", "5\n"),
            ("mnt/memory/memory.limit_in_bytes", "100\n"),
            ("mnt/memory/memory.usage_in_bytes", "60\n"),
            (
                "mnt/memory/memory.stat",
                "inactive_file 1\ntotal_inactive_file 20\n",
            ),
            ("proc/meminfo", MEMINFO),
            ("proc/net/sockstat", SOCKSTAT),
            ("proc/sys/net/ipv4/tcp_mem", "1 2 3\n"),
        ]);
        let stocks = Books::open(root.path()).read();
        let kinds: Vec<_> = stocks.iter().map(|stock| stock.kind).collect();
        assert_eq!(kinds, Kind::ALL);
        assert_eq!((stocks[0].used, stocks[0].limit), (40, 100));
    }

    #[test]
    fn this_machine_has_memory() {
        let stocks = Books::open(Path::new("/")).read();
        let machine = stocks.iter().find(|stock| stock.kind == Kind::Machine);
        assert!(
            machine.is_some_and(|stock| stock.used > 0 && stock.left() > 0),
            "{stocks:?}"
        );
        assert!(Books::open(Path::new("/nowhere")).read().is_empty());
    }
}
