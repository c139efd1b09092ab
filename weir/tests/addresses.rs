//! VIPs on the machine: used where they are, added where they are not, removed when given up.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;

use support::manifest::service;
use support::net::pod_v4;
use support::traffic::*;
use support::*;

fn has(lab: &Lab, device: &str, address: &str) -> bool {
    lab.lb
        .out("ip", &["-o", "addr", "show", "dev", device])
        .split_whitespace()
        .any(|w| w.split('/').next() == Some(address))
}

#[test]
fn an_address_is_added_to_the_link_of_its_subnet_and_removed_when_given_up() {
    if skip("addresses") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::prepare()
        .pools()
        .args(["--pool", "198.51.100.0/28"])
        .launch(&lab.lb);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let on_link = service("link").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = weir.serve(&on_link)[0];
    assert!(
        has(&lab, "front", &vip.to_string()),
        "its subnet is on that link"
    );
    assert_eq!(
        lab.client
            .run(move || ask(SocketAddr::new(vip, 80)))
            .unwrap(),
        "pod"
    );
    let routed = service("routed")
        .tcp(80)
        .endpoints([pod_v4(0)], 80)
        .annotation("weir.dev/load-balancer-ips", "198.51.100.3");
    weir.serve(&routed);
    assert!(has(&lab, "lo", "198.51.100.3"), "no link has its subnet");
    lab.client
        .ip(&["route", "add", "198.51.100.0/28", "via", "10.1.0.1"]);
    assert_eq!(
        lab.client
            .run(|| ask("198.51.100.3:80".parse().unwrap()))
            .unwrap(),
        "pod"
    );
    let v6 = service("six")
        .spec("ipFamilies: [IPv6]")
        .tcp(80)
        .endpoints([pod_v4(0)], 80);
    let vip6 = weir.serve(&v6)[0];
    assert!(has(&lab, "front", &vip6.to_string()));
    let flags = lab
        .lb
        .out("ip", &["-o", "-6", "addr", "show", "dev", "front"]);
    let line = flags
        .lines()
        .find(|l| l.contains(&vip6.to_string()))
        .unwrap();
    assert!(
        line.contains("nodad") && !line.contains("tentative"),
        "{line}"
    );
    // A v6 client on the same link finds it by neighbour discovery.
    assert_eq!(
        lab.client
            .run(move || ask(SocketAddr::new(vip6, 80)))
            .unwrap(),
        "pod"
    );

    for svc in [&on_link, &routed, &v6] {
        weir.remove(svc);
    }
    eventually("all are removed", SOON, || {
        !has(&lab, "front", &vip.to_string())
            && !has(&lab, "lo", "198.51.100.3")
            && !has(&lab, "front", &vip6.to_string())
    });
    assert!(
        has(&lab, "front", "10.1.0.1"),
        "what Weir did not add it never removes"
    );
}

#[test]
fn an_address_that_is_there_is_used_as_it_is_and_stays() {
    if skip("addresses used") {
        return;
    }
    let lab = Lab::new();
    lab.lb.ip(&["addr", "add", "10.1.0.64/32", "dev", "front"]);
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let svc = service("there")
        .tcp(80)
        .endpoints([pod_v4(0)], 80)
        .annotation("weir.dev/load-balancer-ips", "10.1.0.64");
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "pod");
    weir.remove(&svc);
    eventually("the Service is gone", SOON, || weir.service(&svc).is_none());
    weir.stop();
    assert!(has(&lab, "front", "10.1.0.64"));
}

#[test]
fn what_a_killed_process_left_is_taken_over_or_cleaned() {
    if skip("addresses left") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let stays = service("stays").tcp(80).endpoints([pod_v4(0)], 80);
    let goes = service("goes").tcp(80).endpoints([pod_v4(0)], 80);
    let (stays_at, goes_at) = (weir.serve(&stays)[0], weir.serve(&goes)[0]);
    let manifest = weir.manifests().join("default.goes.yaml");
    let start = weir.kill();
    assert!(
        has(&lab, "front", &stays_at.to_string()) && has(&lab, "front", &goes_at.to_string()),
        "a killed process leaves them"
    );
    std::fs::remove_file(manifest).unwrap();
    let weir = start.pools().launch(&lab.lb);
    weir.wait_state(&stays, "serving");
    eventually("the other is cleaned", SOON, || {
        !has(&lab, "front", &goes_at.to_string())
    });
    assert!(has(&lab, "front", &stays_at.to_string()));
    // Somebody removes it by hand: it comes back.
    lab.lb
        .ip(&["addr", "del", &format!("{stays_at}/32"), "dev", "front"]);
    eventually("it is repaired", SOON, || {
        has(&lab, "front", &stays_at.to_string())
    });
    weir.stop();
    eventually("a stop removes what was added", SOON, || {
        !has(&lab, "front", &stays_at.to_string())
    });
}

/// Everything that happens to the addresses of a namespace, from now on.
struct Watch {
    process: std::process::Child,
    text: tempfile::NamedTempFile,
}

impl Watch {
    fn new(lab: &Lab) -> Watch {
        let text = tempfile::NamedTempFile::new().unwrap();
        let process = lab
            .lb
            .command("ip")
            .args(["-o", "monitor", "address"])
            .stdout(text.reopen().unwrap())
            .spawn()
            .unwrap();
        let watch = Watch { process, text };
        // It listens once it tells of an address that comes and goes.
        eventually("the watch sees", SOON, || {
            let probe = ["192.0.2.77/32", "dev", "lo"];
            lab.lb.ip(&[&["addr", "add"], &probe[..]].concat());
            lab.lb.ip(&[&["addr", "del"], &probe[..]].concat());
            std::thread::sleep(std::time::Duration::from_millis(20));
            watch.about("192.0.2.77").len() > 1
        });
        watch
    }

