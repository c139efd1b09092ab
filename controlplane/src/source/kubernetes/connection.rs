//! The way to the API server: one client that all share, made anew when a file that it was made of
//! changes, or when somebody found that it does not work any more.
//!
//! It has a runtime of its own (threads `weir-kube`): credential plugins block, objects take time
//! to read, and the control task waits for neither. Whoever uses the client does so on that runtime
//! ([`Connection::handle`]).

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use kube::Client;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{Instant, timeout};

use super::access::{Access, AccessError, Files, chain};
use super::failure::Failure;
use super::pace::Pace;

/// Between two looks at the files that a client was made of.
const LOOK: Duration = Duration::from_secs(1);
/// What making a client may take: a credential plugin may ask somebody far away.
const PATIENCE: Duration = Duration::from_secs(30);
/// TCP and TLS to the API server.
const CONNECT: Duration = Duration::from_secs(3);
/// The longest silence on a connection, whoever waits at it: the source gives a watch up after 13 s,
/// and says so before the client does.
const IDLE: Duration = Duration::from_secs(15);

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The settings do not do.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No threads.
    #[error("cannot start threads for the API server: {0}")]
    Threads(#[from] io::Error),
}

/// The way to the API server; clones are the same.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

/// A client to use now, for one request or watch: ask again for the next.
#[derive(Clone)]
pub struct Lease {
    /// The client.
    pub client: Client,
    /// Which one; see [`Connection::give_up`].
    pub number: u64,
    /// The address of the API server that it speaks to.
    pub server: Arc<str>,
    /// Who sends a request says how long its answer took.
    pub pace: Pace,
}

#[derive(Debug)]
struct Inner {
    access: Access,
    /// Taken when the last clone goes.
    runtime: Option<Runtime>,
    handle: Handle,
    current: tokio::sync::Mutex<Current>,
    /// Clients up to this number do not work.
    given_up: AtomicU64,
    server: Mutex<Arc<str>>,
    pace: Pace,
}

#[derive(Default)]
struct Current {
    made: Option<(Lease, Files)>,
    count: u64,
    looked: Option<Instant>,
    failed: Option<Failure>,
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Starts the threads; nothing is sent yet.
    ///
    /// # Errors
    /// The settings name nothing that could be tried, or no thread can be made.
    pub fn start(access: Access) -> Result<Connection, ConnectionError> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Fails if the process has one, which is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let server = access.check()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("weir-kube")
            .enable_all()
            .build()?;
        Ok(Connection(Arc::new(Inner {
            access,
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
            current: tokio::sync::Mutex::default(),
            given_up: AtomicU64::new(0),
            server: Mutex::new(server.into()),
            pace: Pace::default(),
        })))
    }

    /// The kubeconfig that it goes by, if it does.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        match &self.0.access {
            Access::Kubeconfig(path) => Some(path.clone()),
            // Another context is a person's, for one command.
            Access::Context(..) | Access::InCluster => None,
        }
    }

    /// The runtime that its client lives on.
    pub fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// The API server's address.
    pub fn server(&self) -> Arc<str> {
        let server = self.0.server.lock();
        Arc::clone(&server.unwrap_or_else(PoisonError::into_inner))
    }

    /// Does the API server answer in time?
    pub fn pace(&self) -> &Pace {
        &self.0.pace
    }

    /// A client for now: the last one, or a new one if that was given up or a file of it changed.
    ///
    /// # Errors
    /// [`Failure::Unconfigured`]: none can be made. Ask again later.
    pub async fn client(&self) -> Result<Lease, Failure> {
        let mut current = self.0.current.lock().await;
        let given_up = self.0.given_up.load(Ordering::Relaxed);
        let usable = current.made.clone();
        let usable = usable.filter(|(lease, _)| lease.number > given_up);
        let recent = current.looked.is_some_and(|looked| looked.elapsed() < LOOK);
        // Many wait for the same: what the first learned is good for all.
        if usable.is_none()
            && recent
            && let Some(failure) = &current.failed
        {
            return Err(failure.clone());
        }
        let usable = match usable {
            Some((lease, _)) if recent => return Ok(lease),
            Some((lease, files)) => {
                let changed = self.0.handle.spawn_blocking(move || files.changed());
                let changed = timeout(PATIENCE, changed).await;
                current.looked = Some(Instant::now());
                // A disk that hangs is no reason to do without.
                if !matches!(changed, Ok(Ok(true))) {
                    return Ok(lease);
                }
                Some(lease)
            }
            None => None,
        };
        self.renew(&mut current, usable).await
    }

    async fn renew(&self, current: &mut Current, usable: Option<Lease>) -> Result<Lease, Failure> {
        let access = self.0.access.clone();
        let made = self.0.handle.spawn_blocking(move || make(&access));
        let made = match timeout(PATIENCE, made).await {
            Ok(Ok(made)) => made,
            Ok(Err(_)) => Err("a fault of Weir's own: please report this".to_owned()),
            Err(_) => Err(format!(
                "its files or its credential plugin took longer than {}s",
                PATIENCE.as_secs()
            )),
        };
        current.looked = Some(Instant::now());
        match made {
            Ok((client, files, server)) => {
                current.count += 1;
                let number = current.count;
                let server: Arc<str> = server.into();
                let lease = Lease {
                    client,
                    number,
                    server: Arc::clone(&server),
                    pace: self.0.pace.clone(),
                };
                current.made = Some((lease.clone(), files));
                current.failed = None;
                *self.0.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
                Ok(lease)
            }
            Err(problem) => {
                let failure = Failure::Unconfigured { problem };
                // Without any client whoever asks says it.
                if usable.is_some() && current.failed.as_ref() != Some(&failure) {
                    tracing::warn!("{failure}; what it said before is used on");
                }
                current.failed = Some(failure.clone());
                usable.ok_or(failure)
            }
        }
    }

    /// The client of this number does not work: it was refused as unknown, or its connections are
    /// dead. The next one is made anew, from files that are read anew.
    pub fn give_up(&self, number: u64) {
        self.0.given_up.fetch_max(number, Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plugin that hangs does not hold the end.
            runtime.shutdown_background();
        }
    }
}

/// Reads the files and makes a client of them. Blocks, and runs credential plugins.
fn make(access: &Access) -> Result<(Client, Files, String), String> {
    let loaded = access.load().map_err(|error| error.to_string())?;
    let mut config = loaded.config;
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(IDLE);
    config.write_timeout = Some(IDLE);
    // A pooled connection that was idle for long is no silent one.
    config.reset_reader_on_write = true;
    // Who asks tries again, and knows when.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config).map_err(|error| chain(&error))?;
    Ok((client, loaded.files, server))
}
