//! The Prometheus text exposition format 0.0.4, written at the moment of a scrape.
//!
//! Two ways lead there, because what the control plane and the process record is a few numbers off
//! the packet's path and takes the `metrics` facade ([`Registry`]), while the data plane's counters
//! and what grows with the Services are thousands of series that live as plain cells with their one
//! writer and are summed at the scrape ([`Page`]).

mod page;
pub mod plane;
mod registry;

pub use page::{Family, Kind, Page};
pub use registry::{Registry, RegistryError};
