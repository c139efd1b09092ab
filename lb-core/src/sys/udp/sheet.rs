//! Sending many datagrams in one call.

use std::io::IoSlice;
use std::marker::PhantomData;
use std::mem::{self, MaybeUninit};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::SendFlags;

use super::address::{Address, Control};
use super::{BATCH, last_error};

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Slices that [`send_run`] takes.
const MAX_SLICES: usize = 64;

/// Sends one datagram on a connected socket; an empty one too.
///
/// # Errors
///
/// Of send(2). An error may be of an earlier datagram (`ECONNREFUSED` from an ICMP message since
/// then); then this one has not been sent, and the next call may succeed.
pub(crate) fn send(socket: BorrowedFd<'_>, payload: &[u8]) -> Result<(), Errno> {
    rustix::net::send(socket, payload, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(drop)
}

/// Sends the bytes of `slices` (at most 64) on a connected socket, as datagrams of `segment`
/// bytes each, the last maybe shorter, in one go through the network stack: all or none.
///
/// # Errors
///
/// As [`send`], and those that [`is_unsegmentable`] names.
pub(crate) fn send_run(
    socket: BorrowedFd<'_>,
    slices: &[&[u8]],
    segment: usize,
) -> Result<(), Errno> {
    let segment = u16::try_from(segment).map_err(|_| Errno::MSGSIZE)?;
    if slices.len() > MAX_SLICES {
        return Err(Errno::MSGSIZE);
    }
    let mut vectors = [const { MaybeUninit::<IoSlice<'_>>::uninit() }; MAX_SLICES];
    for (vector, slice) in vectors.iter_mut().zip(slices) {
        vector.write(IoSlice::new(slice));
    }
    let (mut control, len) = Control::segment(segment);
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    // An IoSlice is an iovec, as the standard library promises for Unix.
    header.msg_iov = vectors.as_mut_ptr().cast();
    header.msg_iovlen = slices.len() as _;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = len as _;
    // SAFETY: the header points at as many vectors as it says, all written above, at the slices
    // through them, and at a control message of the length given; all outlive the call, which
    // only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, FLAGS) };
    if sent < 0 { Err(last_error()) } else { Ok(()) }
}

/// Does an error of a send with a segment size say that this socket, device or route does not take
/// that, while it may well take the same datagrams one by one?
///
/// udp(7), and the kernel's `udp_send_skb`: EINVAL or EMSGSIZE for segments past the path's MTU (a
/// single datagram is fragmented there), EIO without checksum offload or under IPsec.
pub(crate) fn is_unsegmentable(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::INVAL | Errno::MSGSIZE | Errno::IO | Errno::OPNOTSUPP
    )
}

/// Messages to be sent in one call, each to an address of its own. Kept for its memory alone:
/// between two [`Sheet::start`] it holds nothing that anybody reads.
#[derive(Default)]
pub(crate) struct Sheet {
    headers: Vec<libc::mmsghdr>,
    names: Vec<Address>,
    vectors: Vec<libc::iovec>,
    controls: Vec<Control>,
}

impl Sheet {
    /// An empty sheet for payloads that live as long as `'a`.
    pub(crate) fn start<'a>(&mut self) -> Draft<'_, 'a> {
        self.clear();
        Draft {
            sheet: self,
            payloads: PhantomData,
        }
    }

    fn clear(&mut self) {
        self.headers.clear();
        self.names.clear();
        self.vectors.clear();
        self.controls.clear();
    }
}

impl std::fmt::Debug for Sheet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sheet").finish_non_exhaustive()
    }
}

/// A sheet being filled, then sent.
pub(crate) struct Draft<'s, 'a> {
    sheet: &'s mut Sheet,
    payloads: PhantomData<&'a [u8]>,
}

impl<'a> Draft<'_, 'a> {
    /// Adds the bytes of `slices` for `to`: one datagram, or with `segment` as many as there are
    /// of that size, the last maybe shorter.
    pub(crate) fn add(&mut self, to: SocketAddr, slices: &[&'a [u8]], segment: Option<usize>) {
        let sheet = &mut *self.sheet;
        // SAFETY: all-zero is a valid value of this plain C structure.
        let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
        let (name, len) = Address::new(to);
        sheet.names.push(name);
        header.msg_hdr.msg_namelen = len;
        header.msg_hdr.msg_iovlen = slices.len() as _;
        sheet.vectors.extend(slices.iter().map(|slice| libc::iovec {
            iov_base: slice.as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        }));
        if let Some(segment) = segment {
            // What does not fit 16 bits is no datagram: the kernel refuses the zero.
            let (control, len) = Control::segment(u16::try_from(segment).unwrap_or(0));
            sheet.controls.push(control);
            header.msg_hdr.msg_controllen = len as _;
        }
        sheet.headers.push(header);
    }

    /// Begins anew.
    pub(crate) fn clear(&mut self) {
        self.sheet.clear();
    }

    /// Is it time to send? It takes more, but then its memory is not bounded.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= BATCH
    }

    /// How many messages it holds.
    pub(crate) fn len(&self) -> usize {
        self.sheet.headers.len()
    }

    /// Sends the messages from the `first` on. Returns how many were taken, which is at least one.
    ///
    /// # Errors
    ///
    /// Of sendmmsg(2), about message `first`: nothing was sent. With a segment size also those that
    /// [`is_unsegmentable`] names.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>, first: usize) -> Result<usize, Errno> {
        let Sheet {
            headers,
            names,
            vectors,
            controls,
        } = &mut *self.sheet;
        // Set here and not in `add`, where the vectors still grow and move.
        let (mut vector, mut control) = (vectors.as_mut_ptr(), controls.as_mut_ptr());
        for (header, name) in headers.iter_mut().zip(names) {
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut *name).cast();
            header.msg_iov = vector;
            vector = vector.wrapping_add(header.msg_iovlen);
            if header.msg_controllen > 0 {
                header.msg_control = control.cast();
                control = control.wrapping_add(1);
            }
        }
        let rest = headers.get_mut(first..).unwrap_or_default();
        // SAFETY: each header points at its own name, its `msg_iovlen` vectors and, if it has one,
        // its control message: `add` pushed exactly these, in the order of the headers, and
        // nothing has moved since the loop above. The vectors point at payloads that `'a` keeps
        // alive and unchanged. sendmmsg(2) only reads through the headers, writes their
        // `msg_len`, and keeps nothing.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                rest.as_mut_ptr(),
                rest.len() as libc::c_uint,
                FLAGS,
            )
        };
        usize::try_from(sent).map_err(|_| last_error())
    }
}
