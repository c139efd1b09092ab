//! Workers: one pinned thread each, with its own listeners, connections, flows, timers, counters.

pub(crate) mod cx;
pub(crate) mod descriptors;
pub(crate) mod local;
mod tcp;
pub(crate) mod token;
mod udp;
