//! Addresses and ancillary data in the kernel's own form.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for a `sockaddr_in` or a `sockaddr_in6`: what a UDP socket names.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union Address {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Default for Address {
    fn default() -> Address {
        // SAFETY: all-zero is a valid value of each of these plain C structures.
        unsafe { std::mem::zeroed() }
    }
}

impl Address {
    /// The address, and the length of its structure.
    pub(super) fn new(address: SocketAddr) -> (Address, libc::socklen_t) {
        match address {
            SocketAddr::V4(v4) => {
                let v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(v4.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                (Address { v4 }, size_of::<libc::sockaddr_in>() as _)
            }
            SocketAddr::V6(v6) => {
                let v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: v6.ip().octets(),
                    },
                    sin6_scope_id: v6.scope_id(),
                };
                (Address { v6 }, size_of::<libc::sockaddr_in6>() as _)
            }
        }
    }

    /// What it holds; `None` for another family.
    pub(super) fn socket_addr(&self) -> Option<SocketAddr> {
        // SAFETY: every value of this type is wholly initialised, by `default` or `new`, and
        // whatever the kernel writes over that are initialised bytes again; the structures have
        // no invalid values, and each begins with its family.
        unsafe {
            match libc::c_int::from(self.family) {
                libc::AF_INET => {
                    let ip = Ipv4Addr::from(self.v4.sin_addr.s_addr.to_ne_bytes());
                    let port = u16::from_be(self.v4.sin_port);
                    Some(SocketAddrV4::new(ip, port).into())
                }
                libc::AF_INET6 => {
                    let ip = Ipv6Addr::from(self.v6.sin6_addr.s6_addr);
                    let port = u16::from_be(self.v6.sin6_port);
                    let (flow, scope) = (self.v6.sin6_flowinfo, self.v6.sin6_scope_id);
                    Some(SocketAddrV6::new(ip, port, flow, scope).into())
                }
                _ => None,
            }
        }
    }
}

/// Bytes of [`Control`]: one message whose data is an int or less, CMSG_SPACE(4).
pub(super) const CONTROL: usize = size_of::<Control>();

/// Room for one control message of UDP's. The layout is that of cmsg(3).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Control {
    header: Header,
    /// UDP_SEGMENT takes 16 bits, UDP_GRO gives an int: both begin here.
    data: [u8; 8],
}

/// `struct cmsghdr`, without the padding that musl declares: the kernel's is this one.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Header {
    len: usize,
    level: libc::c_int,
    kind: libc::c_int,
}

impl Control {
    /// Asks for datagrams of `segment` bytes each. With it, the length that the message has.
    pub(super) fn segment(segment: u16) -> (Control, usize) {
        let mut data = [0; 8];
        data[..2].copy_from_slice(&segment.to_ne_bytes());
        let control = Control {
            header: Header {
                len: size_of::<Header>() + size_of::<u16>(),
                level: libc::SOL_UDP,
                kind: libc::UDP_SEGMENT,
            },
            data,
        };
        (control, CONTROL)
    }

    /// The size of the datagrams that UDP_GRO has joined; 0 if that is not what it says.
    pub(super) fn gro_segment(&self) -> usize {
        let Header { len, level, kind } = self.header;
        let wanted = size_of::<Header>() + size_of::<libc::c_int>();
        if (len, level, kind) != (wanted, libc::SOL_UDP, libc::UDP_GRO) {
            return 0;
        }
        let [a, b, c, d, ..] = self.data;
        usize::try_from(libc::c_int::from_ne_bytes([a, b, c, d])).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went() {
        for text in [
            "1.2.3.4:5",
            "255.255.255.255:65535",
            "[fe80::1]:9",
            "[::]:0",
        ] {
            let mut address: SocketAddr = text.parse().expect("an address");
            if let SocketAddr::V6(v6) = &mut address {
                v6.set_scope_id(7);
            }
            assert_eq!(Address::new(address).0.socket_addr(), Some(address));
        }
        assert_eq!(Address::default().socket_addr(), None);
    }

    #[test]
    fn control_messages_have_the_layout_of_cmsg() {
        // SAFETY: plain arithmetic.
        let (space, len) = unsafe { (libc::CMSG_SPACE(4), libc::CMSG_LEN(2)) };
        assert_eq!(CONTROL, space as usize);
        assert_eq!(Control::segment(9).0.header.len, len as usize);
        assert_eq!(Control::segment(9).0.gro_segment(), 0);
    }
}
