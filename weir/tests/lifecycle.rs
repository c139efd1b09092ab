//! Starting, draining, ending; and the admin interface beside it.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::manifest::service;
use support::net::pod_v4;
use support::traffic::*;
use support::*;

#[test]
fn sigterm_drains_and_a_second_one_ends() {
    if skip("drain") {
        return;
    }
    let lab = Lab::new();
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let svc = service("drained").tcp(80).endpoints([pod_v4(0)], 80);
    let talk = |stream: &mut std::net::TcpStream| {
        stream
            .write_all(b"x")
            .and_then(|()| stream.read_exact(&mut [0]))
    };

    // A client that finishes in time is not cut, new ones are refused meanwhile.
    let mut weir = Weir::prepare()
        .pools()
        .args(["--drain-timeout", "20s"])
        .with(&svc)
        .launch(&lab.lb);
    weir.wait_state(&svc, "serving");
    let vip = SocketAddr::new(weir.addresses(&svc)[0], 80);
    let mut live = connect(&lab.client, vip).unwrap();
    read_name(&mut live).unwrap();
    weir.signal(Signal::TERM);
    eventually("new connections are refused", SOON, || {
        connect(&lab.client, vip).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    });
    assert_eq!(weir.get("/readyz").0, 503, "not ready while it drains");
    talk(&mut live).expect("a live connection goes on");
    assert!(weir.try_exit().is_none());
    drop(live);
    let status = weir.wait_exit(SOON);
    assert_eq!(status.code(), Some(0), "{}", weir.log());

    // The deadline holds.
    let mut weir = weir
        .kill()
        .pools()
        .args(["--drain-timeout", "500ms"])
        .launch(&lab.lb);
    let mut stays = connect(&lab.client, vip).unwrap();
    read_name(&mut stays).unwrap();
    let begun = Instant::now();
    weir.signal(Signal::TERM);
    weir.wait_exit(SOON);
    assert!(
        begun.elapsed() >= Duration::from_millis(400) && begun.elapsed() < SOON,
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        receive_all(&mut stays).2.unwrap_err().kind(),
        ErrorKind::ConnectionReset,
        "cut, and not by a clean FIN"
    );

    // The second signal ends it now.
    let mut weir = weir
        .kill()
        .pools()
        .args(["--drain-timeout", "1h"])
        .launch(&lab.lb);
    let mut stays = connect(&lab.client, vip).unwrap();
    read_name(&mut stays).unwrap();
    weir.signal(Signal::TERM);
    eventually("it drains", SOON, || connect(&lab.client, vip).is_err());
    assert!(weir.try_exit().is_none());
    weir.signal(Signal::TERM);
    weir.wait_exit(SOON);
}

#[test]
fn a_storm_of_sighup_harms_nothing() {
    if skip("hup") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let svc = service("calm").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    let load = Load::start(&lab.client, 2, 200, move || ask(vip).map(drop));
    for _ in 0..200 {
        weir.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(5));
    }
    load.goes_on(20);
    let (ok, errors) = load.finish();
    assert!(errors.is_empty(), "{ok} {errors:?}");
    weir.wait_state(&svc, "serving");
}

#[test]
fn the_admin_interface_shows_every_service_and_what_is_ready() {
    if skip("admin") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::prepare().pools().launch(&lab.lb);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let served = service("served")
        .dual_stack()
        .tcp(80)
        .udp(53)
        .endpoints([pod_v4(0)], 80);
    let refused = service("internal").kind("ClusterIP").tcp(80);
    weir.serve(&served);
    weir.apply(&refused);
    weir.wait_state(&refused, "refused");
    let entry = weir.service(&served).unwrap();
    assert_eq!(entry["addresses"].as_array().unwrap().len(), 2, "{entry:#}");
    assert_eq!(entry["ports"].as_array().unwrap().len(), 2, "{entry:#}");
    assert_eq!(entry["endpoints"]["ready"], 1, "{entry:#}");
    assert!(
        entry["reasons"].to_string().contains("CrossFamily"),
        "the v6 VIP has only v4 endpoints: {entry:#}"
    );
    let (status, body) = weir.get("/readyz?verbose");
    assert_eq!(status, 200, "{body}");
    let (_, version) = weir.get("/version");
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    let engine = version["engine"].as_str().unwrap();
    let line = format!("[+]engine ok: {engine}: ");
    assert!(body.contains(&line), "which engine runs is said: {body}");
    assert_eq!(
        weir.metric("weir_build_info", &[&format!("engine=\"{engine}\"")]),
        1.0
    );
    assert_eq!(weir.get("/livez").0, 200);
    let (status, body) = weir.get("/nowhere");
    assert_eq!(status, 404);
    assert!(
        body.contains("\"code\"") && body.contains("\"hint\""),
        "{body}"
    );
    assert_eq!(weir.request("DELETE", "/api/v1/services").0, 405);
    // Metrics are what Prometheus reads, and they move.
    let vip = SocketAddr::new(
        weir.addresses(&served)
            .into_iter()
            .find(|a| a.is_ipv4())
            .unwrap(),
        80,
    );
    lab.client
        .run(move || (0..7).for_each(|_| drop(ask(vip).unwrap())));
    eventually("seven connections are counted", SOON, || {
        weir.metric(
            "weir_connections_closed_total",
            &["namespace=\"default\"", "service=\"served\""],
        ) == 7.0
    });
    assert!(weir.metric("weir_bytes_total", &["service=\"served\""]) > 0.0);
    let (_, text) = weir.get("/metrics");
    let documented = include_str!("../../docs/operate.md");
    let mut families = 0;
    for line in text.lines() {
        assert!(
            line.starts_with("# ") || line.starts_with("weir_"),
            "{line}"
        );
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            let row = format!("| `{name}` | {kind} |");
            assert!(documented.contains(&row), "{row}");
            families += 1;
        }
    }
    // Those of a cluster's watches and answers, and of the token for it, are there with a cluster alone.
    let rows = |prefix: &str| documented.matches(&format!("\n| `weir_{prefix}")).count();
    let rows = rows("") - rows("watch_") - rows("kubernetes_answer") - rows("token_");
    assert_eq!(families, rows, "every family is on the page: {text}");
    // A slow or silent admin client disturbs neither the admin interface nor traffic.
    let slow: Vec<_> = (0..50).map(|_| weir.admin_stream().unwrap()).collect();
    for mut stream in &slow {
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: l").unwrap();
    }
    lab.client
        .run(move || (0..20).for_each(|_| drop(ask(vip).unwrap())));
    drop(slow);
    assert_eq!(weir.get("/livez").0, 200);
}

