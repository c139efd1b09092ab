use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use lb_core::plane::{Finding, Lack};
use tempfile::TempDir;

use super::*;

/// A machine on which nothing is amiss.
const GOOD: &[(&str, &str)] = &[
    ("proc/sys/kernel/osrelease", "6.18.44-generic"),
    ("proc/sys/fs/pipe-max-size", "1048576"),
    ("proc/sys/fs/pipe-user-pages-soft", "16384"),
    ("proc/sys/net/core/rmem_max", "4194304"),
    ("proc/sys/net/core/wmem_max", "4194304"),
    ("proc/sys/net/core/somaxconn", "4096"),
    ("proc/sys/net/ipv4/tcp_max_syn_backlog", "4096"),
    ("proc/sys/net/ipv4/tcp_syncookies", "1"),
    ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999"),
    ("proc/sys/net/ipv4/ip_local_reserved_ports", ""),
    ("proc/sys/net/ipv4/tcp_tw_reuse", "1"),
    ("proc/sys/net/ipv4/tcp_migrate_req", "0"),
    ("proc/sys/net/ipv4/ip_nonlocal_bind", "0"),
    ("proc/sys/net/netfilter/nf_conntrack_count", "0"),
    ("proc/sys/net/netfilter/nf_conntrack_max", "262144"),
    ("proc/sys/net/ipv4/conf/all/rp_filter", "0"),
    ("proc/sys/net/ipv4/conf/default/rp_filter", "1"),
    ("proc/sys/net/ipv4/conf/eth0/rp_filter", "0"),
    ("proc/sys/net/ipv4/conf/eth1/rp_filter", "2"),
    ("proc/sys/net/ipv4/conf/all/arp_ignore", "0"),
    ("proc/sys/net/ipv4/conf/eth0/arp_ignore", "0"),
    ("proc/sys/net/ipv4/conf/eth1/arp_ignore", "0"),
    ("proc/sys/net/ipv4/conf/all/arp_announce", "0"),
    (
        "proc/self/limits",
        "Limit Soft Hard Units\nMax open files            1024                 1048576              files\n",
    ),
    (
        "proc/self/status",
        "Name:\tweir\nCapEff:\t0000000001001000\nSeccomp:\t0\n",
    ),
    ("proc/self/cgroup", "0::/system.slice/weir.service\n"),
    (
        "proc/self/mountinfo",
        "29 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw",
    ),
    ("sys/fs/cgroup/system.slice/memory.current", "104857600"),
    (
        "proc/meminfo",
        "MemTotal:       24684544 kB\nMemAvailable:   23999488 kB",
    ),
    ("proc/sys/net/ipv4/tcp_mem", "287901\t383869\t575802"),
    (
        "proc/net/sockstat",
        "sockets: used 29\nTCP: inuse 15 orphan 0 tw 737 alloc 16 mem 113",
    ),
    ("sys/fs/cgroup/system.slice/weir.service/memory.max", "max"),
    ("sys/fs/cgroup/system.slice/memory.max", "8589934592"),
    (
        "sys/devices/system/clocksource/clocksource0/current_clocksource",
        "tsc",
    ),
    (
        "sys/devices/system/clocksource/clocksource0/available_clocksource",
        "tsc hpet acpi_pm",
    ),
    ("sys/devices/system/cpu/online", "0-1"),
    (
        "proc/net/tcp",
        "  sl  local_address rem_address   st\n   0: 00000000:0050 00000000:0000 0A 0\n   1: 0100007F:9C40 0100007F:0050 01 0\n",
    ),
    ("sys/class/net/lo/operstate", "unknown"),
    ("sys/class/net/eth0/operstate", "up"),
    ("sys/class/net/eth0/queues/rx-0/rps_cpus", "0"),
    ("sys/class/net/eth0/queues/rx-1/rps_cpus", "0"),
    ("sys/class/net/eth1/operstate", "up"),
    ("sys/class/net/eth1/queues/rx-0/rps_cpus", "0"),
    ("sys/class/net/eth2/operstate", "down"),
    ("sys/class/net/eth2/queues/rx-0/rps_cpus", "0"),
    (
        "proc/interrupts",
        " CPU0 CPU1\n 38: 0 6931 PCI-MSIX 1-edge virtio2-input.0\n 39: 4679 0 PCI-MSIX 2-edge virtio2-output.0\n 40: 5 5 PCI-MSIX 3-edge virtio2-input.1\nNMI: 0 0 Non-maskable interrupts\n",
    ),
    ("proc/irq/38/effective_affinity_list", "0"),
    ("proc/irq/39/effective_affinity_list", "0"),
    ("proc/irq/40/effective_affinity_list", "1"),
];

