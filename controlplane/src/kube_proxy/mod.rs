//! kube-proxy on this machine takes what comes for a node port before any socket sees it: an appliance on a node of the
//! cluster may listen there, and hears nothing. It owns no socket, hence nothing fails. PURE but for `ask`.
//!
//! | kube-proxy here, in mode | takes a node port at |
//! |---|---|
//! | iptables, ipvs | every address of the machine, a VIP too |
//! | nftables | the node's own addresses (KEP-3866) |
//!
//! An address of a node is never ours to serve at a node port, whoever says so and wherever we are.

mod ask;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU16;

use lb_core::table::{FrontendKey, Protocol};

pub(crate) use self::ask::start;
use crate::annotations::LABEL_SERVICE_PROXY_NAME;
use crate::object::{Key, PortProtocol, Service, ServiceType};
use crate::reason::Reason;

/// Where kube-proxy takes node ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// At every address of the machine.
    Everywhere,
    /// At the node's own.
    OwnAddresses,
}

/// A node port.
pub(crate) type NodePort = (NonZeroU16, Protocol);

/// What is known of kube-proxy here, and of what it serves.
#[derive(Debug, Default)]
pub(crate) struct KubeProxy {
    /// How it works on this machine; `None`: it was not heard of.
    pub mode: Option<Mode>,
    /// The addresses of all nodes, as far as these are known.
    pub nodes: BTreeSet<IpAddr>,
    fronted: Vec<IpAddr>,
    holders: BTreeMap<NodePort, BTreeSet<Key>>,
    ports: BTreeMap<Key, Vec<NodePort>>,
}

impl KubeProxy {
    /// We front Services at their node ports at these addresses: the machine's own, most likely.
    pub(crate) fn new(fronted: Vec<IpAddr>) -> KubeProxy {
        KubeProxy {
            fronted,
            ..KubeProxy::default()
        }
    }

    /// Notes the node ports of `key`, which is gone if there is no Service. Those that changed hands.
    pub(crate) fn note(&mut self, key: &Key, service: Option<&Service>) -> BTreeSet<NodePort> {
        let now = service.map(node_ports).unwrap_or_default();
        let before = self.ports.get(key).map_or(&[][..], Vec::as_slice);
        if before == now {
            return BTreeSet::new();
        }
        let before = before.to_vec();
        for port in &before {
            if let Some(holders) = self.holders.get_mut(port) {
                holders.remove(key);
                if holders.is_empty() {
                    self.holders.remove(port);
                }
            }
        }
        for port in &now {
            let holders = self.holders.entry(*port).or_default();
            holders.insert(key.clone());
        }
        let changed = before.into_iter().chain(now.iter().copied()).collect();
        match now.is_empty() {
            true => drop(self.ports.remove(key)),
            false => drop(self.ports.insert(key.clone(), now)),
        }
        changed
    }

    /// Could anything be taken at all?
    pub(crate) fn is_there(&self) -> bool {
        self.mode.is_some() || !self.nodes.is_empty()
    }

    /// Why `frontend` is not heard here, if kube-proxy takes it.
    pub(crate) fn takes(&self, frontend: &FrontendKey) -> Option<Reason> {
        let holders = self.holders.get(&(frontend.port, frontend.protocol))?;
        let holder = holders.first()?;
        self.takes_at(frontend.address)
            .then(|| Reason::TakenByKubeProxy {
                frontend: *frontend,
                holder: holder.clone(),
            })
    }

    fn takes_at(&self, address: IpAddr) -> bool {
        let is_a_nodes = self.nodes.contains(&address);
        match self.mode {
            _ if is_a_nodes => true,
            Some(Mode::Everywhere) => true,
            // Who may not read nodes knows of its own by what it is told to front at.
            Some(Mode::OwnAddresses) => self.nodes.is_empty() && self.fronted.contains(&address),
            None => false,
        }
    }
}

