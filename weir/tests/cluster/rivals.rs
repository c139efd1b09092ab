//! Another provider of load balancers in the same cluster: found, said, and not fought.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::cluster::{self, stage::*};
use crate::{balancer, soon};

/// What the other provider calls itself, as MetalLB does.
const RIVAL: &str = "controller";
const ITS_ADDRESS: &str = "203.0.113.77";

/// The rival writes its address over whatever stands there, until `over`. How often it did.
fn writes_over(stage: &Stage, name: &str, over: impl Fn() -> bool) -> u32 {
    let deadline = Instant::now() + cluster::CONVERGED;
    let mut writes = 0;
    while !over() {
        assert!(
            Instant::now() < deadline,
            "{name}: it goes on, {writes} writes so far"
        );
        if ingress(&stage.service(name)) != Some(its_address()) {
            write_as_rival(stage, name, &json!({"ingress": [{"ip": ITS_ADDRESS}]}));
            writes += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    writes
}

fn write_as_rival(stage: &Stage, name: &str, balancer: &Value) {
    let status = format!("{name}/status?fieldManager={RIVAL}");
    stage.patch(&status, &json!({"status": {"loadBalancer": balancer}}));
}

fn its_address() -> IpAddr {
    ITS_ADDRESS.parse().unwrap()
}

/// One cluster and one appliance for all of it: in default mode a Service that another serves is left to it, and
/// one that both take is given up; of our class we write ever less often. It is said everywhere.
#[test]
fn k21_another_provider_is_said_and_not_fought() {
    let Some(stage) = Stage::open() else { return };
    stage.apply(&balancer("theirs", "web", None));
    write_as_rival(&stage, "theirs", &json!({"ingress": [{"ip": ITS_ADDRESS}]}));
    let weir = stage.weir(&["--default-provider", "true"]);
    let reason = |name: &str, code: &str| {
        let services = weir.services();
        let found = services.iter().find(|service| service["name"] == name)?;
        let reasons = found["reasons"].as_array()?;
        let reason = reasons.iter().find(|reason| reason["code"] == code)?;
        Some(reason["message"].as_str()?.to_owned())
    };
    let told = |name: &str, reason: &str| stage.events(name).iter().any(|event| event == reason);

    // It was there first.
    soon("an event says it", || told("theirs", "RivalProvider"));
    let said = reason("theirs", "RivalProvider").unwrap();
    assert!(
        said.contains("\"controller\" wrote status.loadBalancer"),
        "{said}"
    );
    let theirs = stage.service("theirs");
    assert_eq!(
        (ingress(&theirs), finalizers(&theirs).len()),
        (Some(its_address()), 0)
    );

    // Both take it: it is given up.
    stage.apply(&balancer("both", "web", None));
    stage.address("both");
    let writes = writes_over(&stage, "both", || {
        let both = stage.service("both");
        ingress(&both) == Some(its_address()) && finalizers(&both).is_empty()
    });
    assert!((3..10).contains(&writes), "{writes} writes of the rival");
    assert!(condition(&stage.service("both"), "weir.dev/Serving").is_none());
    soon("events say both", || {
        told("both", "Contested") && told("both", "RivalProvider")
    });

    // Of our class: it stays ours, and is written less and less often.
    stage.apply(&balancer("ours", "web", Some(CLASS)));
    let address = stage.address("ours");
    writes_over(&stage, "ours", || reason("ours", "Contested").is_some());
    let said = reason("ours", "Contested").unwrap();
    assert!(
        said.contains("\"controller\" undoes") && said.contains("after 30s"),
        "{said}"
    );
    let before = stage.service("ours");
    std::thread::sleep(Duration::from_secs(1));
    let after = stage.service("ours");
    let version = |service: &Value| service["metadata"]["resourceVersion"].clone();
    assert_eq!(
        version(&before),
        version(&after),
        "nobody writes for half a minute"
    );
    assert_eq!(finalizers(&after), [FINALIZER]);
    let services = weir.services();
    let ours = services
        .iter()
        .find(|service| service["name"] == "ours")
        .unwrap();
    assert_eq!(
        ours["addresses"],
        json!([address]),
        "it has its address all the same"
    );
    soon("an event says it", || told("ours", "Contested"));

    let (_, ready) = weir.get("/readyz?verbose");
    for part in [
        "2 Services are left to another provider",
        "1 Services are written by another too",
        RIVAL,
    ] {
        assert!(ready.contains(part), "{part}: {ready}");
    }
    assert!(weir.metric("weir_kubernetes_overwritten_total", &[]) >= 6.0);
    assert_eq!(weir.metric("weir_kubernetes_rivals", &["left"]), 2.0);
    assert_eq!(weir.metric("weir_kubernetes_rivals", &["contested"]), 1.0);

    // The other is gone, and what it left is taken away: it is ours as any other.
    write_as_rival(&stage, "theirs", &Value::Null);
    stage.address("theirs");
    assert_eq!(reason("theirs", "RivalProvider"), None);
}
