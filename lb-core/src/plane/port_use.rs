//! How many of the local ports are in use towards the backend that has most of them.
//!
//! The kernel's own books are read, other programs' connections with ours: they hold ports alike.
//! Not for a worker's thread: the kernel walks its whole table of sockets.
//!
//! A connection in TIME_WAIT holds its port too, for a minute, unless net.ipv4.tcp_tw_reuse is 1:
//! then it is to be had again after a second (RFC 6191), and does not count. (2, the default, is that
//! for loopback alone, where nobody runs short.)

mod proc_net;
mod sock_diag;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// Shares of the local ports in use: 0 is none, 1 is all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PortUse {
    /// By TCP towards the backend that has most.
    pub tcp: f64,
    /// That backend.
    pub busiest: Option<SocketAddr>,
    /// By UDP, towards all backends of the family that has more: a port serves one flow.
    pub udp: f64,
}

impl PortUse {
    /// Reads it, for connections that come from `sources` or, where there are none of a family,
    /// from one address.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn read(sources: &[IpAddr]) -> io::Result<PortUse> {
        let range = local_ports()?;
        let time_wait = !reuses_time_wait();
        let mut used = PortUse::default();
        for is_v4 in [true, false] {
            let of_family = sources.iter().filter(|source| source.is_ipv4() == is_v4);
            let ports = range.clone().count() * of_family.count().max(1);
            let share = |count: usize| count as f64 / ports as f64;
            let count = |protocol| {
                let range = range.clone();
                count(&Asked {
                    protocol,
                    is_v4,
                    range,
                    time_wait,
                })
            };
            let tcp = count(Protocol::Tcp)?;
            if let Some((&backend, &most)) = tcp.iter().max_by_key(|(_, count)| **count)
                && share(most) > used.tcp
            {
                used.tcp = share(most);
                used.busiest = Some(backend);
            }
            let udp = count(Protocol::Udp)?.into_values().sum();
            used.udp = used.udp.max(share(udp));
        }
        Ok(used)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Protocol {
    Tcp,
    Udp,
}

/// Which sockets are asked for: connected ones whose local port is of `range`.
///
/// A client's connection to a VIP port of that range is one of them, and harmless: it counts for
/// the client's port, which is in hardly any other.
#[derive(Debug)]
struct Asked {
    protocol: Protocol,
    is_v4: bool,
    range: RangeInclusive<u16>,
    /// Those in TIME_WAIT too.
    time_wait: bool,
}

/// Counts them, by whom they are connected to.
///
/// The kernel's answer to a question is the cheap one; a seccomp or SELinux profile, or a kernel
/// without `tcp_diag` and `udp_diag`, may leave the text alone.
fn count(asked: &Asked) -> io::Result<HashMap<SocketAddr, usize>> {
    sock_diag::count(asked).or_else(|_| proc_net::count(asked))
}

fn local_ports() -> io::Result<RangeInclusive<u16>> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    Ok(parse_range(&text).unwrap_or(32_768..=60_999))
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map_while(|n| n.parse().ok());
    Some(numbers.next()?..=numbers.next()?)
}

/// Is a port in TIME_WAIT to be had again, towards any backend?
fn reuses_time_wait() -> bool {
    let text = fs::read_to_string("/proc/sys/net/ipv4/tcp_tw_reuse");
    text.is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests;
