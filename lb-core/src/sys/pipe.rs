//! Pipes of kernel pages, and splice(2): bytes go from socket to socket without being copied.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Nothing here waits. SPLICE_F_MORE is never set: it would hold a tail back for up to 200 ms, and
/// within one call the kernel knows itself what follows.
const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

/// A nonblocking pipe; two descriptors.
///
/// The process must ignore SIGPIPE, as Rust's runtime has it do: splice(2) knows no MSG_NOSIGNAL.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: u32,
}

impl Pipe {
    /// A pipe that holds `size` bytes, or what the kernel allows: a user without CAP_SYS_RESOURCE
    /// may not go past fs.pipe-max-size, nor grow one past fs.pipe-user-pages-soft, beyond which
    /// new ones come with a page or two (pipe(7)).
    ///
    /// # Errors
    /// EMFILE, ENFILE (also past fs.pipe-user-pages-hard), ENOMEM.
    pub(crate) fn new(size: usize) -> Result<Pipe, Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused: then it is as large as it came.
        let size = fcntl_setpipe_size(&write, size).or_else(|_| fcntl_getpipe_size(&write))?;
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        Ok(Pipe { read, write, size })
    }

    /// Its size in bytes, as the kernel counts: a place for each page. It holds less when it is
    /// filled by small pieces, each of which takes a place, and may hold more by large ones.
    pub(crate) fn size(&self) -> usize {
        self.size as usize
    }

    /// Moves up to `most` bytes from a TCP socket into the pipe. They may be fewer than the socket
    /// has, as the pieces had it.
    ///
    /// Nothing (0) is *not* a FIN for certain: with an urgent mark next in the queue Linux moves
    /// nothing, and after a FIN it says 0 then, else EAGAIN (tcp_splice_read). Only a receive tells.
    ///
    /// # Errors
    /// EAGAIN when the socket has nothing (or urgent data next), or the pipe is full; what a
    /// receive would say.
    pub(crate) fn fill(&self, from: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
        splice(from, &self.write, most)
    }

    /// Moves up to `most` of the bytes that the pipe holds into a TCP socket.
    ///
    /// # Errors
    /// EAGAIN when the socket has no room, or the pipe is empty; what a send would say.
    pub(crate) fn drain(&self, to: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
        splice(&self.read, to, most)
    }

    /// Takes bytes out into memory.
    ///
    /// # Errors
    /// EAGAIN when it is empty.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        retry_on_intr(|| rustix::io::read(&self.read, &mut *buffer))
    }
}

fn splice(
    from: impl std::os::fd::AsFd,
    to: impl std::os::fd::AsFd,
    most: usize,
) -> Result<usize, Errno> {
    retry_on_intr(|| rustix::pipe::splice(&from, None, &to, None, most, FLAGS))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use rustix::net::{SendFlags, send};
    use socket2::SockRef;

    use super::*;
    use crate::sys::stream;

    const SIZE: usize = 256 << 10;
    const PATIENCE: Duration = Duration::from_secs(10);

    /// A peer, and the nonblocking end of it that a worker would have.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (own, _) = listener.accept().expect("it called");
        own.set_nonblocking(true).expect("an option");
        SockRef::from(&own)
            .set_out_of_band_inline(true)
            .expect("an option");
        peer.set_read_timeout(Some(PATIENCE)).expect("an option");
        (peer, own)
    }

    /// Tries until it does not say EAGAIN.
    fn when_ready(mut attempt: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
        let end = Instant::now() + PATIENCE;
        loop {
            match attempt() {
                Err(Errno::AGAIN) if Instant::now() < end => std::thread::yield_now(),
                result => return result,
            }
        }
    }

    #[test]
    fn bytes_go_through_and_the_rest_can_be_read_out() {
        let (mut from, near) = pair();
        let (mut to, far) = pair();
        let pipe = Pipe::new(SIZE).expect("a pipe");
        assert!(pipe.size() >= 4_096);
        assert_eq!(pipe.fill(near.as_fd(), SIZE), Err(Errno::AGAIN));
        assert_eq!(pipe.drain(far.as_fd(), SIZE), Err(Errno::AGAIN));
        from.write_all(b"what is moved").expect("open");
        assert_eq!(when_ready(|| pipe.fill(near.as_fd(), SIZE)), Ok(13));
        assert_eq!(pipe.drain(far.as_fd(), 8), Ok(8));
        let mut got = [0; 8];
        to.read_exact(&mut got).expect("it comes");
        assert_eq!(&got, b"what is ");
        let mut rest = [0; 100];
        assert_eq!(pipe.read(&mut rest), Ok(5));
        assert_eq!(&rest[..5], b"moved");
        assert_eq!(pipe.read(&mut rest), Err(Errno::AGAIN));
    }

    #[test]
    fn no_more_is_taken_than_asked_for() {
        let (mut from, near) = pair();
        let pipe = Pipe::new(SIZE).expect("a pipe");
        from.write_all(&[1; 100]).expect("open");
        assert_eq!(when_ready(|| pipe.fill(near.as_fd(), 60)), Ok(60));
        assert_eq!(stream::unread(near.as_fd()), 40);
        assert_eq!(pipe.fill(near.as_fd(), 60), Ok(40));
    }

    #[test]
    fn a_fin_is_nothing_and_so_is_an_urgent_mark_before_one() {
        let (from, near) = pair();
        from.shutdown(Shutdown::Write).expect("open");
        let pipe = Pipe::new(SIZE).expect("a pipe");
        assert_eq!(when_ready(|| pipe.fill(near.as_fd(), SIZE)), Ok(0));
        assert_eq!(stream::receive(near.as_fd(), &mut [0; 9]), Ok(0));

        let (from, near) = pair();
        send(&from, b"ab!", SendFlags::OOB).expect("open");
        assert_eq!(when_ready(|| pipe.fill(near.as_fd(), SIZE)), Ok(2));
        from.shutdown(Shutdown::Write).expect("open");
        // The mark keeps the byte behind it from being spliced.
        assert_eq!(when_ready(|| pipe.fill(near.as_fd(), SIZE)), Ok(0));
        let mut got = [0; 9];
        assert_eq!(stream::receive(near.as_fd(), &mut got), Ok(1));
        assert_eq!(got[0], b'!');
        assert_eq!(stream::receive(near.as_fd(), &mut got), Ok(0));
    }

    #[test]
    fn a_reset_is_told_as_a_receive_and_a_send_tell_it() {
        let (from, near) = pair();
        let (mut other, far) = pair();
        let pipe = Pipe::new(SIZE).expect("a pipe");
        other.write_all(b"lost").expect("open");
        assert_eq!(when_ready(|| pipe.fill(far.as_fd(), SIZE)), Ok(4));
        SockRef::from(&from)
            .set_linger(Some(Duration::ZERO))
            .expect("an option");
        drop(from);
        assert_eq!(
            when_ready(|| pipe.fill(near.as_fd(), SIZE)),
            Err(Errno::CONNRESET)
        );
        // The process outlives the signal that this raises.
        assert_eq!(pipe.drain(near.as_fd(), 4), Err(Errno::PIPE));
    }
}
