//! Weir as the LoadBalancer provider of a real cluster: what `kubectl` shows, and what clients get. Tests
//! are named after the upstream e2e that they stand for (faults.md 1.1), where there is one. Each has a
//! cluster of its own, since each starts and stops appliances; cases that can share one are in `services`.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod outages;
mod ownership;
mod rivals;

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use support::cluster::stage::{Stage, ingress};
use support::cluster::{self, Pod};
use support::net::{pod_v4, pod_v6};
use support::traffic::ask;
use support::*;

impl Stage {
    /// A fresh one; none, with a line that says why, where no cluster can run.
    pub fn open() -> Option<Stage> {
        (!cluster::skip()).then(Stage::new)
    }

    pub fn pod(&self, n: u16, app: &str) -> Pod {
        let name = format!("{app}-{n}");
        let addresses = [pod_v4(n).into(), pod_v6(n).into()];
        self.cluster
            .pod("default", &name, &[("app", app)], "n1", &addresses)
    }

    pub fn service(&self, name: &str) -> Value {
        self.cluster.call("GET", &path(name), &Value::Null)
    }

    /// Waits for EXTERNAL-IP.
    #[track_caller]
    pub fn address(&self, name: &str) -> IpAddr {
        let found = self.wait(name, "it has an address", |service| {
            ingress(service).is_some()
        });
        ingress(&found).unwrap()
    }

    #[track_caller]
    pub fn wait(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.cluster.wait_for(what, &path(name), holds)
    }

    #[track_caller]
    pub fn apply(&self, service: &Value) {
        self.cluster.put(service);
    }

    /// A merge patch of a Service (`web`) or of its status (`web/status`).
    #[track_caller]
    pub fn patch(&self, name: &str, patch: &Value) {
        let patched = self.cluster.call("PATCH", &path(name), patch);
        assert!(!patched.is_null(), "{name}: there is none");
    }

    /// Deletes a Service, and does not wait until it is gone.
    pub fn delete(&self, name: &str) {
        self.cluster.call("DELETE", &path(name), &Value::Null);
    }

    pub fn ask(&self, address: IpAddr, port: u16) -> std::io::Result<String> {
        let to = SocketAddr::from((address, port));
        self.lab.client.run(move || ask(to))
    }

    pub fn eventually(
        &self,
        what: &str,
        address: IpAddr,
        holds: impl Fn(std::io::Result<String>) -> bool,
    ) {
        soon(what, || holds(self.ask(address, 80)));
    }

    /// How many lists of Services the API server sent as streams (KEP-3157).
    pub fn streamed_lists(&self) -> u64 {
        let metrics = self.cluster.kubectl(&["get", "--raw", "/metrics"]);
        let is_it = |line: &&str| {
            line.starts_with("apiserver_watch_list_duration_seconds_count{")
                && line.contains("resource=\"services\"")
        };
        let counts = metrics.lines().filter(is_it);
        counts
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// The reasons of a Service's events, oldest first.
    pub fn events(&self, name: &str) -> Vec<String> {
        self.cluster.told(name)
    }
}

fn soon(what: &str, holds: impl FnMut() -> bool) {
    eventually(what, cluster::CONVERGED, holds);
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/services/{name}")
}

/// A Service for the pods `app`.
pub fn balancer(name: &str, app: &str, class: Option<&str>) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"type": "LoadBalancer", "selector": {"app": app},
            "ports": [{"name": "tcp", "port": 80, "targetPort": 8080}]},
    });
    if let Some(class) = class {
        service["spec"]["loadBalancerClass"] = json!(class);
    }
    service
}
