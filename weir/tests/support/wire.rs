//! Bad wires. This kernel has no netem: a program behind NFQUEUE loses, delays, reorders, doubles
//! and damages the packets that leave a namespace. Nothing here uses connection tracking, which
//! would mend or drop some of them by itself.

use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nfq::{Message, Queue, Verdict};
use socket2::{Domain, Protocol, Socket, Type};

use super::net::Net;

/// What happens to a packet, each in chances of a thousand.
#[derive(Clone, Copy, Default)]
pub struct Impairment {
    pub lose: u64,
    pub double: u64,
    /// One byte becomes another: its checksum tells the receiver.
    pub damage: u64,
    /// Held back, so that later ones overtake it.
    pub delay: u64,
    /// The longest that one is held back.
    pub longest: Duration,
}

/// What was done to packets.
#[derive(Default)]
pub struct Done {
    pub seen: AtomicU64,
    pub lost: AtomicU64,
    pub doubled: AtomicU64,
    pub damaged: AtomicU64,
    pub delayed: AtomicU64,
}

impl Done {
    pub fn total(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// An impaired namespace; in order again when dropped.
pub struct Shaper {
    pub done: Arc<Done>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Marks what the shaper sends by itself, so that it is not queued again.
const OWN: u32 = 0x5e1f;
/// Each namespace numbers its queues by itself.
const QUEUE: u16 = 7;

impl Shaper {
    /// Impairs every TCP and UDP packet that leaves `net`.
    #[track_caller]
    pub fn start(net: &Net, seed: u64, impairment: Impairment) -> Shaper {
        let (done, stop) = (Arc::<Done>::default(), Arc::<AtomicBool>::default());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = net.spawn({
            let (done, stop) = (done.clone(), stop.clone());
            move || Work::new(seed, impairment, done).run(&stop, &ready)
        });
        is_ready.recv().expect("the queue is bound");
        for iptables in ["iptables", "ip6tables"] {
            for protocol in ["tcp", "udp"] {
                let mark = format!("0x{OWN:x}");
                let queue = QUEUE.to_string();
                net.exec(
                    iptables,
                    &[
                        "-w",
                        "-t",
                        "mangle",
                        "-A",
                        "OUTPUT",
                        "-p",
                        protocol,
                        "!",
                        "-o",
                        "lo",
                        "-m",
                        "mark",
                        "!",
                        "--mark",
                        &mark,
                        "-j",
                        "NFQUEUE",
                        "--queue-num",
                        &queue,
                        "--queue-bypass",
                    ],
                );
            }
        }
        Shaper {
            done,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        // Without a program behind it, the queue lets everything pass.
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A packet that is held back; the one that is due first is the greatest.
struct Held(Instant, Message);

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        self.0 == other.0
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Held) -> std::cmp::Ordering {
        other.0.cmp(&self.0)
    }
}

struct Work {
    random: u64,
    impairment: Impairment,
    done: Arc<Done>,
    queue: Queue,
    held: BinaryHeap<Held>,
    raw: [Socket; 2],
}

impl Work {
    fn new(seed: u64, impairment: Impairment, done: Arc<Done>) -> Work {
        let mut queue = Queue::open().unwrap();
        queue.bind(QUEUE).unwrap();
        queue.set_queue_max_len(QUEUE, 100_000).unwrap();
        queue.set_fail_open(QUEUE, true).unwrap();
        queue.set_nonblocking(true);
        let raw = [Domain::IPV4, Domain::IPV6].map(|domain| {
            let socket = raw(domain);
            socket.set_mark(OWN).unwrap();
            socket
        });
        Work {
            random: seed,
            impairment,
            done,
            queue,
            held: BinaryHeap::new(),
            raw,
        }
    }

    fn run(mut self, stop: &AtomicBool, ready: &std::sync::mpsc::Sender<()>) {
        ready.send(()).unwrap();
        while !stop.load(Ordering::Relaxed) {
            let mut is_idle = true;
            for _ in 0..64 {
                match self.queue.recv() {
                    Ok(message) => self.decide(message),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    // A packet that the kernel could not hand over any more.
                    Err(_) => continue,
                }
                is_idle = false;
            }
            while self
                .held
                .peek()
                .is_some_and(|held| held.0 <= Instant::now())
            {
                let Held(_, message) = self.held.pop().unwrap();
                let _ = self.queue.verdict(message);
            }
            if is_idle {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        while let Some(Held(_, message)) = self.held.pop() {
            let _ = self.queue.verdict(message);
        }
    }

    fn chance(&mut self, of_a_thousand: u64) -> bool {
        self.below(1_000) < of_a_thousand
    }

    fn below(&mut self, n: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % n
    }

    fn decide(&mut self, mut message: Message) {
        let Impairment {
            lose,
            double,
            damage,
            delay,
            longest,
        } = self.impairment;
        let done = self.done.clone();
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        count(&done.seen);
        message.set_verdict(Verdict::Accept);
        if self.chance(lose) {
            count(&done.lost);
            message.set_verdict(Verdict::Drop);
        } else if self.chance(double) {
            count(&done.doubled);
            let packet = message.get_payload();
            let is_v6 = packet[0] >> 4 == 6;
            let _ = self.raw[usize::from(is_v6)].send_to(packet, &destination(packet).into());
        } else if self.chance(damage) {
            count(&done.damaged);
            // Behind the headers' first fields, so that it still arrives.
            let len = message.get_payload().len() as u64;
            let at = 48 + self.below(len.saturating_sub(48).max(1));
            if at < len {
                message.get_payload_mut()[at as usize] ^= 0x10;
            }
        }
        if self.chance(delay) {
            count(&done.delayed);
            let wait = Duration::from_micros(self.below(longest.as_micros() as u64 + 1));
            self.held.push(Held(Instant::now() + wait, message));
            return;
        }
        let _ = self.queue.verdict(message);
    }
}

/// A socket that sends whole IP packets.
pub fn raw(domain: Domain) -> Socket {
    // IPPROTO_RAW: the packet brings its header.
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(255))).unwrap();
    socket.set_send_buffer_size(4 << 20).unwrap();
    socket
}

fn destination(packet: &[u8]) -> SocketAddr {
    let address: IpAddr = if packet[0] >> 4 == 6 {
        let octets: [u8; 16] = packet[24..40].try_into().unwrap();
        Ipv6Addr::from(octets).into()
    } else {
        let octets: [u8; 4] = packet[16..20].try_into().unwrap();
        Ipv4Addr::from(octets).into()
    };
    SocketAddr::new(address, 0)
}

/// A TCP segment over IPv4, as anybody on the link could send it.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    pub from: (Ipv4Addr, u16),
    pub to: (Ipv4Addr, u16),
    pub sequence: u32,
    pub acknowledges: u32,
    /// FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32.
    pub flags: u8,
    pub payload: &'a [u8],
    /// Added to the right checksum.
    pub spoil: u16,
}

impl Segment<'_> {
    pub fn bytes(&self) -> Vec<u8> {
        let length = 40 + self.payload.len() as u16;
        let mut packet = vec![0x45, 0];
        packet.extend(length.to_be_bytes());
        // No fragments, 64 hops; the kernel fills in the header's checksum.
        packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet.extend(self.from.0.octets());
        packet.extend(self.to.0.octets());
        packet.extend(self.from.1.to_be_bytes());
        packet.extend(self.to.1.to_be_bytes());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledges.to_be_bytes());
        packet.extend([0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        packet.extend(self.payload);
        // RFC 9293 s3.1: the sum over addresses, protocol, length and segment.
        let mut sum = 6 + u32::from(length - 20);
        let words = packet[12..].chunks(2);
        sum += words
            .map(|w| u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)])))
            .sum::<u32>();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let checksum = (!(sum as u16)).wrapping_add(self.spoil);
        packet[36..38].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    /// Sends it; the calling thread's socket decides on the namespace.
    pub fn send(&self, raw: &Socket) -> std::io::Result<usize> {
        let to = SocketAddr::new(self.to.0.into(), 0);
        raw.send_to(&self.bytes(), &to.into())
    }
}

