//! An eBPF program on listening sockets: connections go to the workers by turns.
//!
//! The kernel's own choice among the sockets of a port is a hash of the four numbers: right in the
//! long run, and off by the square root of how many there are. Of 8 connections over two workers 5
//! meet in one on average, and each gets less of that worker.
//!
//! The program counts. It is a socket filter (BPF_PROG_TYPE_SOCKET_FILTER), whose result is the
//! number of the socket (socket(7), SO_ATTACH_REUSEPORT_EBPF, Linux 4.5); its counters are in a map
//! of its own, one for each of [`COUNTERS`] hashes of the address and port dialled, so that what
//! happens at one port does not shift the turns of another. Only for TCP: a flow's datagrams must
//! all go to one worker.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::filter::SPREAD;

/// A power of two: an array of 8 bytes each.
const COUNTERS: u32 = 1 << COUNTER_BITS;
const COUNTER_BITS: u32 = 10;

/// bpf(2): the commands, types and helper used here (linux/bpf.h).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_PSEUDO_MAP_FD: u8 = 1;
const BPF_FUNC_MAP_LOOKUP_ELEM: i32 = 1;
const BPF_FETCH_ADD: i32 = 0x01;

/// struct bpf_insn of linux/bpf.h; `registers` holds the source in its high half.
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

const fn op(code: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        value,
    }
}

/// The program over `map` for this many workers (RFC 9669 has the instruction set).
fn program(map: RawFd, is_v6: bool, workers: u32) -> [Instruction; 21] {
    // The last word of the address dialled and the port dialled, from the network header: RFC 791
    // section 3.1, RFC 8200 section 3, RFC 9293 section 3.1. Behind IPv4 options it is another
    // counter that is used, and no harm done.
    let (address, port) = if is_v6 { (36, 42) } else { (16, 22) };
    let shift = (32 - COUNTER_BITS) as i32;
    [
        op(0xbf, 6, 1, 0, 0), // r6 = r1: the packet, for the loads
        op(0x20, 0, 0, 0, libc::SKF_NET_OFF + address), // r0 = word of the address
        op(0xbf, 7, 0, 0, 0), // r7 = r0
        op(0x28, 0, 0, 0, libc::SKF_NET_OFF + port), // r0 = port
        op(0xaf, 7, 0, 0, 0), // r7 ^= r0
        op(0x24, 7, 0, 0, SPREAD as i32), // w7 *= SPREAD
        op(0x74, 7, 0, 0, shift), // w7 >>= shift: below COUNTERS
        op(0x63, 10, 7, -4, 0), // *(u32 *)(r10 - 4) = w7
        op(0xbf, 2, 10, 0, 0), // r2 = r10
        op(0x07, 2, 0, 0, -4), // r2 += -4
        op(0x18, 1, BPF_PSEUDO_MAP_FD, 0, map), // r1 = map, an instruction of two
        op(0x00, 0, 0, 0, 0),
        op(0x85, 0, 0, 0, BPF_FUNC_MAP_LOOKUP_ELEM), // r0 = the counter, or 0
        op(0x55, 0, 0, 2, 0),                        // if r0 != 0, pass over two
        op(0xb7, 0, 0, 0, -1),                       // r0 = -1: no socket has it, the hash decides
        op(0x95, 0, 0, 0, 0),                        // return
        op(0xb7, 1, 0, 0, 1),                        // r1 = 1
        op(0xdb, 0, 1, 0, BPF_FETCH_ADD),            // r1 = *(u64 *)r0 += 1, as it was before
        op(0x97, 1, 0, 0, workers as i32),           // r1 %= workers
        op(0xbf, 0, 1, 0, 0),                        // r0 = r1
        op(0x95, 0, 0, 0, 0),                        // return
    ]
}

/// The programs of one process, to be attached to any number of ports.
#[derive(Debug)]
pub(crate) struct Rotation {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Rotation {
    /// Programs that take turns among `workers` sockets, at least one.
    ///
    /// # Errors
    /// EPERM without CAP_BPF (unless kernel.unprivileged_bpf_disabled is 0), or where a seccomp
    /// filter forbids bpf(2); EINVAL before Linux 5.12; ENOSYS; EMFILE.
    pub(crate) fn new(workers: u32) -> Result<Rotation, Errno> {
        let map = create_map()?;
        let load = |is_v6| load(&program(map.as_raw_fd(), is_v6, workers.max(1)));
        // A program holds its map: the descriptor is not needed after this.
        Ok(Rotation {
            v4: load(false)?,
            v6: load(true)?,
        })
    }