/// What kube-proxy serves of it.
fn node_ports(service: &Service) -> Vec<NodePort> {
    let has_some = matches!(
        service.kind,
        ServiceType::NodePort | ServiceType::LoadBalancer
    );
    if !has_some || service.meta.labels.contains_key(LABEL_SERVICE_PROXY_NAME) {
        return Vec::new();
    }
    let ports = service.ports.iter().filter_map(|port| {
        let protocol = match port.protocol {
            PortProtocol::Tcp => Protocol::Tcp,
            PortProtocol::Udp => Protocol::Udp,
            PortProtocol::Sctp => return None,
        };
        Some((port.node_port?, protocol))
    });
    ports.collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::object::{Object, SourceId};
    use crate::source::parse::Reader;

    fn service(name: &str, kind: &str, protocol: &str, node_port: u16) -> Arc<Service> {
        let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": kind, "ports": [{"port": 80, "protocol": protocol, "nodePort": node_port}]}});
        match Reader::new(SourceId(0), Arc::default()).object(&value, None) {
            Ok(Object::Service(service)) => service,
            other => panic!("{other:?}"),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn frontend(address: &str, port: u16, protocol: Protocol) -> FrontendKey {
        FrontendKey {
            address: ip(address),
            port: NonZeroU16::new(port).expect("not 0"),
            protocol,
        }
    }

    fn note(proxy: &mut KubeProxy, service: &Service) -> usize {
        proxy.note(&service.meta.key, Some(service)).len()
    }

    #[test]
    fn k22_what_kube_proxy_takes_by_its_mode_and_the_address() {
        let node = "10.0.0.1";
        let (own, vip) = ("10.0.0.2", "192.0.2.1");
        let own_only = Some(Mode::OwnAddresses);
        let everywhere = Some(Mode::Everywhere);
        for (mode, nodes, address, taken) in [
            (None, &[][..], own, false),
            (None, &[][..], vip, false),
            (None, &[node][..], node, true),
            (None, &[node][..], vip, false),
            (everywhere, &[][..], own, true),
            (everywhere, &[][..], vip, true),
            (everywhere, &[node][..], vip, true),
            (own_only, &[][..], own, true),
            (own_only, &[][..], vip, false),
            (own_only, &[node][..], node, true),
            (own_only, &[node][..], own, false),
            (own_only, &[node][..], vip, false),
        ] {
            let mut proxy = KubeProxy {
                mode,
                nodes: nodes.iter().map(|address| ip(address)).collect(),
                fronted: vec![ip(own)],
                ..KubeProxy::default()
            };
            assert_eq!(
                note(&mut proxy, &service("web", "NodePort", "TCP", 30_080)),
                1
            );
            let takes = |port, protocol| proxy.takes(&frontend(address, port, protocol)).is_some();
            assert_eq!(
                takes(30_080, Protocol::Tcp),
                taken,
                "{mode:?} {nodes:?} {address}"
            );
            assert!(!takes(30_080, Protocol::Udp) && !takes(80, Protocol::Tcp));
        }
    }

    #[test]
    fn node_ports_come_and_go_with_their_services() {
        let mut proxy = KubeProxy {
            mode: Some(Mode::Everywhere),
            ..KubeProxy::default()
        };
        let at = frontend("192.0.2.1", 30_080, Protocol::Udp);
        let web = service("web", "LoadBalancer", "UDP", 30_080);
        assert_eq!(note(&mut proxy, &web), 1);
        assert_eq!(note(&mut proxy, &web), 0, "nothing is new");
        let holder = match proxy.takes(&at) {
            Some(Reason::TakenByKubeProxy { holder, .. }) => holder,
            other => panic!("{other:?}"),
        };
        assert_eq!(holder, web.meta.key);
        assert_eq!(
            note(&mut proxy, &service("web", "LoadBalancer", "UDP", 30_081)),
            2
        );
        assert_eq!(proxy.takes(&at), None);
        assert_eq!(proxy.note(&web.meta.key, None).len(), 1);
        assert!(proxy.holders.is_empty() && proxy.ports.is_empty());
        // These have none that kube-proxy serves.
        for (kind, protocol, port) in [
            ("ClusterIP", "TCP", 1),
            ("NodePort", "SCTP", 1),
            ("NodePort", "TCP", 0),
        ] {
            assert_eq!(note(&mut proxy, &service("other", kind, protocol, port)), 0);
        }
        let mut other = Service::clone(&service("other", "NodePort", "TCP", 7));
        other
            .meta
            .labels
            .insert(LABEL_SERVICE_PROXY_NAME.into(), "x".into());
        assert_eq!(note(&mut proxy, &other), 0, "another proxy's");
    }
}
