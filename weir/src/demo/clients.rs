//! Clients of the demo: they talk all the time and miss every answer that does not come.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::backends::REQUEST;

/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(3);
/// Clients that open a connection for each request.
const VISITORS: usize = 8;
/// Clients that hold a connection and talk on it.
const RESIDENTS: usize = 12;
/// Requests on a resident's connection: about five seconds, so that old backends empty.
const STAY: u64 = 250;
/// UDP flows.
const FLOWS: usize = 8;

/// What all clients together saw.
#[derive(Debug, Default)]
pub struct Tally {
    /// Connections that were opened and closed in order.
    pub connections: AtomicU64,
    /// TCP requests answered, byte for byte.
    pub requests: AtomicU64,
    /// Datagrams answered, byte for byte.
    pub datagrams: AtomicU64,
    /// Connections, requests and datagrams that were not.
    pub lost: AtomicU64,
    /// The first few losses, in words.
    pub losses: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl Tally {
    /// Tells every client to finish what it is doing and stop.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    fn lose(&self, what: &str, error: &std::io::Error) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut losses) = self.losses.lock()
            && losses.len() < 5
        {
            losses.push(format!("{what}: {error}"));
        }
    }
}

/// Starts them all; the set is empty again after [`Tally::end`].
pub fn start(tcp: SocketAddr, udp: SocketAddr, tally: &Arc<Tally>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for n in 0..VISITORS {
        clients.spawn(reside(
            tcp,
            tally.clone(),
            n as u64,
            1,
            Duration::from_millis(40),
        ));
    }
    for n in 0..RESIDENTS {
        clients.spawn(reside(
            tcp,
            tally.clone(),
            1000 + n as u64,
            STAY,
            Duration::ZERO,
        ));
    }
    for n in 0..FLOWS {
        clients.spawn(ping(udp, tally.clone(), n as u64));
    }
    clients
}

/// Connection after connection of `stay` requests each.
async fn reside(vip: SocketAddr, tally: Arc<Tally>, id: u64, stay: u64, between: Duration) {
    let mut serial = id << 32;
    while tally.goes_on() {
        match timeout(PATIENCE * 4, visit(vip, &tally, stay, &mut serial))
            .await
            .unwrap_or_else(|_| Err(late()))
        {
            Ok(()) => {
                tally.connections.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => tally.lose("TCP", &error),
        }
        sleep(between).await;
    }
}

async fn visit(vip: SocketAddr, tally: &Tally, stay: u64, serial: &mut u64) -> std::io::Result<()> {
    let mut stream = timeout(PATIENCE, TcpStream::connect(vip))
        .await
        .unwrap_or_else(|_| Err(late()))?;
    stream.set_nodelay(true)?;
    for turn in 0..stay {
        if turn > 0 && !tally.goes_on() {
            break;
        }
        *serial += 1;
        let request = words(*serial);
        let mut reply = [0; REQUEST];
        stream.write_all(&request).await?;
        timeout(PATIENCE, stream.read_exact(&mut reply))
            .await
            .unwrap_or_else(|_| Err(late()))?;
        if reply != request {
            return Err(std::io::Error::other("the answer is not what was sent"));
        }
        tally.requests.fetch_add(1, Ordering::Relaxed);
        if stay > 1 {
            sleep(Duration::from_millis(20)).await;
        }
    }
    stream.shutdown().await?;
    match timeout(PATIENCE, stream.read(&mut [0]))
        .await
        .unwrap_or_else(|_| Err(late()))?
    {
        0 => Ok(()),
        _ => Err(std::io::Error::other("bytes after the last answer")),
    }
}

/// One flow: a datagram, its answer, the next.
async fn ping(vip: SocketAddr, tally: Arc<Tally>, id: u64) {
    let mut serial = id << 32;
    let socket = match flow(vip).await {
        Ok(socket) => socket,
        Err(error) => return tally.lose("UDP", &error),
    };
    while tally.goes_on() {
        serial += 1;
        match timeout(PATIENCE, exchange(&socket, &words(serial)))
            .await
            .unwrap_or_else(|_| Err(late()))
        {
            Ok(()) => {
                tally.datagrams.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => tally.lose("UDP", &error),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn flow(vip: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).await?;
    socket.connect(vip).await?;
    Ok(socket)
}

async fn exchange(socket: &UdpSocket, datagram: &[u8; REQUEST]) -> std::io::Result<()> {
    socket.send(datagram).await?;
    let mut reply = [0; REQUEST + 1];
    loop {
        let n = socket.recv(&mut reply).await?;
        // A reply that came too late for the one before is not this one's.
        if reply[..n] == datagram[..] {
            return Ok(());
        }
    }
}

/// A request that no other equals.
fn words(serial: u64) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    for (n, chunk) in request.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(
            &serial
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(n as u32 * 7)
                .to_le_bytes(),
        );
    }
    request[..8].copy_from_slice(&serial.to_le_bytes());
    request
}

fn late() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time")
}
