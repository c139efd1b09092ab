//! The public face of the data plane: start it, publish tables to it, hear what its workers run,
//! drain it, stop it.

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

/// What the process allows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// UDP flows per worker.
    pub flows: usize,
    /// UDP flows per worker from one client address.
    pub flows_per_source: usize,
    /// Bytes per worker for copies of flows' latest datagrams.
    pub copy_bytes: usize,
    /// Clients that stay with a backend, per worker and frontend with affinity.
    pub pins: usize,
    /// Descriptors kept for what is not traffic: admin, sources, logs, state.
    pub reserved_descriptors: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            flows: 65_536,
            flows_per_source: 1_024,
            copy_bytes: 4 << 20,
            pins: 65_536,
            reserved_descriptors: 64,
        }
    }
}
