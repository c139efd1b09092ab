//! The listener as a client sees it, hostile ones among them. The appliance behind it is made up;
//! everything in front of it is real: sockets, bytes, clocks.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use admin_api::metrics::{Kind, Page};
use admin_api::view::{Check, Endpoints, Port, Reason, Service, State, Version};
use admin_api::{Address, Appliance, Limits, Server};

#[derive(Default)]
struct Made {
    failed: bool,
    held: AtomicUsize,
}

impl Appliance for Made {
    fn version(&self) -> Version {
        Version {
            name: "weir",
            version: "0.0.0",
            engine: "epoll".into(),
        }
    }

    fn liveness(&self) -> Vec<Check> {
        vec![Check::good("worker-0", "turned 3 ms ago")]
    }

    fn readiness(&self) -> Vec<Check> {
        let mut checks = vec![
            Check::good("first-list", "complete"),
            Check::warning("manifests", "a.yaml:3:1: no"),
        ];
        if self.failed {
            checks.push(Check::failed("listeners", "192.0.2.1:80/tcp: in use"));
        }
        checks
    }

    fn services(&self) -> Arc<[Service]> {
        Arc::new([Service {
            namespace: "shop".into(),
            name: "web".into(),
            state: State::Closed,
            addresses: vec!["192.0.2.1".parse().expect("address")],
            ports: vec![Port {
                name: "http".into(),
                port: 80,
                protocol: "tcp",
            }],
            endpoints: Endpoints {
                not_ready: 2,
                ..Endpoints::default()
            },
            reasons: vec![Reason {
                code: "NoUsableEndpoint",
                message: "no usable endpoint".into(),
            }],
        }])
    }

    fn stats(&self) -> lb_core::stats::Snapshot {
        lb_core::stats::Snapshot::default()
    }

    fn recorded(&self) -> String {
        "weir_services{state=\"closed\"} 1\n".to_owned()
    }

    fn metrics(&self, page: &mut Page) {
        page.family("weir_backends", Kind::Gauge, "Endpoints.")
            .sample(&[("state", "ready")], 2);
    }

    fn confirm_deletions(&self) -> usize {
        self.held.swap(0, Ordering::Relaxed)
    }
}

const LIMITS: Limits = Limits {
    connections: 8,
    header_timeout: Duration::from_millis(300),
    lifetime: Duration::from_secs(2),
};

/// What ends here is not ended by the lifetime.
const PATIENT: Limits = Limits {
    lifetime: Duration::from_secs(60),
    ..LIMITS
};

struct Unix {
    server: Server,
    _directory: tempfile::TempDir,
}

fn unix(made: Made) -> Unix {
    unix_within(made, LIMITS)
}

fn unix_within(made: Made, limits: Limits) -> Unix {
    let directory = tempfile::tempdir().expect("temp");
    let address = Address::Unix(directory.path().join("s"));
    Unix {
        server: Server::start(&address, Arc::new(made), limits).expect("start"),
        _directory: directory,
    }
}

impl Unix {
    fn connect(&self) -> UnixStream {
        let Address::Unix(path) = self.server.address() else {
            panic!("a unix address")
        };
        let stream = UnixStream::connect(path).expect("connect");
        let limit = Some(Duration::from_secs(10));
        stream.set_read_timeout(limit).expect("timeout");
        stream
    }

    fn ask(&self, method: &str, target: &str, headers: &str) -> Answer {
        let request =
            format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
        answer(self.connect(), request.as_bytes())
    }
}