struct Machine(TempDir);

impl Machine {
    fn good() -> Machine {
        let machine = Machine(tempfile::tempdir().expect("temp"));
        for (path, text) in GOOD {
            machine.write(path, text);
        }
        // eth0 and eth2 are real devices, eth1 is virtual.
        symlink(
            "../../../virtio2",
            machine.path("sys/class/net/eth0/device"),
        )
        .expect("link");
        symlink(
            "../../../virtio4",
            machine.path("sys/class/net/eth2/device"),
        )
        .expect("link");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(path, format!("{text}\n")).expect("write");
    }

    /// Makes it good again.
    fn mend(&self, path: &str) {
        match GOOD.iter().find(|(good, _)| *good == path) {
            Some((_, text)) => self.write(path, text),
            None => fs::remove_file(self.path(path)).expect("it was written"),
        }
    }

    fn examine(&self, probe: &Probe) -> Vec<Check> {
        examine(self.0.path(), probe)
    }
}

fn finding(name: &'static str, there: bool) -> Finding {
    let lack = || Lack {
        errno: Some(1),
        what: format!("{name} is not there"),
        fix: "`get it`".to_owned(),
    };
    Finding {
        name,
        lack: (!there).then(lack),
    }
}

/// A kernel that has everything.
fn probe() -> Probe {
    Probe {
        io_uring: vec![finding("io_uring_setup", true)],
        optional: vec![finding("splice", true)],
    }
}

fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    let found = checks.iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no {name}: {checks:#?}"))
}

#[test]
fn a_good_machine_is_well() {
    let checks = Machine::good().examine(&probe());
    for check in &checks {
        assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        assert_eq!(check.fix, "", "{check:?}");
    }
    assert_eq!(report::worst(&checks), Verdict::Ok);
    assert_eq!(
        find(&checks, "rp_filter").value,
        "all 0, default 1, eth0 0, eth1 2"
    );
    assert_eq!(find(&checks, "nofile").value, "soft 1024, hard 1048576");
    assert_eq!(
        find(&checks, "memory limit").value,
        "8192 MiB",
        "of the slice"
    );
    assert_eq!(
        find(&checks, "receive of eth0").value,
        "queues 2, with RPS 0, CPUs 2"
    );
    assert_eq!(
        find(&checks, "interrupts of eth0").value,
        "2 queues on CPUs 0 1"
    );
    let names: Vec<_> = checks.iter().map(|check| &*check.name).collect();
    assert!(
        !names.contains(&"receive of eth1"),
        "it has no device of its own"
    );
    assert!(!names.contains(&"receive of eth2"), "it is down");
}