    fn about(&self, address: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.text.path()).unwrap();
        let lines = text.lines().filter(|line| {
            line.split_whitespace()
                .any(|word| word.split('/').next() == Some(address))
        });
        lines.map(str::to_owned).collect()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn two_appliances_in_one_namespace_leave_each_other_alone() {
    if skip("addresses of two") {
        return;
    }
    let lab = Lab::new();
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let pool = |range: &'static str| Weir::prepare().args(["--pool", range]);
    let one = pool("10.1.0.64/28").launch(&lab.lb);
    let svc = service("web").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = one.serve(&svc)[0].to_string();
    assert!(has(&lab, "front", &vip));
    let watch = Watch::new(&lab);

    let other = service("other").tcp(80).endpoints([pod_v4(0)], 80);
    let two = pool("10.1.0.80/28").launch(&lab.lb);
    let theirs = two.serve(&other)[0].to_string();
    // Stopped in order, and killed: each start judges what it finds.
    let two = two.stop().args(["--pool", "10.1.0.80/28"]).launch(&lab.lb);
    two.wait_state(&other, "serving");
    let manifest = two.manifests().join("default.other.yaml");
    let start = two.kill().args(["--pool", "10.1.0.80/28"]);
    assert!(has(&lab, "front", &theirs), "a killed process leaves it");
    std::fs::remove_file(manifest).unwrap();
    let two = start.launch(&lab.lb);
    eventually("its own leftover is cleaned", SOON, || {
        !has(&lab, "front", &theirs)
    });
    two.stop();
    assert_eq!(watch.about(&vip), [""; 0], "somebody touched it");
    let asked = SocketAddr::new(vip.parse().unwrap(), 80);
    assert_eq!(lab.client.run(move || ask(asked)).unwrap(), "pod");
}

#[test]
fn the_demo_as_root_beside_an_appliance_touches_nothing() {
    if skip("addresses and demo") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let svc = service("web").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = weir.serve(&svc)[0].to_string();
    assert!(has(&lab, "front", &vip));
    let watch = Watch::new(&lab);
    let text = lab
        .lb
        .out(env!("CARGO_BIN_EXE_weir"), &["demo", "--seconds", "1"]);
    assert!(text.contains("Nothing was lost"), "{text}");
    assert_eq!(watch.about(&vip), [""; 0], "somebody touched it");
}

#[test]
fn without_the_privilege_it_says_so_and_addresses_already_there_work() {
    if skip("addresses unprivileged") {
        return;
    }
    let lab = Lab::new();
    lab.lb.ip(&["addr", "add", "10.1.0.64/32", "dev", "front"]);
    // As a user of no privilege, but for low ports.
    let start = Weir::prepare().pools();
    std::os::unix::fs::chown(start.dir.path(), Some(65534), Some(65534)).unwrap();
    let weir = start
        .wrap([
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=-all,+net_bind_service",
            "--ambient-caps=-all,+net_bind_service",
            "--bounding-set=-all,+net_bind_service",
        ])
        .launch(&lab.lb);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let there = service("there")
        .tcp(80)
        .endpoints([pod_v4(0)], 80)
        .annotation("weir.dev/load-balancer-ips", "10.1.0.64");
    let vip = SocketAddr::new(weir.serve(&there)[0], 80);
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "pod");
    let missing = service("missing")
        .tcp(80)
        .endpoints([pod_v4(0)], 80)
        .annotation("weir.dev/load-balancer-ips", "10.1.0.65");
    weir.apply(&missing);
    let message = weir.wait_reason(&missing, "AddressNotAdded");
    assert!(
        message.contains("CAP_NET_ADMIN") && message.contains("ip addr add"),
        "{message}"
    );
    weir.wait_state(&missing, "pending");
    // Added by hand, it is served without a restart.
    lab.lb.ip(&["addr", "add", "10.1.0.65/32", "dev", "front"]);
    weir.wait_state(&missing, "serving");
    let vip = SocketAddr::new("10.1.0.65".parse().unwrap(), 80);
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "pod");
}

#[test]
fn node_port_services_are_fronted_on_request() {
    if skip("node ports") {
        return;
    }
    let lab = Lab::new();
    let _pods: Vec<_> = (0..2)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 8080, &n.to_string()))
        .collect();
    let svc = {
        let mut svc = service("np")
            .kind("NodePort")
            .tcp(80)
            .endpoints([pod_v4(0), pod_v4(1)], 8080);
        svc.ports.clear();
        svc.spec(
            "ports: [{name: tcp80, protocol: TCP, port: 80, targetPort: 8080, nodePort: 30080}]",
        )
    };
    let weir = Weir::start(&lab);
    weir.apply(&svc);
    let message = weir.wait_reason(&svc, "NotALoadBalancer");
    assert!(message.contains("--node-port-address"), "{message}");
    let weir = weir
        .stop()
        .pools()
        .args([
            "--node-port-address",
            "10.1.0.1",
            "--node-port-address",
            "fd01::1",
        ])
        .launch(&lab.lb);
    weir.wait_state(&svc, "serving");
    for to in ["10.1.0.1:30080", "[fd01::1]:30080"] {
        let to: SocketAddr = to.parse().unwrap();
        let names: std::collections::BTreeSet<String> = lab
            .client
            .run(move || (0..40).map(|_| ask(to).unwrap()).collect());
        assert_eq!(names.len(), 2, "{to}: {names:?}");
    }
}
