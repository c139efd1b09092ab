//! The layers laid over each other and over the defaults.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use admin_api::Address;
use controlplane::allocate::{PoolError, Pools};
use controlplane::compile::Defaults;
use controlplane::source::kubernetes::Access;
use lb_core::plane::memory::{WatermarkError, Watermarks};

use super::layer::Layer;
use super::values::{
    AdminAddress, BackendsName, Cidr, EngineName, HashKeyText, LogFormat, NodeSelector, PoolEntry,
    Span,
};

/// The settings that run.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub manifests: Option<PathBuf>,
    pub kubeconfig: Option<PathBuf>,
    pub in_cluster: bool,
    pub namespaces: Vec<String>,
    pub pools: Vec<PoolEntry>,
    /// `None`: the first of the default places that can be made.
    pub admin: Option<AdminAddress>,
    /// As `admin`.
    pub state_dir: Option<PathBuf>,
    pub status_dir: Option<PathBuf>,
    /// `None`: one per CPU.
    pub workers: Option<NonZeroUsize>,
    pub engine: EngineName,
    pub pin: bool,
    pub class: String,
    pub default_provider: bool,
    pub zone: Option<String>,
    pub node_port_addresses: Vec<IpAddr>,
    pub backends: BackendsName,
    pub node_selector: Option<NodeSelector>,
    pub vip_interface: Option<String>,
    pub allow_endpoints: Vec<Cidr>,
    pub source_addresses: Vec<IpAddr>,
    /// `None`: the one in the state directory.
    pub hash_key: Option<HashKeyText>,
    pub confirm_deletions: bool,
    pub drain_timeout: Duration,
    pub connect_timeout: Duration,
    pub connect_budget: Duration,
    pub idle_timeout: Duration,
    pub half_close_timeout: Duration,
    pub peer_timeout: Duration,
    /// Percent of a limit; 0: never.
    pub memory_stop: u8,
    /// As `memory_stop`.
    pub memory_shed: u8,
    pub flow_one_way_timeout: Duration,
    pub flow_two_way_timeout: Duration,
    pub log_format: LogFormat,
    pub log: String,
}

impl Settings {
    /// `over` (flags and environment) laid over `under` (the file). A list is taken whole from
    /// the upper layer that has one.
    pub fn new(over: Layer, under: Layer) -> Settings {
        let Layer {
            manifests,
            kubeconfig,
            in_cluster,
            namespaces,
            pools,
            admin,
            state_dir,
            status_dir,
            workers,
            engine,
            pin,
            class,
            default_provider,
            zone,
            node_port_addresses,
            backends,
            node_selector,
            vip_interface,
            allow_endpoints,
            source_addresses,
            hash_key,
            confirm_deletions,
            drain_timeout,
            connect_timeout,
            connect_budget,
            idle_timeout,
            half_close_timeout,
            peer_timeout,
            memory_stop,
            memory_shed,
            flow_one_way_timeout,
            flow_two_way_timeout,
            log_format,
            log,
        } = over;
        let seconds = |value: Option<Span>, below: Option<Span>, default: u64| {
            value
                .or(below)
                .map_or(Duration::from_secs(default), |s| s.0)
        };
        let millis = Duration::from_millis(250);
        let kubeconfig = kubeconfig.or(under.kubeconfig);
        let in_cluster = in_cluster.or(under.in_cluster).unwrap_or(false);
        // In a cluster somebody else may serve what has no class.
        let of_a_cluster = in_cluster || kubeconfig.is_some();
        Settings {
            manifests: manifests.or(under.manifests),
            kubeconfig,
            in_cluster,
            namespaces: whole(namespaces, under.namespaces),
            pools: whole(pools, under.pools),
            admin: admin.or(under.admin),
            state_dir: state_dir.or(under.state_dir),
            status_dir: status_dir.or(under.status_dir),
            workers: workers.or(under.workers),
            engine: engine.or(under.engine).unwrap_or(EngineName::Auto),
            pin: pin.or(under.pin).unwrap_or(true),
            class: class
                .or(under.class)
                .unwrap_or_else(|| "weir.dev/l4".to_owned()),
            default_provider: default_provider
                .or(under.default_provider)
                .unwrap_or(!of_a_cluster),
            zone: zone.or(under.zone),
            node_port_addresses: whole(node_port_addresses, under.node_port_addresses),
            backends: backends.or(under.backends).unwrap_or(BackendsName::Pods),
            node_selector: node_selector.or(under.node_selector),
            vip_interface: vip_interface.or(under.vip_interface),
            allow_endpoints: whole(allow_endpoints, under.allow_endpoints),
            source_addresses: whole(source_addresses, under.source_addresses),
            hash_key: hash_key.or(under.hash_key),
            confirm_deletions: confirm_deletions
                .or(under.confirm_deletions)
                .unwrap_or(false),
            drain_timeout: seconds(drain_timeout, under.drain_timeout, 30),
            connect_timeout: connect_timeout
                .or(under.connect_timeout)
                .map_or(millis, |s| s.0),
            connect_budget: seconds(connect_budget, under.connect_budget, 3),
            idle_timeout: seconds(idle_timeout, under.idle_timeout, 3_600),
            half_close_timeout: seconds(half_close_timeout, under.half_close_timeout, 300),
            peer_timeout: seconds(peer_timeout, under.peer_timeout, 900),
            memory_stop: memory_stop.or(under.memory_stop).unwrap_or(90),
            memory_shed: memory_shed.or(under.memory_shed).unwrap_or(95),
            flow_one_way_timeout: seconds(flow_one_way_timeout, under.flow_one_way_timeout, 30),
            flow_two_way_timeout: seconds(flow_two_way_timeout, under.flow_two_way_timeout, 120),
            log_format: log_format.or(under.log_format).unwrap_or(LogFormat::Auto),
            log: log.or(under.log).unwrap_or_else(|| "info".to_owned()),
        }
    }
}

