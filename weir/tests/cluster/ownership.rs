//! Whose a Service is, which address it has, and who writes that.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::cluster::stage::*;
use crate::{balancer, soon};

/// What the default provider's Services carry too.
const CLEANUP: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Without a class: only as the default provider, with the standard finalizer beside ours.
#[test]
fn services_without_a_class_are_the_default_providers() {
    let Some(stage) = Stage::open() else { return };
    stage.apply(&balancer("plain", "web", None));
    stage.apply(&balancer("other", "web", Some("example.com/lb")));
    stage.apply(&balancer("ours", "web", Some(CLASS)));
    let before = stage.streamed_lists();
    let weir = stage.weir(&[]);
    stage.address("ours");
    for name in ["plain", "other"] {
        let found = stage.service(name);
        assert_eq!(
            (ingress(&found), finalizers(&found).len()),
            (None, 0),
            "{name}"
        );
    }
    weir.stop();
    let _weir = stage.weir(&["--default-provider", "true"]);
    stage.address("plain");
    let found = stage.service("plain");
    let mut both = finalizers(&found);
    both.sort_unstable();
    assert_eq!(both, [CLEANUP, FINALIZER]);
    let found = stage.service("other");
    assert_eq!((ingress(&found), finalizers(&found).len()), (None, 0));
    assert!(stage.streamed_lists() > before, "lists are pages");
}

/// A new machine, without any record: everybody keeps the address that the status names, before anybody
/// gets a new one.
#[test]
fn addresses_in_status_are_taken_up_again_by_a_machine_that_knows_nothing() {
    let Some(stage) = Stage::open() else { return };
    for name in ["a", "b", "c"] {
        stage.apply(&balancer(name, "web", Some(CLASS)));
    }
    let weir = stage.weir(&[]);
    let before = ["a", "b", "c"].map(|name| stage.address(name));
    weir.stop();
    // Gone while nobody looked: its finalizer keeps it until somebody does.
    stage.delete("a");
    stage.apply(&balancer("0-first", "web", Some(CLASS)));
    let _weir = stage.weir(&[]);
    stage.address("0-first");
    assert_eq!(["b", "c"].map(|name| stage.address(name)), before[1..]);
    stage.wait("a", "it is gone", Value::is_null);
}

/// An address in status that this appliance cannot have is not taken, and an event says so.
#[test]
fn an_address_in_status_outside_the_pools_is_replaced_with_an_event() {
    let Some(stage) = Stage::open() else { return };
    stage.apply(&balancer("web", "web", Some(CLASS)));
    stage.patch("web", &json!({"metadata": {"finalizers": [FINALIZER]}}));
    let ingress_of_another = json!([{"ip": "203.0.113.9"}]);
    let status = json!({"status": {"loadBalancer": {"ingress": ingress_of_another}}});
    stage.patch("web/status", &status);
    let _weir = stage.weir(&[]);
    stage.wait("web", "an address of the pool", |service| {
        ingress(service).is_some_and(|ip| ip.to_string().starts_with("10.1.0."))
    });
    soon("an event", || {
        stage.events("web").iter().any(|e| e == "AddressNotKept")
    });
}

/// Two processes: one writes, both forward; when the writer is gone the other writes.
#[test]
fn of_two_processes_one_writes_and_the_other_takes_over() {
    let Some(stage) = Stage::open() else { return };
    let first = stage.weir(&[]);
    stage.apply(&balancer("a", "web", Some(CLASS)));
    stage.address("a");
    let lease = |what: &str, holds: &dyn Fn(&Value) -> bool| {
        stage
            .cluster
            .wait(what, &["lease", "weir", "-n", "weir-system"], holds)
    };
    let held = lease("the first leads", &|lease| {
        lease["spec"]["holderIdentity"].is_string()
    });
    let holder = held["spec"]["holderIdentity"].as_str().unwrap().to_owned();
    // It goes in peace: the lease is given up, so that nobody waits for its end.
    first.stop();
    let lease_now = lease("it is given up", &|lease| {
        lease["spec"]["holderIdentity"] != *holder
    });
    assert_eq!(lease_now["spec"]["holderIdentity"], "");
    let _second = stage.weir(&[]);
    stage.apply(&balancer("b", "web", Some(CLASS)));
    stage.address("b");
}

/// The daemon is dead, and its machine gone: `weir release` leaves nothing in Terminating.
#[test]
fn release_leaves_nothing_hanging_when_the_daemon_is_dead() {
    let Some(stage) = Stage::open() else { return };
    let weir = stage.weir(&["--default-provider", "true"]);
    for (name, class) in [("a", Some(CLASS)), ("b", None), ("c", Some(CLASS))] {
        stage.apply(&balancer(name, "web", class));
        stage.address(name);
    }
    weir.kill();
    stage.delete("c");
    let run = |args: &[&str]| {
        let mut command: Command = stage.lab.lb.command(env!("CARGO_BIN_EXE_weir"));
        let output = command
            .arg("release")
            .arg("--kubeconfig")
            .arg(stage.cluster.appliance())
            .args(args)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    let (code, said) = run(&["default/a"]);
    assert_eq!((code, &*said), (Some(0), "service/default/a released\n"));
    assert!(finalizers(&stage.service("a")).is_empty());
    assert!(!finalizers(&stage.service("b")).is_empty());
    let (code, said) = run(&["--all"]);
    assert_eq!(code, Some(0), "{said}");
    stage.wait("c", "it is gone", Value::is_null);
    for name in ["a", "b"] {
        let found = stage.service(name);
        assert_eq!(
            (ingress(&found), finalizers(&found).len()),
            (None, 0),
            "{name}"
        );
        assert!(condition(&found, "weir.dev/Serving").is_none());
    }
    let (code, said) = run(&["--all"]);
    assert!(
        code == Some(0) && said.contains("nothing to release"),
        "{said}"
    );
    let (code, _) = run(&[]);
    assert_eq!(code, Some(2));
}
