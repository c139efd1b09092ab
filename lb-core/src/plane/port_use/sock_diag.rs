//! The kernel's sockets, asked of it (sock_diag(7)): it leaves out itself what is not wanted.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, Parseable,
};
use netlink_packet_sock_diag::SOCK_DIAG_BY_FAMILY;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use socket2::{Domain, Protocol as Wire, Socket, Type};

use super::{Asked, Protocol};

/// Bytes of an answer: the kernel gives no more than this at once, and so much only to whom can
/// take it (netlink_recvmsg).
const BUFFER: usize = 32 << 10;

/// The filter's attribute of a request, and two of its operations (linux/inet_diag.h).
const BYTECODE: u16 = 1;
const SOURCE_AT_LEAST: u8 = 2;
const SOURCE_AT_MOST: u8 = 3;

/// Counts the sockets that are asked for, by whom they are connected to.
///
/// # Errors
/// The kernel does not answer such questions, or not to us.
pub fn count(asked: &Asked) -> io::Result<HashMap<SocketAddr, usize>> {
    let domain = Domain::from(libc::AF_NETLINK);
    let protocol = Wire::from(libc::NETLINK_SOCK_DIAG);
    let mut socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // Bound by the kernel, and sent to it, as nobody else is named.
    socket.send(&request(asked))?;
    let mut counts = HashMap::new();
    let mut buffer = vec![0; BUFFER];
    // The kernel has the next part ready before this one is read, so this does not wait.
    loop {
        let read = socket.read(&mut buffer)?;
        if take(&buffer[..read], &mut counts)? == Part::Last {
            return Ok(counts);
        }
    }
}

#[derive(Debug, PartialEq)]
enum Part {
    Last,
    More,
}

/// Adds the sockets of one part of an answer.
fn take(mut part: &[u8], counts: &mut HashMap<SocketAddr, usize>) -> io::Result<Part> {
    if part.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    while !part.is_empty() {
        let message = NetlinkBuffer::new_checked(part).map_err(invalid)?;
        match message.message_type() {
            // A kernel without `tcp_diag` or `udp_diag` says so at the end.
            NLMSG_DONE => return verdict(message.payload()).map(|()| Part::Last),
            NLMSG_ERROR => verdict(message.payload())?,
            SOCK_DIAG_BY_FAMILY => {
                // What follows the header are attributes that nobody asked for.
                let socket = InetResponseHeader::parse(message.payload()).map_err(invalid)?;
                let SocketId {
                    destination_address,
                    destination_port,
                    ..
                } = socket.socket_id;
                if destination_port > 0 {
                    let remote = SocketAddr::new(destination_address, destination_port);
                    *counts.entry(remote).or_default() += 1;
                }
            }
            _ => {}
        }
        let length = (message.length() as usize).next_multiple_of(4);
        part = part.get(length..).unwrap_or_default();
    }
    Ok(Part::More)
}

/// What an end or a refusal says: nothing, or a negative error number (`Documentation/userspace-api/netlink`).
fn verdict(payload: &[u8]) -> io::Result<()> {
    let number = payload
        .first_chunk()
        .copied()
        .map_or(-libc::EIO, i32::from_ne_bytes);
    match number {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(number.saturating_neg())),
    }
}

fn invalid(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn request(asked: &Asked) -> Vec<u8> {
    let (family, socket_id) = match asked.is_v4 {
        true => (libc::AF_INET, SocketId::new_v4()),
        false => (libc::AF_INET6, SocketId::new_v6()),
    };
    let (protocol, states) = match asked.protocol {
        Protocol::Tcp => (libc::IPPROTO_TCP, states(asked.time_wait)),
        // A connected one is called that.
        Protocol::Udp => (libc::IPPROTO_UDP, StateFlags::ESTABLISHED),
    };
    let request = InetRequest {
        family: family as u8,
        protocol: protocol as u8,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    };
    let filter = DefaultNla::new(BYTECODE, bytecode(&asked.range));
    let mut header = NetlinkHeader::default();
    header.message_type = SOCK_DIAG_BY_FAMILY;
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let length = header.buffer_len() + request.buffer_len() + filter.buffer_len();
    header.length = length as u32;
    let mut bytes = vec![0; length];
    let mut rest = &mut bytes[..];
    for part in [&header as &dyn Emitable, &request, &filter] {
        let (own, after) = rest.split_at_mut(part.buffer_len());
        part.emit(own);
        rest = after;
    }
    bytes
}

/// The states of a connection that has a port of its own: not of one that listens, of a caller that
/// has not been accepted, or of a socket that is merely bound.
fn states(time_wait: bool) -> StateFlags {
    let states = StateFlags::SYN_SENT
        | StateFlags::ESTABLISHED
        | StateFlags::FIN_WAIT1
        | StateFlags::FIN_WAIT2
        | StateFlags::CLOSE_WAIT
        | StateFlags::LAST_ACK
        | StateFlags::CLOSING;
    match time_wait {
        true => states | StateFlags::TIME_WAIT,
        false => states,
    }
}

/// A program that the kernel runs for each socket: is its local port of the range?
///
/// Two operations, each with the port that follows it; `yes` and `no` are how many bytes to go on,
/// and a way past the end by four is a refusal (inet_diag_bc_run).
fn bytecode(range: &RangeInclusive<u16>) -> Vec<u8> {
    const SIZE: u8 = 8;
    let conditions = [
        (SOURCE_AT_LEAST, *range.start()),
        (SOURCE_AT_MOST, *range.end()),
    ];
    let mut program = Vec::new();
    for (n, (code, port)) in conditions.into_iter().enumerate() {
        let left = u16::from(SIZE) * (conditions.len() - n) as u16;
        program.extend([code, SIZE]);
        program.extend((left + 4).to_ne_bytes());
        program.extend([0, 0]);
        program.extend(port.to_ne_bytes());
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_error_and_nonsense_too() {
        let take = |bytes: &[u8]| take(bytes, &mut HashMap::new());
        let message = |kind: u16, payload: &[u8]| {
            let length = 16 + payload.len() as u32;
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(payload);
            bytes
        };
        let refused = message(NLMSG_ERROR, &(-libc::ENOENT).to_ne_bytes());
        let error = take(&refused).expect_err("a refusal");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(take(&message(NLMSG_DONE, &[0; 4])).ok(), Some(Part::Last));
        let without = take(&message(NLMSG_DONE, &(-libc::ENOENT).to_ne_bytes()));
        assert_eq!(
            without.expect_err("no module").raw_os_error(),
            Some(libc::ENOENT)
        );
        assert!(take(&[]).is_err());
        assert!(take(&[1; 7]).is_err());
        assert!(take(&message(SOCK_DIAG_BY_FAMILY, &[2; 8])).is_err());
        let mut long = message(NLMSG_DONE, &[]);
        long[0] = 17;
        assert!(take(&long).is_err());
    }
}
