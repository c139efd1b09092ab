//! Placeholder until the crate map is written.
pub mod addresses;
pub mod allocate;
pub mod load_balancer;
pub mod object;
pub mod reason;
pub mod state;
