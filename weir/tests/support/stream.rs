//! Streams that say in their first bytes how both sides will behave, so that each side knows what it
//! may expect of the other, and every byte is compared with what was sent.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::eventually_some;
use super::net::{Net, enter};
use super::traffic::{TcpPod, dial, reset};

/// Which side ends its direction when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Close {
    /// Both directions run at once; the client's FIN comes as soon as it has sent, the server's
    /// after it has read that.
    ClientFirst,
    /// The same the other way round.
    ServerFirst,
    /// Both directions run at once, each FIN as soon as all is sent.
    AtOnce,
    /// The client sends and half-closes; the server begins to send after that.
    HalfByClient,
    /// The server sends and half-closes; the client begins to send after that.
    HalfByServer,
    /// Both directions run at once; when all has arrived, the client resets.
    ResetByClient,
    /// The same by the server.
    ResetByServer,
}

impl Close {
    pub const ALL: [Close; 7] = [
        Close::ClientFirst,
        Close::ServerFirst,
        Close::AtOnce,
        Close::HalfByClient,
        Close::HalfByServer,
        Close::ResetByClient,
        Close::ResetByServer,
    ];

    /// Those that a lossy wire cannot spoil: nobody sends a lost RST again.
    pub const ORDERLY: [Close; 5] = [
        Close::ClientFirst,
        Close::ServerFirst,
        Close::AtOnce,
        Close::HalfByClient,
        Close::HalfByServer,
    ];

    fn part(self, is_client: bool) -> Part {
        match (self, is_client) {
            (Close::AtOnce, _) | (Close::ClientFirst, true) | (Close::ServerFirst, false) => {
                Part::FinAtOnce
            }
            (Close::ClientFirst, false) | (Close::ServerFirst, true) => Part::FinLast,
            (Close::HalfByClient, true) | (Close::HalfByServer, false) => Part::SendThenRead,
            (Close::HalfByClient, false) | (Close::HalfByServer, true) => Part::ReadThenSend,
            (Close::ResetByClient, true) | (Close::ResetByServer, false) => Part::Resets,
            (Close::ResetByClient, false) | (Close::ResetByServer, true) => Part::IsReset,
        }
    }
}

/// What one side does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    FinAtOnce,
    FinLast,
    SendThenRead,
    ReadThenSend,
    Resets,
    IsReset,
}

/// How large the writes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Writes {
    /// 64 KiB.
    Large,
    /// A byte.
    Single,
    /// From 1 byte to 100,000, with pauses: a direction turns bulk and back.
    Mixed,
}

impl Writes {
    const ALL: [Writes; 3] = [Writes::Large, Writes::Single, Writes::Mixed];
}

/// One stream as its client means it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Makes its bytes differ from every other's.
    pub id: u64,
    /// Bytes from the client.
    pub up: u64,
    /// Bytes from the server.
    pub down: u64,
    pub close: Close,
    pub writes: Writes,
}

const HEAD: usize = 26;
/// What a server says first to a client that will reset.
const GREETING: u8 = b'!';

impl Plan {
    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&self.id.to_le_bytes());
        head[8..16].copy_from_slice(&self.up.to_le_bytes());
        head[16..24].copy_from_slice(&self.down.to_le_bytes());
        head[24] = self.close as u8;
        head[25] = self.writes as u8;
        head
    }

    fn parse(head: &[u8; HEAD]) -> Plan {
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        Plan {
            id: number(0),
            up: number(8),
            down: number(16),
            close: Close::ALL[usize::from(head[24])],
            writes: Writes::ALL[usize::from(head[25])],
        }
    }
}

/// Bytes that follow from a seed and their offset, and repeat with no block size.
#[derive(Clone, Copy)]
pub struct Bytes {
    seed: u64,
    at: u64,
}

impl Bytes {
    pub fn new(seed: u64) -> Bytes {
        Bytes { seed, at: 0 }
    }

    fn word(&self, index: u64) -> [u8; 8] {
        // SplitMix64.
        let z = self
            .seed
            .wrapping_add(index)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// The next bytes.
    pub fn fill(&mut self, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let within = (self.at % 8) as usize;
            let n = buffer.len().min(8 - within);
            buffer[..n].copy_from_slice(&self.word(self.at / 8)[within..within + n]);
            buffer = &mut buffer[n..];
            self.at += n as u64;
        }
    }

    /// Takes the next bytes off `got`; the offset of the first that is another.
    pub fn differ(&mut self, got: &[u8], scratch: &mut Vec<u8>) -> Option<u64> {
        let begun = self.at;
        scratch.resize(got.len(), 0);
        self.fill(scratch);
        if scratch == got {
            return None;
        }
        let same = scratch.iter().zip(got).take_while(|(a, b)| a == b).count();
        Some(begun + same as u64)
    }
}

/// How one side of a stream ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Bytes that arrived.
    pub got: u64,
    /// The offset of the first wrong one.
    pub wrong: Option<u64>,
    /// What ended the reading: nothing for a FIN.
    pub end: Option<ErrorKind>,
    /// What ended the writing before all was sent.
    pub unsent: Option<ErrorKind>,
}

