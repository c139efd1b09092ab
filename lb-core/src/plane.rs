//! The public face of the data plane: start it, publish tables to it, hear what its workers run,
//! drain it, stop it. (Contract; the bodies come with the workers.)

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::table::{FrontendKey, Table};

/// Which I/O driver runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// The best that the probe finds.
    #[default]
    Auto,
    /// io_uring, or fail to start.
    IoUring,
    /// epoll.
    Epoll,
}
