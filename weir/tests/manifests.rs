//! The directory as a source: rows K5-K8 and K17-K19 of the fault catalogue in their directory form.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::process::Signal;
use support::manifest::{Slice, ready, service, terminating};
use support::net::pod_v4;
use support::traffic::*;
use support::*;

/// A pod and a Service that must be served whatever else happens.
fn witness(lab: &Lab, weir: &Weir) -> (TcpPod, SocketAddr) {
    let pod = TcpPod::named(&lab.server, pod_v4(39), 7, "witness");
    let svc = service("witness")
        .namespace("witness")
        .tcp(7)
        .endpoints([pod_v4(39)], 7);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 7);
    (pod, vip)
}

#[track_caller]
fn answers(lab: &Lab, vip: SocketAddr) {
    assert_eq!(
        lab.client
            .run(move || ask(vip))
            .expect("the witness answers"),
        "witness"
    );
}

#[test]
fn k5_bad_files_keep_their_last_good_content_and_say_where() {
    if skip("k5") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let (_pod, vip) = witness(&lab, &weir);
    let good = service("web").tcp(80).endpoints([pod_v4(0)], 80);
    let address = weir.serve(&good)[0];
    let _web = TcpPod::named(&lab.server, pod_v4(0), 80, "web");
    let file = "default.web.yaml";
    let long = "x".repeat(1 << 20);
    let bad = [
        ("truncated", good.yaml()[..150].to_owned() + "\n  : [", ""),
        ("html", "<html><body>503 Service Unavailable</body></html>".to_owned(), ""),
        ("port too large", good.yaml().replace("port: 80}", "port: 99999}"), "99999"),
        ("port of text", good.yaml().replacen("port: 80}", "port: eighty}", 1), "eighty"),
        ("huge integer", good.yaml().replacen("port: 80}", "port: 123456789012345678901234567890}", 1), ""),
        ("negative", good.yaml().replacen("port: 80}", "port: -1}", 1), "-1"),
        ("type unknown", good.yaml().replace("type: LoadBalancer", "type: Balancer"), "Balancer"),
        ("list where a map is due", good.yaml().replace("spec:\n", "spec: []\nother:\n"), "spec"),
        ("bomb", "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f]\n".to_owned(), ""),
        ("deep", "[".repeat(100_000), ""),
        ("nul bytes", "apiVersion: v1\nkind: Service\u{0}\n".to_owned(), ""),
    ];
    for (what, text, mentions) in &bad {
        weir.write(file, text);
        let complaint = eventually_some(&format!("{what} is reported"), SOON, || {
            let (_, body) = weir.get("/readyz?verbose");
            body.lines().find(|l| l.contains(file)).map(str::to_owned)
        });
        assert!(
            complaint.contains(&format!("{file}:")),
            "{what}: no line and column in {complaint:?}"
        );
        assert!(complaint.contains(mentions), "{what}: {complaint:?}");
        answers(&lab, vip);
        let web = SocketAddr::new(address, 80);
        assert_eq!(
            lab.client
                .run(move || ask(web))
                .expect("the last good content serves"),
            "web",
            "{what}"
        );
        assert_eq!(weir.addresses(&good), [address], "{what}");
        assert_eq!(
            weir.get("/readyz").0,
            200,
            "{what}: a bad file is a warning, not an outage"
        );
        weir.write(file, &good.yaml());
        eventually(&format!("{what} is forgiven"), SOON, || {
            !weir.get("/readyz?verbose").1.contains(file)
        });
    }
    // Annotations of a megabyte: refused or cut, never fatal.
    weir.write(
        file,
        &good
            .clone()
            .annotation("weir.dev/algorithm", &long)
            .annotation("foo", &long)
            .yaml(),
    );
    std::thread::sleep(Duration::from_millis(300));
    answers(&lab, vip);
    // One that never parsed is shown all the same, with the place of its mistake.
    let never = service("never").namespace("odd").tcp(80);
    weir.write(
        "never.yaml",
        &never.yaml().replace("port: 80}", "port: eighty}"),
    );
    let message = weir.wait_reason(&never, "Malformed");
    assert!(message.contains("never.yaml:"), "{message}");
    weir.wait_state(&never, "refused");
    std::fs::remove_file(weir.manifests().join("never.yaml")).unwrap();
    eventually("it is forgotten", SOON, || weir.service(&never).is_none());
    // Null fields are absent fields; unknown kinds are skipped.
    weir.write("odd.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: nulls, namespace: odd, labels: null, annotations: null}\nspec: {type: LoadBalancer, ports: [{port: 80, name: null, protocol: null, targetPort: null}], selector: null, ipFamilies: null}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\n");
    let odd = service("nulls").namespace("odd").tcp(80);
    weir.wait_state(&odd, "closed");
    answers(&lab, vip);
}