struct Side {
    send: (u64, u64),
    receive: (u64, u64),
    writes: Writes,
    part: Part,
}

impl Side {
    fn of(plan: &Plan, is_client: bool) -> Side {
        let (up, down) = ((plan.id, plan.up), (!plan.id, plan.down));
        let (send, receive) = if is_client { (up, down) } else { (down, up) };
        let (writes, part) = (plan.writes, plan.close.part(is_client));
        Side {
            send,
            receive,
            writes,
            part,
        }
    }

    fn write(&self, mut stream: &TcpStream) -> std::io::Result<()> {
        let (seed, mut left) = self.send;
        let mut bytes = Bytes::new(seed);
        let mut sizes = Bytes::new(seed ^ 0x5157);
        let mut buffer = vec![0; 100_000];
        while left > 0 {
            let size = match self.writes {
                Writes::Large => 65_536,
                Writes::Single => 1,
                Writes::Mixed => {
                    let mut random = [0; 4];
                    sizes.fill(&mut random);
                    let random = u32::from_le_bytes(random);
                    // Small ones in rows, then large ones in rows.
                    if left / 200_000 % 2 == 0 {
                        std::thread::sleep(Duration::from_micros(u64::from(random % 50)));
                        1 + random as usize % 4_000
                    } else {
                        1 + random as usize % 100_000
                    }
                }
            };
            let n = size.min(left as usize);
            bytes.fill(&mut buffer[..n]);
            stream.write_all(&buffer[..n])?;
            left -= n as u64;
        }
        Ok(())
    }

    /// Reads to the end, or until `limit` bytes are there.
    fn read(&self, mut stream: &TcpStream, limit: u64, outcome: &mut Outcome) {
        let mut bytes = Bytes::new(self.receive.0);
        let (mut buffer, mut scratch) = (vec![0; 65_536], Vec::new());
        while outcome.got < limit {
            match stream.read(&mut buffer) {
                Ok(0) => {
                    if limit < u64::MAX {
                        outcome.end = Some(ErrorKind::UnexpectedEof);
                    }
                    return;
                }
                Ok(n) => {
                    let wrong = bytes.differ(&buffer[..n], &mut scratch);
                    outcome.wrong = outcome.wrong.or(wrong);
                    outcome.got += n as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    outcome.end = Some(e.kind());
                    return;
                }
            }
        }
    }

    fn play(&self, stream: TcpStream) -> Outcome {
        let mut outcome = Outcome::default();
        let fin = |sent: std::io::Result<()>, outcome: &mut Outcome| {
            outcome.unsent = sent.err().map(|e| e.kind());
            let _ = stream.shutdown(Shutdown::Write);
        };
        match self.part {
            Part::SendThenRead => {
                fin(self.write(&stream), &mut outcome);
                self.read(&stream, u64::MAX, &mut outcome);
            }
            Part::ReadThenSend => {
                self.read(&stream, u64::MAX, &mut outcome);
                fin(self.write(&stream), &mut outcome);
            }
            Part::FinAtOnce | Part::FinLast | Part::IsReset => {
                let fin_at_once = self.part == Part::FinAtOnce;
                let sent = std::thread::scope(|scope| {
                    let writer = scope.spawn(|| {
                        let sent = self.write(&stream);
                        if fin_at_once {
                            let _ = stream.shutdown(Shutdown::Write);
                        }
                        sent
                    });
                    self.read(&stream, u64::MAX, &mut outcome);
                    writer.join().unwrap()
                });
                fin(sent, &mut outcome);
            }
            Part::Resets => {
                let sent = std::thread::scope(|scope| {
                    let writer = scope.spawn(|| self.write(&stream));
                    self.read(&stream, self.receive.1, &mut outcome);
                    writer.join().unwrap()
                });
                outcome.unsent = sent.err().map(|e| e.kind());
                // What the proxy's kernel has not acknowledged would die with the RST.
                wait_acknowledged(&stream);
                reset(stream);
            }
        }
        outcome
    }

    /// What is wrong with how it ended.
    fn complaint(&self, outcome: &Outcome) -> Option<String> {
        let end = (self.part == Part::IsReset).then_some(ErrorKind::ConnectionReset);
        let is_well = outcome.got == self.receive.1
            && outcome.wrong.is_none()
            && outcome.end == end
            && outcome.unsent.is_none();
        (!is_well).then(|| format!("{outcome:?} of {} bytes", self.receive.1))
    }
}

/// Waits until the peer's kernel has acknowledged everything. The calling thread must be in the
/// socket's namespace.
fn wait_acknowledged(stream: &TcpStream) {
    let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
    let names = [own, peer].map(|a| format!(":{:04X}", a.port()));
    let file = match own {
        SocketAddr::V4(_) => "/proc/thread-self/net/tcp",
        SocketAddr::V6(_) => "/proc/thread-self/net/tcp6",
    };
    let deadline = Instant::now() + Duration::from_secs(15);
    while Instant::now() < deadline {
        let table = std::fs::read_to_string(file).unwrap();
        // proc(5): number, local and remote address, state, the lengths of both queues.
        let queues = table.lines().find_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let is_ours = words.nth(1)?.ends_with(&names[0]) && words.next()?.ends_with(&names[1]);
            is_ours.then(|| words.nth(1))?
        });
        if queues.is_none_or(|queues| queues.starts_with("00000000:")) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A pod that plays the servers' part of every plan.