/// Hears the TCP packets that arrive in a namespace.
pub struct Ear(Socket);

/// Where a connection stands, as the last packet from its far end said.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// The far end's next sequence number.
    pub next: u32,
    /// What the far end expects of the near one.
    pub expects: u32,
    pub flags: u8,
}

impl Ear {
    /// To be called in the namespace.
    pub fn new() -> Ear {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
        socket.set_recv_buffer_size(4 << 20).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        Ear(socket)
    }

    /// The last packet so far of `from` to `to`.
    pub fn last(&self, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Option<Heard> {
        let mut last = None;
        let mut buffer = [0; 65_536];
        while let Ok(n) = std::io::Read::read(&mut &self.0, &mut buffer) {
            let packet = &buffer[..n];
            let ip = usize::from(packet[0] & 15) * 4;
            let tcp = &packet[ip..];
            let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
            let number = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
            let is_it = packet[12..16] == from.0.octets()
                && packet[16..20] == to.0.octets()
                && (port(0), port(2)) == (from.1, to.1);
            if is_it {
                let payload = tcp.len() as u32 - u32::from(tcp[12] >> 4) * 4;
                let flags = tcp[13];
                let syn_fin = u32::from(flags & 1) + u32::from(flags >> 1 & 1);
                last = Some(Heard {
                    next: number(4).wrapping_add(payload + syn_fin),
                    expects: number(8),
                    flags,
                });
            }
        }
        last
    }
}