#[test]
fn k6_a_directory_that_loses_most_services_at_once_is_held() {
    if skip("k6") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "kept");
    let all: Vec<_> = (0..8)
        .map(|n| service(&format!("s{n}")).tcp(80).endpoints([pod_v4(0)], 80))
        .collect();
    let vips: Vec<SocketAddr> = all
        .iter()
        .map(|s| SocketAddr::new(weir.serve(s)[0], 80))
        .collect();
    let ask_all = |vips: &[SocketAddr]| {
        let vips = vips.to_vec();
        lab.client
            .run(move || vips.iter().filter(|v| ask(**v).is_ok()).count())
    };
    // In one step, as a wrong mount does: the directory's content moves away.
    let (dir, away) = (weir.manifests(), weir.manifests().with_extension("away"));
    let empty = weir.manifests().with_extension("empty");
    std::fs::create_dir(&empty).unwrap();
    std::fs::rename(&dir, &away).unwrap();
    std::fs::rename(&empty, &dir).unwrap();
    let reason = weir.wait_reason(&all[0], "HeldByDeletionGuard");
    let (_, ready) = weir.get("/readyz?verbose");
    for way in ["/api/v1/deletions/confirm", "SIGHUP", "--confirm-deletions"] {
        assert!(reason.contains(way), "{reason}");
        assert!(ready.contains(way), "{ready}");
        assert!(weir.log().contains(way), "{}", weir.log());
    }
    assert_eq!(ask_all(&vips), 8, "all are still served");
    assert!(
        weir.get("/readyz?verbose").1.contains("held"),
        "{}",
        weir.get("/readyz?verbose").1
    );

    // They return: as if nothing had been.
    for svc in &all {
        weir.apply(svc);
    }
    eventually("nothing is held", SOON, || {
        !weir.get("/readyz?verbose").1.contains("held")
    });
    assert_eq!(ask_all(&vips), 8);

    // Gone again, and a person confirms: SIGHUP twice.
    for svc in &all {
        std::fs::rename(
            dir.join(format!("default.{}.yaml", svc.name)),
            dir.join(format!("{}.off", svc.name)),
        )
        .unwrap();
        // One by one, and slowly enough to be seen apart, is an operator at work: not a mass deletion
        // until more than half are missing from one rescan.
        if svc.name == "s3" {
            break;
        }
    }
    eventually("four of eight may go", SOON, || weir.services().len() == 4);
    let (dir_again, away_again) = (weir.manifests(), weir.manifests().with_extension("away2"));
    for svc in &all[..4] {
        weir.serve(svc);
    }
    std::fs::rename(&dir_again, &away_again).unwrap();
    std::fs::create_dir(&dir_again).unwrap();
    weir.wait_reason(&all[0], "HeldByDeletionGuard");
    weir.signal(Signal::HUP);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(weir.services().len(), 8, "one SIGHUP only rescans");
    weir.signal(Signal::HUP);
    eventually("the deletion is confirmed", SOON, || {
        weir.services().is_empty()
    });
    assert_eq!(ask_all(&vips), 0);
}

