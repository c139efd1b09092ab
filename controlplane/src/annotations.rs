//! The annotations and labels that some rule reads, in one table: our own names, and the names of
//! other load balancers that are read at lower rank and never written.
//!
//! `source` keeps what this table names and drops the rest, so that a megabyte of somebody's
//! notes costs nothing; `translate` asks by [`Meaning`] and gets the values in order of rank. The
//! foreign names are those in the documentation of MetalLB, kube-vip, Cilium, PureLB, the AWS,
//! Hetzner and OpenStack controllers.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// What an annotation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Meaning {
    /// The wanted addresses, a comma-separated list, at most one per family.
    Addresses,
    /// The name of the pool to take addresses from.
    Pool,
    /// A key: Services that say the same one may share an address.
    Sharing,
    /// Say who the client is in a PROXY header.
    ProxyProtocol,
    /// Who may connect; read only if the field is empty.
    SourceRanges,
    /// Check the endpoints ourselves: by a connection or by HTTP.
    HealthProtocol,
    /// At this port of theirs.
    HealthPort,
    /// For this path.
    HealthPath,
    /// So often.
    HealthInterval,
    /// And an answer comes within this.
    HealthTimeout,
    /// So many good answers give work.
    Healthy,
    /// So many others take it away.
    Unhealthy,
    /// Which HTTP status is good.
    HealthCodes,
    /// How long connections of a removed endpoint may live on.
    DrainTimeout,
    /// Show backends the client's own address.
    PreserveClientIp,
    /// AWS's list of `name=value` attributes: draining, client address, stickiness.
    TargetGroupAttributes,
    /// Close TCP connections that are idle for this long.
    IdleTimeout,
    /// How a backend is chosen.
    Algorithm,
    /// Terminate or pick by TLS. A whole family of names.
    Tls,
    /// Leave the Service alone.
    Ignore,
    /// The interface that carries the address.
    Interface,
    /// The host name to publish instead of the address.
    Hostname,
    /// Dial pods, or nodes at their node ports.
    Backends,
    /// Front a Service of type NodePort as one of type LoadBalancer is.
    Front,
}

/// One name of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The annotation's name; if `prefix`, how such names begin.
    pub name: &'static str,
    /// Every name that begins so.
    pub prefix: bool,
    /// What it asks for.
    pub meaning: Meaning,
}

impl Known {
    /// Does this entry cover the annotation `name`?
    pub fn covers(&self, name: &str) -> bool {
        if self.prefix {
            name.starts_with(self.name)
        } else {
            name == self.name
        }
    }

    /// Is it a name of ours and not an alias?
    pub fn is_native(&self) -> bool {
        self.name.starts_with(NATIVE_PREFIX)
    }
}

/// How all names of ours begin. An unknown one is kept, so that `translate` can name a slip of the
/// pen.
pub const NATIVE_PREFIX: &str = "weir.dev/";

const fn exact(name: &'static str, meaning: Meaning) -> Known {
    Known {
        name,
        prefix: false,
        meaning,
    }
}

const fn family(name: &'static str, meaning: Meaning) -> Known {
    Known {
        name,
        prefix: true,
        meaning,
    }
}

/// Every known annotation. Among names of one meaning the earlier wins.
pub const TABLE: &[Known] = &[
    exact("weir.dev/load-balancer-ips", Meaning::Addresses),
    exact("metallb.io/loadBalancerIPs", Meaning::Addresses),
    exact("metallb.universe.tf/loadBalancerIPs", Meaning::Addresses),
    exact("kube-vip.io/loadbalancerIPs", Meaning::Addresses),
    exact("lbipam.cilium.io/ips", Meaning::Addresses),
    exact("io.cilium/lb-ipam-ips", Meaning::Addresses),
    exact("purelb.io/addresses", Meaning::Addresses),
    exact("weir.dev/address-pool", Meaning::Pool),
    exact("metallb.io/address-pool", Meaning::Pool),
    exact("metallb.universe.tf/address-pool", Meaning::Pool),
    exact("purelb.io/service-group", Meaning::Pool),
    exact("weir.dev/allow-shared-ip", Meaning::Sharing),
    exact("metallb.io/allow-shared-ip", Meaning::Sharing),
    exact("metallb.universe.tf/allow-shared-ip", Meaning::Sharing),
    exact("purelb.io/allow-shared-ip", Meaning::Sharing),
    exact("lbipam.cilium.io/sharing-key", Meaning::Sharing),
    exact("io.cilium/lb-ipam-sharing-key", Meaning::Sharing),
    exact("weir.dev/proxy-protocol", Meaning::ProxyProtocol),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol",
        Meaning::ProxyProtocol,
    ),
    exact(
        "load-balancer.hetzner.cloud/uses-proxyprotocol",
        Meaning::ProxyProtocol,
    ),
    exact(
        "loadbalancer.openstack.org/proxy-protocol",
        Meaning::ProxyProtocol,
    ),
    exact(
        "service.beta.kubernetes.io/load-balancer-source-ranges",
        Meaning::SourceRanges,
    ),
    exact("weir.dev/health-check-protocol", Meaning::HealthProtocol),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-protocol",
        Meaning::HealthProtocol,
    ),
    exact("weir.dev/health-check-port", Meaning::HealthPort),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-port",
        Meaning::HealthPort,
    ),
    exact("weir.dev/health-check-path", Meaning::HealthPath),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-path",
        Meaning::HealthPath,
    ),
    exact("weir.dev/health-check-interval", Meaning::HealthInterval),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-interval",
        Meaning::HealthInterval,
    ),
    exact("weir.dev/health-check-timeout", Meaning::HealthTimeout),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-timeout",
        Meaning::HealthTimeout,
    ),
    exact("weir.dev/health-check-healthy", Meaning::Healthy),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-healthy-threshold",
        Meaning::Healthy,
    ),
    exact("weir.dev/health-check-unhealthy", Meaning::Unhealthy),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-unhealthy-threshold",
        Meaning::Unhealthy,
    ),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-healthcheck-success-codes",
        Meaning::HealthCodes,
    ),
    exact("weir.dev/drain-timeout", Meaning::DrainTimeout),
    exact("weir.dev/preserve-client-ip", Meaning::PreserveClientIp),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-target-group-attributes",
        Meaning::TargetGroupAttributes,
    ),
    exact("weir.dev/idle-timeout", Meaning::IdleTimeout),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-connection-idle-timeout",
        Meaning::IdleTimeout,
    ),
    exact("weir.dev/algorithm", Meaning::Algorithm),
    exact("service.cilium.io/lb-algorithm", Meaning::Algorithm),
    family("weir.dev/tls-", Meaning::Tls),
    family(
        "service.beta.kubernetes.io/aws-load-balancer-ssl-",
        Meaning::Tls,
    ),
    exact(
        "service.beta.kubernetes.io/aws-load-balancer-backend-protocol",
        Meaning::Tls,
    ),
    exact("weir.dev/ignore", Meaning::Ignore),
    exact("kube-vip.io/ignore", Meaning::Ignore),
    exact("weir.dev/backends", Meaning::Backends),
    exact("weir.dev/front", Meaning::Front),
    exact("weir.dev/interface", Meaning::Interface),
    exact("kube-vip.io/serviceInterface", Meaning::Interface),
    exact("weir.dev/hostname", Meaning::Hostname),
    exact("kube-vip.io/loadbalancerHostname", Meaning::Hostname),
];

