//! Tells the neighbours of a link that an address is here now. Who knew it at another machine (the
//! one that held it before) would go on sending there until its entry is confirmed anew: for
//! minutes, and every client behind a router with it.
//!
//! The kernel does not do it: `arp_notify` and `ndisc_notify` speak when a link comes up or its MAC
//! address changes, and not when an address is added (6.18, measured; with duplicate address
//! detection `ndisc_notify` does, which VIPs are added without).
//!
//! PURE: when to say what; `tell` sends. Addresses that were found and not added are not announced:
//! they are somebody else's to tell of.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

/// How long after the one before each announcement comes. Frames get lost, and neighbours may ignore
/// what comes within their lock time (1 s on Linux, `locktime`); RFC 5227 says at least twice, RFC
/// 4861 at most three times in a row.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// Addresses that are announced together. A takeover of 10,000 is no storm.
const TOGETHER: usize = 64;
/// After so many, the others wait so long.
const PACE: Duration = Duration::from_millis(20);

/// A link-layer address.
pub(super) type Mac = [u8; 6];

/// What is to be announced, and when.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    waiting: BTreeMap<(IpAddr, u32), Waiting>,
    /// Nothing before this.
    rests: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    mac: Mac,
    due: Instant,
    /// Announced so often.
    said: usize,
}

/// One announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) address: IpAddr,
    pub(super) interface: u32,
    pub(super) mac: Mac,
}

impl Announcer {
    /// `address` came to an interface just now.
    pub(super) fn add(&mut self, address: IpAddr, interface: u32, mac: Mac, now: Instant) {
        let (due, said) = (now, 0);
        self.waiting
            .insert((address, interface), Waiting { mac, due, said });
    }

    /// And left it: from now on it may be another's.
    pub(super) fn remove(&mut self, address: IpAddr, interface: u32) {
        self.waiting.remove(&(address, interface));
    }

    /// When there is something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        let first = self.waiting.values().map(|waiting| waiting.due).min()?;
        Some(self.rests.map_or(first, |rests| rests.max(first)))
    }

    /// What is to be said now, each address once.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Announcement> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut now_due = Vec::new();
        for ((address, interface), waiting) in &mut self.waiting {
            if waiting.due > now || now_due.len() == TOGETHER {
                continue;
            }
            now_due.push(Announcement {
                address: *address,
                interface: *interface,
                mac: waiting.mac,
            });
            // Past the last pause it goes, below.
            waiting.due = now + PAUSES.get(waiting.said).copied().unwrap_or_default();
            waiting.said += 1;
        }
        self.waiting
            .retain(|_, waiting| waiting.said <= PAUSES.len());
        self.rests = (now_due.len() == TOGETHER).then(|| now + PACE);
        now_due
    }
}

/// A frame's EtherType, destination and payload.
pub(super) type Frame = (u16, Mac, Vec<u8>);

impl Announcement {
    /// What says it on the link: IPv4 in both forms of ARP, since there are neighbours that hear
    /// only one of them.
    pub(super) fn frames(&self) -> Vec<Frame> {
        const ARP: u16 = 0x0806;
        const IPV6: u16 = 0x86dd;
        const EVERYBODY: Mac = [0xff; 6];
        /// Of ff02::1 (RFC 2464 s7).
        const ALL_NODES: Mac = [0x33, 0x33, 0, 0, 0, 1];
        match self.address {
            IpAddr::V4(address) => [REQUEST, REPLY]
                .map(|form| (ARP, EVERYBODY, arp(form, self.mac, address)))
                .into(),
            IpAddr::V6(address) => vec![(IPV6, ALL_NODES, advertisement(self.mac, address))],
        }
    }
}

/// RFC 826: asks who has an address.
const REQUEST: u8 = 1;
/// And tells.
const REPLY: u8 = 2;

/// An ARP announcement: sender and target are the address itself (RFC 5227 s1.1, RFC 2002 s4.6).
fn arp(form: u8, mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    // Ethernet, IPv4, and the lengths of their addresses.
    let mut packet = vec![0, 1, 0x08, 0x00, 6, 4, 0, form];
    packet.extend(mac);
    packet.extend(address.octets());
    packet.extend(match form {
        REPLY => mac,
        _ => [0; 6],
    });
    packet.extend(address.octets());
    packet
}

