//! Who a Service is, what is written to it, and which addresses it has.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::shared::{Room, soon};
use crate::support::cluster::stage::{condition, finalizers, ingress};

#[test]
fn a_service_made_anew_under_its_name_is_another_one() {
    let Some(room) = Room::new("anew") else {
        return;
    };
    let _server = room.tcp(0);
    room.pod(0);
    room.service("web", &json!({}));
    let uid = |service: &Value| service["metadata"]["uid"].as_str().unwrap().to_owned();
    let first = uid(&room.get("web"));
    room.cluster.call("DELETE", &room.path("web"), &Value::Null);
    room.wait("web", "it is gone", Value::is_null);
    let address = room.service("web", &json!({}));
    assert_ne!(uid(&room.get("web")), first);
    soon("the other one is served", || room.ask(address).is_ok());
    room.wait_event("web", "DeletedLoadBalancer");
}

/// "Conditions: list-map by type; merge, never drop others'": whoever wrote them.
#[test]
fn conditions_of_others_are_kept() {
    const THEIRS: &str = "example.com/Checked";
    let Some(room) = Room::new("conditions") else {
        return;
    };
    room.service("web", &json!({}));
    let found = room.wait_reason("web", "NoUsableEndpoint");
    let mut all = found["status"]["conditions"].as_array().unwrap().clone();
    let mut theirs = all[0].clone();
    theirs["type"] = json!(THEIRS);
    all.push(theirs);
    let status = json!({"status": {"conditions": all}});
    let path = format!("{}/status", room.path("web"));
    room.cluster.call("PATCH", &path, &status);
    let _server = room.tcp(0);
    room.pod(0);
    let found = room.wait_reason("web", "Serving");
    assert!(condition(&found, THEIRS).is_some(), "{found:#}");
    room.patch(
        "web",
        &json!({"type": "ClusterIP", "loadBalancerClass": null}),
    );
    let found = room.wait("web", "it is left", |service| {
        finalizers(service).is_empty()
    });
    assert!(condition(&found, THEIRS).is_some(), "{found:#}");
    assert!(condition(&found, "weir.dev/Serving").is_none(), "{found:#}");
}

/// It would be an open relay.
#[test]
fn a_service_that_turns_into_an_external_name_is_left() {
    let Some(room) = Room::new("external-name") else {
        return;
    };
    let _server = room.tcp(0);
    room.pod(0);
    let address = room.service("web", &json!({}));
    soon("it answers", || room.ask(address).is_ok());
    let external = json!({
        "type": "ExternalName", "externalName": "example.com", "loadBalancerClass": null,
    });
    room.patch("web", &external);
    let found = room.wait("web", "it is left", |service| {
        finalizers(service).is_empty()
    });
    assert_eq!(ingress(&found), None);
    soon("nobody answers", || room.ask(address).is_err());
}

#[test]
fn each_family_has_an_address_in_the_order_of_ip_families() {
    let Some(room) = Room::new("families") else {
        return;
    };
    let families = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"]});
    room.service("web", &families);
    let addresses = |service: &Value| -> Vec<IpAddr> {
        let all = service["status"]["loadBalancer"]["ingress"].as_array();
        let all = all.into_iter().flatten();
        all.map(|entry| entry["ip"].as_str().unwrap().parse().unwrap())
            .collect()
    };
    let both = addresses(&room.get("web"));
    let is_v6: Vec<bool> = both.iter().map(IpAddr::is_ipv6).collect();
    assert_eq!(is_v6, [true, false]);
    room.patch(
        "web",
        &json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]}),
    );
    room.wait("web", "only the first is left", |service| {
        addresses(service) == both[..1]
    });
}

/// `spec.loadBalancerIP`: nothing else is given instead; another one frees the one before.
#[test]
fn a_requested_address_is_given_and_moved_or_nothing_is() {
    let Some(room) = Room::new("requested") else {
        return;
    };
    // There is no pod either: that is said after what keeps the address away.
    let [first, second]: [IpAddr; 2] = [[10, 1, 0, 140].into(), [10, 1, 0, 141].into()];
    let request = |ip: IpAddr| json!({"loadBalancerIP": ip});
    assert_eq!(room.service("web", &request(first)), first);
    let waiting = room.service_with("waits", &json!({}), &request(first));
    room.cluster.put(&waiting);
    room.wait_reason("waits", "AddressTaken");
    room.patch("web", &request(second));
    for (name, ip) in [("web", second), ("waits", first)] {
        room.wait(name, "it has moved", |service| ingress(service) == Some(ip));
    }
    room.patch("waits", &request([192, 0, 2, 1].into()));
    let found = room.wait_reason("waits", "AddressNotInPool");
    assert_eq!(ingress(&found), None);
    // Field and annotation that disagree.
    let annotations = json!({"weir.dev/load-balancer-ips": first});
    room.cluster
        .put(&room.service_with("both", &annotations, &request([10, 1, 0, 142].into())));
    let found = room.wait_reason("both", "ConflictingRequest");
    assert_eq!(ingress(&found), None);
}
