//! One cluster and one appliance for all cases of this program, and a namespace of it for each case.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::{Value, json};

use crate::support::cluster::stage::{CLASS, Stage, condition, ingress};
use crate::support::cluster::{self, Pod};
use crate::support::net::pod_v4;
use crate::support::traffic::{TcpPod, UdpPod, ask};
use crate::support::*;

/// Two addresses that are given on request, for cases that want a pool to be full.
pub const TIGHT: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 130), Ipv4Addr::new(10, 1, 0, 131)];
pub const SETTINGS: [&str; 4] = [
    "--pool",
    "tight=10.1.0.130-10.1.0.131",
    // For requests: what is given without one is the lowest of the first pool.
    "--pool",
    "asked=10.1.0.140-10.1.0.159",
];

/// What the cases share. It lives as long as the process: tests have no common end.
pub struct Shared {
    pub stage: Stage,
    /// Clients beside the laboratory's one.
    pub clients: Vec<Ipv4Addr>,
    weir: Mutex<Option<Weir>>,
    /// Read by every case; written by those that stop what the others need.
    running: RwLock<()>,
    rooms: AtomicU16,
    _broom: Child,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

fn shared() -> &'static Shared {
    SHARED.get_or_init(|| {
        let stage = Stage::new();
        let weir = stage.weir(&SETTINGS);
        stage.cluster.node("n2", &[[10, 2, 0, 3].into()], &[]);
        Shared {
            clients: stage.lab.more_clients(2),
            _broom: broom(&stage, &weir),
            weir: Mutex::new(Some(weir)),
            running: RwLock::new(()),
            rooms: AtomicU16::new(0),
            stage,
        }
    })
}

impl Shared {
    #[track_caller]
    fn room(&'static self, name: &str, turn: Option<Turn>) -> Room {
        self.stage
            .cluster
            .put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        Room {
            namespace: name.into(),
            port: 20_000 + self.rooms.fetch_add(1, Ordering::Relaxed),
            shared: self,
            _turn: turn,
        }
    }
}

/// Waits for the end of this process, however it comes, and leaves nothing of it behind.
fn broom(stage: &Stage, weir: &Weir) -> Child {
    const SCRIPT: &str = "read -r _
        for ns in $NETS; do ip netns pids $ns | xargs -r kill -9; ip netns del $ns; done
        rm -rf \"$@\"";
    let lab = &stage.lab;
    let nets = [&lab.client, &lab.lb, &lab.server].map(|net| net.name.as_str());
    let mut command = Command::new("setsid");
    command
        .args(["sh", "-c", SCRIPT, "broom"])
        .arg(stage.cluster.admin().parent().unwrap())
        .arg(weir.state_dir().parent().unwrap())
        .env("NETS", nets.join(" "))
        // It is open as long as this process is there.
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

/// A case's own namespace, and a port of the servers' that nobody else uses.
pub struct Room {
    pub namespace: String,
    pub port: u16,
    shared: &'static Shared,
    _turn: Option<Turn>,
}

/// Beside others, or alone.
#[allow(dead_code)]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

impl Deref for Room {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.shared.stage
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let weir = self.shared.weir.lock().unwrap_or_else(|e| e.into_inner());
            let log = weir.as_ref().map(Weir::log).unwrap_or_default();
            eprintln!("--- weir's log\n{log}");
        }
    }
}

impl Room {
    /// A namespace; none, with a line that says why, where no cluster can run.
    #[track_caller]
    pub fn new(name: &str) -> Option<Room> {
        Room::open(name, |shared| {
            Turn::Shared(shared.running.read().unwrap_or_else(|e| e.into_inner()))
        })
    }

    /// As [`Room::new`], for a case that stops what the others need.
    #[track_caller]
    pub fn alone(name: &str) -> Option<Room> {
        Room::open(name, |shared| {
            Turn::Alone(shared.running.write().unwrap_or_else(|e| e.into_inner()))
        })
    }

