//! Settings of the network stack: queues, ports, what becomes of closed connections.

use super::Rights;
use super::check::{Check, Verdict};
use super::tree::Tree;

/// What a UDP listener asks for, in bytes.
const UDP_QUEUE: u64 = 4 << 20;
/// Callers that may wait: what Linux has by default since 5.4.
const BACKLOG: u64 = 4_096;
/// Connections to one backend from one source address: below the first it is soon exhausted,
/// below the second there is less than Linux gives by default.
const PORTS_LEAST: u64 = 1_000;
const PORTS_GOOD: u64 = 20_000;
/// Ports that are listed one by one.
const LISTED: usize = 8;

pub fn checks(tree: &Tree, rights: Rights) -> Vec<Check> {
    let all = [
        queue(tree, "net.core.rmem_max", rights),
        queue(tree, "net.core.wmem_max", rights),
        backlog(tree, "net.core.somaxconn"),
        backlog(tree, "net.ipv4.tcp_max_syn_backlog"),
        cookies(tree),
        ports(tree),
        reserved(tree),
        time_wait(tree),
        spare(
            tree,
            "net.ipv4.tcp_migrate_req",
            "not needed: the listeners of a port open and close together",
        ),
        spare(
            tree,
            "net.ipv4.ip_nonlocal_bind",
            "not needed: listeners use IP_FREEBIND",
        ),
    ];
    all.into_iter().flatten().collect()
}

fn queue(tree: &Tree, name: &str, rights: Rights) -> Option<Check> {
    let most = tree.number(name)?;
    let check = Check::ok(name, most.to_string());
    Some(if most >= UDP_QUEUE {
        check
    } else if rights.net_admin {
        check.noting("does not bind CAP_NET_ADMIN: UDP queues are of 4 MiB")
    } else {
        check.but(
            Verdict::Warn,
            "UDP queues ask for 4 MiB and get no more than this: bursts are lost",
            format!("sysctl -w {name}={UDP_QUEUE}"),
        )
    })
}

fn backlog(tree: &Tree, name: &str) -> Option<Check> {
    let most = tree.number(name)?;
    let check = Check::ok(name, most.to_string());
    Some(match most < BACKLOG {
        true => check.but(
            Verdict::Warn,
            "a burst of callers past this waits a second for its next SYN",
            format!("sysctl -w {name}={BACKLOG}"),
        ),
        false => check,
    })
}

fn cookies(tree: &Tree) -> Option<Check> {
    let name = "net.ipv4.tcp_syncookies";
    let value = tree.sysctl(name)?;
    let check = Check::ok(name, &*value);
    Some(match &*value {
        "0" => check.but(
            Verdict::Warn,
            "a flood of SYNs keeps clients out",
            format!("sysctl -w {name}=1"),
        ),
        _ => check,
    })
}

/// The first and the last port that the kernel gives to who does not ask for one.
fn range(tree: &Tree) -> Option<(u64, u64)> {
    let text = tree.sysctl("net.ipv4.ip_local_port_range")?;
    let mut numbers = text.split_whitespace().map_while(|n| n.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

fn ports(tree: &Tree) -> Option<Check> {
    let name = "net.ipv4.ip_local_port_range";
    let (first, last) = range(tree)?;
    let size = (last + 1).saturating_sub(first);
    let check = Check::ok(name, format!("{first} {last}"));
    let why = format!("{size} connections to one backend at a time, from one source address");
    let fix =
        format!("sysctl -w {name}=\"16384 65535\"; or more addresses, each in --source-address");
    Some(if size < PORTS_LEAST {
        check.but(Verdict::Fail, why, fix)
    } else if size < PORTS_GOOD {
        check.but(Verdict::Warn, why, fix)
    } else {
        check.noting(why)
    })
}

/// Ports that somebody listens at and that a connection may be given meanwhile: after a restart
/// the listener finds its port taken.
fn reserved(tree: &Tree) -> Option<Check> {
    let name = "net.ipv4.ip_local_reserved_ports";
    let text = tree.sysctl(name)?;
    let (first, last) = range(tree)?;
    let mut exposed = listening(tree);
    exposed.retain(|&port| {
        (first..=last).contains(&u64::from(port)) && !holds(&text, u64::from(port))
    });
    let shown = if text.is_empty() { "none" } else { &*text };
    let check = Check::ok(name, shown);
    if exposed.is_empty() {
        return Some(check);
    }
    let list: Vec<_> = exposed.iter().take(LISTED).map(u16::to_string).collect();
    let more = match exposed.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let why = format!(
        "listeners within the range that connections get their ports from: {}{more}; if they are VIP ports, a connection may hold one when they open",
        list.join(", ")
    );
    let mut all: Vec<String> = exposed.iter().map(u16::to_string).collect();
    all.splice(0..0, (!text.is_empty()).then(|| text.clone()));
    let fix = format!("sysctl -w {name}={}", all.join(","));
    Some(check.but(Verdict::Warn, why, fix))
}

/// Does a list such as `8080,9000-9010` hold this port?
fn holds(list: &str, port: u64) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&port),
            _ => false,
        }
    })
}

/// The ports that TCP sockets of this network namespace listen at (proc(5): state 0A).
fn listening(tree: &Tree) -> Vec<u16> {
    let mut ports = Vec::new();
    for file in ["proc/net/tcp", "proc/net/tcp6"] {
        let text = tree.text(file).unwrap_or_default();
        ports.extend(text.lines().skip(1).filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (local, _, state) = (words.next()?, words.next()?, words.next()?);
            let (_, port) = local.rsplit_once(':')?;
            (state == "0A").then(|| u16::from_str_radix(port, 16).ok())?
        }));
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn time_wait(tree: &Tree) -> Option<Check> {
    let name = "net.ipv4.tcp_tw_reuse";
    let value = tree.sysctl(name)?;
    let check = Check::ok(name, &*value);
    Some(match &*value {
        "1" => check,
        _ => check.but(
            Verdict::Warn,
            "the port of a connection that Weir closes first rests for 60 s before the same backend is dialled from it",
            format!("sysctl -w {name}=1"),
        ),
    })
}

fn spare(tree: &Tree, name: &str, why: &str) -> Option<Check> {
    Some(Check::ok(name, tree.sysctl(name)?).noting(why))
}
