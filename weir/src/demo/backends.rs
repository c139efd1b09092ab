//! Backends of the demo: each a TCP and a UDP server at a loopback address of its own, with an
//! orderly end like a pod's.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

/// Bytes of one TCP request and of its answer.
pub const REQUEST: usize = 64;

/// What one backend has done.
#[derive(Debug, Default)]
pub struct Served {
    /// Connections open now.
    pub open: AtomicU64,
    /// Connections accepted.
    pub connections: AtomicU64,
    /// TCP requests answered.
    pub requests: AtomicU64,
    /// Datagrams answered.
    pub datagrams: AtomicU64,
}

/// A running backend.
#[derive(Debug)]
pub struct Backend {
    pub name: String,
    pub address: Ipv4Addr,
    pub served: Arc<Served>,
    acceptor: JoinHandle<()>,
    answerer: JoinHandle<()>,
    leaves: Option<Instant>,
}

impl Backend {
    /// Starts number `n` at `address`:`port`, TCP and UDP.
    ///
    /// # Errors
    ///
    /// The port is taken there.
    pub async fn start(n: usize, address: Ipv4Addr, port: u16) -> anyhow::Result<Backend> {
        let at = SocketAddr::from((address, port));
        let listener = TcpListener::bind(at)
            .await
            .with_context(|| format!("no backend can listen at {at}/tcp"))?;
        let socket = UdpSocket::bind(at)
            .await
            .with_context(|| format!("no backend can listen at {at}/udp"))?;
        let served = Arc::new(Served::default());
        let acceptor = tokio::spawn(accept(listener, served.clone()));
        let answerer = tokio::spawn(answer(socket, served.clone()));
        Ok(Backend {
            name: format!("backend-{n}"),
            address,
            served,
            acceptor,
            answerer,
            leaves: None,
        })
    }

    /// It left the slice; its process stays until `at`.
    pub fn leave(&mut self, at: Instant) {
        self.leaves = Some(at);
    }

    /// Has its grace period passed?
    pub fn may_end(&self, now: Instant) -> bool {
        self.leaves.is_some_and(|at| at <= now)
    }

    /// Takes nothing new. Open connections go on until their clients end them.
    pub fn close(&self) {
        self.acceptor.abort();
        self.answerer.abort();
    }
}

async fn accept(listener: TcpListener, served: Arc<Served>) {
    while let Ok((stream, _)) = listener.accept().await {
        served.connections.fetch_add(1, Ordering::Relaxed);
        served.open.fetch_add(1, Ordering::Relaxed);
        let served = served.clone();
        tokio::spawn(async move {
            // An error here shows as a lost request at the client, where it is counted.
            let _ = echo(stream, &served).await;
            served.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn echo(mut stream: TcpStream, served: &Served) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST];
    loop {
        if stream.read(&mut request[..1]).await? == 0 {
            return stream.shutdown().await;
        }
        stream.read_exact(&mut request[1..]).await?;
        stream.write_all(&request).await?;
        served.requests.fetch_add(1, Ordering::Relaxed);
    }
}

async fn answer(socket: UdpSocket, served: Arc<Served>) {
    let mut datagram = [0; 2048];
    while let Ok((n, from)) = socket.recv_from(&mut datagram).await {
        if socket.send_to(&datagram[..n], from).await.is_ok() {
            served.datagrams.fetch_add(1, Ordering::Relaxed);
        }
    }
}
