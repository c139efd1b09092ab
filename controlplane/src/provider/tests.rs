//! The pure parts: what is written next, in which words, when, and what is told.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::Intent;
use super::events::Story;
use super::patch::patch;
use super::plan::{Step, next};
use super::queue::Queue;
use crate::load_balancer::EndpointCounts;
use crate::object::{CLEANUP_FINALIZER, FINALIZER, Key, Object, Service, SourceId};
use crate::reason::Reason;
use crate::source::parse::Reader;
use crate::status::{ServiceStatus, State};

const NOW: &str = "2026-11-25T12:00:00Z";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(super) fn read(value: &serde_json::Value) -> Arc<Service> {
    let mut reader = Reader::new(SourceId(0), Arc::default()).with_status();
    match reader.object(value, None) {
        Ok(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

/// A Service as the API server has it; patches are applied to it as that would.
struct Server {
    value: serde_json::Value,
}

impl Server {
    fn with(spec: serde_json::Value) -> Server {
        let mut value = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": "shop", "name": "web", "uid": "u-1", "generation": 1,
                "finalizers": ["example.com/other"],
            },
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}]},
            "status": {"loadBalancer": {}, "conditions": [{"type": "example.com/Other", "status": "True"}]},
        });
        for (field, what) in spec.as_object().expect("a mapping") {
            value["spec"][field] = what.clone();
        }
        Server { value }
    }

    fn service(&self) -> Arc<Service> {
        read(&self.value)
    }

    /// A strategic merge patch, as far as ours go.
    fn apply(&mut self, step: &Step) {
        let service = self.service();
        let patch = patch(&service, step, NOW);
        assert_eq!(
            patch.body["metadata"]["uid"], "u-1",
            "a Service made anew refuses it"
        );
        let is_status = patch
            .path
            .ends_with("/services/web/status?fieldManager=weir");
        assert_eq!(is_status, matches!(step, Step::Publish(_)));
        let finalizers = self.value["metadata"]["finalizers"]
            .as_array_mut()
            .expect("a list");
        for added in patch.body["metadata"]["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
        {
            finalizers.push(added.clone());
        }
        let gone = &patch.body["metadata"]["$deleteFromPrimitiveList/finalizers"];
        finalizers.retain(|f| !gone.as_array().is_some_and(|gone| gone.contains(f)));
        let status = &patch.body["status"];
        if let Some(ingress) = status["loadBalancer"].get("ingress") {
            self.value["status"]["loadBalancer"]["ingress"] = ingress.clone();
        }
        let conditions = self.value["status"]["conditions"]
            .as_array_mut()
            .expect("a list");
        for condition in status["conditions"].as_array().into_iter().flatten() {
            conditions.retain(|c| c["type"] != condition["type"]);
            if condition["$patch"] != "delete" {
                conditions.push(condition.clone());
            }
        }
    }

    fn finalizers(&self) -> Vec<&str> {
        let all = self.value["metadata"]["finalizers"]
            .as_array()
            .expect("a list");
        all.iter().filter_map(|f| f.as_str()).collect()
    }

    fn condition(&self, kind: &str) -> Option<&serde_json::Value> {
        let all = self.value["status"]["conditions"]
            .as_array()
            .expect("a list");
        all.iter().find(|c| c["type"] == kind)
    }

    /// Steps until there are none.
    fn converge(&mut self, ours: bool, status: &ServiceStatus) -> Vec<Step> {
        let mut steps = Vec::new();
        loop {
            let intent = intent(&self.service(), ours, status);
            let Some(step) = next(&intent, false) else {
                return steps;
            };
            assert!(steps.len() < 5, "it never ends: {steps:?}");
            self.apply(&step);
            steps.push(step);
        }
    }
}

pub(super) fn intent(service: &Arc<Service>, ours: bool, status: &ServiceStatus) -> Intent {
    Intent {
        service: Arc::clone(service),
        status: Some(Arc::new(status.clone())),
        ours,
        early: false,
    }
}

fn key() -> Key {
    Key {
        uid: "u-1".into(),
        ..crate::testing::service("shop", "web")
    }
}

pub(super) fn status(state: State, addresses: &[&str]) -> ServiceStatus {
    ServiceStatus {
        key: key(),
        state,
        addresses: addresses.iter().map(|a| ip(a)).collect(),
        ports: Vec::new(),
        endpoints: EndpointCounts::default(),
        reasons: Vec::new(),
        settling: false,
    }
}

