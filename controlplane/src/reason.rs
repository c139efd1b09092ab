//! Why a Service is not served, or not as asked: one closed enum. A variant's name is its code in
//! the admin API, metrics, events and the documentation; its message says what to do.

mod order;

use std::net::IpAddr;
use std::sync::Arc;

use lb_core::table::FrontendKey;

use crate::nodes::Out;
use crate::object::{Family, Key};

pub(crate) use self::order::arrange;

/// How a person confirms deletions that the guard holds.
pub const CONFIRM: &str = "POST /api/v1/deletions/confirm on the admin socket, or SIGHUP twice within ten seconds; --confirm-deletions turns the guard off";

/// Does a reason stop traffic, or only qualify it?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The Service (or the port named) is not served.
    Refused,
    /// It will be served once something else changes.
    Pending,
    /// It is served; its owner should know this.
    Note,
}

/// One reason. Text from objects is escaped and cut before it comes here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Reason {
    /// The type asks for no load balancer.
    #[error("type is {kind}: only LoadBalancer Services get an address{hint}")]
    NotALoadBalancer {
        /// ClusterIP, headless, ExternalName or NodePort.
        kind: &'static str,
        /// What to do, with its leading separator; may be empty.
        hint: &'static str,
    },
    /// loadBalancerClass names another provider, or none where one is required.
    #[error("loadBalancerClass {found} belongs to another provider; this appliance serves {ours}")]
    ForeignClass {
        /// As written, or "(none)".
        found: Arc<str>,
        /// The class served here.
        ours: Arc<str>,
    },
    /// Without a class, and another provider is at work in it.
    #[error(
        "another provider of load balancers serves it: {evidence}; this appliance leaves it alone. Let one of the two be the default provider, or make the Service anew with loadBalancerClass {ours}; if the other is gone, take away what it left"
    )]
    RivalProvider {
        /// Who, and what shows it.
        evidence: Arc<str>,
        /// The class served here.
        ours: Arc<str>,
    },
    /// `weir.dev/ignore` or an alias is set.
    #[error(
        "annotation {annotation} tells every provider to leave this Service alone; remove it to serve it"
    )]
    Ignored {
        /// Which annotation.
        annotation: Arc<str>,
    },
    /// The Service is on its way out: a deletionTimestamp is set.
    #[error("the Service is being deleted (deletionTimestamp is set); it is not served any more")]
    Deleting,
    /// The label that hands the Service to another proxy.
    #[error(
        "label service.kubernetes.io/service-proxy-name is set: node ports do not exist; pods are dialled directly"
    )]
    ForeignServiceProxy,
    /// The Service asks for something that is not built.
    #[error("NotSupported: {what}; remove the request to be served without it")]
    NotSupported {
        /// What was asked for, and where.
        what: Arc<str>,
    },
    /// There is no port that could be served.
    #[error("no port of the Service can be served; list at least one TCP or UDP port")]
    NoPorts,
    /// A port has no nodePort, and needs one to be fronted or dialled; the other ports are served.
    #[error("port {port} has no nodePort, which it needs to be served; other ports are served")]
    NoNodePort {
        /// The port.
        port: u16,
    },
    /// A port's protocol is not supported; the other ports are served.
    #[error("port {port}: protocol SCTP is not supported; other ports are served")]
    PortProtocolNotSupported {
        /// The port.
        port: u16,
    },
    /// Two ports of the Service say the same port and protocol.
    #[error("port {port}/{protocol} is listed twice; the first is served")]
    DuplicatePort {
        /// The port.
        port: u16,
        /// tcp or udp.
        protocol: &'static str,
    },
    /// A source range does not parse: everything is denied.
    #[error(
        "source range \"{range}\" is not a CIDR: every client is denied until it is corrected (write for example 192.0.2.0/24)"
    )]
    BadSourceRange {
        /// As written.
        range: Arc<str>,
    },
    /// Source ranges name no entry of a family that the Service has an address of.
    #[error("source ranges list no {family} range: every {family} client is denied")]
    FamilyDenied {
        /// Which family.
        family: Family,
    },
    /// An annotation's value does not parse; it is treated as absent unless it restricts.
    #[error("annotation {annotation}: {problem}")]
    BadAnnotation {
        /// Which annotation.
        annotation: Arc<str>,
        /// What is wrong and what is right.
        problem: Arc<str>,
    },
    /// An annotation is read and has no effect, or lost against another of higher rank.
    #[error("annotation {annotation} is ignored: {problem}")]
    AnnotationIgnored {
        /// Which annotation.
        annotation: Arc<str>,
        /// Why.
        problem: Arc<str>,
    },
    /// A wanted address does not parse: no other is given instead.
    #[error("{place}: {problem}; no other address is given instead")]
    BadAddressRequest {
        /// The annotation or field.
        place: Arc<str>,
        /// What is wrong and what is right.
        problem: Arc<str>,
    },
    /// Two places ask for different things; nothing is allocated.
    #[error("{first} and {second} ask for different addresses; make them equal or remove one")]
    ConflictingRequest {
        /// Where.
        first: Arc<str>,
        /// And where else.
        second: Arc<str>,
    },
    /// An endpoint is refused for its address.
    #[error("endpoint {address} refused: {problem}")]
    EndpointRefused {
        /// As written.
        address: Arc<str>,
        /// Which rule, and what to do if the address is meant.
        problem: &'static str,
    },
    /// More endpoints are wrong than are listed one by one.
    #[error("{count} more endpoints refused")]
    MoreEndpointsRefused {
        /// How many.
        count: u32,
    },
    /// No EndpointSlice has a port for this one.
    #[error(
        "port {port} (name \"{name}\"): no EndpointSlice has a port of this name and protocol; compare the names in the Service and its slices"
    )]
    PortNameMismatch {
        /// The port.
        port: u16,
        /// Its name.
        name: Arc<str>,
    },
    /// No endpoint is usable: the port is closed.
    #[error(
        "no usable endpoint ({not_ready} not ready, {terminating} terminating): clients are refused until one is ready"
    )]
    NoUsableEndpoint {
        /// How many are not ready.
        not_ready: u32,
        /// How many are terminating.
        terminating: u32,
    },
    /// Some of the endpoints do not pass their health check.
    #[error(
        "the health check of {count} of its endpoints fails ({shown}): they get no new connections until they pass it"
    )]
    UnhealthyEndpoints {
        /// How many.
        count: u32,
        /// The first of them, and what each does.
        shown: Arc<str>,
    },
    /// No endpoint of a port passes its health check.
    #[error(
        "port {port}: the health check of every endpoint fails ({shown}): they are used nevertheless; look at what the annotations weir.dev/health-check-* ask for, and whether this appliance reaches it"
    )]
    NoHealthyEndpoint {
        /// The Service's port.
        port: u16,
        /// The first of them, and what each does.
        shown: Arc<str>,
    },
    /// There are more endpoints to be checked than may be.
    #[error(
        "the health of {count} of its endpoints is not checked, for {most} is the most of {of}: they are used as their EndpointSlices say"
    )]
    EndpointsNotChecked {
        /// How many are not.
        count: usize,
        /// How many may be.
        most: usize,
        /// Of a Service, a namespace, or this appliance.
        of: &'static str,
    },
    /// Only terminating endpoints are left, and they still serve.
    #[error(
        "no other endpoint is usable than terminating ones; {serving} that still serve are used"
    )]
    OnlyTerminatingEndpoints {
        /// How many.
        serving: u32,
    },
    /// A VIP uses endpoints of the other family.
    #[error(
        "no usable {vip} endpoint: the {vip} address is served by endpoints of the other family"
    )]
    CrossFamily {
        /// The VIP's family.
        vip: Family,
    },
    /// externalTrafficPolicy Local: the client's address is not kept.
    #[error("externalTrafficPolicy Local: pods see this appliance's address, not the client's")]
    ClientAddressNotKept,
    /// No pool has an address of this family.
    #[error("no pool has {family} addresses; add one with --pool")]
    NoPool {
        /// Which family.
        family: Family,
    },
    /// Pools exist, and are full.
    #[error(
        "every {family} address of the pools is taken; enlarge a pool or free a Service; this one is served as soon as one is free"
    )]
    PoolExhausted {
        /// Which family.
        family: Family,
    },
    /// The named pool does not exist.
    #[error("no pool is named \"{pool}\"; there is {known}")]
    UnknownPool {
        /// As written.
        pool: Arc<str>,
        /// The pools there are, or "none".
        known: Arc<str>,
    },
    /// A requested address is in no pool.
    #[error(
        "requested address {address} is in no pool of this appliance; add its range with --pool, or request another: no other is given instead"
    )]
    AddressNotInPool {
        /// As asked.
        address: IpAddr,
    },
    /// A requested address is taken.
    #[error("requested address {address} is held by {holder}; no other is given instead")]
    AddressTaken {
        /// As asked.
        address: IpAddr,
        /// By whom.
        holder: Key,
    },
    /// Node ports are to be dialled, and Nodes were not listed yet.
    #[error(
        "its node ports are to be dialled and no Node is known: Weir needs to list and watch nodes (deploy/kubernetes/nodes.yaml grants it); /readyz?verbose says what is wrong"
    )]
    NodesUnknown,
    /// Node ports are to be dialled, and no node may be.
    #[error("no node can be dialled at its node ports{}", shown_out(out))]
    NoEligibleNode {
        /// How many there are that may not be, by why.
        out: Out,
    },
    /// No node takes new connections: those that there are get them nevertheless.
    #[error(
        "no node is healthy ({draining} draining, {silent} that do not answer): they are dialled nevertheless"
    )]
    NoHealthyNode {
        /// Nodes that drain.
        draining: u32,
        /// Nodes that do not answer, or not as they should.
        silent: u32,
    },
    /// Pods are not reachable from here: node ports are dialled instead.
    #[error(
        "pods on {nodes} of its nodes cannot be reached from this appliance: node ports are dialled instead until they can; a route to the pod network is missing"
    )]
    PodsUnreachable {
        /// How many nodes.
        nodes: u32,
    },
    /// Pods are not reachable from here, and node ports cannot be dialled instead.
    #[error(
        "pods on {nodes} of its nodes cannot be reached from this appliance, and its node ports cannot be dialled instead: {problem}"
    )]
    NoFallback {
        /// How many nodes.
        nodes: u32,
        /// Why not, and what to do.
        problem: &'static str,
    },
    /// ClientIP affinity, and node ports are dialled.
    #[error(
        "sessionAffinity ClientIP: through node ports kube-proxy sees this appliance as the only client and sends everybody to one pod; dial pods (weir.dev/backends: pods), or set sessionAffinity None"
    )]
    AffinityAtNodes,
    /// The address held is no longer in a pool; it is kept while the Service lives.
    #[error("address {address} is in no pool any more; it is kept while the Service lives")]
    AddressOutsidePools {
        /// Which.
        address: IpAddr,
    },
    /// A requested address is of a family the Service does not have.
    #[error(
        "requested address {address} is of a family that the Service does not list in ipFamilies"
    )]
    RequestedFamily {
        /// As asked.
        address: IpAddr,
    },
    /// Sharing was asked for and is not possible.
    #[error("cannot share {address} with {holder}: {problem}")]
    SharingRefused {
        /// Which address.
        address: IpAddr,
        /// With whom.
        holder: Key,
        /// Why.
        problem: &'static str,
    },
    /// Two Services want one frontend (fixed addresses); the older has it.
    #[error("{frontend} is served for {holder}, which is older")]
    FrontendTaken {
        /// Which.
        frontend: FrontendKey,
        /// By whom.
        holder: Key,
    },
    /// The table refuses the frontend.
    #[error("{problem}")]
    FrontendInvalid {
        /// Which frontend, why, and what is possible.
        problem: Arc<str>,
    },
    /// The ports times the endpoints are more than one Service may ask for.
    #[error(
        "its ports and endpoints make {count} backends and {most} is the most of one Service; split it"
    )]
    TooManyBackends {
        /// How many they make.
        count: usize,
        /// How many are possible.
        most: usize,
    },
    /// Maglev was asked for, for more frontends than one Service may have tables for.
    #[error(
        "it has {count} ports on its addresses and asks for maglev, which {most} at most may: consistent is used instead"
    )]
    MaglevTooManyPorts {
        /// How many there are.
        count: usize,
        /// How many are possible.
        most: usize,
    },
    /// Maglev was asked for, for more backends than its table holds.
    #[error(
        "{frontend} has {count} backends and maglev takes {most} at most: consistent is used instead"
    )]
    MaglevPoolTooLarge {
        /// Which.
        frontend: FrontendKey,
        /// How many it has.
        count: usize,
        /// How many are possible.
        most: usize,
    },
    /// The address could not be put on an interface.
    #[error("address {address} is not on this machine and cannot be added: {problem}")]
    AddressNotAdded {
        /// Which.
        address: IpAddr,
        /// Why, and what to do.
        problem: Arc<str>,
    },
    /// kube-proxy takes what comes for this frontend before we see it.
    #[error(
        "{frontend}: kube-proxy takes what comes there, for {holder} has this node port: this appliance listens and hears nothing, and its source ranges, limits and counters do not apply. Front at an address that is no node's, or at a port that is no node port"
    )]
    TakenByKubeProxy {
        /// Which.
        frontend: FrontendKey,
        /// Whose node port it is.
        holder: Key,
    },
    /// A worker could not open a listener.
    #[error("{frontend} is not listening: {problem}")]
    NotListening {
        /// Which.
        frontend: FrontendKey,
        /// The bind error, which says what to do.
        problem: Arc<str>,
    },
    /// Listeners do not fit the descriptor limit.
    #[error(
        "{frontend} does not fit this process's descriptor limit ({limit}); raise LimitNOFILE or use fewer workers"
    )]
    DescriptorLimit {
        /// Which.
        frontend: FrontendKey,
        /// The limit.
        limit: u64,
    },
    /// A document of this object, or of an EndpointSlice of it, does not parse; the last good one,
    /// if there is one, is used.
    #[error("{problem}")]
    StaleObject {
        /// With file, line and column.
        problem: Arc<str>,
    },
    /// The object does not parse, and never did: nothing of it is used.
    #[error("{problem}")]
    Malformed {
        /// With file, line and column.
        problem: Arc<str>,
    },
    /// The same object stands in two places.
    #[error("{problem}")]
    DuplicateObject {
        /// With both places.
        problem: Arc<str>,
    },
    /// Another process holds the Lease, and has not published an address for it that this one can take.
    #[error(
        "another appliance holds the lease and gives the addresses: it has published none that is in a pool here and free"
    )]
    AddressGivenElsewhere,
    /// Another writes over what we write to the API server.
    #[error(
        "\"{rival}\" undoes what this appliance writes to the Service: the next try is after {pause}s, and ever later. Find out who it is (kubectl get service NAME -o yaml --show-managed-fields) and let one of the two serve this class"
    )]
    Contested {
        /// Who.
        rival: Arc<str>,
        /// Seconds.
        pause: u64,
    },
    /// What became of it cannot be written to the API server.
    #[error("cannot write to the API server: {problem}")]
    NotWritten {
        /// The verb and the resource, as the API server names them.
        problem: Arc<str>,
    },
    /// The API server does not let us list or watch something that it depends on.
    #[error(
        "the API server does not let Weir {verb} {resource}{place}: what was seen of these before is used, and nothing without; grant it (deploy/kubernetes/{file})"
    )]
    VerbMissing {
        /// list or watch.
        verb: &'static str,
        /// As RBAC names it.
        resource: &'static str,
        /// The namespace, with its leading space; "" for all.
        place: Arc<str>,
        /// What grants it.
        file: &'static str,
    },
    /// The Service vanished from a list that lost too many at once; it is held.
    #[error(
        "missing from the last list together with too many others: held until it returns or the deletion is confirmed ({CONFIRM})"
    )]
    HeldByDeletionGuard,
}

