//! The data plane's counters.
use super::Page;
/// Writes them.
pub fn write(_page: &mut Page, _snapshot: &lb_core::stats::Snapshot) {}
