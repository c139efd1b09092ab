//! What packets meet on their way: connection tracking, the interfaces' own filters, and which CPUs
//! their receive work falls on.

use super::check::{Check, Verdict};
use super::tree::{Tree, list_len};

pub fn checks(tree: &Tree) -> Vec<Check> {
    let names: Vec<_> = tree
        .names("sys/class/net")
        .into_iter()
        .filter(|name| name != "lo" && is_up(tree, name))
        .collect();
    let mut checks: Vec<_> = conntrack(tree).into_iter().collect();
    checks.extend(reverse_path(tree, &names));
    checks.extend(arp(tree, &names));
    checks.extend(names.iter().filter_map(|name| receive(tree, name)));
    checks.extend(names.iter().filter_map(|name| interrupts(tree, name)));
    checks
}

/// Those of links without a carrier's notion say "unknown".
fn is_up(tree: &Tree, name: &str) -> bool {
    let state = tree.text(&format!("sys/class/net/{name}/operstate"));
    matches!(state.as_deref(), Some("up" | "unknown"))
}

/// The module alone costs nothing; what counts is whether this namespace's packets are tracked.
fn conntrack(tree: &Tree) -> Option<Check> {
    let count = tree.number("net.netfilter.nf_conntrack_count")?;
    let most = tree.number("net.netfilter.nf_conntrack_max")?;
    let check = Check::ok("nf_conntrack", format!("{count} of {most}"));
    let full = count.saturating_mul(100) >= most.saturating_mul(80);
    Some(if count == 0 {
        check.noting("loaded, and tracks nothing here")
    } else if full && most > 0 {
        let fix = format!("sysctl -w net.netfilter.nf_conntrack_max={}", most * 4);
        check.but(
            Verdict::Fail,
            "past the limit the kernel drops packets of new connections",
            fix,
        )
    } else {
        check.but(
            Verdict::Warn,
            "each packet is looked up, each connection twice; nothing of Weir's needs it",
            "nft 'add table inet weir_notrack; add chain inet weir_notrack in { type filter hook prerouting priority raw; }; add rule inet weir_notrack in notrack; add chain inet weir_notrack out { type filter hook output priority raw; }; add rule inet weir_notrack out notrack'",
        )
    })
}

/// `net.ipv4.conf.NAME.SETTING` as it takes effect: the larger of it and that of `all`
/// (ip-sysctl.rst of the kernel).
fn effective(tree: &Tree, name: &str, setting: &str) -> Option<u64> {
    let read = |name: &str| -> Option<u64> {
        let text = tree.text(&format!("proc/sys/net/ipv4/conf/{name}/{setting}"));
        text?.parse().ok()
    };
    Some(read("all")?.max(read(name)?))
}

/// Each of `names` with what takes effect there: `eth0 1, eth1 0`.
fn each(tree: &Tree, names: &[String], setting: &str) -> Vec<(String, u64)> {
    let found = names.iter().filter_map(|name| {
        let value = effective(tree, name, setting)?;
        Some((name.clone(), value))
    });
    found.collect()
}

fn shown(tree: &Tree, found: &[(String, u64)], setting: &str) -> String {
    let mut parts = Vec::new();
    for name in ["all", "default"] {
        let value = tree.text(&format!("proc/sys/net/ipv4/conf/{name}/{setting}"));
        parts.extend(value.map(|value| format!("{name} {value}")));
    }
    parts.extend(found.iter().map(|(name, value)| format!("{name} {value}")));
    parts.join(", ")
}

fn reverse_path(tree: &Tree, names: &[String]) -> Option<Check> {
    let setting = "rp_filter";
    let found = each(tree, names, setting);
    tree.text("proc/sys/net/ipv4/conf/all/rp_filter")?;
    let check = Check::ok(setting, shown(tree, &found, setting));
    let strict = found.iter().any(|(_, value)| *value == 1);
    Some(match strict && found.len() > 1 {
        true => check.but(
            Verdict::Warn,
            "strict (1): clients whose packets come by another interface than answers leave by get no answer",
            "sysctl -w net.ipv4.conf.all.rp_filter=2",
        ),
        false => check,
    })
}

