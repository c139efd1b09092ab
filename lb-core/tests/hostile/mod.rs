//! TCP clients and servers that misbehave, and keep account of what they may expect all the same.
//!
//! A client says in its first bytes how both will behave; so each knows what the other meant.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Nothing that either side waits for takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that writes to a client which has gone and does not read meanwhile gives up after this:
/// what the client had sent before is still owed to it, and so it hears of the reset only later.
const LITTLE_PATIENCE: Duration = Duration::from_secs(5);

/// SplitMix64.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn fork(&mut self) -> Random {
        Random(self.next())
    }

    /// Mostly small, sometimes larger than every buffer on the way.
    fn size(&mut self) -> usize {
        let most = [0, 1, 100, 5_000, 70_000, 300_000, 3_000_000][self.below(7) as usize];
        self.below(most + 1) as usize
    }
}

/// `len` bytes that follow from `seed` and repeat with no block size.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Waits until the peer's kernel has all that was written, for as long as may be; says whether.
fn is_acknowledged(stream: &TcpStream) -> bool {
    let (Ok(own), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else {
        return false;
    };
    let names = [own, peer].map(|a| format!(":{:04X}", a.port()));
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        // The thread's namespace, which need not be the process's.
        let table = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("proc");
        // proc(5): number, local and remote address, state, the lengths of both queues.
        let mut lines = table.lines().map(|line| line.split_ascii_whitespace());
        let queues = lines.find_map(|mut words| {
            let is_ours = words.nth(1)?.ends_with(&names[0]) && words.next()?.ends_with(&names[1]);
            is_ours.then(|| words.nth(1))?
        });
        match queues {
            None => return false,
            Some(queues) if queues.starts_with("00000000:") => return true,
            Some(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    false
}

/// What one side means to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Manner {
    /// Reads to the FIN, sends all, FIN.
    Plain,
    /// Sends all and FIN, then reads to the FIN.
    FinFirst,
    /// As plain, with pauses between small reads.
    Slow,
    /// Sends all it has and resets.
    Resets,
    /// Sends all, FIN, and resets.
    FinResets,
}

impl Manner {
    const ALL: [Manner; 5] = [
        Manner::Plain,
        Manner::FinFirst,
        Manner::Slow,
        Manner::Resets,
        Manner::FinResets,
    ];

    fn any(random: &mut Random) -> Manner {
        // Half of them behave.
        let n = random.below(8) as usize;
        *Manner::ALL.get(n).unwrap_or(&Manner::Plain)
    }

    fn is_kind(self) -> bool {
        !matches!(self, Manner::Resets | Manner::FinResets)
    }
}

/// A connection as its client means it; what it sends first.
#[derive(Clone, Copy, Debug)]
struct Plan {
    id: u64,
    up: usize,
    down: usize,
    client: Manner,
    server: Manner,
}

const HEAD: usize = 18;

impl Plan {
    fn any(id: u64, random: &mut Random) -> Plan {
        Plan {
            id,
            up: random.size(),
            down: random.size(),
            client: Manner::any(random),
            server: Manner::any(random),
        }
    }

    fn head(&self) -> Vec<u8> {
        let mut head = self.id.to_le_bytes().to_vec();
        head.extend((self.up as u32).to_le_bytes());
        head.extend((self.down as u32).to_le_bytes());
        head.extend([self.client as u8, self.server as u8]);
        head
    }

    fn parse(head: &[u8; HEAD]) -> Plan {
        let number = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4"));
        Plan {
            id: u64::from_le_bytes(head[..8].try_into().expect("8")),
            up: number(8) as usize,
            down: number(12) as usize,
            client: Manner::ALL[head[16] as usize],
            server: Manner::ALL[head[17] as usize],
        }
    }

    fn upwards(&self) -> Vec<u8> {
        pattern(self.id, self.up)
    }

    fn downwards(&self) -> Vec<u8> {
        pattern(!self.id, self.down)
    }
}

/// How reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Fin,
    Reset,
    /// Nothing came for [`PATIENCE`], or an error that no peer can cause.
    Stuck,
}

fn read_all(stream: &mut TcpStream, is_slow: bool, limit: usize) -> (Vec<u8>, End) {
    let mut got = Vec::new();
    let mut buffer = vec![0; if is_slow { 3_000 } else { 60_000 }];
    loop {
        if is_slow && got.len() < limit {
            thread::sleep(Duration::from_millis(2));
        }
        match stream.read(&mut buffer) {
            Ok(0) => return (got, End::Fin),
            Ok(n) => got.extend(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) if is_reset(&e) => return (got, End::Reset),
            Err(_) => return (got, End::Stuck),
        }
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

fn prepare(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("an option");
    stream.set_write_timeout(Some(PATIENCE)).expect("an option");
}

fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// How a client ended: what it meant, what it got.
type Account = (Plan, Vec<u8>, End);

/// What all sides saw.
#[derive(Default)]
pub struct World {
    /// By number, once it has ended.
    clients: Mutex<HashMap<u64, Account>>,
    /// Whose first bytes a server has read.
    seen: Mutex<HashMap<u64, u32>>,
    /// Bytes that a client had acknowledged when it reset, and how many its server got.
    upwards: Mutex<HashMap<u64, usize>>,
    got_upwards: Mutex<HashMap<u64, usize>>,
    /// Bytes that a server had acknowledged when it reset.
    downwards: Mutex<HashMap<u64, usize>>,
    violations: Mutex<Vec<String>>,
    /// Clients that sent nothing but a FIN, and servers that saw such a one.
    mute: AtomicU64,
    seen_mute: AtomicU64,
    /// Connections that a server has open.
    pub serving: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn violation(&self, what: String) {
        lock(&self.violations).push(what);
    }

    fn serve(&self, mut stream: TcpStream) {
        let mut head = [0; HEAD];
        let mut got = 0;
        while got < HEAD {
            match stream.read(&mut head[got..]) {
                Ok(0) if got == 0 => {
                    self.seen_mute.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                Ok(0) => return self.violation(format!("FIN after {got} bytes of the head")),
                Ok(n) => got += n,
                Err(e) if is_reset(&e) => return,
                Err(e) => return self.violation(format!("no head: {e}")),
            }
        }
        let plan = Plan::parse(&head);
        *lock(&self.seen).entry(plan.id).or_default() += 1;
        if !plan.client.is_kind() {
            let patience = Some(LITTLE_PATIENCE);
            stream.set_write_timeout(patience).expect("an option");
        }
        if plan.server == Manner::FinFirst {
            let sent = stream.write_all(&plan.downwards());
            let _ = stream.shutdown(Shutdown::Write);
            return self.check_upwards(plan, &mut stream, sent.is_err());
        }
        if plan.server.is_kind() {
            self.check_upwards(plan, &mut stream, false);
        }
        let sent = stream.write_all(&plan.downwards());
        if plan.server == Manner::FinResets {
            let _ = stream.shutdown(Shutdown::Write);
        }
        if !plan.server.is_kind() {
            if sent.is_ok() && plan.id.is_multiple_of(2) && is_acknowledged(&stream) {
                lock(&self.downwards).insert(plan.id, plan.down);
            }
            return reset(stream);
        }
        if let Err(e) = sent
            && plan.client.is_kind()
        {
            self.violation(format!("cannot answer {plan:?}: {e}"));
        }
    }

    /// A server reads what its client sent: all of it and a FIN, or a part and a reset.
    fn check_upwards(&self, plan: Plan, stream: &mut TcpStream, was_reset: bool) {
        let (got, end) = read_all(stream, plan.server == Manner::Slow, 150_000);
        lock(&self.got_upwards).insert(plan.id, got.len());
        let all = plan.upwards();
        if !all.starts_with(&got) {
            self.violation(format!("{plan:?}: the server got other bytes"));
        }
        let is_whole = got.len() == all.len() && end == End::Fin;
        let may_be_reset = !plan.client.is_kind() && end == End::Reset || was_reset;
        let is_told = plan.client != Manner::Resets || end != End::Fin || was_reset;
        if !(is_whole || may_be_reset) || !is_told {
            let len = got.len();
            self.violation(format!("{plan:?}: the server got {len} bytes and {end:?}"));
        }
    }

    /// Every client's account against what its server saw.
    pub fn check(&self) {
        let (clients, seen) = (lock(&self.clients), lock(&self.seen));
        for (plan, got, end) in clients.values() {
            let times = seen.get(&plan.id).copied().unwrap_or(0);
            if times > 1 {
                self.violation(format!("{plan:?}: sent to {times} servers"));
            }
            let is_whole = got.len() == plan.down && *end == End::Fin;
            let may_be_reset = times == 0 || !plan.server.is_kind();
            // A server that only resets sends no FIN.
            let is_told = plan.server != Manner::Resets || *end == End::Reset;
            let is_well = match plan.client.is_kind() {
                true => is_told && (is_whole || (may_be_reset && *end == End::Reset)),
                false => true,
            };
            if !is_well || !plan.downwards().starts_with(got) || *end == End::Stuck {
                let len = got.len();
                self.violation(format!(
                    "{plan:?}: seen {times} times, the client got {len} bytes and {end:?}"
                ));
            }
        }
        let (got_up, down) = (lock(&self.got_upwards), lock(&self.downwards));
        for (id, sent) in lock(&self.upwards).iter() {
            if let Some(got) = got_up.get(id).filter(|got| *got != sent) {
                self.violation(format!(
                    "client {id}: {sent} bytes acknowledged, {got} arrived"
                ));
            }
        }
        let resets = clients
            .values()
            .filter_map(|(plan, got, _)| Some((got.len(), down.get(&plan.id)?)));
        for (got, sent) in resets.clone().filter(|(got, sent)| got != *sent) {
            self.violation(format!(
                "a server: {sent} bytes acknowledged, {got} arrived"
            ));
        }
        let (mute, seen_mute) = (&self.mute, &self.seen_mute);
        let (mute, seen_mute) = (
            mute.load(Ordering::SeqCst),
            seen_mute.load(Ordering::SeqCst),
        );
        if seen_mute > mute {
            self.violation(format!("{seen_mute} mute clients seen, {mute} there were"));
        }
        let served = clients.values().filter(|(_, _, end)| *end == End::Fin);
        let (all, served) = (clients.len(), served.count());
        println!(
            "{all} clients, {served} to the FIN, {} seen, {mute} mute",
            seen.len()
        );
        let (up, down) = (lock(&self.upwards).len(), resets.count());
        println!("reset when all was acknowledged: {up} clients, {down} servers");
        assert!(served * 5 > all, "only {served} of {all} were served");
        let violations = lock(&self.violations);
        let first: Vec<_> = violations.iter().take(10).collect();
        assert!(
            violations.is_empty(),
            "{} in all: {first:#?}",
            violations.len()
        );
    }
}

/// A server at an IPv4 address; a flaky one resets some callers before it has read anything. Lives
/// as long as the process.
pub fn server(world: &Arc<World>, address: impl Into<IpAddr>, is_flaky: bool) -> SocketAddr {
    let listener = TcpListener::bind((address.into(), 0)).expect("a listener");
    let address = listener.local_addr().expect("its address");
    let world = Arc::clone(world);
    thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            if is_flaky && n % 4 == 0 {
                reset(stream);
                continue;
            }
            prepare(&stream);
            world.serving.fetch_add(1, Ordering::SeqCst);
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.serve(stream);
                world.serving.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    address
}

/// An address whose SYNs are dropped: a listener with a full queue, kept full by what is returned.
pub fn black_hole() -> (Vec<socket2::Socket>, SocketAddr) {
    let socket = || {
        let stream = socket2::Type::STREAM;
        socket2::Socket::new(socket2::Domain::IPV4, stream, None).expect("a socket")
    };
    let listener = socket();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    listener.bind(&any.into()).expect("a port");
    listener.listen(0).expect("a bound socket");
    let address = listener.local_addr().expect("bound");
    let mut held = vec![listener];
    for _ in 0..4 {
        let socket = socket();
        socket.set_nonblocking(true).expect("an option");
        let _ = socket.connect(&address);
        held.push(socket);
    }
    (held, address.as_socket().expect("an IP address"))
}

/// Client threads, each with one connection after the other.
pub struct Clients {
    world: Arc<World>,
    addresses: Arc<[SocketAddr]>,
    pub stop: Arc<AtomicBool>,
}

impl Clients {
    pub fn new(world: &Arc<World>, addresses: Vec<SocketAddr>) -> Clients {
        Clients {
            world: Arc::clone(world),
            addresses: addresses.into(),
            stop: Arc::default(),
        }
    }

    pub fn start(&self, threads: u64, random: &mut Random) -> Vec<JoinHandle<()>> {
        let start = |thread| {
            let (world, stop) = (Arc::clone(&self.world), Arc::clone(&self.stop));
            let (addresses, mut random) = (Arc::clone(&self.addresses), random.fork());
            thread::spawn(move || {
                for id in (thread..).step_by(threads as usize) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let to = addresses[random.below(addresses.len() as u64) as usize];
                    match TcpStream::connect_timeout(&to, PATIENCE) {
                        Ok(stream) => world.call(stream, id, &mut random),
                        // Closed just now.
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            })
        };
        (0..threads).map(start).collect()
    }
}

impl World {
    /// One connection of a client.
    fn call(&self, mut stream: TcpStream, id: u64, random: &mut Random) {
        prepare(&stream);
        match random.below(20) {
            // Nothing but a FIN; nothing but a reset.
            0 => {
                self.mute.fetch_add(1, Ordering::SeqCst);
                return drop(stream);
            }
            1 => return reset(stream),
            _ => {}
        }
        let plan = Plan::any(id, random);
        let mut bytes = plan.head();
        bytes.extend(plan.upwards());
        if !plan.client.is_kind() {
            let part = random.below(bytes.len() as u64 + 1) as usize;
            let is_whole = plan.client == Manner::FinResets;
            let part = if is_whole { bytes.len() } else { part };
            let sent = stream.write_all(&bytes[..part]);
            if is_whole {
                let _ = stream.shutdown(Shutdown::Write);
            }
            if sent.is_ok() && random.below(2) == 0 && is_acknowledged(&stream) {
                lock(&self.upwards).insert(id, part.saturating_sub(HEAD));
            }
            return reset(stream);
        }
        let mut writer = stream.try_clone().expect("a descriptor");
        let (got, end, sent) = thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let sent = writer.write_all(&bytes);
                let _ = writer.shutdown(Shutdown::Write);
                sent
            });
            let (got, end) = read_all(&mut stream, plan.client == Manner::Slow, 150_000);
            (got, end, writer.join().expect("no panic"))
        });
        // The error of a reset is told once, and to the writer if it asks first.
        let end = match (end, sent) {
            (End::Fin, Err(e)) if is_reset(&e) => End::Reset,
            (end, _) => end,
        };
        lock(&self.clients).insert(id, (plan, got, end));
    }
}
