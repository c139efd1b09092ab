//! Keyed hashes: SipHash-1-3 with a key that several appliances may share. A client that does not
//! know the key cannot choose its backend, nor flood one.

use std::fmt;
use std::hash::Hasher;
use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13x128};

/// The 128-bit key of every hash that decides a backend. A secret: `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u8; 16]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(..)")
    }
}

/// The hash of a whole tuple: client address and port, VIP and port, protocol (its IANA number).
///
/// A v4-mapped client hashes as the IPv4 address that it is.
pub fn tuple_hash(key: &HashKey, client: SocketAddr, to: SocketAddr, protocol: u8) -> u64 {
    // One buffer and one write: the hasher's cost per call is more than that per byte.
    let mut bytes = [0u8; 37];
    bytes[..16].copy_from_slice(&octets(client.ip()));
    bytes[16..18].copy_from_slice(&client.port().to_be_bytes());
    bytes[18..34].copy_from_slice(&octets(to.ip()));
    bytes[34..36].copy_from_slice(&to.port().to_be_bytes());
    bytes[36] = protocol;
    keyed(key, &bytes)
}

/// The hash of the client's address alone, for affinity: every connection of a client has the same.
///
/// A v4-mapped client hashes as the IPv4 address that it is.
pub fn client_hash(key: &HashKey, client: IpAddr) -> u64 {
    keyed(key, &octets(client))
}

fn keyed(key: &HashKey, bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(&key.0);
    hasher.write(bytes);
    hasher.finish()
}

/// Two independent words for a backend: the 128-bit form of the hash, so that neither says
/// anything about the hash of a client.
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

    const TCP: u8 = 6;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_part_of_the_tuple_counts() {
        let key = HashKey([7; 16]);
        let (client, to) = (at("198.51.100.1:4000"), at("192.0.2.1:80"));
        let base = tuple_hash(&key, client, to, TCP);
        let others = [
            tuple_hash(&HashKey([8; 16]), client, to, TCP),
            tuple_hash(&key, at("198.51.100.2:4000"), to, TCP),
            tuple_hash(&key, at("198.51.100.1:4001"), to, TCP),
            tuple_hash(&key, client, at("192.0.2.2:80"), TCP),
            tuple_hash(&key, client, at("192.0.2.1:81"), TCP),
            tuple_hash(&key, client, to, 17),
        ];
        assert!(others.iter().all(|&other| other != base));
    }

    #[test]
    fn with_affinity_only_the_clients_address_counts() {
        let key = HashKey([7; 16]);
        let hash = |client: &str| client_hash(&key, client.parse().unwrap());
        assert_eq!(hash("198.51.100.1"), hash("::ffff:198.51.100.1"));
        assert_ne!(hash("198.51.100.1"), hash("198.51.100.2"));
    }

    /// Appliances of different versions must agree: these values may never change.
    #[test]
    fn hashes_are_the_same_on_every_machine() {
        let key = HashKey(*b"0123456789abcdef");
        let hash = tuple_hash(&key, at("198.51.100.1:4000"), at("192.0.2.1:80"), TCP);
        let seed = backend_seed(&key, at("10.0.0.1:8080"));
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
