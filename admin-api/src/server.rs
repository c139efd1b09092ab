//! The accept loop: one thread, one runtime, a bounded number of connections, each with a
//! deadline for its headers and for its life. (axum's stock loop arms no timer, so its header
//! timeout never fires.)

use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};

use crate::guard::Arrival;
use crate::socket::{self, SocketFile};
use crate::{Address, Appliance, routes};

/// Bounds of the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's backlog.
    pub connections: usize,
    /// From the first moment, or from the end of the last answer, to the end of the next
    /// request's headers. An idle connection is closed by the same clock.
    pub header_timeout: Duration,
    /// A connection's whole life. A reader that takes its answer drop by drop ends here.
    pub lifetime: Duration,
}

impl Limits {
    /// While half of the connections are taken, who is slow makes room for who is not: any local
    /// process may connect, and a liveness probe must not wait behind those that say nothing. A
    /// local client sends its request at once and takes its answer as fast as it is made.
    fn hurried(self) -> Limits {
        Limits {
            header_timeout: self.header_timeout.min(Duration::from_millis(100)),
            lifetime: self.lifetime.min(Duration::from_secs(5)),
            ..self
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 64,
            header_timeout: Duration::from_secs(5),
            lifetime: Duration::from_secs(60),
        }
    }
}

/// Why the listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// bind(2) failed.
    #[error("cannot listen on {address}: {source}; choose another with --admin")]
    Bind {
        /// What was asked for.
        address: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody answers on this socket file.
    #[error(
        "another process answers on {0}; stop it or choose another path with --admin unix:PATH"
    )]
    Answered(PathBuf),
    /// The path holds something else.
    #[error("{0} exists and is no socket; remove it or choose another path with --admin unix:PATH")]
    NotASocket(PathBuf),
    /// The thread or its runtime could not be made.
    #[error("cannot start the admin thread: {0}")]
    Thread(#[source] io::Error),
}

impl StartError {
    /// Was it a matter of permission, so that another place may do?
    pub fn is_denied(&self) -> bool {
        let StartError::Bind { source, .. } = self else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    }
}

enum Listener {
    Unix(StdUnixListener),
    Tcp(StdTcpListener),
}

/// The running listener; dropped, it stops and removes its socket file.
#[derive(Debug)]
pub struct Server {
    address: Address,
    stop: watch::Sender<()>,
    thread: Option<JoinHandle<()>>,
    _file: Option<SocketFile>,
}

impl Server {
    /// Binds `address` and answers from a thread of its own. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// The address cannot be bound, or the thread not be made.
    pub fn start(
        address: &Address,
        appliance: Arc<dyn Appliance>,
        limits: Limits,
    ) -> Result<Server, StartError> {
        let (listener, file, address) = bind(address)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let (stop, stopped) = watch::channel(());
        let thread = std::thread::Builder::new()
            .name("weir-admin".into())
            .spawn(move || runtime.block_on(run(listener, appliance, limits, stopped)))
            .map_err(StartError::Thread)?;
        Ok(Server {
            address,
            stop,
            thread: Some(thread),
            _file: file,
        })
    }

    /// Where it listens, with the port that was taken.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if the thread ended by itself.
        let _ = self.stop.send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind(address: &Address) -> Result<(Listener, Option<SocketFile>, Address), StartError> {
    match address {
        Address::Unix(path) => {
            let (listener, file) = socket::bind(path)?;
            Ok((Listener::Unix(listener), Some(file), address.clone()))
        }
        Address::Loopback(wanted) => {
            let failed = |source| StartError::Bind {
                address: wanted.to_string(),
                source,
            };
            let listener = StdTcpListener::bind(wanted).map_err(failed)?;
            let taken = listener.local_addr().map_err(failed)?;
            Ok((Listener::Tcp(listener), None, Address::Loopback(taken)))
        }
    }
}

async fn run(
    listener: Listener,
    appliance: Arc<dyn Appliance>,
    limits: Limits,
    mut stopped: watch::Receiver<()>,
) {
    let accepting = async {
        let served = match listener {
            Listener::Unix(listener) => serve_unix(listener, appliance, limits).await,
            Listener::Tcp(listener) => serve_tcp(listener, appliance, limits).await,
        };
        if let Err(error) = served {
            tracing::error!(%error, "the admin listener ended");
        }
    };
    tokio::select! {
        () = accepting => {}
        // A dropped sender means stop as well.
        _ = stopped.changed() => {}
    }
}

async fn serve_unix(
    listener: StdUnixListener,
    appliance: Arc<dyn Appliance>,
    limits: Limits,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let router = routes::router(appliance, Arrival::Unix);
    accept_loop(limits, router, async || Ok(listener.accept().await?.0)).await
}

async fn serve_tcp(
    listener: StdTcpListener,
    appliance: Arc<dyn Appliance>,
    limits: Limits,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let router = routes::router(appliance, Arrival::Tcp);
    accept_loop(limits, router, async || Ok(listener.accept().await?.0)).await
}

async fn accept_loop<S>(
    limits: Limits,
    router: Router,
    accept: impl AsyncFn() -> io::Result<S>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(limits.connections));
    loop {
        // Never closed, so this fails never; without a permit there is nothing to accept for.
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return Ok(());
        };
        match accept().await {
            Ok(stream) => {
                let router = router.clone();
                let limits = match permits.available_permits() < limits.connections / 2 {
                    true => limits.hurried(),
                    false => limits,
                };
                tokio::spawn(async move {
                    serve_connection(stream, router, limits).await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, or a peer that left in between: neither ends the listener,
                // and the first must not spin.
                tracing::debug!(%error, "admin accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve_connection<S>(stream: S, router: Router, limits: Limits)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(32 * 1024)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // An error is the peer's doing (gone, slow, not HTTP) and changes nothing here.
    let _ = tokio::time::timeout(limits.lifetime, connection).await;
}