impl Settings {
    /// What the demo runs on: loopback alone, and nothing outside of these three places.
    ///
    /// # Errors
    ///
    /// `endpoints` is no address range.
    pub fn demo(
        manifests: &Path,
        state_dir: &Path,
        admin: &Path,
        vip: IpAddr,
        endpoints: &str,
    ) -> anyhow::Result<Settings> {
        let layer = Layer {
            manifests: Some(manifests.to_owned()),
            state_dir: Some(state_dir.to_owned()),
            admin: Some(AdminAddress(Address::Unix(admin.to_owned()))),
            pools: vec![vip.to_string().parse().map_err(anyhow::Error::msg)?],
            allow_endpoints: vec![endpoints.parse().map_err(anyhow::Error::msg)?],
            ..Layer::default()
        };
        Ok(Settings::new(layer, Layer::default()))
    }

    /// Where memory is short.
    ///
    /// # Errors
    ///
    /// They cannot work.
    pub fn watermarks(&self) -> Result<Watermarks, WatermarkError> {
        Watermarks::new(self.memory_stop, self.memory_shed)
    }

    /// How the API server is reached, if there is one to serve.
    pub fn access(&self) -> Option<Access> {
        match &self.kubeconfig {
            Some(kubeconfig) => Some(Access::Kubeconfig(kubeconfig.clone())),
            None => self.in_cluster.then_some(Access::InCluster),
        }
    }

    /// Addresses that are this appliance's own and never a Service's: node-port fronts, those that
    /// backends are dialled from, and the admin listener.
    pub fn own_addresses(&self) -> Vec<IpAddr> {
        let mut own = self.node_port_addresses.clone();
        own.extend(&self.source_addresses);
        if let Some(AdminAddress(Address::Loopback(address))) = &self.admin {
            own.push(address.ip());
        }
        own
    }

    /// Ranges of one name are one pool; those without a name are one each, in the order given.
    /// Addresses of `own` are given to nobody.
    ///
    /// # Errors
    ///
    /// Two ranges overlap, or two pools have one name.
    pub fn pools(&self, own: Vec<IpAddr>) -> Result<Pools, PoolError> {
        let mut given: Vec<(Option<Arc<str>>, Vec<_>)> = Vec::new();
        for entry in &self.pools {
            let name: Option<Arc<str>> = entry.name.as_deref().map(Arc::from);
            let same = given
                .iter_mut()
                .find(|(other, _)| name.is_some() && *other == name);
            match same {
                Some((_, ranges)) => ranges.push(entry.range),
                None => given.push((name, vec![entry.range])),
            }
        }
        Pools::new(given, own)
    }

    /// What a Service that does not say otherwise gets.
    pub fn defaults(&self) -> Defaults {
        Defaults {
            connect_timeout: self.connect_timeout,
            connect_budget: self.connect_budget,
            idle_timeout: self.idle_timeout,
            half_close_timeout: self.half_close_timeout,
            flow_one_way_timeout: self.flow_one_way_timeout,
            flow_two_way_timeout: self.flow_two_way_timeout,
        }
    }
}

fn whole<T>(over: Vec<T>, under: Vec<T>) -> Vec<T> {
    if over.is_empty() { under } else { over }
}
