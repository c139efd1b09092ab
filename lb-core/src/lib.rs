//! The forwarder: clients' TCP connections and UDP datagrams in, backends' out.
//!
//! It waits for nobody. Whoever decides what is forwarded where builds a [`table::Table`] and
//! [publishes](plane::Handle::publish) it; the workers take it up at their next turn. A publisher
//! that hangs or dies leaves them with the last table.
//!
//! # The life of a connection
//!
//! A client dials a frontend (VIP, port, protocol). The kernel hands it to the listener of one
//! worker; `worker` accepts it if there are descriptors for it, and resets it otherwise. The
//! listener names the frontend as that worker sees it, its policy says whether the client's
//! address may come in, and its pool picks a backend: by [`balance`], or by [`affinity`] if the
//! client has been here before. [`conn`] is told of all that happens and says what to do: connect,
//! try another, receive, send, shut down, reset, close with a reason. `worker` does it, and counts
//! in [`stats`]. A datagram takes the same line with [`flow`] for `conn`.
//!
//! # The life of a table
//!
//! [`table::TableBuilder`] validates and freezes; the new table shares with the last whatever did
//! not change. [`plane`] works out which frontends fit into the descriptor limit, stores both, and
//! rings each worker's eventfd. A worker looks once at the top of a turn; it compares, notes the
//! slots that differ, and opens, closes or updates them a few at a time. When none is left it
//! reports the generation and what became of each listener.
//!
//! # Modules
//!
//! | module | |
//! |---|---|
//! | [`table`] | PURE: frontends, pools, backends, policy: one immutable value |
//! | [`balance`] | PURE: which backend; an index for each algorithm |
//! | [`affinity`] | PURE: who stays with which backend, until when |
//! | [`conn`] | PURE: one TCP connection: (event, now) -> actions |
//! | [`flow`] | PURE: the UDP flow table: (datagram, now) -> actions |
//! | [`timer`], [`slab`] | PURE: a timing wheel; places whose keys go stale |
//! | [`time`] | time as the pure modules see it: an argument |
//! | `sys` | UNSAFE: what the kernel offers, behind safe calls that know no policy |
//! | `uring` | UNSAFE: a worker's io_uring, likewise |
//! | `worker` | one pinned thread each: turns, listeners, drivers |
//! | [`stats`] | counters with one writer, reasons, snapshots |
//! | [`plane`] | start, publish, report, drain, stop: the public face |
//! | [`link`] | frames on an interface, for whoever announces addresses |
//! | `failpoint` | bugs on request, in builds for tests alone |
//!
//! # Invariants
//!
//! - One writer per datum: a worker owns its listeners, connections, flows, timers and counters.
//!   No lock, and no atomic read-modify-write, on a packet's path.
//! - A change never touches a live TCP connection, and never closes the listener of a frontend
//!   that keeps a usable backend.
//! - A frontend without a usable backend is a closed port: the kernel refuses its clients.
//! - All that a peer can cause is bounded, and counted under a reason of a closed enum.
//! - A turn is bounded; what is left over goes on in the next.
//! - A worker that panics ends the process.
//!
//! # Absent on purpose
//!
//! - Where the table comes from, and every word for that.
//! - Async: a worker is a loop over readiness or completions, its state machines are values.
//! - Passing connections between workers: the kernel spreads them, by turns where a BPF program may
//!   be loaded and by its hash elsewhere; a selector keeps the clients of affinity frontends together.
//! - Health checks: the table says who is usable. Failed connects only change who is tried first.
pub mod affinity;
pub mod balance;
#[cfg(any(test, fuzzing))]
pub mod chance;
mod chunks;
pub mod conn;
#[cfg(feature = "failpoints")]
pub mod failpoint;
pub mod flow;
pub mod link;
pub mod plane;
pub mod slab;
pub mod stats;
mod sys;
pub mod table;
pub mod time;
pub mod timer;
mod uring;
mod worker;