fn class() -> serde_json::Value {
    json!({"loadBalancerClass": "weir.dev/l4"})
}

#[test]
fn the_finalizer_comes_first_and_the_address_once_it_is_live() {
    let mut server = Server::with(class());
    let waiting = ServiceStatus {
        settling: true,
        ..status(State::Pending, &["192.0.2.1"])
    };
    let steps = server.converge(true, &waiting);
    assert_eq!(
        steps,
        [Step::Claim(vec![FINALIZER])],
        "nothing is published yet"
    );
    let steps = server.converge(true, &status(State::Serving, &["192.0.2.1", "2001:db8::1"]));
    assert!(matches!(&steps[..], [Step::Publish(_)]));
    assert_eq!(
        server.value["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "192.0.2.1", "ipMode": "Proxy"}, {"ip": "2001:db8::1", "ipMode": "Proxy"}])
    );
    let serving = server.condition("weir.dev/Serving").expect("written");
    assert_eq!(
        (&serving["status"], &serving["reason"]),
        (&json!("True"), &json!("Serving"))
    );
    assert_eq!(serving["lastTransitionTime"], NOW);
    assert!(
        server.condition("example.com/Other").is_some(),
        "others' stay"
    );
    assert_eq!(server.finalizers(), ["example.com/other", FINALIZER]);
}

/// The trap of 3.2: the standard finalizer of a Service with a class would be taken off by
/// another controller, which looks at no class.
#[test]
fn the_standard_finalizer_is_for_services_without_a_class() {
    let mut server = Server::with(json!({}));
    let steps = server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    assert_eq!(steps[0], Step::Claim(vec![CLEANUP_FINALIZER, FINALIZER]));
    // LoadBalancer -> ClusterIP: the class is wiped; ours by our finalizer alone.
    let steps = server.converge(false, &status(State::Refused, &[]));
    assert!(
        matches!(&steps[..], [Step::Publish(_), Step::Release(_)]),
        "{steps:?}"
    );
    assert_eq!(server.finalizers(), ["example.com/other"]);
    assert_eq!(server.value["status"]["loadBalancer"]["ingress"], json!([]));
    assert!(server.condition("weir.dev/Serving").is_none());
    assert!(server.condition("example.com/Other").is_some());
}

#[test]
fn it_is_released_only_when_its_address_is_free() {
    let mut server = Server::with(class());
    server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    assert_eq!(
        server.converge(false, &status(State::Serving, &["192.0.2.1"])),
        []
    );
    assert_eq!(
        server.converge(false, &status(State::Refused, &[])).len(),
        2
    );
    // And somebody else's is never touched.
    let mut foreign = Server::with(json!({"loadBalancerClass": "example.com/lb"}));
    foreign.value["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.1"}]);
    assert_eq!(foreign.converge(false, &status(State::Refused, &[])), []);
}

#[test]
fn without_endpoints_the_address_stays() {
    let mut server = Server::with(class());
    let closed = ServiceStatus {
        reasons: vec![Reason::NoUsableEndpoint {
            not_ready: 2,
            terminating: 0,
        }],
        ..status(State::Closed, &["192.0.2.1"])
    };
    server.converge(true, &closed);
    assert_eq!(
        server.value["status"]["loadBalancer"]["ingress"][0]["ip"],
        "192.0.2.1"
    );
    let serving = server.condition("weir.dev/Serving").expect("written");
    assert_eq!(
        (&serving["status"], &serving["reason"]),
        (&json!("False"), &json!("NoUsableEndpoint"))
    );
}

#[test]
fn an_address_that_is_lost_is_withdrawn_at_once_and_the_next_published_when_live() {
    let mut server = Server::with(class());
    server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    let moving = ServiceStatus {
        settling: true,
        ..status(State::Pending, &["192.0.2.2"])
    };
    server.converge(true, &moving);
    assert_eq!(server.value["status"]["loadBalancer"]["ingress"], json!([]));
    server.converge(true, &status(State::Serving, &["192.0.2.2"]));
    assert_eq!(
        server.value["status"]["loadBalancer"]["ingress"][0]["ip"],
        "192.0.2.2"
    );
    // A listener that fails later takes no address away.
    let failed = ServiceStatus {
        reasons: vec![Reason::AddressNotAdded {
            address: ip("192.0.2.2"),
            problem: "x".into(),
        }],
        ..status(State::Pending, &["192.0.2.2"])
    };
    server.converge(true, &failed);
    assert_eq!(
        server.value["status"]["loadBalancer"]["ingress"][0]["ip"],
        "192.0.2.2"
    );
    assert_eq!(
        server.condition("weir.dev/Serving").expect("written")["status"],
        "False"
    );
}

