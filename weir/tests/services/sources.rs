//! The directory and the API server are two sources of one line.

use serde_json::{Value, json};

use crate::shared::{Room, SETTINGS, soon};
use crate::support::{Lab, Weir};

/// What `kubectl get` writes of a namespace, given to another appliance as a file.
#[test]
fn a_dump_of_the_cluster_is_served_as_the_cluster_is() {
    let Some(room) = Room::new("dump") else {
        return;
    };
    for n in 0..3 {
        room.pod(n);
    }
    let unready = room.starting_pod("n2", 3);
    room.cluster.set_ready(&unready, false);
    // Which address is lowest depends on who else is there: each asks for its own.
    let wanted = |low: u8| json!(format!("10.1.0.{low}"));
    let both = json!([room.port_80("TCP"), room.port_80("UDP")]);
    room.service("plain", &json!({"loadBalancerIP": wanted(150)}));
    let sticky = json!({"sessionAffinity": "ClientIP", "loadBalancerSourceRanges": ["10.0.0.0/8"]});
    let local = json!({"externalTrafficPolicy": "Local", "ports": both});
    for (name, low, mut spec) in [("sticky", 151, sticky), ("local", 152, local)] {
        spec["loadBalancerIP"] = wanted(low);
        room.service(name, &spec);
    }
    let elsewhere = json!({"loadBalancerIP": "192.0.2.1"});
    room.cluster
        .put(&room.service_with("elsewhere", &json!({}), &elsewhere));
    room.wait_reason("elsewhere", "AddressNotInPool");
    let of_the_room = |weir: &Weir| -> Vec<Value> {
        let mut all = weir.services();
        all.retain(|service| service["namespace"] == *room.namespace);
        all
    };
    soon("all pods are known", || {
        let all = room.with_weir(|weir| of_the_room(weir));
        let known = |service: &Value| {
            service["endpoints"]["ready"] == 3 && service["endpoints"]["notReady"] == 1
        };
        all.iter().filter(|service| known(service)).count() >= 3
    });
    let kinds = "services,endpointslices";
    let dump = room
        .cluster
        .kubectl(&["get", kinds, "-n", &room.namespace, "-o", "yaml"]);
    let lab = Lab::new();
    let other = Weir::prepare().pools().args(SETTINGS).launch(&lab.lb);
    other.write("dump.yaml", &dump);
    soon("both say the same", || {
        let live = room.with_weir(|weir| of_the_room(weir));
        live.len() == 4 && of_the_room(&other) == live
    });
}