fn tcp() -> (Server, impl Fn(&str, &str) -> Answer) {
    let address = "127.0.0.1:0".parse().expect("address");
    let made = Made {
        held: AtomicUsize::new(3),
        ..Made::default()
    };
    let server = Server::start(&address, Arc::new(made), LIMITS).expect("start");
    let Address::Loopback(taken) = *server.address() else {
        panic!("a TCP address")
    };
    let ask = move |line: &str, host: &str| {
        let stream = TcpStream::connect(taken).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("timeout");
        let request = format!("{line} HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
        answer(stream, request.as_bytes())
    };
    (server, ask)
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn code(&self) -> String {
        assert!(
            self.head.contains("application/problem+json"),
            "{}",
            self.head
        );
        let value: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
        assert_eq!(value["status"], self.status);
        assert!(!value["hint"].as_str().expect("hint").is_empty());
        value["code"].as_str().expect("code").to_owned()
    }
}

fn answer(mut stream: impl Read + Write, request: &[u8]) -> Answer {
    stream.write_all(request).expect("write");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Answer {
        status: status.expect("status"),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

#[test]
fn health() {
    let good = unix(Made::default());
    for target in ["/livez", "/healthz", "/readyz"] {
        let answer = good.ask("GET", target, "");
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"));
    }
    let verbose = good.ask("GET", "/readyz?verbose", "");
    assert_eq!(verbose.status, 200, "a warning is yellow, not red");
    assert_eq!(
        verbose.body,
        "[+]first-list ok: complete\n[!]manifests warning: a.yaml:3:1: no\nreadyz check passed with warnings\n"
    );
    let bad = unix(Made {
        failed: true,
        ..Made::default()
    });
    let answer = bad.ask("GET", "/readyz", "");
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.body,
        "[-]listeners failed: 192.0.2.1:80/tcp: in use\nreadyz check failed\n"
    );
}

#[test]
fn services_have_their_shape() {
    let answer = unix(Made::default()).ask("GET", "/api/v1/services", "");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.body,
        r#"{"items":[{"namespace":"shop","name":"web","state":"closed","addresses":["192.0.2.1"],"ports":[{"name":"http","port":80,"protocol":"tcp"}],"endpoints":{"ready":0,"serving":0,"terminating":0,"notReady":2,"refused":0,"unhealthy":0},"reasons":[{"code":"NoUsableEndpoint","message":"no usable endpoint"}]}]}"#
    );
}

#[test]
fn metrics_and_version() {
    let unix = unix(Made::default());
    let page = unix.ask("GET", "/metrics", "");
    assert!(
        page.head.contains("text/plain; version=0.0.4"),
        "{}",
        page.head
    );
    assert!(
        page.body
            .starts_with("weir_services{state=\"closed\"} 1\n# ")
    );
    assert!(page.body.contains("weir_backends{state=\"ready\"} 2\n"));
    let version = unix.ask("GET", "/version", "");
    assert_eq!(
        version.body,
        r#"{"name":"weir","version":"0.0.0","engine":"epoll"}"#
    );
}

#[test]
fn what_is_no_answer_is_a_problem() {
    let unix = unix(Made::default());
    let cases = [
        ("GET", "/nothing", "", 404, "NotFound"),
        ("DELETE", "/api/v1/services", "", 405, "MethodNotAllowed"),
        (
            "GET",
            "/api/v1/deletions/confirm",
            "",
            405,
            "MethodNotAllowed",
        ),
        (
            "POST",
            "/api/v1/deletions/confirm",
            "Content-Length: 5000\r\n",
            413,
            "BodyTooLarge",
        ),
        (
            "POST",
            "/api/v1/deletions/confirm",
            "Transfer-Encoding: chunked\r\n",
            413,
            "BodyTooLarge",
        ),
    ];
    for (method, target, headers, status, code) in cases {
        let answer = unix.ask(method, target, headers);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{method} {target}"
        );
    }
    let long = format!("X: {}\r\n", "x".repeat(9000));
    let answer = unix.ask("GET", "/livez", &long);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (431, "HeadTooLarge")
    );
    let longer = format!("X: {}\r\n", "x".repeat(100_000));
    let mut stream = unix.connect();
    // The listener may close before it has read all of it.
    let _ = stream.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\n{longer}").as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    assert!(
        text.is_empty() || text.starts_with(b"HTTP/1.1 431"),
        "{text:?}"
    );
}

#[test]
fn the_socket_confirms_deletions() {
    let unix = unix(Made {
        held: AtomicUsize::new(3),
        ..Made::default()
    });
    let answer = unix.ask("POST", "/api/v1/deletions/confirm", "");
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (202, r#"{"confirmed":3}"#)
    );
    let again = unix.ask("POST", "/api/v1/deletions/confirm", "");
    assert_eq!((again.status, again.code().as_str()), (409, "NothingHeld"));
}

#[test]
fn tcp_reads_and_checks_the_host() {
    let (_server, ask) = tcp();
    assert_eq!(ask("GET /livez", "Host: localhost:1\r\n").status, 200);
    for host in [
        "Host: evil.example\r\n",
        "",
        "Host: 127.0.0.1\r\nHost: evil.example\r\n",
    ] {
        let answer = ask("GET /livez", host);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (421, "HostRefused"),
            "{host:?}"
        );
    }
    let write = ask("POST /api/v1/deletions/confirm", "Host: localhost\r\n");
    assert_eq!(
        (write.status, write.code().as_str()),
        (403, "ReadOnlyListener")
    );
}

#[test]
fn a_slow_head_is_cut_and_blocks_nobody() {
    let unix = unix_within(Made::default(), PATIENT);
    let start = Instant::now();
    let mut slow: Vec<UnixStream> = (0..LIMITS.connections + 1)
        .map(|_| unix.connect())
        .collect();
    for stream in &mut slow {
        stream
            .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ")
            .expect("write");
    }
    // Every permit is taken by a connection that says nothing more; this one waits for the first
    // to be cut.
    assert_eq!(unix.ask("GET", "/livez", "").status, 200);
    for mut stream in slow {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    let took = start.elapsed();
    // The first ones had all of their time: there was room.
    assert!(took >= PATIENT.header_timeout, "{took:?}");
    assert!(took < PATIENT.lifetime, "cut by the header clock: {took:?}");
}

#[test]
fn a_crowd_that_says_nothing_does_not_hold_up_a_probe() {
    let patient = Limits {
        header_timeout: Duration::from_secs(20),
        ..PATIENT
    };
    let unix = unix_within(Made::default(), patient);
    let _crowd: Vec<UnixStream> = (0..10 * LIMITS.connections)
        .map(|_| unix.connect())
        .collect();
    let start = Instant::now();
    assert_eq!(unix.ask("GET", "/livez", "").status, 200);
    let took = start.elapsed();
    assert!(took < patient.header_timeout, "{took:?}");
}

#[test]
fn an_idle_connection_is_closed() {
    let unix = unix_within(Made::default(), PATIENT);
    let mut stream = unix.connect();
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        .expect("write");
    let start = Instant::now();
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .expect("closed, not timed out");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(start.elapsed() < PATIENT.lifetime);
}