#[test]
fn a_port_that_is_taken_says_who_and_heals() {
    if skip("bind error") {
        return;
    }
    let lab = Lab::new();
    // Somebody else holds every address at port 80.
    let squatter = TcpPod::named(&lab.lb, std::net::Ipv4Addr::UNSPECIFIED, 80, "squatter");
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let svc = service("taken").tcp(80).endpoints([pod_v4(0)], 80);
    weir.apply(&svc);
    let message = weir.wait_reason(&svc, "NotListening");
    assert!(message.contains("another program"), "{message}");
    assert_eq!(weir.get("/readyz").0, 503);
    let other = service("free").tcp(81).endpoints([pod_v4(0)], 80);
    weir.serve(&other);
    drop(squatter);
    weir.wait_state(&svc, "serving");
    let vip = SocketAddr::new(weir.addresses(&svc)[0], 80);
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "pod");
    eventually("ready", SOON, || weir.get("/readyz").0 == 200);
}

#[test]
fn settings_that_cannot_work_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = dir.path().to_str().unwrap();
    let file = dir.path().join("weir.yaml");
    let serve = |settings: &str, args: &[&str]| {
        std::fs::write(&file, settings).unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["serve", "--config"])
            .arg(&file)
            .env("WEIR_MANIFESTS", manifests)
            .args(args)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    for (settings, args, parts) in [
        (
            "",
            &["--connect-timeout", "0s"][..],
            ["--connect-timeout", "above 0s"],
        ),
        (
            "connectTimeout: 5s\n",
            &[],
            ["weir.yaml:1:1: connectTimeout", "(3s)"],
        ),
        (
            "idleTimeout: 8761h\n",
            &[],
            ["weir.yaml:1:14", "longer than a year"],
        ),
        (
            "hashKey: abc\n",
            &[],
            ["weir.yaml:1:10", "32 hexadecimal digits"],
        ),
        (
            "",
            &["--hash-key", "abc"],
            ["--hash-key", "32 hexadecimal digits"],
        ),
        (
            "pools: [10.0.0.0/30]\n",
            &["--pool", "10.0.0.0/8,10.1.0.0/16"],
            ["--pool", "overlap"],
        ),
        ("", &["--log", "weir=loud"], ["--log", "weir=debug"]),
        (
            "log: inof\n",
            &[],
            ["weir.yaml:1:1: log", "inof is no level"],
        ),
        (
            "",
            &["--manifests", env!("CARGO_BIN_EXE_weir")],
            ["--manifests", "give its directory"],
        ),
    ] {
        let (code, text) = serve(settings, args);
        assert_eq!(code, Some(2), "{settings:?} {args:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{settings:?} {args:?}: {text}");
        }
    }
}

#[test]
fn a_second_one_with_the_same_state_directory_is_refused() {
    if skip("state lock") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let svc = service("first").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    // By another name, too.
    let second = || {
        let start = Weir::prepare().pools().with(&svc);
        std::os::unix::fs::symlink(weir.state_dir(), start.dir.path().join("state")).unwrap();
        start
    };
    let mut refused = second().spawn(&lab.lb);
    let status = refused.wait_exit(SOON);
    assert_eq!(status.code(), Some(1));
    let log = refused.log();
    assert!(
        log.contains("in use by another weir") && log.contains("--state-dir"),
        "{log}"
    );
    lab.client
        .run(move || (0..20).for_each(|_| assert_eq!(ask(vip).unwrap(), "pod")));
    // The kernel lets go of it, however the first one ends.
    let waits = second();
    let _dir = weir.kill();
    let weir = waits.launch(&lab.lb);
    weir.wait_state(&svc, "serving");
    assert_eq!(weir.addresses(&svc), [vip.ip()]);
}