/// One thing amiss, what it is called, how bad it is, and a part of its fix.
#[test]
fn everything_that_may_be_amiss_is_found() {
    use Verdict::{Fail, Ok, Warn};
    let limits = |hard: &str| {
        format!(
            "Limit Soft Hard Units\nMax open files            1024                 {hard}              files"
        )
    };
    let listens = "  sl  local_address rem_address   st\n   0: 00000000:9C40 00000000:0000 0A 0";
    let clocks = "sys/devices/system/clocksource/clocksource0";
    let table: &[(&str, &str, &str, Verdict, &str)] = &[
        (
            "sys/fs/cgroup/system.slice/memory.current",
            "8589934592",
            "memory of the cgroup",
            Warn,
            "MemoryMax",
        ),
        (
            "proc/meminfo",
            "MemTotal: 24684544 kB\nMemAvailable: 300000 kB",
            "memory of the machine",
            Warn,
            "end or move",
        ),
        (
            "proc/sys/net/ipv4/tcp_mem",
            "50\t60\t120",
            "memory of TCP",
            Warn,
            "tcp_mem",
        ),
        (
            "proc/sys/kernel/osrelease",
            "6.0.1",
            "kernel",
            Warn,
            "boot 6.1",
        ),
        (
            "proc/sys/kernel/osrelease",
            "5.10.0-28-amd64",
            "kernel",
            Warn,
            "boot 6.1",
        ),
        ("proc/sys/kernel/osrelease", "6.1.0-rc1", "kernel", Ok, ""),
        ("proc/sys/kernel/osrelease", "7.0.0", "kernel", Ok, ""),
        (
            "proc/sys/fs/pipe-max-size",
            "65536",
            "fs.pipe-max-size",
            Warn,
            "=1048576",
        ),
        (
            "proc/sys/fs/pipe-user-pages-soft",
            "0",
            "fs.pipe-user-pages-soft",
            Ok,
            "",
        ),
        (
            "proc/sys/net/core/rmem_max",
            "212992",
            "net.core.rmem_max",
            Warn,
            "sysctl -w net.core.rmem_max=4194304",
        ),
        (
            "proc/sys/net/core/wmem_max",
            "212992",
            "net.core.wmem_max",
            Warn,
            "sysctl -w net.core.wmem_max=4194304",
        ),
        (
            "proc/sys/net/core/somaxconn",
            "128",
            "net.core.somaxconn",
            Warn,
            "=4096",
        ),
        (
            "proc/sys/net/ipv4/tcp_max_syn_backlog",
            "512",
            "net.ipv4.tcp_max_syn_backlog",
            Warn,
            "=4096",
        ),
        (
            "proc/sys/net/ipv4/tcp_syncookies",
            "0",
            "net.ipv4.tcp_syncookies",
            Warn,
            "=1",
        ),
        (
            "proc/sys/net/ipv4/tcp_syncookies",
            "2",
            "net.ipv4.tcp_syncookies",
            Ok,
            "",
        ),
        (
            "proc/sys/net/ipv4/ip_local_port_range",
            "50000\t59999",
            "net.ipv4.ip_local_port_range",
            Warn,
            "--source-address",
        ),
        (
            "proc/sys/net/ipv4/ip_local_port_range",
            "50000\t50099",
            "net.ipv4.ip_local_port_range",
            Fail,
            "sysctl -w net.ipv4.ip_local_port_range=",
        ),
        (
            "proc/net/tcp",
            listens,
            "net.ipv4.ip_local_reserved_ports",
            Warn,
            "=40000",
        ),
        (
            "proc/net/tcp6",
            listens,
            "net.ipv4.ip_local_reserved_ports",
            Warn,
            "=40000",
        ),
        (
            "proc/sys/net/ipv4/tcp_tw_reuse",
            "2",
            "net.ipv4.tcp_tw_reuse",
            Warn,
            "=1",
        ),
        (
            "proc/sys/net/ipv4/tcp_tw_reuse",
            "0",
            "net.ipv4.tcp_tw_reuse",
            Warn,
            "=1",
        ),
        (
            "proc/sys/net/ipv4/tcp_migrate_req",
            "1",
            "net.ipv4.tcp_migrate_req",
            Ok,
            "",
        ),
        (
            "proc/sys/net/ipv4/ip_nonlocal_bind",
            "1",
            "net.ipv4.ip_nonlocal_bind",
            Ok,
            "",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_count",
            "5",
            "nf_conntrack",
            Warn,
            "notrack",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_count",
            "230000",
            "nf_conntrack",
            Fail,
            "nf_conntrack_max=1048576",
        ),
        (
            "proc/sys/net/ipv4/conf/all/rp_filter",
            "1",
            "rp_filter",
            Warn,
            "rp_filter=2",
        ),
        (
            "proc/sys/net/ipv4/conf/eth0/rp_filter",
            "1",
            "rp_filter",
            Warn,
            "rp_filter=2",
        ),
        (
            "proc/sys/net/ipv4/conf/all/rp_filter",
            "2",
            "rp_filter",
            Ok,
            "",
        ),
        (
            "proc/sys/net/ipv4/conf/all/arp_ignore",
            "1",
            "arp_ignore",
            Warn,
            "arp_ignore=0",
        ),
        (
            "proc/sys/net/ipv4/conf/eth1/arp_ignore",
            "2",
            "arp_ignore",
            Warn,
            "--vip-interface",
        ),
        (
            "proc/sys/net/ipv4/conf/all/arp_announce",
            "2",
            "arp_announce",
            Ok,
            "",
        ),
        (
            "proc/self/limits",
            &limits("1000"),
            "nofile",
            Fail,
            "LimitNOFILE",
        ),
        (
            "proc/self/limits",
            &limits("20000"),
            "nofile",
            Warn,
            "LimitNOFILE",
        ),
        ("proc/self/limits", &limits("unlimited"), "nofile", Ok, ""),
        (
            "sys/fs/cgroup/system.slice/weir.service/memory.max",
            "33554432",
            "memory limit",
            Fail,
            "MemoryMax",
        ),
        (
            "sys/fs/cgroup/system.slice/memory.max",
            "268435456",
            "memory limit",
            Warn,
            "MemoryMax",
        ),
        (
            &format!("{clocks}/current_clocksource"),
            "hpet",
            "clocksource",
            Warn,
            "echo tsc > /sys/",
        ),
        (
            "sys/devices/system/cpu/online",
            "0-3,8",
            "receive of eth0",
            Warn,
            "echo 1f > $q",
        ),
        (
            "sys/devices/system/cpu/online",
            "0-63",
            "receive of eth0",
            Warn,
            "echo ffffffff,ffffffff >",
        ),
        (
            "proc/irq/40/effective_affinity_list",
            "0",
            "interrupts of eth0",
            Warn,
            "irqbalance",
        ),
    ];
    let machine = Machine::good();
    machine.write("proc/self/status", "CapEff:\t0000000000000000");
    for (path, text, name, verdict, fix) in table {
        machine.write(path, text);
        let checks = machine.examine(&probe());
        let check = find(&checks, name);
        assert_eq!(check.verdict, *verdict, "{path} {text}: {check:?}");
        assert!(check.fix.contains(fix), "{path} {text}: {check:?}");
        assert_eq!(check.fix.is_empty(), *verdict == Ok, "{check:?}");
        assert!(!check.why.is_empty() || *verdict == Ok, "{check:?}");
        machine.mend(path);
    }
}

