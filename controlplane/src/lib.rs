//! Placeholder until the crate map is written.
pub mod annotations;
pub mod cluster;
pub mod load_balancer;
pub mod object;
pub mod reason;
pub mod source;
pub mod translate;
