//! ClientIP affinity with two workers, while backends come and go.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use support::manifest::service;
use support::net::pod_v4;
use support::traffic::*;
use support::*;

/// Every client's connections, in order: which pods answered.
fn rounds(
    lab: &Lab,
    clients: &[std::net::Ipv4Addr],
    vip: SocketAddr,
    each: usize,
) -> HashMap<IpAddr, Vec<String>> {
    let clients = clients.to_vec();
    lab.client.run(move || {
        let parts: Vec<Vec<_>> = clients
            .chunks(clients.len().div_ceil(8))
            .map(<[_]>::to_vec)
            .collect();
        let threads: Vec<_> = parts
            .into_iter()
            .map(|part| {
                std::thread::spawn(move || {
                    let mut seen: HashMap<IpAddr, Vec<String>> = HashMap::new();
                    for _ in 0..each {
                        for client in &part {
                            let mut stream = dial_from((*client).into(), 0, vip).unwrap();
                            let name = read_name(&mut stream).unwrap();
                            seen.entry((*client).into()).or_default().push(name);
                        }
                    }
                    seen
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    })
}

#[test]
fn a_thousand_clients_stay_with_their_pods_on_two_workers() {
    if skip("affinity") {
        return;
    }
    let lab = Lab::new();
    let clients = lab.more_clients(1000);
    let weir = Weir::prepare()
        .pools()
        .args(["--workers", "2"])
        .launch(&lab.lb);
    let _pods: Vec<_> = (0..8)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 80, &n.to_string()))
        .collect();
    let with = |pods: std::ops::Range<u16>| {
        service("sticky")
            .tcp(80)
            .spec("sessionAffinity: ClientIP")
            .endpoints(pods.map(pod_v4), 80)
    };
    let vip = SocketAddr::new(weir.serve(&with(0..4))[0], 80);

    let first = rounds(&lab, &clients, vip, 5);
    assert_eq!(first.len(), 1000);
    let torn = first
        .values()
        .filter(|names| names.windows(2).any(|w| w[0] != w[1]))
        .count();
    assert_eq!(torn, 0, "clients that met two pods");
    let mut share: HashMap<&str, usize> = HashMap::new();
    for names in first.values() {
        *share.entry(names[0].as_str()).or_default() += 1;
    }
    assert!(
        share.len() == 4 && share.values().all(|n| *n > 150),
        "{share:?}"
    );

    // Pods join: nobody moves, although the hash alone would move some.
    let generation = weir.metric("weir_config_generation", &[]);
    weir.apply(&with(0..8));
    eventually("the new pods are in force", SOON, || {
        weir.metric("weir_config_generation", &[]) > generation
    });
    std::thread::sleep(Duration::from_millis(100));
    let second = rounds(&lab, &clients, vip, 5);
    let moved = clients
        .iter()
        .filter(|c| {
            second[&IpAddr::from(**c)]
                .iter()
                .any(|n| *n != first[&IpAddr::from(**c)][0])
        })
        .count();
    assert_eq!(moved, 0, "clients that moved when pods joined");

    // A pod leaves: its own clients move, once, and no one else.
    let generation = weir.metric("weir_config_generation", &[]);
    weir.apply(&with(1..8));
    eventually("it is gone", SOON, || {
        weir.metric("weir_config_generation", &[]) > generation
    });
    std::thread::sleep(Duration::from_millis(100));
    let third = rounds(&lab, &clients, vip, 5);
    for client in clients.iter().map(|c| IpAddr::from(*c)) {
        let (before, after) = (&first[&client][0], &third[&client]);
        assert!(
            after.windows(2).all(|w| w[0] == w[1]),
            "{client}: {after:?}"
        );
        if before == "0" {
            assert_ne!(after[0], "0");
        } else {
            assert_eq!(after[0], *before, "{client}");
        }
    }
    assert_eq!(weir.metric("weir_affinity_full_total", &[]), 0.0);
}

#[test]
fn a_pin_ends_with_its_timeout() {
    if skip("affinity timeout") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pods: Vec<_> = (0..8)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 80, &n.to_string()))
        .collect();
    let clients = lab.more_clients(40);
    let with = |pods: std::ops::Range<u16>| {
        service("brief")
            .tcp(80)
            .spec("sessionAffinity: ClientIP")
            .spec("sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}")
            .endpoints(pods.map(pod_v4), 80)
    };
    let vip = SocketAddr::new(weir.serve(&with(0..2))[0], 80);
    let first = rounds(&lab, &clients, vip, 1);
    weir.apply(&with(0..8));
    // While it lasts, each new connection renews it.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(rounds(&lab, &clients, vip, 1), first);
    }
    // Unused for longer than the timeout it is gone: the hash decides again, over eight pods.
    std::thread::sleep(Duration::from_millis(1600));
    let later = rounds(&lab, &clients, vip, 1);
    let moved = clients
        .iter()
        .filter(|c| later[&IpAddr::from(**c)] != first[&IpAddr::from(**c)])
        .count();
    assert!(moved > 10, "{moved} of 40 moved");
}