    #[track_caller]
    fn open(name: &str, turn: impl FnOnce(&'static Shared) -> Turn) -> Option<Room> {
        if cluster::skip() {
            return None;
        }
        let shared = shared();
        Some(shared.room(name, Some(turn(shared))))
    }

    /// Another namespace for the same case.
    #[track_caller]
    pub fn beside(&self, name: &str) -> Room {
        // A second turn would wait for who waits for the first one's end.
        self.shared.room(name, None)
    }

    /// Other addresses that clients may come by.
    pub fn clients(&self) -> &[Ipv4Addr] {
        &self.shared.clients
    }

    /// Asks the appliance.
    pub fn with_weir<T>(&self, ask: impl FnOnce(&Weir) -> T) -> T {
        let weir = self.shared.weir.lock().unwrap_or_else(|e| e.into_inner());
        ask(weir.as_ref().unwrap())
    }

    /// Stops the appliance, does something, and starts it again in its directories.
    pub fn restart_weir(&self, meanwhile: impl FnOnce()) {
        let mut weir = self.shared.weir.lock().unwrap();
        let start = weir.take().unwrap().stop();
        meanwhile();
        *weir = Some(self.weir_again(start, &SETTINGS));
    }

    /// One port, 80, that leads to the room's port.
    pub fn port_80(&self, protocol: &str) -> Value {
        json!({"name": protocol.to_lowercase(), "port": 80, "protocol": protocol, "targetPort": self.port})
    }

    /// A LoadBalancer Service of our class for the pods of the room, on TCP 80, but for what `spec` says
    /// otherwise (null takes a field away).
    pub fn service_with(&self, name: &str, annotations: &Value, spec: &Value) -> Value {
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace, "annotations": annotations},
            "spec": {"type": "LoadBalancer", "loadBalancerClass": CLASS,
                "selector": {"app": "web"}, "ports": [self.port_80("TCP")]},
        });
        for (key, value) in spec.as_object().unwrap() {
            service["spec"][key] = value.clone();
        }
        service
    }

    /// Applies such a Service and waits for its address.
    #[track_caller]
    pub fn service(&self, name: &str, spec: &Value) -> IpAddr {
        self.cluster.put(&self.service_with(name, &json!({}), spec));
        let found = self.wait(name, "it has an address", |service| {
            ingress(service).is_some()
        });
        ingress(&found).unwrap()
    }

    /// A merge patch of a Service's spec.
    #[track_caller]
    pub fn patch(&self, name: &str, spec: &Value) {
        let patched = self
            .cluster
            .call("PATCH", &self.path(name), &json!({"spec": spec}));
        assert!(!patched.is_null(), "{name}: there is none");
    }

    /// A Service.
    pub fn get(&self, name: &str) -> Value {
        self.cluster.call("GET", &self.path(name), &Value::Null)
    }

    /// Where a Service is on the API server.
    pub fn path(&self, name: &str) -> String {
        format!("/api/v1/namespaces/{}/services/{name}", self.namespace)
    }

    /// Waits until a Service satisfies `holds`; it.
    #[track_caller]
    pub fn wait(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.cluster.wait_for(what, &self.path(name), holds)
    }

    /// Waits until the condition of a Service has this reason.
    #[track_caller]
    pub fn wait_reason(&self, name: &str, reason: &str) -> Value {
        self.wait(name, reason, |service| {
            condition(service, "weir.dev/Serving").is_some_and(|c| c["reason"] == reason)
        })
    }

    /// Waits until an event of a Service has a reason or a text with this in it; its type.
    #[track_caller]
    pub fn wait_event(&self, name: &str, with: &str) -> String {
        let path = format!("/api/v1/namespaces/{}/events", self.namespace);
        let is_it = |event: &&Value| {
            event["involvedObject"]["name"] == name
                && event["source"]["component"] == "weir"
                && (event["reason"] == with
                    || event["message"]
                        .as_str()
                        .is_some_and(|text| text.contains(with)))
        };
        let found = self.cluster.wait_for(with, &path, |events| {
            events["items"]
                .as_array()
                .unwrap()
                .iter()
                .any(|e| is_it(&e))
        });
        let all = found["items"].as_array().unwrap().iter();
        let kind = &all.clone().find(is_it).unwrap()["type"];
        kind.as_str().unwrap().into()
    }

    /// Waits until a reason for a Service has this code, and this in its text.
    #[track_caller]
    pub fn wait_said(&self, name: &str, code: &str, text: &str) {
        soon(&format!("{name}: {code} of {text}"), || {
            let services = self.with_weir(Weir::services);
            let is_it = |service: &&Value| {
                service["namespace"] == *self.namespace && service["name"] == name
            };
            let reasons = services.iter().filter(is_it);
            reasons
                .flat_map(|service| service["reasons"].as_array().unwrap())
                .any(|reason| reason["code"] == code && reason.to_string().contains(text))
        });
    }

    /// Answers TCP at the address of pod `n`, with its number.
    #[track_caller]
    pub fn tcp(&self, n: u16) -> TcpPod {
        TcpPod::named(&self.lab.server, pod_v4(n), self.port, &n.to_string())
    }

    /// Answers UDP there, with its number first.
    #[track_caller]
    pub fn udp(&self, n: u16) -> UdpPod {
        UdpPod::named(&self.lab.server, pod_v4(n), self.port, &n.to_string())
    }

    /// Pod `n` on node n1, ready.
    #[track_caller]
    pub fn pod(&self, n: u16) -> Pod {
        self.pod_on("n1", n)
    }

    /// Pod `n`, ready.
    #[track_caller]
    pub fn pod_on(&self, node: &str, n: u16) -> Pod {
        let pod = self.starting_pod(node, n);
        self.cluster.set_ready(&pod, true);
        pod
    }

    /// Pod `n`, of which nobody has said that it is ready.
    #[track_caller]
    pub fn starting_pod(&self, node: &str, n: u16) -> Pod {
        let addresses = [pod_v4(n).into()];
        let name = format!("web-{n}");
        self.cluster
            .starting_pod(&self.namespace, &name, &[("app", "web")], node, &addresses)
    }

    /// Who answers at port 80 of an address.
    pub fn ask(&self, address: IpAddr) -> std::io::Result<String> {
        let to = SocketAddr::new(address, 80);
        self.lab.client.run(move || ask(to))
    }

    /// Who answers so many connections in a row.
    #[track_caller]
    pub fn answers(&self, address: IpAddr, count: usize) -> Vec<String> {
        let to = SocketAddr::new(address, 80);
        self.lab
            .client
            .run(move || (0..count).map(|_| ask(to).unwrap()).collect())
    }
}

/// Waits for what is due at once; the machine may be busy.
#[track_caller]
pub fn soon(what: &str, holds: impl FnMut() -> bool) {
    eventually(what, cluster::CONVERGED, holds);
}

/// Was it refused: RST instead of a connection, or ICMP for a datagram?
pub fn refused<T>(end: &std::io::Result<T>) -> bool {
    end.as_ref()
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}