/// The nodes that may not be dialled, and what to do.
fn shown_out(out: &Out) -> String {
    let Out {
        excluded,
        deselected,
        unaddressed,
    } = out;
    let parts = [
        (
            *excluded,
            "kept out by the label node.kubernetes.io/exclude-from-external-load-balancers, which kubeadm gives control-plane nodes; remove it from those that may be dialled",
        ),
        (*deselected, "not taken by --node-selector"),
        (*unaddressed, "without an address that may be dialled"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let parts: Vec<String> = parts.map(|(count, why)| format!("{count} {why}")).collect();
    match parts.is_empty() {
        true => ": there is none".to_owned(),
        false => format!(": {}", parts.join("; ")),
    }
}

/// The code of each variant, and the list of them: one text, so that they cannot differ.
macro_rules! codes {
    ($($name:ident),* $(,)?) => {
        impl Reason {
            /// Every code, in the order of the variants.
            pub const CODES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// The stable code: the variant's name.
            pub fn code(&self) -> &'static str {
                match self { $(Reason::$name { .. } => stringify!($name)),* }
            }
        }
    };
}

codes!(
    NotALoadBalancer,
    ForeignClass,
    RivalProvider,
    Ignored,
    Deleting,
    ForeignServiceProxy,
    NotSupported,
    NoPorts,
    NoNodePort,
    PortProtocolNotSupported,
    DuplicatePort,
    BadSourceRange,
    FamilyDenied,
    BadAnnotation,
    AnnotationIgnored,
    BadAddressRequest,
    ConflictingRequest,
    EndpointRefused,
    MoreEndpointsRefused,
    PortNameMismatch,
    NoUsableEndpoint,
    UnhealthyEndpoints,
    NoHealthyEndpoint,
    EndpointsNotChecked,
    OnlyTerminatingEndpoints,
    CrossFamily,
    ClientAddressNotKept,
    NoPool,
    PoolExhausted,
    UnknownPool,
    AddressNotInPool,
    AddressTaken,
    NodesUnknown,
    NoEligibleNode,
    NoHealthyNode,
    PodsUnreachable,
    NoFallback,
    AffinityAtNodes,
    AddressOutsidePools,
    RequestedFamily,
    SharingRefused,
    FrontendTaken,
    FrontendInvalid,
    TooManyBackends,
    MaglevTooManyPorts,
    MaglevPoolTooLarge,
    AddressNotAdded,
    TakenByKubeProxy,
    NotListening,
    DescriptorLimit,
    StaleObject,
    Malformed,
    DuplicateObject,
    AddressGivenElsewhere,
    Contested,
    NotWritten,
    VerbMissing,
    HeldByDeletionGuard,
);

impl Reason {
    /// What it does to traffic.
    pub fn severity(&self) -> Severity {
        order::place(self).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_says_every_way_to_confirm() {
        let text = Reason::HeldByDeletionGuard.to_string();
        for way in [
            "POST /api/v1/deletions/confirm",
            "SIGHUP twice",
            "--confirm-deletions",
        ] {
            assert!(text.contains(way), "{text}");
        }
    }

    #[test]
    fn every_code_is_listed_once() {
        let reason = Reason::ClientAddressNotKept;
        assert!(Reason::CODES.contains(&reason.code()));
        let mut codes = Reason::CODES.to_vec();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::CODES.len());
    }
}
