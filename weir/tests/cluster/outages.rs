//! What goes wrong meanwhile: traffic flows all the same.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::Weir;
use crate::support::cluster::Pod;
use crate::support::cluster::stage::*;
use crate::support::net::pod_v4;
use crate::support::traffic::{Load, TcpPod, ask, connect, read_name};
use crate::{balancer, soon};

/// A verb that RBAC does not give is named, and the rest goes on.
#[test]
fn s16_a_missing_verb_is_named_and_traffic_flows_all_the_same() {
    let Some(stage) = Stage::open() else { return };
    stage.cluster.kubectl(&[
        "patch",
        "clusterrole",
        "weir",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/rules/1"}]"#,
    ]);
    let _server = TcpPod::named(&stage.lab.server, pod_v4(0), 8080, "web-0");
    stage.pod(0, "web");
    stage.apply(&balancer("web", "web", Some(CLASS)));
    // Nodes cannot be read without deploy/kubernetes/nodes.yaml.
    let mut at_nodes = balancer("nodes", "web", Some(CLASS));
    at_nodes["metadata"]["annotations"] = json!({"weir.dev/backends": "nodes"});
    stage.apply(&at_nodes);
    let weir = stage.weir(&[]);
    // The log is JSON: quotes are escaped there.
    soon("the log names the verb", || {
        let log = weir.log();
        log.contains("cannot patch resource") && log.contains("services/status")
    });
    let (_, ready) = weir.get("/readyz?verbose");
    assert!(ready.contains("services/status"), "{ready}");
    soon("the Service concerned says so", || {
        let said = web_of(&weir)["reasons"].to_string();
        said.contains("NotWritten") && said.contains("services/status")
    });
    let web = web_of(&weir);
    let address: IpAddr = web["addresses"][0].as_str().unwrap().parse().unwrap();
    soon("it forwards", || stage.ask(address, 80).is_ok());

    soon(
        "so does the Service that is dialled by way of nodes",
        || missing(&weir, "nodes").is_some_and(|said| said.contains("list nodes:")),
    );
    assert_eq!(missing(&weir, "web"), None, "it needs no nodes");
    soon("and an event", || {
        stage
            .events("nodes")
            .iter()
            .any(|event| event == "VerbMissing")
    });
    weir.stop();

    // Slices cannot be read from the start: nothing is served, why stands with each Service, and what was
    // published before stays.
    stage.patch(
        "web/status",
        &json!({"status": {"loadBalancer": {"ingress": [{"ip": address}]}}}),
    );
    let remove = r#"[{"op": "remove", "path": "/rules/1"}]"#;
    stage
        .cluster
        .kubectl(&["patch", "clusterrole", "weir", "--type=json", "-p", remove]);
    let weir = stage.weir_unready();
    soon("the Service says why nothing is served", || {
        missing(&weir, "web").is_some_and(|said| said.contains("list endpointslices"))
    });
    soon("and an event", || {
        stage
            .events("web")
            .iter()
            .any(|event| event == "VerbMissing")
    });
    assert_eq!(ingress(&stage.service("web")), Some(address));
}

/// What the admin listener has of `web`; null before that.
fn web_of(weir: &Weir) -> Value {
    let services = weir.services();
    let web = services.iter().find(|service| service["name"] == "web");
    web.cloned().unwrap_or_default()
}

/// What a Service says of a verb that is missing.
fn missing(weir: &Weir, name: &str) -> Option<String> {
    let services = weir.services();
    let service = services.iter().find(|service| service["name"] == name)?;
    let mut reasons = service["reasons"].as_array()?.iter();
    let reason = reasons.find(|reason| reason["code"] == "VerbMissing")?;
    Some(reason["message"].as_str()?.to_owned())
}

/// "no connectivity disruption during rolling update", at 100 %: pods come and go under load, and the API
/// server goes away and comes back meanwhile.
#[test]
fn a_rolling_update_and_an_outage_of_the_api_server_lose_nothing() {
    let Some(stage) = Stage::open() else { return };
    let _weir = stage.weir(&[]);
    let _servers: Vec<TcpPod> = (0..4)
        .map(|n| TcpPod::named(&stage.lab.server, pod_v4(n), 8080, &format!("web-{n}")))
        .collect();
    stage.apply(&balancer("web", "web", Some(CLASS)));
    let mut pods: Vec<Pod> = (0..2).map(|n| stage.pod(n, "web")).collect();
    let address = stage.address("web");
    stage.eventually("answers", address, |said| said.is_ok());
    let mut live = connect(&stage.lab.client, (address, 80)).unwrap();
    let name = read_name(&mut live).unwrap();
    assert!(name.starts_with("web-"));
    let to = SocketAddr::from((address, 80));
    let load = Load::start(&stage.lab.client, 4, 200, move || ask(to).map(|_| ()));
    for round in 2..6u16 {
        pods.push(stage.pod(round % 4, "web"));
        let old = pods.remove(0);
        stage.cluster.delete_pod(&old, Duration::from_secs(30));
        stage.cluster.end_pod(&old);
        if round == 3 {
            stage.cluster.stop_api();
            std::thread::sleep(Duration::from_secs(1));
            stage.cluster.start_api();
        }
        load.goes_on(20);
    }
    let (done, failed) = load.finish();
    assert!(failed.is_empty(), "{done}: {failed:?}");
}
