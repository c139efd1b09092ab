//! The parts of a cluster, with the flags that make them small and quick.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::programs::{Process, command, program};
use super::{API_PORT, Cluster, ControlPlane};

/// As long as a part may take to start: it takes a second by itself, and many times that beside a
/// build.
const STARTED: Duration = Duration::from_secs(90);

impl Cluster {
    #[track_caller]
    pub(super) fn start_etcd(&self) -> Process {
        let mut command = self.command("etcd");
        let [clients, peers] = [2379, 2380].map(|port| format!("http://{}:{port}", self.loopback));
        command
            .arg("--data-dir")
            .arg(self.path("etcd"))
            .args(["--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--log-level=warn", "--unsafe-no-fsync"]);
        self.start_process("etcd", command)
    }

    /// Starts the API server and, once that is ready, its controllers.
    #[track_caller]
    pub(super) fn start_control_plane(&self) -> ControlPlane {
        let mut api = self.start_api_server();
        self.wait_for_api(&mut api);
        ControlPlane {
            controllers: Some(self.start_controllers()),
            _api: api,
        }
    }

    #[track_caller]
    fn start_api_server(&self) -> Process {
        let mut command = self.command("kube-apiserver");
        let key = self.path("certs/apiserver.key");
        command
            .arg(format!("--etcd-servers=http://{}:2379", self.loopback))
            .arg(format!("--bind-address={}", self.api.ip()))
            .arg(format!("--secure-port={API_PORT}"))
            // It makes a certificate for its bind address there, unless one is there already.
            .arg(flag("--cert-dir", self.path("certs")))
            // With its own key it signs the tokens of ServiceAccounts too.
            .arg("--service-account-issuer=https://fixture")
            .arg(flag("--service-account-key-file", &key))
            .arg(flag("--service-account-signing-key-file", &key))
            .arg(flag("--token-auth-file", self.path("tokens.csv")))
            .arg("--authorization-mode=RBAC")
            // Both families.
            .arg("--service-cluster-ip-range=10.96.0.0/16,fd96::/112")
            // No controller makes ServiceAccounts, and none takes away a new Node's taint.
            .arg("--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
            // Nobody dials it by its Service, and there may be no default route to find an address by.
            .args([
                "--endpoint-reconciler-type=none",
                "--advertise-address=192.0.2.1",
            ])
            .args(&self.start.api_flags);
        self.start_process("kube-apiserver", command)
    }

    #[track_caller]
    fn start_controllers(&self) -> Process {
        let mut command = self.command("kube-controller-manager");
        let all = [
            "endpointslice-controller",
            "endpointslice-mirroring-controller",
            "garbage-collector-controller",
            "namespace-controller",
        ];
        command
            .arg(flag("--kubeconfig", self.admin()))
            .arg(flag("--authentication-kubeconfig", self.admin()))
            .arg(flag("--authorization-kubeconfig", self.admin()))
            .arg(format!("--controllers={}", all.join(",")))
            .args(["--leader-elect=false", "--secure-port=0"]);
        self.start_process("kube-controller-manager", command)
    }

    /// Waits until it is ready and has made the namespace that every test uses.
    #[track_caller]
    fn wait_for_api(&self, api: &mut Process) {
        let deadline = Instant::now() + STARTED;
        for question in [["get", "--raw=/readyz"], ["get", "namespace/default"]] {
            while let Err(error) = self.try_kubectl(&self.admin(), &question) {
                api.assert_alive();
                assert!(
                    Instant::now() < deadline,
                    "{question:?}: {error}{}",
                    self.log()
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// A program of the cluster, not yet started, where the cluster is.
    pub(super) fn command(&self, name: &str) -> Command {
        let namespace = self.start.namespace.as_deref();
        command(namespace, &program(name), self.dir.path())
    }

    #[track_caller]
    pub(super) fn start_process(&self, name: &str, command: Command) -> Process {
        Process::start(command, &self.path(&format!("{name}.log")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn flag(name: &str, path: impl AsRef<Path>) -> String {
    format!("{name}={}", path.as_ref().display())
}
