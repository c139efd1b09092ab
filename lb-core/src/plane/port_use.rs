//! How many of the local ports are in use towards the backend that has most of them.
//!
//! The kernel's own books are read (proc_net(5)), connections in TIME_WAIT and other programs' with
//! them: they hold ports as ours do. A line costs some microseconds, so this is not for a worker's
//! thread.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Bytes read at once: the kernel takes its locks anew for each read.
const BUFFER: usize = 64 << 10;

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
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
        let range = parse_range(&range).unwrap_or(32_768..=60_999);
        let mut used = PortUse::default();
        for (is_v4, tcp, udp) in [
            (true, "/proc/net/tcp", "/proc/net/udp"),
            (false, "/proc/net/tcp6", "/proc/net/udp6"),
        ] {
            let of_family = sources.iter().filter(|source| source.is_ipv4() == is_v4);
            let ports = range.clone().count() * of_family.count().max(1);
            let share = |count: usize| count as f64 / ports as f64;
            let tcp = count(lines(tcp)?, &range);
            if let Some((&backend, &most)) = tcp.iter().max_by_key(|(_, count)| **count)
                && share(most) > used.tcp
            {
                used.tcp = share(most);
                used.busiest = Some(backend);
            }
            let udp = count(lines(udp)?, &range).into_values().sum();
            used.udp = used.udp.max(share(udp));
        }
        Ok(used)
    }
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map_while(|n| n.parse().ok());
    Some(numbers.next()?..=numbers.next()?)
}

/// The lines of a file; of one that is not there (IPv6 may be off) none.
fn lines(path: &str) -> io::Result<impl Iterator<Item = String>> {
    let file = match File::open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let lines = file.map(|file| BufReader::with_capacity(BUFFER, file).lines());
    Ok(lines.into_iter().flatten().map_while(Result::ok))
}

/// Sockets whose local port is of `range`, by whom they are connected to.
///
/// A client's connection to a VIP port of that range is one of them, and harmless: it counts for
/// the client's port, which is in hardly any other.
fn count(
    lines: impl Iterator<Item = String>,
    range: &RangeInclusive<u16>,
) -> HashMap<SocketAddr, usize> {
    let mut counts = HashMap::new();
    for line in lines {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = words.next().and_then(address);
        let remote = words.next().and_then(address);
        if let (Some(local), Some(remote)) = (local, remote)
            && remote.port() > 0
            && range.contains(&local.port())
        {
            *counts.entry(remote).or_default() += 1;
        }
    }
    counts
}

/// `0100007F:9C40`: words of the address as the machine reads them from memory, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |n: usize| -> Option<[u8; 4]> {
        let word = u32::from_str_radix(address.get(8 * n..8 * n + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (n, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(n)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn sockets_of_the_range_count_for_whom_they_dial() {
        // As a little-endian machine has it.
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n\
               0: 0100007F:C350 0200000A:0050 01 00000000:00000000\n\
               1: 0100007F:C351 0200000A:0050 06 00000000:00000000\n\
               2: 0100007F:C352 0200000A:0051 01 00000000:00000000\n\
               3: 0100007F:0050 0300000A:C350 01 00000000:00000000\n\
               4: 00000000:C353 00000000:0000 0A 00000000:00000000\n\
            nonsense\n   5: x:y z\n";
        let counts = count(text.lines().map(str::to_owned), &(50_000..=50_099));
        let to = |port| SocketAddr::from(([10, 0, 0, 2], port));
        if cfg!(target_endian = "little") {
            assert_eq!(counts, HashMap::from([(to(80), 2), (to(81), 1)]));
        }
        let six = address("000080FE000000000000000001000000:0050");
        if cfg!(target_endian = "little") {
            assert_eq!(six, "[fe80::1]:80".parse().ok());
        }
    }

    #[test]
    fn what_this_process_dials_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = listener.local_addr().expect("bound");
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("proc");
        let range = parse_range(&range).expect("two numbers");
        let dialled: Vec<_> = (0..20).map(|_| TcpStream::connect(to)).collect();
        let counts = count(lines("/proc/net/tcp").expect("proc"), &range);
        assert_eq!(counts.get(&to), Some(&20));
        assert!(dialled.iter().all(Result::is_ok));
        let used = PortUse::read(&[]).expect("proc");
        assert!(used.tcp >= 20.0 / range.count() as f64, "{used:?}");
    }
}