/// KEP-1435: every port is listed, with an error where there is one, and the condition says it.
#[test]
fn a_port_that_cannot_be_served_is_said_per_port() {
    let mut server = Server::with(json!({
        "loadBalancerClass": "weir.dev/l4",
        "ports": [{"port": 80, "protocol": "TCP"}, {"port": 9, "protocol": "SCTP"}],
    }));
    let mixed = ServiceStatus {
        reasons: vec![Reason::PortProtocolNotSupported { port: 9 }],
        ..status(State::Serving, &["192.0.2.1"])
    };
    server.converge(true, &mixed);
    assert_eq!(
        server.value["status"]["loadBalancer"]["ingress"][0]["ports"],
        json!([{"port": 80, "protocol": "TCP"},
               {"port": 9, "protocol": "SCTP", "error": "weir.dev/SCTPNotSupported"}])
    );
    let error = server.condition("LoadBalancerPortsError").expect("written");
    assert_eq!(error["reason"], "LoadBalancerMixedProtocolNotSupported");
    server.value["spec"]["ports"] = json!([{"port": 80, "protocol": "TCP"}]);
    server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    assert!(server.condition("LoadBalancerPortsError").is_none());
}

#[test]
fn a_port_without_node_port_that_needs_one_is_said_per_port() {
    let mut server = Server::with(json!({
        "loadBalancerClass": "weir.dev/l4",
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30_080}, {"port": 81, "protocol": "TCP"}],
    }));
    let partly = ServiceStatus {
        reasons: vec![Reason::NoNodePort { port: 81 }],
        ..status(State::Serving, &["192.0.2.1"])
    };
    server.converge(true, &partly);
    assert_eq!(
        server.value["status"]["loadBalancer"]["ingress"][0]["ports"],
        json!([{"port": 80, "protocol": "TCP"},
               {"port": 81, "protocol": "TCP", "error": "weir.dev/NoNodePort"}])
    );
}

/// The API server takes no status for a Service of type NodePort (kubernetes#119789).
#[test]
fn a_fronted_node_port_service_is_not_written_to_and_loses_what_it_had() {
    let mut server = Server::with(class());
    server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    assert!(server.finalizers().contains(&FINALIZER));
    server.value["spec"]["type"] = json!("NodePort");
    // It has its address still.
    server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    assert_eq!(server.finalizers(), ["example.com/other"]);
    assert_eq!(server.value["status"]["loadBalancer"]["ingress"], json!([]));
    assert!(server.condition("weir.dev/Serving").is_none());
    let steps = server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    assert!(steps.is_empty());
}

#[test]
fn a_condition_keeps_the_time_of_its_last_change() {
    let mut server = Server::with(class());
    server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    for condition in server.value["status"]["conditions"]
        .as_array_mut()
        .expect("a list")
    {
        condition["lastTransitionTime"] = json!("2026-01-01T00:00:00Z");
    }
    server.value["metadata"]["generation"] = json!(2);
    let steps = server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    assert_eq!(steps.len(), 1);
    let serving = server.condition("weir.dev/Serving").expect("written");
    assert_eq!(serving["observedGeneration"], 2);
    assert_eq!(serving["lastTransitionTime"], "2026-01-01T00:00:00Z");
    server.converge(true, &status(State::Closed, &["192.0.2.1"]));
    assert_eq!(
        server.condition("weir.dev/Serving").expect("written")["lastTransitionTime"],
        NOW
    );
}

#[test]
fn failures_wait_longer_each_time_and_news_does_not_hurry_them() {
    let (mut queue, start) = (Queue::default(), Instant::now());
    let key = key();
    queue.add(&key, true, start);
    assert_eq!(queue.pop(start), Some(key.clone()));
    assert_eq!(queue.pop(start), None);
    let mut now = start;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let pause = queue.failed(&key, now);
        pauses.push(pause.as_secs());
        queue.add(&key, true, now);
        assert_eq!(queue.next(), Some(now + pause), "news does not hurry it");
        assert_eq!(queue.pop(now + pause - Duration::from_millis(1)), None);
        now += pause;
        assert_eq!(queue.pop(now), Some(key.clone()));
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    queue.succeeded(&key, now);
    queue.add(&key, false, now);
    assert_eq!(
        queue.next(),
        Some(now + Duration::from_secs(1)),
        "news of its health waits"
    );
    queue.add(&key, true, now);
    assert_eq!(queue.next(), Some(now), "an address does not");
    queue.forget(&key);
    assert_eq!((queue.next(), queue.pop(now)), (None, None));
}

