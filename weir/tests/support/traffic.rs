//! Servers that play pods and clients that check every byte.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use socket2::SockRef;

use super::net::Net;

/// A TCP server at one address; stopped (listener closed, connections reset) when dropped.
pub struct TcpPod {
    pub address: SocketAddr,
    /// Connections accepted so far.
    pub accepted: Arc<AtomicU64>,
    namespace: String,
    listener: TcpListener,
    live: Arc<Mutex<HashMap<u64, TcpStream>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl TcpPod {
    /// Runs `handle` on a thread for each connection.
    #[track_caller]
    pub fn serve(
        net: &Net,
        address: impl Into<IpAddr>,
        port: u16,
        handle: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> TcpPod {
        let address = SocketAddr::new(address.into(), port);
        let listener = net.run(move || {
            let domain = socket2::Domain::for_address(address);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket
                .bind(&address.into())
                .unwrap_or_else(|e| panic!("bind {address}: {e}"));
            socket.listen(4096).unwrap();
            TcpListener::from(socket)
        });
        let accepted = Arc::new(AtomicU64::new(0));
        let live: Arc<Mutex<HashMap<u64, TcpStream>>> = Arc::default();
        let acceptor = {
            let (listener, accepted, live) = (
                listener.try_clone().unwrap(),
                accepted.clone(),
                live.clone(),
            );
            let handle = Arc::new(handle);
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    let id = accepted.fetch_add(1, Ordering::Relaxed);
                    let Ok(copy) = stream.try_clone() else {
                        continue;
                    };
                    live.lock().unwrap().insert(id, copy);
                    let (handle, live) = (handle.clone(), live.clone());
                    std::thread::spawn(move || {
                        handle(stream);
                        live.lock().unwrap().remove(&id);
                    });
                }
            })
        };
        TcpPod {
            address,
            accepted,
            namespace: net.name.clone(),
            listener,
            live,
            acceptor: Some(acceptor),
        }
    }

    /// Says `name` and a newline, then echoes until the client's FIN, then closes.
    #[track_caller]
    pub fn named(net: &Net, address: impl Into<IpAddr>, port: u16, name: &str) -> TcpPod {
        let name = format!("{name}\n");
        TcpPod::serve(net, address, port, move |mut stream| {
            if stream.write_all(name.as_bytes()).is_ok() {
                let _ = echo(&mut stream);
            }
        })
    }

    /// Echoes until the client's FIN, then closes.
    #[track_caller]
    pub fn echo(net: &Net, address: impl Into<IpAddr>, port: u16) -> TcpPod {
        TcpPod::serve(net, address, port, |mut stream| {
            let _ = echo(&mut stream);
        })
    }

    pub fn count(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.live.lock().unwrap().len()
    }

    /// Takes no more connections; the open ones live on.
    pub fn close_listener(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        // shutdown() of a listener leaves CLOSE state behind: nothing listens any more.
    }

    /// As kill -9 of the process: the kernel resets what is open.
    pub fn kill(mut self) {
        self.reset_all();
        self.close_listener();
    }

    /// Has the kernel reset what is open, whoever holds it.
    fn reset_all(&self) {
        if self.live.lock().unwrap().is_empty() {
            return;
        }
        let _ = std::process::Command::new("ip")
            .args(["netns", "exec", &self.namespace, "ss", "-K", "src"])
            .args([
                &self.address.ip().to_string(),
                "sport",
                "=",
                &self.address.port().to_string(),
            ])
            .output();
    }
}

impl Drop for TcpPod {
    fn drop(&mut self) {
        self.reset_all();
        self.close_listener();
    }
}

/// Copies back what comes until FIN.
pub fn echo(stream: &mut TcpStream) -> std::io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            let _ = stream.shutdown(Shutdown::Write);
            return Ok(total);
        }
        stream.write_all(&buffer[..n])?;
        total += n as u64;
    }
}

