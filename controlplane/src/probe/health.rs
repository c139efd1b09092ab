//! The health check of a Service's endpoints: what is asked, how often, and what it takes. PURE.
//!
//! A target is of one tenant, with everything that its annotations say: whoever may write Services in
//! another namespace changes neither the pace nor the verdict of it, and nobody waits for more than
//! [`super::ENDPOINTS`] lets one tenant have.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::object::{Key, SourceId};

/// Bounds of the interval. Below a second a check costs its endpoint more than it tells.
pub const INTERVAL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// Bounds of the timeout; it is never longer than the interval.
pub const TIMEOUT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// Bounds of both thresholds.
pub const THRESHOLD: RangeInclusive<u32> = 1..=10;
/// Longest path, in bytes.
pub const MAX_PATH: usize = 1_024;

/// Endpoints and ports of one Service that are asked.
pub const MAX_OF_SERVICE: usize = 1_024;
/// Of one namespace.
pub const MAX_OF_TENANT: usize = 2_048;
/// Of this process.
pub const MAX_OF_ALL: usize = 8_192;

/// Whoever may write the Services of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant {
    /// Which source its objects came from.
    pub source: SourceId,
    /// Which cluster of it.
    pub cluster: Arc<str>,
    /// The namespace.
    pub namespace: Arc<str>,
}

impl Tenant {
    /// Whose object `key` names.
    pub fn of(key: &Key) -> Tenant {
        Tenant {
            source: key.source,
            cluster: Arc::clone(&key.cluster),
            namespace: Arc::clone(&key.namespace),
        }
    }
}

/// The question.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ask {
    /// A connection: that it is accepted is good.
    Tcp,
    /// HTTP GET of this path: 200 to 399 is good. Printable ASCII without blanks.
    Http(Arc<str>),
}

/// What is asked of an endpoint, and what the answers count for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HealthCheck {
    /// For whom.
    pub tenant: Tenant,
    /// The question.
    pub ask: Ask,
    /// From an answer to the next question, a tenth more or less.
    pub interval: Duration,
    /// An answer comes within this.
    pub timeout: Duration,
    /// So many good answers in a row give work again.
    pub healthy: u32,
    /// So many others take it away.
    pub unhealthy: u32,
}

impl HealthCheck {
    /// A connection every 5 s: the check of somebody who says no more than that there is to be one.
    pub fn new(tenant: Tenant) -> HealthCheck {
        HealthCheck {
            tenant,
            ask: Ask::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            healthy: 2,
            unhealthy: 3,
        }
    }
}
