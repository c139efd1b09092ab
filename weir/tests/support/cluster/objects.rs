//! What kubelets do to the objects of a cluster, and what its controller makes of them.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{CONVERGED, Cluster};

/// A Pod that the test has made.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    addresses: Vec<IpAddr>,
}

impl Pod {
    /// Where it is on the API server.
    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.name)
    }
}

/// One address of an EndpointSlice. A condition that is absent reads as its default (true, true,
/// false).
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct Endpoint {
    /// Of the slice's address family.
    pub address: IpAddr,
    /// May have new connections.
    pub ready: bool,
    /// Answers, even if it is about to end.
    pub serving: bool,
    /// Its Pod is being deleted.
    pub terminating: bool,
    /// The Node that it is on.
    pub node: Option<String>,
}

impl Cluster {
    /// Makes a Node that is ready, with these InternalIPs (one of each family at most).
    #[track_caller]
    pub fn node(&self, name: &str, internal_ips: &[IpAddr], labels: &[(&str, &str)]) {
        self.put(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": object(labels)},
        }));
        let internal = |ip| json!({"type": "InternalIP", "address": ip});
        let addresses: Vec<Value> = internal_ips.iter().map(internal).collect();
        let status = json!({"addresses": addresses, "conditions": [condition("Ready", true)]});
        self.patch_status(&format!("/api/v1/nodes/{name}"), &status);
    }

    /// The reasons of Weir's events about a Service, oldest first.
    pub fn told(&self, service: &str) -> Vec<String> {
        let field = format!("involvedObject.kind=Service,involvedObject.name={service}");
        let all = self.get(&["events", "--field-selector", &field]);
        let items = all["items"].as_array().unwrap().iter();
        items
            .filter(|event| event["source"]["component"] == "weir")
            .map(|event| event["reason"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Makes a Pod on a Node that runs and is ready, with these addresses (one of each family at
    /// most).
    #[track_caller]
    pub fn pod(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        node: &str,
        addresses: &[IpAddr],
    ) -> Pod {
        let pod = self.starting_pod(namespace, name, labels, node, addresses);
        self.set_ready(&pod, true);
        pod
    }

    /// As [`Cluster::pod`], but nothing is said of its state yet: see [`Cluster::set_ready`].
    #[track_caller]
    pub fn starting_pod(
        &self,
        namespace: &str,
        name: &str,
        labels: &[(&str, &str)],
        node: &str,
        addresses: &[IpAddr],
    ) -> Pod {
        self.put(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": object(labels)},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "none"}]},
        }));
        Pod {
            namespace: namespace.into(),
            name: name.into(),
            addresses: addresses.to_vec(),
        }
    }

    /// Reports the Pod ready or not, as its kubelet would when a probe changes its mind. A Pod
    /// that is being deleted can go on being ready: it is then serving and terminating. Of two changes
    /// within a second the controller dates the first alone (last-change-trigger-time).
    #[track_caller]
    pub fn set_ready(&self, pod: &Pod, ready: bool) {
        let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({
            "phase": "Running",
            "podIP": pod.addresses.first(),
            "podIPs": ips,
            "conditions": [condition("Ready", ready), condition("ContainersReady", ready)],
        });
        self.patch_status(&pod.path(), &status);
    }

    /// Ends the Pod as a kubelet that needs its memory does: it is there, and has failed.
    #[track_caller]
    pub fn evict(&self, pod: &Pod) {
        let status = json!({
            "phase": "Failed", "reason": "Evicted",
            "conditions": [condition("Ready", false), condition("ContainersReady", false)],
        });
        self.patch_status(&pod.path(), &status);
    }

    /// Deletes the Pod. With a grace period (whole seconds) it is there, terminating, until
    /// [`Cluster::end_pod`]: no kubelet ends it.
    #[track_caller]
    pub fn delete_pod(&self, pod: &Pod, grace: Duration) {
        if grace.is_zero() {
            return self.end_pod(pod);
        }
        self.delete(pod, grace.as_secs());
    }

    /// Removes the Pod at once, as its kubelet does when its containers have ended.
    #[track_caller]
    pub fn end_pod(&self, pod: &Pod) {
        self.delete(pod, 0);
    }

    /// All endpoints of a Service, from all its EndpointSlices, by address.
    #[track_caller]
    pub fn endpoints(&self, namespace: &str, service: &str) -> Vec<Endpoint> {
        let list = self.call(
            "GET",
            &format!(
                "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices\
                 ?labelSelector=kubernetes.io/service-name%3D{service}"
            ),
            &Value::Null,
        );
        let mut all: Vec<Endpoint> = array(&list["items"])
            .iter()
            .flat_map(|slice| array(&slice["endpoints"]))
            .map(endpoint)
            .collect();
        all.sort_by_key(|endpoint| endpoint.address);
        all
    }

    /// Waits until the endpoints of a Service satisfy `holds`, within [`CONVERGED`]; they.
    #[track_caller]
    pub fn wait_endpoints(
        &self,
        namespace: &str,
        service: &str,
        what: &str,
        holds: impl Fn(&[Endpoint]) -> bool,
    ) -> Vec<Endpoint> {
        let deadline = Instant::now() + CONVERGED;
        loop {
            let found = self.endpoints(namespace, service);
            if holds(&found) {
                return found;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "{service}: never {what}: {found:#?}{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[track_caller]
    fn delete(&self, pod: &Pod, grace_seconds: u64) {
        let path = format!("{}?gracePeriodSeconds={grace_seconds}", pod.path());
        let deleted = self.call("DELETE", &path, &Value::Null);
        assert!(!deleted.is_null(), "{path}: there is none");
    }

    #[track_caller]
    fn patch_status(&self, path: &str, status: &Value) {
        let patched = self.call(
            "PATCH",
            &format!("{path}/status"),
            &json!({"status": status}),
        );
        assert!(!patched.is_null(), "{path}: there is none");
    }
}

fn endpoint(json: &Value) -> Endpoint {
    let condition = |name, default| json["conditions"][name].as_bool().unwrap_or(default);
    Endpoint {
        address: json["addresses"][0].as_str().unwrap().parse().unwrap(),
        ready: condition("ready", true),
        serving: condition("serving", true),
        terminating: condition("terminating", false),
        node: json["nodeName"].as_str().map(str::to_owned),
    }
}

fn condition(kind: &str, holds: bool) -> Value {
    let status = if holds { "True" } else { "False" };
    // The controller takes from here when the endpoints changed (last-change-trigger-time).
    json!({"type": kind, "status": status, "lastTransitionTime": now()})
}

/// This second, as Kubernetes writes it.
fn now() -> String {
    let date = Command::new("date")
        .args(["-u", "+%FT%TZ"])
        .output()
        .unwrap();
    String::from_utf8(date.stdout).unwrap().trim().into()
}

fn object(labels: &[(&str, &str)]) -> Value {
    let pairs = labels
        .iter()
        .map(|(key, value)| (key.to_string(), json!(value)));
    Value::Object(pairs.collect())
}

fn array(json: &Value) -> &[Value] {
    json.as_array().map(Vec::as_slice).unwrap_or_default()
}
