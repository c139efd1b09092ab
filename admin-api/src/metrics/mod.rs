//! The Prometheus text exposition format 0.0.4, written at the moment of a scrape.
//!
//! Nothing here is a registry: a counter lives with its one writer, and a scrape reads it.

mod page;
pub mod plane;

pub use page::{Family, Kind, Page};
