//! Active health checks, end to end: a server that is stopped, gone, answers 500, or goes to and fro. One
//! appliance for all cases, which run beside each other: most of their time is spent waiting for checks.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::manifest::{Service, service};
use support::net::pod_v4;
use support::traffic::{Load, TcpPod, UdpPod, ask, connect, exchange, read_name, udp};
use support::{Lab, Weir, eventually, skip};

/// A check a second, with a second to answer: two answers are due in four. The machine may be busy.
const CONVERGED: Duration = Duration::from_secs(30);

/// A Service that is checked every second at `port`, and turns with `threshold` answers.
fn checked(name: &str, port: u16, threshold: &str) -> Service {
    [
        ("port", port.to_string().as_str()),
        ("path", "/ready"),
        ("interval", "1s"),
        ("timeout", "1s"),
        ("healthy", threshold),
        ("unhealthy", threshold),
    ]
    .into_iter()
    .fold(service(name), |service, (key, value)| {
        service.annotation(&format!("weir.dev/health-check-{key}"), value)
    })
}

/// Answers HTTP with a status that can be changed.
struct Says {
    status: Arc<AtomicU16>,
    _pod: TcpPod,
}

impl Says {
    fn at(lab: &Lab, pod: u16, port: u16) -> Says {
        let status = Arc::new(AtomicU16::new(200));
        let said = Arc::clone(&status);
        let pod = TcpPod::serve(&lab.server, pod_v4(pod), port, move |mut stream| {
            let mut request = [0; 1_024];
            let count = stream.read(&mut request).unwrap_or_default();
            if !request[..count].starts_with(b"GET /ready HTTP/1.1\r\n") {
                return;
            }
            let status = said.load(Ordering::Relaxed);
            let _ = stream.write_all(format!("HTTP/1.1 {status} X\r\n\r\n").as_bytes());
        });
        Says { status, _pod: pod }
    }

    fn set(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }
}

