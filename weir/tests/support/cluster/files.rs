//! What stands in a cluster's directory, and which loopback address it has.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Cluster;

const PREFIX: &str = "weir-cluster-";
/// The tokens of the two users. They open a server on this machine alone, for as long as a test runs.
const ADMIN_TOKEN: &str = "token-of-the-admin";
const APPLIANCE_TOKEN: &str = "token-of-the-appliance";

/// A directory for one cluster; those of test processes that were killed are removed.
pub fn directory() -> tempfile::TempDir {
    let is_dead = |name: &str| {
        let pid = name.strip_prefix(PREFIX)?.split('-').next()?;
        let pid: u32 = pid.parse().ok()?;
        Some(!Path::new(&format!("/proc/{pid}")).exists())
    };
    for entry in std::fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if is_dead(&entry.file_name().to_string_lossy()) == Some(true) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    tempfile::Builder::new()
        .prefix(&format!("{PREFIX}{}-", std::process::id()))
        .tempdir()
        .unwrap()
}

/// An address below 127.0.0.0/8 that no other process uses: 22 bits of it are the process id (at most
/// 2^22, proc(5)).
pub fn loopback() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let low = NEXT.fetch_add(1, Ordering::Relaxed) % 4;
    let [_, a, b, c] = ((std::process::id() << 2) | low).to_be_bytes();
    Ipv4Addr::new(127, a, b, c)
}

/// Copies a directory. etcd's log is a file with holes, and stays one.
#[track_caller]
pub fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command
        .args(["-a", "--sparse=always", "-T"])
        .args([from, to]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// The users' tokens and kubeconfigs.
pub fn write_users(cluster: &Cluster) {
    let users = format!(
        "{ADMIN_TOKEN},admin,admin,system:masters\n{APPLIANCE_TOKEN},appliance,appliance\n"
    );
    let dir = cluster.dir.path();
    std::fs::write(dir.join("tokens.csv"), users).unwrap();
    for (user, token, kubeconfig) in [
        ("admin", ADMIN_TOKEN, cluster.admin()),
        ("appliance", APPLIANCE_TOKEN, cluster.appliance()),
    ] {
        std::fs::write(dir.join(format!("{user}.token")), token).unwrap();
        write_kubeconfig(cluster, &kubeconfig, user, cluster.api);
    }
}

/// The kubeconfig of a user whose token is in the file of the user's name.
pub fn write_kubeconfig(cluster: &Cluster, path: &Path, user: &str, server: SocketAddr) {
    let authority = cluster.ca_file();
    let authority = authority.display();
    let token_file = cluster.dir.path().join(format!("{user}.token"));
    let token_file = token_file.display();
    let text = format!(
        "apiVersion: v1
kind: Config
clusters:
- name: fixture
  cluster: {{server: \"https://{server}\", certificate-authority: {authority}}}
users:
- name: {user}
  user: {{tokenFile: {token_file}}}
contexts:
- name: {user}
  context: {{cluster: fixture, user: {user}}}
current-context: {user}
"
    );
    std::fs::write(path, text).unwrap();
}
