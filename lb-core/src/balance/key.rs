//! Keyed hashes: SipHash-1-3 with a key that several appliances may share. A client that does not
//! know the key cannot choose its backend, nor flood one.

use std::fmt;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13x128};

use crate::table::{FrontendKey, Protocol};

/// The 128-bit key of every hash that decides a backend. A secret: `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// The hash by which `client` is given a backend of `frontend`: of client address and port, VIP,
/// port and protocol; or, with `by_client_only` (affinity), of the client's address alone, so that
/// every connection of a client has the same hash.
///
/// A v4-mapped client hashes as the IPv4 address that it is.
pub fn key_hash(
    key: &HashKey,
    client: SocketAddr,
    frontend: &FrontendKey,
    by_client_only: bool,
) -> u64 {
    // One buffer and one write: the hasher's cost per call is more than that per byte.
    let mut bytes = [0u8; 37];
    bytes[..16].copy_from_slice(&octets(client.ip()));
    let used = if by_client_only {
        16
    } else {
        bytes[16..18].copy_from_slice(&client.port().to_be_bytes());
        bytes[18..34].copy_from_slice(&octets(frontend.address));
        bytes[34..36].copy_from_slice(&frontend.port.get().to_be_bytes());
        bytes[36] = match frontend.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        37
    };
    let mut hasher = SipHasher13::new_with_key(&key.0);
    hasher.write(&bytes[..used]);
    hasher.finish()
}

/// Two independent words for a backend: the 128-bit form of the hash, so that neither says
/// anything about a [`key_hash`].
pub(super) fn backend_seed(key: &HashKey, backend: SocketAddr) -> (u64, u64) {
    let mut bytes = [0u8; 22];
    bytes[..16].copy_from_slice(&octets(backend.ip()));
    bytes[16..18].copy_from_slice(&backend.port().to_be_bytes());
    if let SocketAddr::V6(v6) = backend {
        bytes[18..].copy_from_slice(&v6.scope_id().to_be_bytes());
    }
    let mut hasher = SipHasher13x128::new_with_key(&key.0);
    hasher.write(&bytes);
    let hash = hasher.finish128();
    (hash.h1, hash.h2)
}

/// Sixteen octets for either family, IPv4 in its mapped form (RFC 4291 s2.5.5.2).
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU16;

    fn frontend(port: u16, protocol: Protocol) -> FrontendKey {
        FrontendKey {
            address: "192.0.2.1".parse().unwrap(),
            port: NonZeroU16::new(port).unwrap(),
            protocol,
        }
    }

    #[test]
    fn every_part_of_the_tuple_counts() {
        let key = HashKey([7; 16]);
        let tcp = frontend(80, Protocol::Tcp);
        let client: SocketAddr = "198.51.100.1:4000".parse().unwrap();
        let base = key_hash(&key, client, &tcp, false);
        let mut other_vip = tcp;
        other_vip.address = "192.0.2.2".parse().unwrap();
        let others = [
            key_hash(&HashKey([8; 16]), client, &tcp, false),
            key_hash(&key, "198.51.100.2:4000".parse().unwrap(), &tcp, false),
            key_hash(&key, "198.51.100.1:4001".parse().unwrap(), &tcp, false),
            key_hash(&key, client, &other_vip, false),
            key_hash(&key, client, &frontend(81, Protocol::Tcp), false),
            key_hash(&key, client, &frontend(80, Protocol::Udp), false),
        ];
        assert!(others.iter().all(|&other| other != base));
    }

    #[test]
    fn with_affinity_only_the_clients_address_counts() {
        let key = HashKey([7; 16]);
        let (tcp, udp) = (frontend(80, Protocol::Tcp), frontend(53, Protocol::Udp));
        let a = key_hash(&key, "198.51.100.1:4000".parse().unwrap(), &tcp, true);
        let b = key_hash(&key, "[::ffff:198.51.100.1]:9".parse().unwrap(), &udp, true);
        let c = key_hash(&key, "198.51.100.2:4000".parse().unwrap(), &tcp, true);
        assert_eq!(a, b);
        assert_ne!(a, c);
    }

    /// Appliances of different versions must agree: these values may never change.
    #[test]
    fn hashes_are_the_same_on_every_machine() {
        let key = HashKey(*b"0123456789abcdef");
        let client: SocketAddr = "198.51.100.1:4000".parse().unwrap();
        let hash = key_hash(&key, client, &frontend(80, Protocol::Tcp), false);
        let seed = backend_seed(&key, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(hash, 10_095_478_184_769_681_340);
        assert_eq!(
            seed,
            (1_358_602_092_145_352_467, 10_423_520_792_425_403_228)
        );
    }

    #[test]
    fn debug_hides_the_key() {
        assert_eq!(
            format!("{:?}", HashKey(*b"secret..secret..")),
            "HashKey(..)"
        );
    }
}
