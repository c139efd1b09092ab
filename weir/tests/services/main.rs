//! What a Service asks for on a real API server, and what its clients get then: the project's own form of
//! the upstream e2e of faults.md 1.1, each named after the original, and the faults of objects that a real
//! API server lets in. One cluster and one appliance for all; each case has a namespace of its own.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod endpoints;
mod faults;
mod health;
mod life;
mod policy;
mod ports;
mod shared;
mod sources;
mod status;