/// A TCP connection from `net`, with a deadline on everything.
pub fn connect(net: &Net, address: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
    let address = address.into();
    net.run(move || dial(address))
}

/// As [`connect`], on the calling thread's namespace.
pub fn dial(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A TCP connection from one of the client's own addresses.
pub fn dial_from(source: IpAddr, port: u16, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        None,
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(source, port).into())?;
    socket.connect_timeout(&address.into(), Duration::from_secs(5))?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Reads one line, the name that a [`TcpPod::named`] says first.
pub fn read_name(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut name = Vec::new();
    let mut byte = [0];
    loop {
        if stream.read(&mut byte)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if byte[0] == b'\n' {
            return Ok(String::from_utf8_lossy(&name).into_owned());
        }
        name.push(byte[0]);
    }
}

/// Dials, reads the pod's name, closes in order.
pub fn ask(address: SocketAddr) -> std::io::Result<String> {
    name_behind(dial(address)?)
}

/// As [`ask`], on a connection that is open.
pub fn name_behind(mut stream: TcpStream) -> std::io::Result<String> {
    let name = read_name(&mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    Ok(name)
}

/// How a connection that is refused or reset before a byte ends, whether the client learns it from
/// `connect` or from its first read.
#[track_caller]
pub fn refusal(address: SocketAddr) -> ErrorKind {
    let end = dial(address).and_then(|mut stream| stream.read(&mut [0]));
    end.expect_err("the connection is not served").kind()
}

/// Sets RST as the way to close.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Bytes that differ at every offset and for every seed.
pub struct Pattern(u64);

impl Pattern {
    pub fn new(seed: u64) -> Pattern {
        Pattern(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Sends `length` patterned bytes; their digest.
pub fn send_pattern(stream: &mut TcpStream, seed: u64, length: u64) -> std::io::Result<[u8; 32]> {
    let (mut pattern, mut hash) = (Pattern::new(seed), Sha256::new());
    let mut buffer = vec![0; 64 * 1024];
    let mut left = length;
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        pattern.fill(&mut buffer[..n]);
        hash.update(&buffer[..n]);
        stream.write_all(&buffer[..n])?;
        left -= n as u64;
    }
    Ok(hash.finalize().into())
}

/// Reads to FIN; the count and the digest. The error is what came instead of a FIN.
pub fn receive_all(stream: &mut TcpStream) -> (u64, [u8; 32], std::io::Result<()>) {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (total, hash.finalize().into(), Ok(())),
            Ok(n) => {
                hash.update(&buffer[..n]);
                total += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return (total, hash.finalize().into(), Err(e)),
        }
    }
}

/// The digest of `length` patterned bytes.
pub fn digest(seed: u64, length: u64) -> [u8; 32] {
    let (mut pattern, mut hash) = (Pattern::new(seed), Sha256::new());
    let mut buffer = vec![0; 64 * 1024];
    let mut left = length;
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        pattern.fill(&mut buffer[..n]);
        hash.update(&buffer[..n]);
        left -= n as u64;
    }
    hash.finalize().into()
}

/// A UDP server at one address; stopped when dropped.
pub struct UdpPod {
    pub address: SocketAddr,
    /// Datagrams received so far.
    pub received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpPod {
    /// Sends what `answer` makes of each datagram.
    #[track_caller]
    pub fn serve(
        net: &Net,
        address: impl Into<IpAddr>,
        port: u16,
        answer: impl Fn(&[u8], SocketAddr) -> Vec<Vec<u8>> + Send + 'static,
    ) -> UdpPod {
        let address = SocketAddr::new(address.into(), port);
        let socket = net.run(move || {
            UdpSocket::bind(address).unwrap_or_else(|e| panic!("bind {address}: {e}"))
        });
        let _ = SockRef::from(&socket).set_recv_buffer_size(8 << 20);
        socket
            .set_read_timeout(Some(Duration::from_millis(20)))
            .unwrap();
        let (received, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let thread = {
            let (received, stop) = (received.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut buffer = vec![0; 65_536];
                while !stop.load(Ordering::Relaxed) {
                    let Ok((n, from)) = socket.recv_from(&mut buffer) else {
                        continue;
                    };
                    received.fetch_add(1, Ordering::Relaxed);
                    for reply in answer(&buffer[..n], from) {
                        let _ = socket.send_to(&reply, from);
                    }
                }
            })
        };
        UdpPod {
            address,
            received,
            stop,
            thread: Some(thread),
        }
    }

    /// Answers each datagram with its own bytes.
    #[track_caller]
    pub fn echo(net: &Net, address: impl Into<IpAddr>, port: u16) -> UdpPod {
        UdpPod::serve(net, address, port, |data, _| vec![data.to_vec()])
    }

    /// Answers each datagram with `name`, a colon and its bytes.
    #[track_caller]
    pub fn named(net: &Net, address: impl Into<IpAddr>, port: u16, name: &str) -> UdpPod {
        let name = name.to_owned();
        UdpPod::serve(net, address, port, move |data, _| {
            let mut reply = format!("{name}:").into_bytes();
            reply.extend(data);
            vec![reply]
        })
    }

    pub fn count(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for UdpPod {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connected UDP socket in `net`, with a deadline of a second on receiving.
#[track_caller]
pub fn udp(net: &Net, to: impl Into<SocketAddr>) -> UdpSocket {
    let to = to.into();
    net.run(move || {
        let any: SocketAddr = if to.is_ipv4() {
            "0.0.0.0:0".parse().unwrap()
        } else {
            "[::]:0".parse().unwrap()
        };
        let socket = UdpSocket::bind(any).unwrap();
        let _ = SockRef::from(&socket).set_recv_buffer_size(4 << 20);
        socket.connect(to).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        socket
    })
}

/// Sends one datagram and waits for one; an error after the socket's deadline.
pub fn exchange(socket: &UdpSocket, data: &[u8]) -> std::io::Result<Vec<u8>> {
    socket.send(data)?;
    let mut buffer = vec![0; 65_536];
    let n = socket.recv(&mut buffer)?;
    buffer.truncate(n);
    Ok(buffer)
}

/// Runs `f` again and again on `threads` threads inside `net` at about `per_second` in all, until
/// stopped; how often it succeeded, and what went wrong.
pub struct Load {
    stop: Arc<AtomicBool>,
    succeeded: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    pub fn start(
        net: &Net,
        threads: u32,
        per_second: u32,
        f: impl Fn() -> std::io::Result<()> + Send + Sync + Clone + 'static,
    ) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let succeeded = Arc::new(AtomicU64::new(0));
        let interval = Duration::from_secs(1) * threads / per_second;
        let threads = (0..threads)
            .map(|_| {
                let (stop, succeeded, f) = (stop.clone(), succeeded.clone(), f.clone());
                net.spawn(move || {
                    let mut errors = Vec::new();
                    let mut next = Instant::now();
                    while !stop.load(Ordering::Relaxed) {
                        match f() {
                            Ok(()) => _ = succeeded.fetch_add(1, Ordering::Relaxed),
                            Err(e) => errors.push(format!("{:?}: {e}", Instant::now())),
                        }
                        next += interval;
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                    errors
                })
            })
            .collect();
        Load {
            stop,
            succeeded,
            threads,
        }
    }

    /// Waits until it has succeeded `more` times from now: what was done before has met a load, however fast
    /// the machine.
    #[track_caller]
    pub fn goes_on(&self, more: u64) {
        let until = self.succeeded.load(Ordering::Relaxed) + more;
        super::eventually("the load goes on", Duration::from_secs(20), || {
            self.succeeded.load(Ordering::Relaxed) >= until
        });
    }

    /// Ends it; successes and errors.
    pub fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let ends = self
            .threads
            .into_iter()
            .map(|thread| thread.join().unwrap());
        let errors = ends.flatten().collect();
        (self.succeeded.load(Ordering::Relaxed), errors)
    }
}