#[test]
fn a_capability_lifts_the_limits_that_do_not_bind_it() {
    let machine = Machine::good();
    for (path, text) in [
        ("proc/sys/fs/pipe-max-size", "65536"),
        ("proc/sys/net/core/rmem_max", "212992"),
        ("proc/sys/net/core/wmem_max", "212992"),
    ] {
        machine.write(path, text);
    }
    let lifts = |capabilities: u64, name: &str| {
        let status = format!("CapEff:\t{capabilities:016x}");
        machine.write("proc/self/status", &status);
        find(&machine.examine(&probe()), name).verdict == Verdict::Ok
    };
    let (net_admin, sys_admin, sys_resource) = (1 << 12, 1 << 21, 1 << 24);
    for (name, by) in [
        ("fs.pipe-max-size", sys_resource),
        ("fs.pipe-user-pages-soft", sys_resource | sys_admin),
        ("net.core.rmem_max", net_admin),
        ("net.core.wmem_max", net_admin),
    ] {
        assert!(!lifts(0, name), "{name}");
        for capability in [net_admin, sys_admin, sys_resource] {
            assert_eq!(lifts(capability, name), by & capability > 0, "{name}");
        }
    }
}

#[test]
fn reserved_ports_keep_and_join_what_stands_there() {
    let machine = Machine::good();
    let listens =
        "head\n 0: 00000000:9C40 00000000:0000 0A 0\n 1: 00000000:9C4A 00000000:0000 0A 0";
    machine.write("proc/net/tcp", listens);
    machine.write(
        "proc/sys/net/ipv4/ip_local_reserved_ports",
        "39000,40000-40005",
    );
    let checks = machine.examine(&probe());
    let check = find(&checks, "net.ipv4.ip_local_reserved_ports");
    assert!(check.fix.ends_with("=39000,40000-40005,40010"), "{check:?}");
}