/// An unsolicited neighbour advertisement to all nodes, with its IPv6 header: override is set, and
/// the link-layer address is there (RFC 4861 s7.2.6).
fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    /// Who sees another hop limit knows that a router was between (RFC 4861 s7.1.2).
    const HOPS: u8 = 255;
    const ADVERTISEMENT: u8 = 136;
    const OVERRIDE: u8 = 0x20;
    const TARGET_LINK_LAYER: [u8; 2] = [2, 1];
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend(TARGET_LINK_LAYER);
    message.extend(mac);
    let length = message.len() as u16;
    let mut pseudo = Vec::from(address.octets());
    pseudo.extend(all_nodes.octets());
    pseudo.extend(u32::from(length).to_be_bytes());
    pseudo.extend([0, 0, 0, ICMPV6]);
    pseudo.extend(&message);
    message[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([ICMPV6, HOPS]);
    packet.extend(address.octets());
    packet.extend(all_nodes.octets());
    packet.extend(message);
    packet
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 9];

    fn v4(n: u16) -> IpAddr {
        let [high, low] = n.to_be_bytes();
        [10, 0, high, low].into()
    }

    /// Every announcement, and how long after `begun` it came, until there is none due.
    fn all(announcer: &mut Announcer, begun: Instant) -> Vec<(Duration, Announcement)> {
        let mut said = Vec::new();
        while let Some(due) = announcer.due() {
            let now = announcer.take(due);
            assert!(!now.is_empty(), "something was due");
            said.extend(now.into_iter().map(|one| (due - begun, one)));
        }
        said
    }

    #[test]
    fn an_address_is_announced_at_once_and_three_times_more() {
        let (mut announcer, begun) = (Announcer::default(), Instant::now());
        announcer.add(v4(1), 7, MAC, begun);
        let said = all(&mut announcer, begun);
        let seconds: Vec<u64> = said.iter().map(|(after, _)| after.as_secs()).collect();
        assert_eq!(seconds, [0, 1, 3, 7]);
        let (address, interface, mac) = (v4(1), 7, MAC);
        let expected = Announcement {
            address,
            interface,
            mac,
        };
        assert!(said.iter().all(|(_, one)| *one == expected));
    }

    #[test]
    fn what_left_is_not_announced_any_more_and_what_came_again_is_anew() {
        let (mut announcer, begun) = (Announcer::default(), Instant::now());
        announcer.add(v4(1), 7, MAC, begun);
        assert_eq!(announcer.take(begun).len(), 1);
        assert_eq!(announcer.take(begun), [], "once at a time");
        announcer.remove(v4(1), 7);
        assert_eq!(announcer.due(), None);
        announcer.add(v4(1), 7, MAC, begun);
        assert_eq!(all(&mut announcer, begun).len(), 4);
    }

    #[test]
    fn many_are_announced_one_handful_after_the_other_and_none_is_forgotten() {
        let (mut announcer, begun) = (Announcer::default(), Instant::now());
        let many = TOGETHER as u16 * 3 + 1;
        for n in 0..many {
            announcer.add(v4(n), 7, MAC, begun);
        }
        let said = all(&mut announcer, begun);
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let mut at_once: BTreeMap<Duration, usize> = BTreeMap::new();
        for (after, one) in said {
            *counts.entry(one.address).or_default() += 1;
            *at_once.entry(after).or_default() += 1;
        }
        assert_eq!(counts.len(), usize::from(many));
        assert!(counts.values().all(|count| *count == 1 + PAUSES.len()));
        assert!(
            at_once.values().all(|count| *count <= TOGETHER),
            "{at_once:?}"
        );
    }

    #[test]
    fn frames_are_as_the_rfcs_have_them() {
        let announcement = |address| Announcement {
            address,
            interface: 1,
            mac: MAC,
        };
        let frames = announcement([192, 0, 2, 7].into()).frames();
        let request: &[u8] = &[
            0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7,
        ];
        let reply: &[u8] = &[
            0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 9, 192, 0, 2, 7, 2, 0, 0, 0, 0, 9, 192, 0, 2, 7,
        ];
        assert_eq!(frames.len(), 2);
        for ((ether_type, to, payload), expected) in frames.iter().zip([request, reply]) {
            assert_eq!((*ether_type, *to), (0x0806, [0xff; 6]));
            assert_eq!(payload, expected);
        }
        let address: Ipv6Addr = "2001:db8::7".parse().expect("an address");
        let frames = announcement(address.into()).frames();
        let [(0x86dd, [0x33, 0x33, 0, 0, 0, 1], packet)] = &frames[..] else {
            panic!("{frames:?}");
        };
        let (header, message) = packet.split_at(40);
        assert_eq!(header[..8], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(header[8..24], address.octets());
        assert_eq!(message[..2], [136, 0]);
        assert_eq!(message[4], 0x20, "override, neither router nor solicited");
        assert_eq!(message[8..24], address.octets());
        assert_eq!(message[24..], [2, 1, 2, 0, 0, 0, 0, 9]);
        // A sum over what it is in is 0.
        let mut pseudo = header[8..].to_vec();
        pseudo.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        pseudo.extend(message);
        assert_eq!(checksum(&pseudo), 0);
    }
}
