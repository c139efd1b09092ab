//! What `translate` makes of a Service: a load balancer that knows no Service any more. A cloud
//! controller's document enters the line here.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use lb_core::balance::Algorithm;
use lb_core::table::{Backend, Protocol};

use crate::object::{Family, Key};
use crate::probe::{Probe, Target};
use crate::reason::Reason;

/// Where the addresses come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// From the pools.
    Pools {
        /// One VIP per entry, in this order.
        families: Vec<Family>,
        /// All of them or none (RequireDualStack). Otherwise what the pools allow, the first
        /// family at least.
        all: bool,
        /// Exactly these (at most one per family), or none at all.
        requested: Vec<IpAddr>,
        /// Only from the pool of this name.
        pool: Option<Arc<str>>,
        /// Share an address with others that say the same key, where ports differ.
        sharing: Option<Arc<str>>,
    },
    /// Given by the appliance's settings (fronts of NodePort Services).
    Fixed(Vec<IpAddr>),
}

/// One port of a load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// "" where none is given.
    pub name: Arc<str>,
    /// What clients dial.
    pub port: NonZeroU16,
    /// Its protocol.
    pub protocol: Protocol,
    /// Backends of the IPv4 VIP.
    pub v4: Vec<Backend>,
    /// Backends of the IPv6 VIP.
    pub v6: Vec<Backend>,
}

/// A load balancer: everything but its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancer {
    /// The object that asked for it (a Service's key, or its own).
    pub key: Key,
    /// Seconds since 1970; decides conflicts, oldest first.
    pub created: Option<i64>,
    /// Where its addresses come from.
    pub addressing: Addressing,
    /// What an API server remembers that it had: given back if it may have them and nobody has,
    /// before anybody gets a new one.
    pub published: Vec<IpAddr>,
    /// Its ports; (port, protocol) is unique among them.
    pub ports: Vec<Port>,
    /// How a backend is chosen.
    pub algorithm: Algorithm,
    /// ClientIP affinity.
    pub affinity: Option<Duration>,
    /// Who may connect; `None`: everybody.
    pub sources: Option<Vec<ipnet::IpNet>>,
    /// Close an idle TCP connection after this; `None`: the appliance's default.
    pub idle_timeout: Option<Duration>,
}

/// Endpoints of a Service by state, counted once per address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointCounts {
    /// Ready, and used unless hints say otherwise.
    pub ready: u32,
    /// Terminating but serving.
    pub serving: u32,
    /// Terminating and not serving.
    pub terminating: u32,
    /// Not ready.
    pub not_ready: u32,
    /// Refused: see the reasons.
    pub refused: u32,
    /// Of those that are ready or serving: their health check fails.
    pub unhealthy: u32,
}

/// What `translate` says about one Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The load balancer, or `None` if the Service is not served at all.
    pub load_balancer: Option<Arc<LoadBalancer>>,
    /// Why not, or what else its owner should know; canonical order, no duplicates.
    pub reasons: Vec<Reason>,
    /// Its endpoints by state.
    pub endpoints: EndpointCounts,
    /// What has to be asked of nodes and pods to say more; sorted, no duplicates.
    pub probes: Vec<Probe>,
    /// Endpoints whose health is to be asked; likewise.
    pub checks: Vec<Target>,
}