#[test]
fn k7_duplicates_over_slices_are_a_union() {
    if skip("k7") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pods: Vec<_> = (0..3)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 80, &n.to_string()))
        .collect();
    let mut svc = service("union")
        .tcp(80)
        .endpoints([pod_v4(0), pod_v4(1)], 80);
    let mut second = svc.slices[0].clone();
    second.endpoints = vec![
        terminating(&pod_v4(1).to_string()),
        ready(&pod_v4(2).to_string()),
    ];
    svc.slices.push(second);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    let entry = weir.service(&svc).unwrap();
    assert_eq!(entry["endpoints"]["ready"], 3, "{entry:#}");
    let names: std::collections::BTreeSet<String> = lab
        .client
        .run(move || (0..60).map(|_| ask(vip).unwrap()).collect());
    assert_eq!(names.len(), 3, "{names:?}");
    // The same name may stand for different numbers in different slices.
    let other = TcpPod::named(&lab.server, pod_v4(3), 8080, "3");
    svc.slices.push(Slice {
        family: "IPv4",
        ports: vec![(svc.ports[0].0.clone(), "TCP", 8080)],
        endpoints: vec![ready(&pod_v4(3).to_string())],
    });
    weir.apply(&svc);
    eventually("the fourth is used", SOON, || {
        lab.client.run(move || ask(vip)).unwrap() == "3"
    });
    drop(other);
}

#[test]
fn k8_any_order_of_files_converges() {
    if skip("k8") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "late");
    let svc = service("order").tcp(80).endpoints([pod_v4(0)], 80);
    // Slice first, in a file of its own; then the Service; then the slice goes; then the Service.
    weir.write(
        "a-slice.yaml",
        &svc.slices[0].yaml("default", "order", "order-0"),
    );
    let bare = service("order").tcp(80);
    weir.apply(&bare);
    weir.wait_state(&bare, "serving");
    let vip = SocketAddr::new(weir.addresses(&bare)[0], 80);
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "late");
    std::fs::remove_file(weir.manifests().join("a-slice.yaml")).unwrap();
    weir.wait_state(&bare, "closed");
    weir.write(
        "z-slice.yaml",
        &svc.slices[0].yaml("default", "order", "order-0"),
    );
    weir.wait_state(&bare, "serving");
    assert_eq!(weir.addresses(&bare), [vip.ip()]);
    // Duplicates name both files; the first by name is used.
    weir.write("zz-copy.yaml", &service("order").tcp(81).yaml());
    let (_, body) = eventually_some("the duplicate is reported", SOON, || {
        Some(weir.get("/readyz?verbose")).filter(|(_, body)| body.contains("zz-copy.yaml"))
    });
    assert!(body.contains("default.order.yaml"), "{body}");
    weir.wait_reason(&bare, "DuplicateObject");
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "late");
}

#[test]
fn k17_assigned_addresses_never_move_over_a_restart() {
    if skip("k17") {
        return;
    }
    let lab = Lab::new();
    let pool = ["--pool", "10.1.0.64-10.1.0.64"];
    let weir = Weir::prepare().args(pool).launch(&lab.lb);
    // The younger one has it first; the older comes while the address is taken.
    let young = service("young")
        .created("2026-05-01T00:00:00Z")
        .tcp(80)
        .endpoints([pod_v4(0)], 80);
    let old = service("old")
        .created("2020-01-01T00:00:00Z")
        .tcp(80)
        .endpoints([pod_v4(0)], 80);
    let address = weir.serve(&young)[0];
    weir.apply(&old);
    weir.wait_reason(&old, "PoolExhausted");
    let start = weir.stop();
    let weir = start.args(pool).launch(&lab.lb);
    weir.wait_state(&young, "serving");
    assert_eq!(weir.addresses(&young), [address]);
    weir.wait_reason(&old, "PoolExhausted");
    let weir = weir.kill().args(pool).launch(&lab.lb);
    weir.wait_state(&young, "serving");
    assert_eq!(weir.addresses(&young), [address]);
    assert!(weir.addresses(&old).is_empty());
    // K18: freed, it goes to the one that waits, by itself.
    weir.remove(&young);
    weir.wait_state(&old, "serving");
    assert_eq!(weir.addresses(&old), [address]);
}

