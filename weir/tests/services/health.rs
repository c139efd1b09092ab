//! Health checks that annotations ask for, told in events.

use serde_json::json;

use crate::shared::{Room, soon};
use crate::support::cluster::stage::ingress;

/// Nobody listens where the check asks: both are used all the same, and it is said.
#[test]
fn health_checks_by_annotation_are_told_in_events() {
    let Some(room) = Room::new("health") else {
        return;
    };
    let _servers = (room.tcp(0), room.tcp(1));
    room.pod(0);
    room.pod(1);
    let with = |protocol: &str| {
        let checks = json!({
            "weir.dev/health-check-protocol": protocol,
            "weir.dev/health-check-port": "1",
            "weir.dev/health-check-interval": "1s",
            "weir.dev/health-check-unhealthy": "1",
        });
        room.service_with("web", &checks, &json!({}))
    };
    room.cluster.put(&with("tcp"));
    let found = room.wait("web", "it has an address", |found| ingress(found).is_some());
    let address = ingress(&found).unwrap();
    assert_eq!(room.wait_event("web", "NoHealthyEndpoint"), "Warning");
    room.wait_said("web", "NoHealthyEndpoint", ":1 refuses");
    room.answers(address, 10);
    // Turned off, it says nothing any more.
    room.cluster.put(&with("none"));
    soon("nothing is said of checks", || {
        let services = room.with_weir(crate::support::Weir::services);
        let web = services
            .iter()
            .find(|found| found["namespace"] == *room.namespace);
        web.is_some_and(|web| web["reasons"] == json!([]))
    });
}
