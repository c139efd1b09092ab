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

// TEMPORARY
use crate::table::{Radix, Slot, Table};
use std::sync::{Arc, Mutex};
/// x
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BindError(pub String);
/// x
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerState { /// x
Closed, /// x
Listening, /// x
Failed(BindError), /// x
OverLimit }
/// x
#[derive(Clone, Debug)]
pub struct WorkerReport { /// x
pub worker: usize, /// x
pub generation: u64, /// x
pub heartbeat: std::time::Duration, /// x
pub listeners: Radix<ListenerState> }
/// x
#[derive(Clone, Debug)]
pub struct Report { /// x
pub workers: Vec<Arc<WorkerReport>> }
impl Report {
/// x
pub fn generation(&self) -> u64 { self.workers.iter().map(|w| w.generation).min().unwrap_or(0) }
/// x
pub fn listener(&self, slot: Slot) -> ListenerState { self.workers.iter().filter_map(|w| w.listeners.get(slot.0)).next().cloned().unwrap_or(ListenerState::Closed) }
}
type Hook = Box<dyn Fn() + Send + Sync>;
/// x
#[derive(Clone)]
pub struct Handle(Arc<(Mutex<Arc<Table>>, Mutex<Option<Hook>>)>);
impl Handle {
/// x
pub fn fake(t: Arc<Table>) -> Handle { Handle(Arc::new((Mutex::new(t), Mutex::new(None)))) }
/// x
pub fn publish(&self, t: Arc<Table>) { *self.0.0.lock().expect("x") = t; if let Some(h) = &*self.0.1.lock().expect("x") { h() } }
/// x
pub fn on_change(&self, h: Hook) { *self.0.1.lock().expect("x") = Some(h); }
/// x
pub fn report(&self) -> Report {
 let t = self.0.0.lock().expect("x").clone();
 let mut listeners = Radix::new();
 for (s, f) in t.iter() { listeners.set(s.0, Some(if f.pool.has_usable() { ListenerState::Listening } else { ListenerState::Closed })); }
 Report { workers: vec![Arc::new(WorkerReport { worker: 0, generation: t.generation, heartbeat: Default::default(), listeners })] }
}
}
