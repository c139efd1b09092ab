//! A real Kubernetes: etcd, API server and controller manager, and the test in the place of kubelets.
//!
//! Nodes and Pods are objects whose status the test writes; the EndpointSlices come from the real
//! controller. What answers at a Pod's address is the test's business.
//!
//! ```text
//! let cluster = Cluster::start_in(&lab.server, [10, 2, 0, 2].into());
//! cluster.apply(RULES_OF_THE_APPLIANCE);
//! let weir = Weir::prepare().arg(format!("--kubeconfig={}", cluster.appliance().display())) ...
//! cluster.node("n1", &[[10, 2, 0, 2].into()], &[]);
//! let pod = cluster.pod("default", "web-0", &[("app", "web")], "n1", &[pod_v4(0).into()]);
//! cluster.apply(SERVICE_THAT_SELECTS_APP_WEB);
//! cluster.wait_endpoints("default", "web", "ready", |found| found.iter().any(|e| e.ready));
//! ```
//!
//! Two users: `admin` may do everything, `appliance` what the test's own RBAC objects let it.
//! One cluster at a time in a process, 400 MB: the next one waits for the last one's end.

mod breakable;
mod direct;
mod files;
mod objects;
mod parts;
mod programs;
pub mod stage;
mod turn;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

// Not every program of tests needs all of them.
#[allow(unused_imports)]
pub use {
    breakable::Breakable,
    objects::{Endpoint, Pod},
    programs::skip,
};

use programs::{Process, command, program, tail};

use super::net::{self, Net};

/// The port of the API server.
pub const API_PORT: u16 = 6443;

/// As long as the cluster may take for what it does within a second when it has the machine.
pub const CONVERGED: Duration = Duration::from_secs(30);

/// A running cluster; killed when dropped, and by the kernel when the test's process is.
pub struct Cluster {
    /// What ends first stands first.
    control_plane: Mutex<Option<ControlPlane>>,
    /// Asked by [`Cluster::call`].
    proxy: OnceLock<Process>,
    etcd: Option<Process>,
    start: Start,
    api: SocketAddr,
    /// Of this cluster alone, below 127.0.0.0/8: etcd's. Its ports are then nobody else's.
    loopback: Ipv4Addr,
    dir: tempfile::TempDir,
    _turn: turn::Turn,
}

/// What serves the API and acts on it.
struct ControlPlane {
    controllers: Option<Process>,
    _api: Process,
}

/// How to start one. See [`Cluster::prepare`].
#[derive(Default)]
pub struct Start {
    namespace: Option<String>,
    address: Option<IpAddr>,
    api_flags: Vec<String>,
    restored: Option<PathBuf>,
}

impl Start {
    /// Everything runs in this namespace, and the API server listens on this address of it.
    pub fn inside(mut self, net: &Net, address: IpAddr) -> Start {
        self.namespace = Some(net.name.clone());
        self.address = Some(address);
        self
    }

    /// One more flag of kube-apiserver, such as `--feature-gates=WatchList=false`.
    pub fn api_flag(mut self, flag: &str) -> Start {
        self.api_flags.push(flag.into());
        self
    }

    /// Begins with the objects that [`Cluster::save`] has put there. What is there stays as it is.
    pub fn restore(mut self, from: &Path) -> Start {
        self.restored = Some(from.to_owned());
        self
    }

    /// Starts it and waits until it can be used.
    #[track_caller]
    pub fn launch(self) -> Cluster {
        let turn = turn::Turn::wait();
        let dir = files::directory();
        let loopback = files::loopback();
        if let Some(from) = &self.restored {
            files::copy(from, &dir.path().join("etcd"));
        }
        let address = self.address.unwrap_or(loopback.into());
        let mut cluster = Cluster {
            control_plane: Mutex::new(None),
            proxy: OnceLock::new(),
            etcd: None,
            start: self,
            api: SocketAddr::new(address, API_PORT),
            loopback,
            dir,
            _turn: turn,
        };
        files::write_users(&cluster);
        cluster.etcd = Some(cluster.start_etcd());
        cluster.start_api();
        cluster
    }
}

impl Cluster {
    /// A fresh cluster on a loopback address of its own.
    #[track_caller]
    pub fn start() -> Cluster {
        Cluster::prepare().launch()
    }

    /// A fresh cluster inside a namespace; the API server listens on that address of it, and is
    /// reached from wherever the address is. kubectl runs inside too.
    #[track_caller]
    pub fn start_in(net: &Net, address: IpAddr) -> Cluster {
        Cluster::prepare().inside(net, address).launch()
    }

    /// Settings first.
    pub fn prepare() -> Start {
        Start::default()
    }

    /// Where the API server listens.
    pub fn api(&self) -> SocketAddr {
        self.api
    }

