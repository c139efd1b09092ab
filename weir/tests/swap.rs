//! Changes while traffic flows: nothing is lost, and they take effect at once.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use support::manifest::{ready, service, terminating};
use support::net::pod_v4;
use support::traffic::*;
use support::*;

#[test]
fn rolling_all_endpoints_under_load_loses_nothing() {
    if skip("rolling") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let rounds = if std::env::var_os("WEIR_SOAK").is_some() {
        50
    } else {
        8
    };
    let (size, all) = (4_u16, 8_u16);
    let pods: Vec<TcpPod> = (0..all)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 80, &n.to_string()))
        .collect();
    let mut svc = service("rolled")
        .tcp(80)
        .endpoints((0..size).map(pod_v4), 80);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);

    // 100 long-lived connections that talk all the while, 200 new ones a second.
    let live: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = connect(&lab.client, vip).unwrap();
            read_name(&mut stream).unwrap();
            stream
        })
        .collect();
    let talk = {
        let mut live: Vec<TcpStream> = live.iter().map(|s| s.try_clone().unwrap()).collect();
        move |byte: u8| {
            for stream in &mut live {
                stream.write_all(&[byte; 32])?;
                let mut back = [0; 32];
                stream.read_exact(&mut back)?;
                assert_eq!(back, [byte; 32]);
            }
            std::io::Result::Ok(())
        }
    };
    let mut talk = talk;
    let load = Load::start(&lab.client, 8, 200, move || ask(vip).map(drop));
    for round in 0..rounds {
        // One after another: the old pod terminates, a new one is ready, then the old one is gone.
        for step in 0..size {
            let old = (round * size + step) % all;
            let new = (old + size) % all;
            let old = pod_v4(old).to_string();
            let position = svc.slices[0]
                .endpoints
                .iter()
                .position(|e| e.address == old)
                .unwrap();
            svc.slices[0].endpoints[position] = terminating(&old);
            svc.slices[0]
                .endpoints
                .push(ready(&pod_v4(new).to_string()));
            weir.apply(&svc);
            std::thread::sleep(Duration::from_millis(40));
            svc.slices[0].endpoints.retain(|e| e.address != old);
            weir.apply(&svc);
            std::thread::sleep(Duration::from_millis(40));
        }
        talk(round as u8).expect("a long-lived connection was cut");
    }
    load.goes_on(100);
    let (ok, errors) = load.finish();
    println!(
        "{} endpoint changes under load: {ok} new connections, {} lost",
        rounds * size * 2,
        errors.len()
    );
    assert!(errors.is_empty(), "{} of {}: {errors:?}", errors.len(), ok);
    talk(255).expect("a long-lived connection was cut");
    assert_eq!(
        weir.metric("weir_connections_opened_total", &[]) as u64,
        ok + 100
    );
    drop((live, pods));
}