    /// Takes turns among the sockets of the SO_REUSEPORT group that `listener` is in. The program
    /// belongs to the group: attaching it again changes nothing. A number past the sockets of the
    /// group (while it forms) falls back to the kernel's own choice.
    ///
    /// # Errors
    /// EINVAL for a socket that is in no group.
    pub(crate) fn attach(&self, listener: BorrowedFd<'_>, is_v6: bool) -> Result<(), Errno> {
        let program = if is_v6 { &self.v6 } else { &self.v4 };
        super::udp::set_int(
            listener,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_EBPF,
            program.as_raw_fd(),
        )
    }
}

/// The parameters of BPF_MAP_CREATE as far as they are used: what follows is zero to the kernel.
#[repr(C)]
struct MapParameters {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

fn create_map() -> Result<OwnedFd, Errno> {
    let parameters = MapParameters {
        kind: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: COUNTERS,
    };
    bpf(BPF_MAP_CREATE, &parameters)
}

/// The same of BPF_PROG_LOAD, to the end of the log's fields, which ask for none.
#[repr(C)]
struct ProgramParameters {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let parameters = ProgramParameters {
        kind: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    bpf(BPF_PROG_LOAD, &parameters)
}

/// bpf(2) with a command that returns a descriptor.
fn bpf<T>(command: libc::c_int, parameters: &T) -> Result<OwnedFd, Errno> {
    // SAFETY: the parameters are a plain C structure of the size given, padding-free, and outlive
    // the call; what they point to (the instructions that `load` borrows, a static string) does,
    // too. The kernel copies all of it during the call and writes to none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(parameters),
            size_of::<T>(),
        )
    };
    match RawFd::try_from(result) {
        // SAFETY: both commands return a new descriptor (close-on-exec) that nobody else has.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => {
            let error = io::Error::last_os_error();
            Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::sys::socket::{accept, listen_tcp};

    fn group(address: &str, sockets: usize) -> (Vec<OwnedFd>, SocketAddr) {
        let mut at: SocketAddr = address.parse().expect("an address");
        let mut group = Vec::new();
        for _ in 0..sockets {
            let one = listen_tcp(at, Duration::from_secs(60)).expect("a listener");
            let bound = rustix::net::getsockname(&one).expect("bound");
            at = SocketAddr::try_from(bound).expect("an address");
            group.push(one);
        }
        (group, at)
    }

    fn count(listener: &OwnedFd) -> usize {
        std::iter::from_fn(|| accept(listener.as_fd()).ok()).count()
    }

    #[test]
    fn connections_go_by_turns_at_every_port_and_family() {
        let rotation = match Rotation::new(3) {
            Ok(rotation) => rotation,
            Err(errno) => return println!("SKIP: rotation: bpf(2) says {errno}"),
        };
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let groups = [group(address, 3), group(address, 3)];
            for (sockets, at) in &groups {
                let attached = rotation.attach(sockets[0].as_fd(), at.is_ipv6());
                attached.expect("a group");
            }
            // Dialled in turn, which one counter for both would make two of three and one of three.
            let dialled: Vec<_> = (0..60)
                .flat_map(|_| groups.each_ref().map(|(_, at)| TcpStream::connect(at)))
                .collect();
            assert!(dialled.iter().all(Result::is_ok));
            for (sockets, at) in &groups {
                let counts: Vec<_> = sockets.iter().map(count).collect();
                let expected = if same_counter(&groups) {
                    10..=30
                } else {
                    20..=20
                };
                assert!(
                    counts.iter().all(|n| expected.contains(n)),
                    "{at}: {counts:?}"
                );
            }
        }
    }

    /// Do two ports happen to share a counter?
    fn same_counter(groups: &[(Vec<OwnedFd>, SocketAddr); 2]) -> bool {
        let counter = |at: &SocketAddr| {
            let word = match at {
                SocketAddr::V4(at) => at.ip().to_bits(),
                SocketAddr::V6(at) => at.ip().to_bits() as u32,
            };
            (word ^ u32::from(at.port())).wrapping_mul(SPREAD) >> (32 - COUNTER_BITS)
        };
        counter(&groups[0].1) == counter(&groups[1].1)
    }

    #[test]
    fn a_group_with_fewer_sockets_than_turns_serves_all() {
        let Ok(rotation) = Rotation::new(4) else {
            return println!("SKIP: rotation: no bpf(2)");
        };
        let (sockets, at) = group("127.0.0.1:0", 1);
        rotation.attach(sockets[0].as_fd(), false).expect("a group");
        let dialled: Vec<_> = (0..20).map(|_| TcpStream::connect(at)).collect();
        assert!(dialled.iter().all(Result::is_ok));
        assert_eq!(count(&sockets[0]), 20);
    }
}
