//! The kernel's sockets as text, where it does not give them otherwise (proc_net(5)).
//!
//! The whole table is written and read, some microseconds a line.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Asked, Protocol};

/// Bytes read at once: the kernel takes its locks anew for each read.
const BUFFER: usize = 64 << 10;
/// A TCP connection's state (proc_net_tcp).
const TIME_WAIT: &str = "06";

/// Counts the sockets that are asked for, by whom they are connected to.
///
/// # Errors
/// The file cannot be read.
pub fn count(asked: &Asked) -> io::Result<HashMap<SocketAddr, usize>> {
    let path = match (asked.protocol, asked.is_v4) {
        (Protocol::Tcp, true) => "/proc/net/tcp",
        (Protocol::Tcp, false) => "/proc/net/tcp6",
        (Protocol::Udp, true) => "/proc/net/udp",
        (Protocol::Udp, false) => "/proc/net/udp6",
    };
    Ok(of_lines(lines(path)?, asked))
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

fn of_lines(lines: impl Iterator<Item = String>, asked: &Asked) -> HashMap<SocketAddr, usize> {
    let mut counts = HashMap::new();
    for line in lines {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = words.next().and_then(address);
        let remote = words.next().and_then(address);
        let is_left_out = words.next() == Some(TIME_WAIT) && !asked.time_wait;
        if let (Some(local), Some(remote)) = (local, remote)
            && remote.port() > 0
            && asked.range.contains(&local.port())
            && !is_left_out
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
        let asked = |time_wait| Asked {
            protocol: Protocol::Tcp,
            is_v4: true,
            range: 50_000..=50_099,
            time_wait,
        };
        let counts = |time_wait| of_lines(text.lines().map(str::to_owned), &asked(time_wait));
        let to = |port| SocketAddr::from(([10, 0, 0, 2], port));
        if cfg!(target_endian = "little") {
            assert_eq!(counts(true), HashMap::from([(to(80), 2), (to(81), 1)]));
            assert_eq!(counts(false), HashMap::from([(to(80), 1), (to(81), 1)]));
        }
        let six = address("000080FE000000000000000001000000:0050");
        if cfg!(target_endian = "little") {
            assert_eq!(six, "[fe80::1]:80".parse().ok());
        }
    }
}