#[test]
fn policy_ports_and_pools_change_under_load_without_loss() {
    if skip("mutations") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pods: Vec<TcpPod> = (0..4)
        .map(|n| TcpPod::named(&lab.server, pod_v4(n), 80, &n.to_string()))
        .collect();
    let plain = || service("changed").tcp(80);
    let vip = SocketAddr::new(
        weir.serve(&plain().endpoints((0..4).map(pod_v4), 80))[0],
        80,
    );
    let mut live = connect(&lab.client, vip).unwrap();
    read_name(&mut live).unwrap();
    let load = Load::start(&lab.client, 4, 200, move || ask(vip).map(drop));
    let shapes = [
        plain().spec("sessionAffinity: ClientIP"),
        plain().annotation("weir.dev/algorithm", "maglev"),
        plain().annotation("weir.dev/algorithm", "least-connections"),
        plain().spec("loadBalancerSourceRanges: [10.1.0.0/16, 'fd01::/16']"),
        plain().tcp(81),
        plain().udp(80),
        plain().annotation("weir.dev/idle-timeout", "10m"),
        plain()
            .annotation("weir.dev/algorithm", "round-robin")
            .spec("sessionAffinity: ClientIP"),
        plain().annotation("weir.dev/algorithm", "random"),
        plain(),
    ];
    for round in 0..60 {
        let count = 1 + (round % 4) as u16;
        weir.apply(
            &shapes[round % shapes.len()]
                .clone()
                .endpoints((0..count).map(pod_v4), 80),
        );
        // Neighbours come and go.
        let neighbour = service(&format!("neighbour{}", round % 5))
            .tcp(8080)
            .endpoints([pod_v4(0)], 80);
        if round % 10 < 5 {
            weir.apply(&neighbour)
        } else {
            weir.remove(&neighbour)
        }
        std::thread::sleep(Duration::from_millis(50));
        live.write_all(b"?").unwrap();
        live.read_exact(&mut [0]).unwrap();
    }
    load.goes_on(300);
    let (ok, errors) = load.finish();
    println!(
        "120 changes under load: {ok} new connections, {} lost",
        errors.len()
    );
    assert!(errors.is_empty(), "{} of {}: {errors:?}", errors.len(), ok);
}

#[test]
fn a_changed_file_takes_effect_within_300_ms() {
    if skip("300 ms") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _a = TcpPod::named(&lab.server, pod_v4(0), 80, "a");
    let _b = TcpPod::named(&lab.server, pod_v4(1), 80, "b");
    let svc = |pod| service("quick").tcp(80).endpoints([pod_v4(pod)], 80);
    let vip = SocketAddr::new(weir.serve(&svc(0))[0], 80);
    let mut times: Vec<Duration> = (1..=20_u16)
        .map(|round| {
            let want = if round % 2 == 0 { "a" } else { "b" };
            let begun = Instant::now();
            weir.apply(&svc(round % 2));
            eventually("new connections see it", SOON, || {
                lab.client.run(move || ask(vip)).unwrap() == want
            });
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "a changed file was in force after {:?} (median), {:?} (worst of 20)",
        times[10], times[19]
    );
    // A busy machine may be late now and then.
    assert!(times[14] < Duration::from_millis(300), "{times:?}");
}

#[test]
fn a_thousand_services_load_in_under_two_seconds() {
    if skip("1,000 Services") {
        return;
    }
    let lab = Lab::new();
    let start = Weir::prepare().args(["--pool", "10.1.16.0/20"]);
    lab.client
        .ip(&["route", "add", "10.1.16.0/20", "via", "10.1.0.1"]);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let mut text = String::new();
    for n in 0..1000 {
        let _ = writeln!(
            text,
            "---\n{}",
            service(&format!("svc{n:04}"))
                .tcp(80)
                .endpoints([pod_v4(0)], 80)
                .yaml()
        );
    }
    std::fs::write(start.dir.path().join("manifests/all.yaml"), text).unwrap();
    let begun = Instant::now();
    let weir = start.launch(&lab.lb);
    let ready = begun.elapsed();
    let services = weir.services();
    assert_eq!(services.len(), 1000);
    let serving = services.iter().filter(|s| s["state"] == "serving").count();
    assert_eq!(
        serving, 1000,
        "ready means that what is published is listening"
    );
    let cpu = weir.cpu();
    println!("1,000 Services listening {ready:?} after the process began, {cpu:?} of CPU");
    // Beside others a machine gives it less than a CPU: then its own time counts.
    let (wall, own) = (Duration::from_secs(2), Duration::from_millis(1_500));
    assert!(ready < wall || cpu < own, "{ready:?}, {cpu:?} of CPU");
    // The first, the last and one between answer.
    for n in [0, 499, 999] {
        let address: std::net::IpAddr = services[n]["addresses"][0]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(
            lab.client.run(move || ask((address, 80).into())).unwrap(),
            "pod"
        );
    }
}