#[test]
fn k18_a_full_or_shrunken_pool_steals_nothing_and_heals() {
    if skip("k18") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::prepare()
        .args(["--pool", "10.1.0.64/31"])
        .launch(&lab.lb);
    let all: Vec<_> = (0..3)
        .map(|n| service(&format!("s{n}")).tcp(80).endpoints([pod_v4(0)], 80))
        .collect();
    let first = weir.serve(&all[0])[0];
    let second = weir.serve(&all[1])[0];
    weir.apply(&all[2]);
    let message = weir.wait_reason(&all[2], "PoolExhausted");
    assert!(message.contains("pool"), "{message}");
    assert_eq!(
        (weir.addresses(&all[0]), weir.addresses(&all[1])),
        (vec![first], vec![second])
    );
    // Shrunk under a living Service: the address is kept, and said.
    let weir = weir
        .stop()
        .args(["--pool", "10.1.0.64-10.1.0.64"])
        .launch(&lab.lb);
    weir.wait_state(&all[1], "serving");
    assert_eq!(
        (weir.addresses(&all[0]), weir.addresses(&all[1])),
        (vec![first], vec![second])
    );
    weir.wait_reason(&all[1], "AddressOutsidePools");
    // Given up, it is not given again.
    weir.remove(&all[1]);
    eventually("it is gone", SOON, || weir.service(&all[1]).is_none());
    weir.wait_reason(&all[2], "PoolExhausted");
    let weir = weir.stop().args(["--pool", "10.1.0.64/30"]).launch(&lab.lb);
    weir.wait_state(&all[2], "serving");
    assert_eq!(weir.addresses(&all[0]), [first]);
}

#[test]
fn k19_the_oldest_wins_a_conflict_and_sharing_needs_both() {
    if skip("k19") {
        return;
    }
    let lab = Lab::new();
    let wanted: IpAddr = "10.1.0.70".parse().unwrap();
    let ask_for = |name: &str, created: &str, port| {
        service(name)
            .created(created)
            .tcp(port)
            .endpoints([pod_v4(0)], 80)
            .annotation("weir.dev/load-balancer-ips", "10.1.0.70")
    };
    let young = ask_for("young", "2026-01-01T00:00:00Z", 80);
    let old = ask_for("old", "2020-01-01T00:00:00Z", 80);
    // Both at once, in one batch: the oldest has it.
    let weir = Weir::prepare()
        .pools()
        .with(&young)
        .with(&old)
        .launch(&lab.lb);
    weir.wait_state(&old, "serving");
    assert_eq!(weir.addresses(&old), [wanted]);
    let message = weir.wait_reason(&young, "AddressTaken");
    assert!(message.contains("default/old"), "{message}");
    assert!(
        weir.addresses(&young).is_empty(),
        "never another address instead"
    );
    // Sharing: one side alone is not enough, equal ports are not possible, both with other ports are.
    let share = |svc: manifest::Service| svc.annotation("weir.dev/allow-shared-ip", "key");
    let third = share(ask_for("third", "2026-02-01T00:00:00Z", 81));
    weir.apply(&third);
    weir.wait_service(&third, "is refused", |s| s["state"] == "pending");
    weir.apply(&share(old.clone()));
    weir.wait_state(&third, "serving");
    assert_eq!(weir.addresses(&third), [wanted]);
    weir.apply(&share(young.clone()));
    weir.wait_service(&young, "still pending: its port is taken", |s| {
        s["state"] == "pending"
    });
    // Outside every pool: said, and nothing instead.
    let outside = service("outside")
        .tcp(80)
        .endpoints([pod_v4(0)], 80)
        .annotation("weir.dev/load-balancer-ips", "203.0.113.9");
    weir.apply(&outside);
    weir.wait_reason(&outside, "AddressNotInPool");
    assert!(weir.addresses(&outside).is_empty());
    // The oldest goes: the waiting one heals.
    weir.remove(&old);
    weir.wait_state(&young, "serving");
    assert_eq!(weir.addresses(&young), [wanted]);
}