fn arp(tree: &Tree, names: &[String]) -> Vec<Check> {
    let mut checks = Vec::new();
    let ignore = each(tree, names, "arp_ignore");
    if tree.text("proc/sys/net/ipv4/conf/all/arp_ignore").is_some() {
        let check = Check::ok("arp_ignore", shown(tree, &ignore, "arp_ignore"));
        checks.push(match ignore.iter().any(|(_, value)| *value > 0) {
            true => check.but(
                Verdict::Warn,
                "above 0, VIPs on another interface (lo) are not answered for by ARP",
                "sysctl -w net.ipv4.conf.all.arp_ignore=0, and that of the interface; or --vip-interface",
            ),
            false => check,
        });
    }
    let announce = each(tree, names, "arp_announce");
    if tree
        .text("proc/sys/net/ipv4/conf/all/arp_announce")
        .is_some()
    {
        let check = Check::ok("arp_announce", shown(tree, &announce, "arp_announce"));
        let why = "any value will do while one machine has the VIP";
        checks.push(check.noting(why));
    }
    checks
}

/// Receive work of real devices: a queue interrupts one CPU, unless RPS hands its packets on.
fn receive(tree: &Tree, name: &str) -> Option<Check> {
    tree.link(&format!("sys/class/net/{name}/device"))?;
    let base = format!("sys/class/net/{name}/queues");
    let mut queues = tree.names(&base);
    queues.retain(|queue| queue.starts_with("rx-"));
    let masks = queues
        .iter()
        .filter_map(|queue| tree.text(&format!("{base}/{queue}/rps_cpus")));
    let rps = masks
        .filter(|mask| mask.chars().any(|c| c.is_ascii_hexdigit() && c != '0'))
        .count();
    let (queues, cpus) = (queues.len(), tree.cpus());
    let value = format!("queues {queues}, with RPS {rps}, CPUs {cpus}");
    let check = Check::ok(format!("receive of {name}"), value);
    Some(match queues > 0 && queues < cpus && rps == 0 {
        true => check.but(
            Verdict::Warn,
            format!("receive work falls on {queues} of {cpus} CPUs"),
            format!(
                "ethtool -L {name} combined {cpus}; or, where it has no more queues: for q in /{base}/rx-*; do echo {} > $q/rps_cpus; done",
                mask(cpus)
            ),
        ),
        false => check,
    })
}

/// All CPUs as a mask: groups of 32 bits, the highest first.
fn mask(cpus: usize) -> String {
    let (groups, rest) = (cpus / 32, cpus % 32);
    let mut parts = Vec::new();
    if rest > 0 {
        parts.push(format!("{:x}", (1u64 << rest) - 1));
    }
    parts.extend(std::iter::repeat_n("ffffffff".to_owned(), groups));
    parts.join(",")
}

/// Several queues whose interrupts all go to one CPU.
fn interrupts(tree: &Tree, name: &str) -> Option<Check> {
    let device = tree.link(&format!("sys/class/net/{name}/device"))?;
    let all = tree.text("proc/interrupts")?;
    let mut cpus = Vec::new();
    for line in all.lines() {
        let Some((number, rest)) = line.trim().split_once(':') else {
            continue;
        };
        let action = rest.split_whitespace().last().unwrap_or_default();
        let ours = [name, &*device].iter().any(|owner| {
            let rest = action.strip_prefix(owner);
            rest.is_some_and(|rest| rest.starts_with('-'))
        });
        let lower = action.to_lowercase();
        let receives = ["rx", "input"].iter().any(|word| lower.contains(word));
        if ours && receives {
            let place = format!("proc/irq/{number}/effective_affinity_list");
            cpus.extend(tree.text(&place));
        }
    }
    let queues = cpus.len();
    cpus.sort();
    cpus.dedup();
    let (spread, online) = (cpus.len(), tree.cpus());
    if queues < 2 || online < 2 {
        return None;
    }
    let value = format!("{queues} queues on CPUs {}", cpus.join(" "));
    let check = Check::ok(format!("interrupts of {name}"), value);
    let single = spread == 1 && list_len(&cpus[0]) == 1;
    Some(match single {
        true => check.but(
            Verdict::Warn,
            "every queue interrupts the same CPU",
            "systemctl enable --now irqbalance",
        ),
        false => check,
    })
}