pub struct Peer {
    pub pod: TcpPod,
    outcomes: Arc<Mutex<HashMap<u64, Outcome>>>,
}

impl Peer {
    #[track_caller]
    pub fn serve(net: &Net, address: impl Into<IpAddr>, port: u16) -> Peer {
        let outcomes: Arc<Mutex<HashMap<u64, Outcome>>> = Arc::default();
        let (told, namespace) = (outcomes.clone(), net.name.clone());
        let pod = TcpPod::serve(net, address, port, move |mut stream| {
            enter(&namespace);
            deadlines(&stream, PATIENCE);
            let mut head = [0; HEAD];
            if stream.read_exact(&mut head).is_err() {
                return;
            }
            let plan = Plan::parse(&head);
            if plan.close == Close::ResetByClient {
                // A client that resets before anybody was dialled is nobody's stream.
                stream.write_all(&[GREETING]).unwrap();
            }
            let outcome = Side::of(&plan, false).play(stream);
            told.lock().unwrap().insert(plan.id, outcome);
        });
        Peer { pod, outcomes }
    }

    fn outcome(&self, plan: &Plan) -> Outcome {
        let what = format!("the server's side of {plan:?} ends");
        eventually_some(&what, Duration::from_secs(40), || {
            self.outcomes.lock().unwrap().remove(&plan.id)
        })
    }
}

/// Between two bytes; more than any retransmission here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn deadlines(stream: &TcpStream, patience: Duration) {
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.set_write_timeout(Some(patience)).unwrap();
    let _ = stream.set_nodelay(true);
}

/// Plays `plans` against the servers behind `vips`, `at_once` of them at the same time, each over
/// one of the addresses in turn; fails with every stream that was not exactly as it should be.
#[track_caller]
pub fn play(client: &Net, vips: &[(SocketAddr, &Peer)], plans: Vec<Plan>, at_once: usize) {
    play_within(client, vips, plans, at_once, PATIENCE);
}

/// As [`play`], where clients wait no longer than `patience` for a byte.
#[track_caller]
pub fn play_within(
    client: &Net,
    vips: &[(SocketAddr, &Peer)],
    plans: Vec<Plan>,
    at_once: usize,
    patience: Duration,
) {
    let count = plans.len();
    let addresses: Vec<SocketAddr> = vips.iter().map(|(address, _)| *address).collect();
    let waiting: Arc<Mutex<VecDeque<(usize, Plan)>>> =
        Arc::new(Mutex::new(plans.into_iter().enumerate().collect()));
    let threads: Vec<_> = (0..at_once)
        .map(|_| {
            let (waiting, addresses) = (waiting.clone(), addresses.clone());
            client.spawn(move || {
                let mut ended = Vec::new();
                loop {
                    let Some((n, plan)) = waiting.lock().unwrap().pop_front() else {
                        return ended;
                    };
                    let at = n % addresses.len();
                    let outcome = dial(addresses[at]).and_then(|mut stream| {
                        deadlines(&stream, patience);
                        stream.write_all(&plan.head())?;
                        if plan.close == Close::ResetByClient {
                            stream.read_exact(&mut [0])?;
                        }
                        Ok(Side::of(&plan, true).play(stream))
                    });
                    ended.push((at, plan, outcome));
                }
            })
        })
        .collect();
    let mut complaints = Vec::new();
    for (at, plan, outcome) in threads.into_iter().flat_map(|t| t.join().unwrap()) {
        let vip = addresses[at];
        match outcome {
            Err(e) => complaints.push(format!("{plan:?} by {vip}: {e}")),
            Ok(outcome) => {
                let server = vips[at].1.outcome(&plan);
                let client = Side::of(&plan, true).complaint(&outcome);
                let server = Side::of(&plan, false).complaint(&server);
                complaints.extend(client.map(|c| format!("{plan:?} by {vip}: client: {c}")));
                complaints.extend(server.map(|c| format!("{plan:?} by {vip}: server: {c}")));
            }
        }
    }
    let first: Vec<_> = complaints.iter().take(10).collect();
    assert!(
        complaints.is_empty(),
        "{} complaints about {count} streams, the first: {first:#?}",
        complaints.len()
    );
}

/// Every close order with every size in each direction at least once; the other direction's sizes
/// go round. Ids from `id` upwards.
pub fn every_order(id: u64, closes: &[Close], sizes: &[u64], writes: Writes) -> Vec<Plan> {
    let mut plans = Vec::new();
    for (c, close) in closes.iter().enumerate() {
        for (s, up) in sizes.iter().enumerate() {
            plans.push(Plan {
                id: id + plans.len() as u64,
                up: *up,
                down: sizes[(s * 3 + c * 5 + 1) % sizes.len()],
                close: *close,
                writes,
            });
        }
    }
    plans
}