#[test]
fn both_versions_of_cgroups_are_read() {
    let machine = Machine::good();
    machine.write("proc/self/cgroup", "4:cpu,memory:/a/b\n0::/\n");
    machine.write(
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "9223372036854771712",
    );
    let checks = machine.examine(&probe());
    assert_eq!(find(&checks, "memory limit").value, "none");
    machine.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "134217728");
    let checks = machine.examine(&probe());
    assert_eq!(find(&checks, "memory limit").value, "128 MiB");
}

#[test]
fn what_the_kernel_lacks_is_a_warning_with_its_fix_and_the_spare_is_none() {
    let probe = Probe {
        io_uring: vec![finding("io_uring_setup", false)],
        optional: vec![finding("splice", false), finding("CAP_BPF", false)],
    };
    let checks = Machine::good().examine(&probe);
    assert_eq!(find(&checks, "engine").value, "epoll");
    let lack = find(&checks, "io_uring_setup");
    assert_eq!((lack.verdict, &*lack.fix), (Verdict::Warn, "get it"));
    assert_eq!(find(&checks, "splice").verdict, Verdict::Warn);
    assert_eq!(find(&checks, "CAP_BPF").verdict, Verdict::Ok);
    assert_eq!(report::worst(&checks), Verdict::Warn);
}

/// A container may hide any of it.
#[test]
fn a_machine_that_shows_nothing_is_not_ill() {
    let empty = tempfile::tempdir().expect("temp");
    let checks = examine(empty.path(), &probe());
    assert_eq!(report::worst(&checks), Verdict::Ok, "{checks:?}");
}

#[test]
fn the_table_and_the_object_say_the_same() {
    let machine = Machine::good();
    machine.write("proc/sys/net/core/somaxconn", "128");
    machine.write("proc/sys/net/ipv4/ip_local_port_range", "50000 50099");
    let checks = machine.examine(&probe());
    let text = report::table(&checks);
    let shown = "warn  net.core.somaxconn";
    let at = text.lines().position(|line| line.starts_with(shown));
    let lines: Vec<_> = text.lines().skip(at.expect(&text)).take(3).collect();
    assert!(lines[0].ends_with("  128"), "{text}");
    assert_eq!(lines[2], "      fix: sysctl -w net.core.somaxconn=4096");
    assert!(text.ends_with(" ok, 1 warn, 1 fail\n"), "{text}");
    let value = report::json(&checks);
    assert_eq!(value["verdict"], "fail");
    let all = value["checks"].as_array().expect("a list");
    assert_eq!(all.len(), checks.len());
    let one = all
        .iter()
        .find(|check| check["name"] == "net.core.somaxconn");
    let one = one.expect("it is there");
    assert_eq!(
        (&one["value"], &one["verdict"]),
        (&"128".into(), &"warn".into())
    );
    assert_eq!(one["fix"], "sysctl -w net.core.somaxconn=4096");
}
