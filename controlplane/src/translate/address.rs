//! Addresses and prefixes as Kubernetes reads them, made canonical.
//!
//! The API accepts forms that newer validation would refuse and keeps what is stored (KEP-4858):
//! leading zeros in IPv4 are *decimal* there, and a v4-mapped IPv6 address is an IPv4 address. We
//! read exactly so and go on with the parsed value alone: no text ever reaches a resolver or the C
//! library, which would take `010.0.0.1` for 8.0.0.1 and `127.1` for a loopback address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Longer text is no address: the longest IPv6 form has 45 characters, and leading zeros that go
/// past this are somebody's experiment.
const LONGEST: usize = 64;

/// `text` as an address: dotted decimal (leading zeros allowed) or IPv6 without a zone; a
/// v4-mapped address comes out as IPv4. `None` for everything else, surrounding blanks included.
pub fn parse(text: &str) -> Option<IpAddr> {
    if text.len() > LONGEST {
        return None;
    }
    if text.contains(':') {
        Some(text.parse::<Ipv6Addr>().ok()?.to_canonical())
    } else {
        parse_v4(text).map(IpAddr::V4)
    }
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?)?).ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// ASCII digits and nothing else: no sign, no other script's digits.
fn decimal(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// `text` as ADDRESS/LENGTH, host bits cleared. A v4-mapped prefix is none: older proxies take it
/// for IPv4 and newer validation refuses it, so that nobody can know which clients are meant.
pub fn parse_prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = u8::try_from(decimal(length)?).ok()?;
    let net = match parse(address)? {
        IpAddr::V4(_) if address.contains(':') => return None,
        IpAddr::V4(address) => IpNet::V4(Ipv4Net::new(address, length).ok()?),
        IpAddr::V6(address) => IpNet::V6(Ipv6Net::new(address, length).ok()?),
    };
    Some(net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.01", Some("10.0.0.1")),
            ("0177.0.0.1", Some("177.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::FFFF:0a00:0001", Some("10.0.0.1")),
            ("2001:DB8:0:0::1", Some("2001:db8::1")),
            ("", None),
            ("10.0.0", None),
            ("127.1", None),
            ("10.0.0.1.", None),
            ("10.0.0.256", None),
            ("10.0.0.-1", None),
            ("10.0.0.+1", None),
            ("10.0.0.0x1", None),
            ("2130706433", None),
            ("0x7f000001", None),
            (" 10.0.0.1", None),
            ("10.0.0.1 ", None),
            ("[::1]", None),
            ("fe80::1%eth0", None),
            ("10.0.0.1:80", None),
            ("１０.0.0.1", None),
            ("example.com", None),
            ("4294967306.0.0.1", None),
        ] {
            let expected = expected.map(|text| text.parse::<IpAddr>().expect("an address"));
            assert_eq!(parse(text), expected, "{text:?}");
        }
        assert_eq!(parse(&"0".repeat(100_000)), None);
    }

    #[test]
    fn prefixes_are_canonical() {
        for (text, expected) in [
            ("192.0.2.0/24", Some("192.0.2.0/24")),
            ("192.0.2.77/24", Some("192.0.2.0/24")),
            ("010.0.0.0/08", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("::/0", Some("::/0")),
            ("::ffff:192.0.2.0/120", None),
            ("::ffff:0.0.0.0/96", None),
            ("::ffff:192.0.2.0/24", None),
            ("::ffff:192.0.2.0/95", None),
            ("192.0.2.0/33", None),
            ("2001:db8::/129", None),
            ("192.0.2.1", None),
            ("192.0.2.0/", None),
            ("192.0.2.0/-1", None),
            ("192.0.2.0/+8", None),
            ("192.0.2.0/24/8", None),
            ("192.0.2.0/255.255.255.0", None),
            ("/24", None),
            ("", None),
        ] {
            let expected = expected.map(|text| text.parse::<IpNet>().expect("a prefix"));
            assert_eq!(parse_prefix(text), expected, "{text:?}");
        }
    }
}