#[test]
fn the_story_is_told_once() {
    let mut server = Server::with(class());
    let mut story = Story::default();
    let told = |story: &mut Story, intent: &Intent| {
        let events = story.next(intent);
        events
            .into_iter()
            .map(|event| event.reason)
            .collect::<Vec<_>>()
    };
    let serving = status(State::Serving, &["192.0.2.1"]);
    let first = intent(&server.service(), true, &serving);
    assert_eq!(
        told(&mut story, &first),
        ["EnsuringLoadBalancer", "IPAllocated", "EnsuredLoadBalancer"]
    );
    server.converge(true, &serving);
    let again = intent(&server.service(), true, &serving);
    assert_eq!(told(&mut story, &again), [""; 0]);
    for not_ready in [3, 2, 1] {
        let closed = ServiceStatus {
            reasons: vec![Reason::NoUsableEndpoint {
                not_ready,
                terminating: 0,
            }],
            ..status(State::Closed, &["192.0.2.1"])
        };
        let events = told(&mut story, &intent(&server.service(), true, &closed));
        let expected: &[&str] = if not_ready == 3 {
            &["UnAvailableLoadBalancer"]
        } else {
            &[]
        };
        assert_eq!(events, expected, "numbers alone are no news");
    }
    let leaving = intent(&server.service(), false, &status(State::Refused, &[]));
    assert_eq!(told(&mut story, &leaving), ["DeletingLoadBalancer"]);
    assert_eq!(told(&mut story, &leaving), [""; 0]);
    // A process that starts later finds it published, and tells nothing anew.
    let mut later = Story::default();
    assert_eq!(told(&mut later, &again), [""; 0]);
    let moved = intent(
        &server.service(),
        true,
        &status(State::Serving, &["192.0.2.9"]),
    );
    let mut later = Story::default();
    assert_eq!(
        told(&mut later, &moved),
        ["AddressNotKept", "IPAllocated", "EnsuredLoadBalancer"]
    );
}

/// In default mode another provider's Service is left alone; that is told once, and it loses nothing.
#[test]
fn a_service_of_another_provider_is_told_and_not_touched() {
    let mut server = Server::with(json!({}));
    server.value["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.1"}]);
    let evidence = "\"controller\" wrote status.loadBalancer";
    let left = ServiceStatus {
        reasons: vec![Reason::RivalProvider {
            evidence: evidence.into(),
            ours: "weir.dev/l4".into(),
        }],
        ..status(State::Refused, &[])
    };
    assert_eq!(server.converge(false, &left), []);
    let intent = intent(&server.service(), false, &left);
    let mut story = Story::default();
    let events = story.next(&intent);
    let [event] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(
        event.warning && event.reason == "RivalProvider",
        "{event:?}"
    );
    assert!(event.message.contains(evidence), "{event:?}");
    assert_eq!(story.next(&intent), [], "once");
}

/// Given up in a contest: our finalizers and conditions go, the other's address stays.
#[test]
fn what_is_given_up_keeps_the_others_address() {
    let mut server = Server::with(json!({}));
    server.converge(true, &status(State::Serving, &["192.0.2.1"]));
    server.value["status"]["loadBalancer"]["ingress"] = json!([{"ip": "198.51.100.1"}]);
    let gone = status(State::Refused, &[]);
    for expected in ["status", "finalizers"] {
        let intent = intent(&server.service(), false, &gone);
        let step = next(&intent, true).expect("a step");
        assert_eq!(matches!(step, Step::Publish(_)), expected == "status");
        server.apply(&step);
    }
    assert_eq!(server.finalizers(), ["example.com/other"]);
    assert!(server.condition("weir.dev/Serving").is_none());
    assert_eq!(
        server.value["status"]["loadBalancer"]["ingress"],
        json!([{"ip": "198.51.100.1"}])
    );
}
