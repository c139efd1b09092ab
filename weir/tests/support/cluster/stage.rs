//! A cluster whose API server stands in the appliance's namespace, and appliances that serve it.

use std::net::IpAddr;

use serde_json::Value;

use super::super::eventually;
use super::super::net::{Lab, POOL_V4, POOL_V6};
use super::super::weir::{Start, Weir};
use super::{CONVERGED, Cluster};

const RBAC: &str = include_str!("../../../../deploy/kubernetes/rbac.yaml");
/// The fixture's user, bound to what the appliance's account is bound to.
const BINDINGS: &str = include_str!("appliance.yaml");

/// The class of the appliances here.
pub const CLASS: &str = "weir.dev/l4";
/// The finalizer of their Services.
pub const FINALIZER: &str = "weir.dev/load-balancer";

/// A cluster with a Node `n1`, and the laboratory that it stands in.
pub struct Stage {
    pub cluster: Cluster,
    pub lab: Lab,
}

impl Stage {
    #[track_caller]
    pub fn new() -> Stage {
        let lab = Lab::new();
        let cluster = Cluster::start_in(&lab.lb, [10, 2, 0, 1].into());
        cluster.apply(RBAC);
        cluster.apply(BINDINGS);
        cluster.node("n1", &[[10, 2, 0, 2].into()], &[]);
        Stage { cluster, lab }
    }

    /// An appliance with the laboratory's pools.
    #[track_caller]
    pub fn weir(&self, args: &[&str]) -> Weir {
        self.weir_again(Weir::prepare(), args)
    }

    /// One in the directories of another.
    #[track_caller]
    pub fn weir_again(&self, start: Start, args: &[&str]) -> Weir {
        self.prepare(start, args).launch(&self.lab.lb)
    }

    /// One that is not waited for: it cannot become ready.
    #[track_caller]
    pub fn weir_unready(&self) -> Weir {
        let weir = self.prepare(Weir::prepare(), &[]).spawn(&self.lab.lb);
        eventually("its admin listener", CONVERGED, || weir.admin_answers());
        weir
    }

    fn prepare(&self, start: Start, args: &[&str]) -> Start {
        start
            .without_manifests()
            .arg("--kubeconfig")
            .arg(self.cluster.appliance().display())
            .args(["--pool", POOL_V4, "--pool", POOL_V6])
            .args(args.iter().copied())
    }
}

/// The first address of a Service's status.
pub fn ingress(service: &Value) -> Option<IpAddr> {
    let ip = &service["status"]["loadBalancer"]["ingress"][0]["ip"];
    ip.as_str()?.parse().ok()
}

/// A Service's finalizers.
pub fn finalizers(service: &Value) -> Vec<&str> {
    let all = service["metadata"]["finalizers"].as_array();
    all.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// A Service's condition of a type.
pub fn condition<'a>(service: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = service["status"]["conditions"].as_array()?;
    all.iter().find(|condition| condition["type"] == kind)
}
