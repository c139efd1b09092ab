//! Every setting, once. The doc comment of a field is its `--help` and its description in the
//! schema.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::values::{
    self, AdminAddress, BackendsName, Cidr, EngineName, HashKeyText, LogFormat, NodeSelector,
    PoolEntry, Span,
};

/// One layer of settings; what it does not say is `None` or empty.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    clap::Args,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Layer {
    /// Directory of Kubernetes manifests to serve (*.yaml, *.yml, *.json).
    #[arg(long, env = "WEIR_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// Serve the Services of the cluster that this kubeconfig's current context names.
    #[arg(long, env = "WEIR_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Serve the cluster that this runs in, by the pod's service account. Default: true in a pod,
    /// if neither manifests nor a kubeconfig are given.
    #[arg(long, env = "WEIR_IN_CLUSTER", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub in_cluster: Option<bool>,

    /// Watch these namespaces of the cluster alone. Repeatable. Default: all of them.
    #[arg(
        long = "namespaces",
        env = "WEIR_NAMESPACES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub namespaces: Vec<String>,

    /// Addresses to give to Services: CIDR, FIRST-LAST or one address, with NAME= before it if
    /// the pool has a name. Repeatable.
    #[arg(
        long = "pool",
        env = "WEIR_POOL",
        value_name = "[NAME=]RANGE",
        value_delimiter = ','
    )]
    pub pools: Vec<PoolEntry>,

    /// The admin listener: unix:PATH, or a loopback address and port, which only reads.
    /// Default: unix:/run/weir/admin.sock, or below XDG_RUNTIME_DIR where that cannot be made.
    #[arg(long, env = "WEIR_ADMIN", value_name = "ADDR|unix:PATH")]
    pub admin: Option<AdminAddress>,

    /// Where addresses given and the hash key are kept over restarts; made if missing.
    /// Default: /var/lib/weir, or below XDG_STATE_HOME where that cannot be made.
    #[arg(long, env = "WEIR_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Write one JSON file per Service here, saying what became of it. Default: none.
    #[arg(long, env = "WEIR_STATUS_DIR", value_name = "DIR")]
    pub status_dir: Option<PathBuf>,

    /// Worker threads. Default: one per CPU that this process may use.
    #[arg(long, env = "WEIR_WORKERS", value_name = "N", value_parser = values::workers)]
    #[serde(deserialize_with = "values::workers_in_file")]
    pub workers: Option<NonZeroUsize>,

    /// The I/O driver. Default: auto.
    #[arg(long, env = "WEIR_ENGINE", value_enum)]
    pub engine: Option<EngineName>,

    /// Bind each worker to a CPU of its own. Default: true.
    #[arg(long, env = "WEIR_PIN", value_name = "BOOL")]
    pub pin: Option<bool>,

    /// The loadBalancerClass served here. Default: weir.dev/l4.
    #[arg(long, env = "WEIR_CLASS", value_name = "CLASS")]
    pub class: Option<String>,

    /// Also serve Services without a loadBalancerClass. Default: true for a directory, false for a
    /// cluster.
    #[arg(long, env = "WEIR_DEFAULT_PROVIDER", value_name = "BOOL")]
    pub default_provider: Option<bool>,

    /// This appliance's topology zone, for hints in EndpointSlices. Default: none.
    #[arg(long, env = "WEIR_ZONE", value_name = "ZONE")]
    pub zone: Option<String>,

    /// Serve NodePort Services at this address and their node ports. Repeatable.
    #[arg(
        long = "node-port-address",
        env = "WEIR_NODE_PORT_ADDRESS",
        value_name = "ADDR",
        value_delimiter = ','
    )]
    pub node_port_addresses: Vec<IpAddr>,

    /// What is dialled for a Service that does not say (weir.dev/backends): its pods, nodes at its
    /// node ports, or auto: pods while they can be reached from here, else nodes. Default: pods.
    #[arg(long, env = "WEIR_BACKENDS", value_enum)]
    pub backends: Option<BackendsName>,

    /// The nodes that are dialled at node ports, as `kubectl get nodes -l` takes it. Default: all
    /// that no label keeps out of load balancers.
    #[arg(long, env = "WEIR_NODE_SELECTOR", value_name = "SELECTOR")]
    pub node_selector: Option<NodeSelector>,

    /// Put VIPs on this interface. Default: the one whose subnet holds the VIP, else lo.
    #[arg(long, env = "WEIR_VIP_INTERFACE", value_name = "NAME")]
    pub vip_interface: Option<String>,

    /// Allow endpoints in this range, though a rule would refuse them (loopback, link-local, ..).
    /// Repeatable.
    #[arg(
        long = "allow-endpoints",
        env = "WEIR_ALLOW_ENDPOINTS",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    pub allow_endpoints: Vec<Cidr>,

    /// Dial backends from this address of the machine: several have several times the ports.
    /// Repeatable. Default: the kernel's choice.
    #[arg(
        long = "source-address",
        env = "WEIR_SOURCE_ADDRESS",
        value_name = "ADDR",
        value_delimiter = ','
    )]
    pub source_addresses: Vec<IpAddr>,

    /// Key of the consistent hash; give several appliances the same one and they agree.
    /// Default: random, kept in the state directory.
    #[arg(
        long,
        env = "WEIR_HASH_KEY",
        value_name = "HEX",
        hide_env_values = true
    )]
    pub hash_key: Option<HashKeyText>,

    /// Let deletions happen that the mass-deletion guard would hold (more than half and at least
    /// five of the Services missing from one list). Default: false.
    #[arg(long, env = "WEIR_CONFIRM_DELETIONS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub confirm_deletions: Option<bool>,

    /// Time for open connections to end by themselves at shutdown. Default: 30s.
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", value_name = "TIME")]
    pub drain_timeout: Option<Span>,

    /// Deadline of one attempt to connect to a backend. Default: 250ms.
    #[arg(long, env = "WEIR_CONNECT_TIMEOUT", value_name = "TIME")]
    pub connect_timeout: Option<Span>,

    /// Deadline of all attempts for one connection. Default: 3s.
    #[arg(long, env = "WEIR_CONNECT_BUDGET", value_name = "TIME")]
    pub connect_budget: Option<Span>,

    /// Close a TCP connection without a byte either way after this; 0s: never. Default: 1h.
    #[arg(long, env = "WEIR_IDLE_TIMEOUT", value_name = "TIME")]
    pub idle_timeout: Option<Span>,

    /// As idle-timeout, once one side has ended its direction. Default: 5m.
    #[arg(long, env = "WEIR_HALF_CLOSE_TIMEOUT", value_name = "TIME")]
    pub half_close_timeout: Option<Span>,

    /// Give up a TCP peer that acknowledges nothing for this long, be it gone or its window shut:
    /// a reader may pause no longer. 1s to 24h. Default: 15m.
    #[arg(long, env = "WEIR_PEER_TIMEOUT", value_name = "TIME")]
    pub peer_timeout: Option<Span>,

    /// Let new connections wait, and open no UDP flow, from this share of the memory on that the
    /// process, the machine or TCP may use, in percent: 50 to 99, 0: never. Default: 90.
    #[arg(long, env = "WEIR_MEMORY_STOP", value_name = "PERCENT")]
    pub memory_stop: Option<u8>,

    /// Close those connections, too, that have been idle for the longest, from this share on; not
    /// below memory-stop. Default: 95.
    #[arg(long, env = "WEIR_MEMORY_SHED", value_name = "PERCENT")]
    pub memory_shed: Option<u8>,

    /// Forget a UDP flow that saw no reply after this. Default: 30s.
    #[arg(long, env = "WEIR_FLOW_ONE_WAY_TIMEOUT", value_name = "TIME")]
    pub flow_one_way_timeout: Option<Span>,

    /// Forget a UDP flow that saw a reply after this. Default: 120s.
    #[arg(long, env = "WEIR_FLOW_TWO_WAY_TIMEOUT", value_name = "TIME")]
    pub flow_two_way_timeout: Option<Span>,

    /// How log lines look. Default: auto.
    #[arg(long, env = "WEIR_LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,

    /// Which lines are logged: error, warn, info, debug, trace, or target=level pairs.
    /// Default: info.
    #[arg(long, env = "WEIR_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}