/// Label that ties an EndpointSlice to its Service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that hands a Service or slice to another service proxy (KEP-2447).
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label that service proxies take for "no virtual IP here".
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Label that keeps a node out of load balancers; presence excludes unless it parses as false.
pub const LABEL_EXCLUDE_NODE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Label with a node's zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";

/// Every label that some rule reads. The service name of a slice is a field of its own.
pub const LABELS: &[&str] = &[
    LABEL_SERVICE_PROXY_NAME,
    LABEL_HEADLESS,
    LABEL_EXCLUDE_NODE,
    LABEL_ZONE,
];

/// Does some rule read the annotation `name`?
pub fn is_read(name: &str) -> bool {
    name.starts_with(NATIVE_PREFIX) || TABLE.iter().any(|known| known.covers(name))
}

/// What the annotation `name` asks for, if it is known.
pub fn meaning_of(name: &str) -> Option<Meaning> {
    TABLE
        .iter()
        .find(|known| known.covers(name))
        .map(|known| known.meaning)
}

/// The annotations of `meaning` that are set, best rank first (within a family by name), as
/// (name, value).
pub fn of(
    annotations: &BTreeMap<Arc<str>, Arc<str>>,
    meaning: Meaning,
) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
    TABLE
        .iter()
        .filter(move |known| known.meaning == meaning)
        .flat_map(move |known| {
            // A family's names stand together in the map; an exact name is found at once.
            annotations
                .range::<str, _>((Bound::Included(known.name), Bound::Unbounded))
                .take_while(move |(name, _)| known.covers(name))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
        pairs
            .iter()
            .map(|(name, value)| (Arc::from(*name), Arc::from(*value)))
            .collect()
    }

    fn values(pairs: &[(&str, &str)], meaning: Meaning) -> Vec<String> {
        of(&map(pairs), meaning)
            .map(|(_, value)| value.to_string())
            .collect()
    }

    #[test]
    fn our_name_comes_before_every_alias() {
        let pairs = [
            ("metallb.io/loadBalancerIPs", "192.0.2.2"),
            ("kube-vip.io/loadbalancerIPs", "192.0.2.3"),
            ("weir.dev/load-balancer-ips", "192.0.2.1"),
            ("weir.dev/load-balancer-ips-x", "no"),
        ];
        assert_eq!(
            values(&pairs, Meaning::Addresses),
            ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
        );
        assert!(values(&pairs, Meaning::Pool).is_empty());
    }

    #[test]
    fn a_family_covers_its_names_and_no_others() {
        let pairs = [
            ("weir.dev/tls-secret", "80"),
            ("weir.dev/tls-mode", "/"),
            ("weir.dev/tls", "x"),
            ("weir.dev/hostname", "x"),
        ];
        assert_eq!(values(&pairs, Meaning::Tls), ["/", "80"]);
        assert_eq!(
            meaning_of("service.beta.kubernetes.io/aws-load-balancer-ssl-cert"),
            Some(Meaning::Tls)
        );
    }

    #[test]
    fn native_names_stand_before_aliases_of_their_meaning() {
        for (at, known) in TABLE.iter().enumerate() {
            let earlier_alias = TABLE[..at]
                .iter()
                .any(|other| other.meaning == known.meaning && !other.is_native());
            assert!(!(known.is_native() && earlier_alias), "{}", known.name);
            assert!(
                TABLE[..at].iter().all(|other| !other.covers(known.name)),
                "{} is listed twice",
                known.name
            );
        }
    }

    #[test]
    fn what_no_rule_reads_is_not_kept() {
        assert!(is_read("weir.dev/load-balancer-ip"), "a slip is kept");
        assert!(is_read("purelb.io/addresses"));
        assert!(!is_read("kubectl.kubernetes.io/last-applied-configuration"));
        assert!(!is_read("weir.development/x"));
    }
}
