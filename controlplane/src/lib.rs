//! Kubernetes objects become the forwarding table.
//!
//! # The life of a Service update
//!
//! ```text
//!  source -> cluster -> translate -> allocate -> compile -> publish -> addresses -> status
//!  (files)   (store)    (one Service) (VIPs)     (table)    (workers)  (machine)    (admin)
//!            '------------------------- control: one task ------------------------'
//! ```
//!
//! A `source` makes events of what it watches. The control task takes them in (`cluster`), lets the
//! burst settle, and asks of every Service that may have changed what it means (`translate`), which
//! addresses it gets (`allocate`) and what that makes of the table (`compile`). A table that
//! differs is published; the workers say what they run and whether it listens; from that alone
//! follows what is shown (`status`).
//!
//! # Invariants
//!
//! - One writer per datum: the control task owns the store, the allocator, the compiler and the
//!   statuses. Others get snapshots.
//! - Nothing is published before the first complete list.
//! - An address is written down before it is served, so that a restart gives the same again.
//! - A bad object is refused alone, with a reason from one closed enum (`reason`).
//! - A panic here never stops forwarding: the control task starts anew from its sources, and the
//!   table published last stays until it knows better.
//!
//! # Absent on purpose
//!
//! I/O in `cluster`, `translate`, `allocate` and `compile`: they are pure. Any word of io_uring,
//! sockets or workers: this crate sees the table and a handle.

pub mod addresses;
pub mod allocate;
pub mod annotations;
pub mod cluster;
pub mod compile;
pub mod control;
pub mod credential;
mod kube_proxy;
pub mod load_balancer;
pub mod measure;
pub mod nodes;
pub mod object;
pub mod probe;
pub mod provider;
mod publish;
pub mod reason;
pub mod source;
pub mod state;
pub mod status;
#[cfg(test)]
mod testing;
pub mod translate;
