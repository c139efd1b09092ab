//! The admin listener: what the appliance says about itself, over HTTP.
//!
//! # The life of a request
//!
//! [`Server::start`] binds one socket ([`Address`]: a UNIX socket, or loopback TCP) and starts one
//! thread with its own runtime, apart from the workers: nothing asked here can delay a packet. The
//! accept loop (`server`) holds a permit per connection and gives every connection a deadline for
//! its headers and for its whole life. `guard` refuses what no route should see (foreign `Host`,
//! writes over TCP, large heads and bodies). `routes` asks the [`Appliance`] for snapshots, shapes
//! them by `view`, and answers; everything that is not an answer is a `problem+json` (`error`).
//!
//! # Invariants
//!
//! - This crate knows no control plane: it sees [`Appliance`] alone.
//! - A request reads snapshots. No lock of the control task or of a worker is taken.
//! - Loopback TCP reads. The UNIX socket, whose file mode says who may, also writes.
//!
//! # Absent on purpose
//!
//! TLS, tokens and any address beyond loopback: the listener refuses to start on one.

mod address;
mod error;
mod guard;
pub mod metrics;
mod routes;
mod server;
mod socket;
pub mod view;

use std::sync::Arc;

pub use address::{Address, AddressError};
pub use server::{Limits, Server, StartError};

use metrics::Page;
use view::{Check, Service, Version};

/// What the listener asks. The binary implements it from the control plane's snapshot and the
/// data plane's handle; every call returns at once and takes no lock that a worker takes.
pub trait Appliance: Send + Sync + 'static {
    /// Name and number of this build.
    fn version(&self) -> Version;

    /// Is the process alive? One check per worker, by its heartbeat.
    fn liveness(&self) -> Vec<Check>;

    /// Does it serve what it was told to? No check may be failed for a yes.
    fn readiness(&self) -> Vec<Check>;

    /// Every Service seen, served or not, ordered by namespace and name.
    fn services(&self) -> Arc<[Service]>;

    /// The counters of the data plane, summed over its workers.
    fn stats(&self) -> lb_core::stats::Snapshot;

    /// What the control plane and the process recorded, rendered by [`metrics::Registry`].
    fn recorded(&self) -> String;

    /// Writes the families that grow with the Services and are not the data plane's own.
    fn metrics(&self, page: &mut Page);

    /// Lets deletions that the guard holds happen. Returns how many Services were held; zero if
    /// there was nothing to confirm.
    fn confirm_deletions(&self) -> usize;
}
