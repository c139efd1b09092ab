//! Which endpoint addresses are never dialled: whoever may write an EndpointSlice could otherwise
//! reach through the appliance what only the appliance can reach (CVE-2021-25740 and its kind).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Rules;

/// One refused range, first to last address.
struct Range {
    first: IpAddr,
    last: IpAddr,
    problem: &'static str,
}

const fn v4(first: [u8; 4], last: [u8; 4], problem: &'static str) -> Range {
    let [a, b, c, d] = first;
    let [e, f, g, h] = last;
    Range {
        first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        last: IpAddr::V4(Ipv4Addr::new(e, f, g, h)),
        problem,
    }
}

const fn v6(first: u128, last: u128, problem: &'static str) -> Range {
    Range {
        first: IpAddr::V6(Ipv6Addr::from_bits(first)),
        last: IpAddr::V6(Ipv6Addr::from_bits(last)),
        problem,
    }
}

const UNSPECIFIED: &str = "it is unspecified, which no packet can be sent to";
const THIS_NETWORK: &str = "0.0.0.0/8 is no destination (RFC 1122)";
const LOOPBACK: &str = "it is a loopback address of this appliance (allowEndpoints can permit it)";
const LINK_LOCAL: &str = "it is link-local (allowEndpoints can permit it)";
const METADATA: &str = "it is a cloud's metadata address (allowEndpoints can permit it)";
const MULTICAST: &str = "it is a multicast address";
const RESERVED: &str = "240.0.0.0/4 is reserved (RFC 1112)";
const BROADCAST: &str = "it is the broadcast address";
const OWN_VIP: &str = "it is in this appliance's own address pools, which would loop \
                       (allowEndpoints can permit it)";
const OWN_NODE_PORT: &str = "it is this appliance's node-port address, which would loop \
                             (allowEndpoints can permit it)";
const OWN_ADDRESS: &str = "it is this appliance's own address (allowEndpoints can permit it)";

/// The refused ranges. A single metadata address stands before the range it lies in, so that its
/// reason names it, and so that permitting link-local addresses does not permit it.
const REFUSED: &[Range] = &[
    // EC2, GCE, Azure, OpenStack and most others; ECS task roles; EKS pod identity.
    v4([169, 254, 169, 254], [169, 254, 169, 254], METADATA),
    v4([169, 254, 170, 2], [169, 254, 170, 2], METADATA),
    v4([169, 254, 170, 23], [169, 254, 170, 23], METADATA),
    // Azure's wire server, Alibaba Cloud, Oracle Cloud.
    v4([168, 63, 129, 16], [168, 63, 129, 16], METADATA),
    v4([100, 100, 100, 200], [100, 100, 100, 200], METADATA),
    v4([192, 0, 0, 192], [192, 0, 0, 192], METADATA),
    v4([0, 0, 0, 0], [0, 255, 255, 255], THIS_NETWORK),
    v4([127, 0, 0, 0], [127, 255, 255, 255], LOOPBACK),
    v4([169, 254, 0, 0], [169, 254, 255, 255], LINK_LOCAL),
    v4([224, 0, 0, 0], [239, 255, 255, 255], MULTICAST),
    v4([255, 255, 255, 255], [255, 255, 255, 255], BROADCAST),
    v4([240, 0, 0, 0], [255, 255, 255, 254], RESERVED),
    // fd00:ec2::/32 holds EC2's metadata (::254), DNS (::253) and pod identity (::23) services.
    v6(0xfd00_0ec2 << 96, (0xfd00_0ec3 << 96) - 1, METADATA),
    // GCE's fd20:ce::254 and Scaleway's fd00:42::42.
    v6(
        (0xfd20_00ce << 96) | 0x254,
        (0xfd20_00ce << 96) | 0x254,
        METADATA,
    ),
    v6(
        (0xfd00_0042 << 96) | 0x42,
        (0xfd00_0042 << 96) | 0x42,
        METADATA,
    ),
    v6(1, 1, LOOPBACK),
    v6(0xfe80 << 112, (0xfec0 << 112) - 1, LINK_LOCAL),
    v6(0xff00 << 112, u128::MAX, MULTICAST),
];

/// Why `address` (canonical) must not be dialled, or `None` if it may. An IPv6 address that wraps
/// an IPv4 one is judged by both.
pub fn refusal(address: IpAddr, rules: &Rules) -> Option<&'static str> {
    if let IpAddr::V6(outer) = address
        && let Some(inner) = wrapped_v4(outer)
        && let Some(problem) = refusal_of(IpAddr::V4(inner), rules)
    {
        return Some(problem);
    }
    refusal_of(address, rules)
}

fn refusal_of(address: IpAddr, rules: &Rules) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some(UNSPECIFIED);
    }
    let refuses = |first: IpAddr, last: IpAddr| {
        first <= address && address <= last && !allowed(address, first, last, rules)
    };
    let built_in = REFUSED
        .iter()
        .find(|range| refuses(range.first, range.last))
        .map(|range| range.problem);
    let any = |addresses: &[IpAddr]| addresses.iter().any(|own| refuses(*own, *own));
    built_in
        .or_else(|| any(&rules.node_port_addresses).then_some(OWN_NODE_PORT))
        .or_else(|| any(&rules.own_addresses).then_some(OWN_ADDRESS))
        .or_else(|| {
            rules
                .pools
                .iter()
                .any(|(first, last)| refuses(*first, *last))
                .then_some(OWN_VIP)
        })
}

/// A range in the settings opens a refused one only if it lies inside it: the more special says
/// what is meant, and 10.0.0.0/8 given for the pods does not open the VIPs at 10.9.0.0/24.
fn allowed(address: IpAddr, first: IpAddr, last: IpAddr, rules: &Rules) -> bool {
    rules
        .allow_endpoints
        .iter()
        .any(|net| net.contains(&address) && first <= net.network() && net.broadcast() <= last)
}

/// The IPv4 address that a relay, a translator or an old stack makes of an IPv6 one:
/// v4-compatible and v4-translated (RFC 4291 s2.5.5.1, RFC 7915), NAT64 (RFC 6052, RFC 8215),
/// 6to4 (RFC 3056), Teredo (RFC 4380, stored inverted), ISATAP (RFC 5214).
fn wrapped_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match s {
        // ::1 is the loopback address and :: the unspecified one; neither wraps anything.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, a, b] | [0, 0, 0, 0, 0xffff, 0, a, b] => Some(join(a, b)),
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => Some(join(a, b)),
        // The local-use prefix of 48 bits may be cut into /96 or be used whole: octets 6, 7, 9, 10.
        [0x64, 0xff9b, 1, 0, 0, 0, a, b] => Some(join(a, b)),
        [0x64, 0xff9b, 1, a, b, c, _, _] => Some(join(a, (b << 8) | (c >> 8))),
        [0x2002, a, b, ..] => Some(join(a, b)),
        [0x2001, 0, .., a, b] => Some(join(!a, !b)),
        [.., 0 | 0x200, 0x5efe, a, b] => Some(join(a, b)),
        _ => None,
    }
}
