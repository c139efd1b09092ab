//! Packet sockets (packet(7)): payloads of frames, sent on one interface of one's choice.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use socket2::{Domain, Socket, Type};

/// Sends payloads of frames, whose header the kernel writes. It receives nothing.
#[derive(Debug)]
pub struct Packets {
    fd: OwnedFd,
}

impl Packets {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// EPERM: CAP_NET_RAW is missing. EAFNOSUPPORT: a sandbox forbids the address family.
    pub fn open() -> io::Result<Packets> {
        // Protocol 0: nothing is received.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), None)?;
        Ok(Packets { fd: socket.into() })
    }

    /// Sends `payload` from the interface of this index, in a frame of this EtherType to `to`. Never
    /// waits.
    ///
    /// # Errors
    /// ENXIO, ENODEV: there is no such interface. ENETDOWN: it is down. ENOBUFS, EAGAIN: its queue
    /// is full. EMSGSIZE: the payload is longer than its MTU.
    pub fn send(
        &self,
        interface: u32,
        ether_type: u16,
        to: [u8; 6],
        payload: &[u8],
    ) -> io::Result<()> {
        let no_such = |_| io::Error::from_raw_os_error(libc::ENODEV);
        let mut address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::c_ushort,
            sll_protocol: ether_type.to_be(),
            sll_ifindex: i32::try_from(interface).map_err(no_such)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: to.len() as u8,
            sll_addr: [0; 8],
        };
        address.sll_addr[..to.len()].copy_from_slice(&to);
        // SAFETY: sendto(2) reads `payload.len()` bytes of the payload and as many of `address` as
        // its size; both live past the call, which keeps neither. The descriptor is open as long as
        // `self`. socket2 and rustix make no sockaddr_ll without unsafe code either.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                payload.as_ptr().cast(),
                payload.len(),
                libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        match sent {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_does_not_exist_is_said() {
        let packets = match Packets::open() {
            Ok(packets) => packets,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM));
                println!("SKIP: packets: CAP_NET_RAW is missing");
                return;
            }
        };
        for interface in [u32::MAX, i32::MAX as u32] {
            let sent = packets.send(interface, 0x0806, [0xff; 6], &[0; 28]);
            let error = sent.expect_err("there is none").raw_os_error();
            assert!(
                matches!(error, Some(libc::ENXIO | libc::ENODEV)),
                "{error:?}"
            );
        }
    }
}
