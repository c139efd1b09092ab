//! Placeholder until the crate map is written.
pub mod compile;
pub mod load_balancer;
pub mod object;
pub mod reason;