/// A real server: nginx in one process, so that a signal stops all of it.
struct Nginx {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Nginx {
    fn at(lab: &Lab, pod: u16, port: u16) -> Nginx {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().display();
        let address = SocketAddr::new(pod_v4(pod).into(), port);
        let text = format!(
            "daemon off; master_process off; user root; pid {own}/pid; error_log stderr;
            events {{}}
            http {{ access_log off; client_body_temp_path {own}/b; proxy_temp_path {own}/p;
              fastcgi_temp_path {own}/f; uwsgi_temp_path {own}/u; scgi_temp_path {own}/s;
              server {{ listen {address}; location = /ready {{ return 204; }} }} }}"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, text).unwrap();
        let mut command = lab.server.command("nginx");
        command.args(["-e", "stderr", "-c", file.to_str().unwrap()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let nginx = Nginx {
            child,
            _directory: directory,
        };
        let listens = move || {
            lab.server
                .run(move || std::net::TcpStream::connect(address).is_ok())
        };
        eventually("nginx listens", CONVERGED, listens);
        nginx
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Stage {
    lab: Lab,
    weir: Weir,
}

impl Stage {
    /// Asks until the last 20 answers in a row are exactly of these pods.
    #[track_caller]
    fn answered_by(&self, what: &str, vip: IpAddr, names: &[&str]) {
        let wanted: BTreeSet<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let to = SocketAddr::new(vip, 80);
        eventually(what, CONVERGED, || {
            let asked = self
                .lab
                .client
                .run(move || (0..20).map(|_| ask(to)).collect());
            let found: std::io::Result<BTreeSet<String>> = asked;
            found.is_ok_and(|found| found == wanted)
        });
    }

    #[track_caller]
    fn says(&self, service: &Service, what: &str) {
        eventually(what, CONVERGED, || {
            let found = self.weir.service(service).unwrap().to_string();
            found.contains(what)
        });
    }

    fn named(&self, pods: std::ops::Range<u16>) -> Vec<TcpPod> {
        let name = |n| TcpPod::named(&self.lab.server, pod_v4(n), 80, &n.to_string());
        pods.map(name).collect()
    }
}

#[test]
fn endpoints_that_fail_their_check_get_nothing_new() {
    if skip("health") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let stage = &Stage { lab, weir };
    std::thread::scope(|scope| {
        for case in [a_server_that_stops, udp_flows_go_elsewhere, k10_to_and_fro] {
            scope.spawn(move || case(stage));
        }
    });
}

/// Answers 500, is stopped, is gone; what is open lives; where all fail all are used.
fn a_server_that_stops(stage: &Stage) {
    let _pods = stage.named(0..2);
    let other = Says::at(&stage.lab, 0, 9_000);
    let nginx = Nginx::at(&stage.lab, 1, 9_000);
    let web = checked("web", 9_000, "1")
        .tcp(80)
        .endpoints([pod_v4(0), pod_v4(1)], 80);
    let vip = stage.weir.serve(&web)[0];
    stage.answered_by("both at the start", vip, &["0", "1"]);
    let mut open = connect(&stage.lab.client, SocketAddr::new(vip, 80)).unwrap();
    let at = read_name(&mut open).unwrap();

    nginx.signal(Signal::STOP);
    stage.answered_by("a stopped server is out", vip, &["0"]);
    stage.says(&web, "10.2.0.12:9000 does not answer");
    eventually("it is counted", CONVERGED, || {
        let found = stage.weir.service(&web).unwrap();
        let of = |state: &str| stage.weir.metric("weir_backends", &["\"web\"", state]);
        let counts = &found["endpoints"];
        let counted = counts["ready"] == 2 && counts["unhealthy"] == 1;
        counted
            && found["state"] == "serving"
            && of("\"unhealthy\"") == 1.0
            && of("\"ready\"") == 2.0
    });
    nginx.signal(Signal::CONT);
    stage.answered_by("and goes on", vip, &["0", "1"]);

    other.set(500);
    stage.answered_by("an error is out", vip, &["1"]);
    stage.says(&web, "10.2.0.11:9000 answers HTTP 500");
    // From now on nobody listens at the other's port, either.
    drop(nginx);
    stage.says(&web, "NoHealthyEndpoint");
    stage.answered_by("where all fail all are used", vip, &["0", "1"]);
    other.set(302);
    stage.answered_by("one is good again", vip, &["0"]);
    stage.says(&web, "10.2.0.12:9000 refuses");

    // Which had its share of it all.
    let mut back = [0; 5];
    open.write_all(b"hello").unwrap();
    open.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello", "open at {at}");
    stage.weir.remove(&web);
}

/// A TCP port tells of a UDP one. The pods answer all the time, so that nothing but the check can be why.
fn udp_flows_go_elsewhere(stage: &Stage) {
    let name = |n: u16| UdpPod::named(&stage.lab.server, pod_v4(n), 5353, &n.to_string());
    let _pods = [2, 3].map(name);
    let mut checks: Vec<_> = [2, 3].map(|n| Some(Says::at(&stage.lab, n, 9_001))).into();
    let dns = checked("dns", 9_001, "1")
        .udp(53)
        .endpoints([pod_v4(2), pod_v4(3)], 5353);
    let vip = SocketAddr::new(stage.weir.serve(&dns)[0], 53);
    let flow = udp(&stage.lab.client, vip);
    let answered_by = || {
        let reply = exchange(&flow, b"x").ok()?;
        String::from_utf8(reply)
            .ok()?
            .strip_suffix(":x")?
            .parse()
            .ok()
    };
    let mut first: Option<u16> = None;
    eventually("it is answered", CONVERGED, || {
        first = answered_by();
        first.is_some()
    });
    let first = first.unwrap();
    checks[usize::from(first - 2)] = None;
    let other = 5 - first;
    eventually("the flow is the other's", CONVERGED, || {
        answered_by() == Some(other)
    });
    stage.weir.remove(&dns);
}

/// K10: ten times a second another answer. Nothing is lost, and the table changes no more often than the
/// thresholds let it.
fn k10_to_and_fro(stage: &Stage) {
    let _pods = stage.named(4..6);
    let checks = [4, 5].map(|n| Says::at(&stage.lab, n, 9_002));
    let flap = checked("flap", 9_002, "2")
        .tcp(80)
        .endpoints([pod_v4(4), pod_v4(5)], 80);
    let vip = SocketAddr::new(stage.weir.serve(&flap)[0], 80);
    let mut open = connect(&stage.lab.client, vip).unwrap();
    let at: u16 = read_name(&mut open).unwrap().parse().unwrap();
    let load = Load::start(&stage.lab.client, 2, 100, move || ask(vip).map(drop));
    let unhealthy = || {
        let found = stage.weir.service(&flap).unwrap();
        found["endpoints"]["unhealthy"].as_u64().unwrap()
    };
    let begun = Instant::now();
    let (mut turns, mut last) = (0, 0);
    let mut status = [500, 200].into_iter().cycle();
    while begun.elapsed() < Duration::from_secs(4) {
        checks[usize::from(at - 4)].set(status.next().unwrap());
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        let now = unhealthy();
        turns += u32::from(now != last);
        last = now;
        std::thread::sleep(Duration::from_millis(100));
    }
    // Two answers take 0.9 s each at the least; and the other may be late on a busy machine.
    let most = 2 * (begun.elapsed().as_millis() as u32 / 1_800 + 1);
    let (done, failed) = load.finish();
    assert!(done > 0 && failed.is_empty(), "{done}: {failed:?}");
    assert!(turns <= most, "{turns} of {most}");
    stage.weir.remove(&flap);
}
