//! Placeholder until the crate map is written.
pub mod annotations;
pub mod load_balancer;
pub mod object;
pub mod reason;
pub mod translate;