    /// The kubeconfig of the user `admin`, for whom everything is allowed.
    pub fn admin(&self) -> PathBuf {
        self.dir.path().join("admin.kubeconfig")
    }

    /// The kubeconfig of the user `appliance`, for whom nothing is allowed but what the test has
    /// bound to that User. It names [`Cluster::token_file`].
    pub fn appliance(&self) -> PathBuf {
        self.dir.path().join("appliance.kubeconfig")
    }

    /// The appliance's token: write something else into it, and the API server answers 401.
    pub fn token_file(&self) -> PathBuf {
        self.dir.path().join("appliance.token")
    }

    /// A file that holds the certificate of the API server's authority.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("certs/apiserver.crt")
    }

    /// A way to the API server that the test can break. See [`Cluster::appliance_by`].
    pub fn breakable(&self) -> Breakable {
        Breakable::open(self.start.namespace.as_deref(), self.api)
    }

    /// As [`Cluster::appliance`], but by way of this.
    pub fn appliance_by(&self, way: &Breakable) -> PathBuf {
        let name = format!("appliance-{}.kubeconfig", way.address.port());
        let path = self.dir.path().join(name);
        files::write_kubeconfig(self, &path, "appliance", way.address);
        path
    }

    /// Runs kubectl as `admin` and returns what it prints; the test fails if it does.
    #[track_caller]
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(&self.admin(), args)
            .unwrap_or_else(|error| panic!("kubectl {args:?}: {error}{}", self.log()))
    }

    /// Runs kubectl with a kubeconfig and returns what it prints.
    ///
    /// # Errors
    /// What it prints on standard error, if it fails.
    pub fn try_kubectl(&self, kubeconfig: &Path, args: &[&str]) -> Result<String, String> {
        let output = self.kubectl_command(kubeconfig, args).output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// kubectl, not yet started: for a watch, say.
    pub fn kubectl_command(&self, kubeconfig: &Path, args: &[&str]) -> Command {
        let mut command = self.command("kubectl");
        command.arg("--kubeconfig").arg(kubeconfig).args(args);
        command
    }

    /// A program of the same build (kubectl, kube-proxy) in a namespace, not yet started. It is killed
    /// when the thread that starts it ends.
    pub fn program_in(&self, net: &Net, name: &str) -> Command {
        command(Some(&net.name), &program(name), self.dir.path())
    }

    /// Applies objects, any number in one YAML or JSON text (server-side, as `admin`).
    #[track_caller]
    pub fn apply(&self, objects: &str) {
        let file = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        std::fs::write(file.path(), objects).unwrap();
        let name = file.path().to_str().unwrap();
        let forced = ["apply", "--server-side", "--force-conflicts", "-f", name];
        self.kubectl(&forced);
    }

    /// What `kubectl get ARGS -o json` prints; null if there is no such object.
    #[track_caller]
    pub fn get(&self, args: &[&str]) -> Value {
        let mut all = vec!["get", "--ignore-not-found", "-o", "json"];
        all.extend(args);
        let text = self.kubectl(&all);
        match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap(),
        }
    }

    /// Waits until what [`Cluster::get`] returns satisfies `holds`, within [`CONVERGED`]; that.
    #[track_caller]
    pub fn wait(&self, what: &str, args: &[&str], holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + CONVERGED;
        loop {
            let found = self.get(args);
            if holds(&found) {
                return found;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "{args:?}: never {what}: {found:#}{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills the API server and its controllers; connections end, new ones are refused. etcd goes on.
    pub fn stop_api(&self) {
        *self.control_plane.lock().unwrap() = None;
    }

    /// Kills the controllers alone: who writes EndpointSlices by hand does not need them.
    pub fn stop_controllers(&self) {
        if let Some(running) = &mut *self.control_plane.lock().unwrap() {
            running.controllers = None;
        }
    }

    /// Starts them, after [`Cluster::stop_api`], with the same objects, address, keys and users, and
    /// waits until the API server is ready.
    #[track_caller]
    pub fn start_api(&self) {
        let mut running = self.control_plane.lock().unwrap();
        assert!(running.is_none(), "the API server runs");
        *running = Some(self.start_control_plane());
    }

    /// Ends it and keeps its objects in a folder, for [`Start::restore`].
    pub fn save(self, to: &Path) {
        let Cluster {
            control_plane,
            etcd,
            dir,
            _turn,
            ..
        } = self;
        drop((control_plane, etcd));
        files::copy(&dir.path().join("etcd"), to);
    }

    /// The last lines of every log.
    pub fn log(&self) -> String {
        ["etcd", "kube-apiserver", "kube-controller-manager"]
            .map(|name| tail(&self.dir.path().join(format!("{name}.log"))))
            .join("\n")
    }
}
