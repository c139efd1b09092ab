//! Weir, by either engine.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Kind, threads, vip};
use crate::cli::Mode;
use crate::load::{ECHO, TCP_PORTS, UDP_PORTS};
use crate::net::{Topology, backends};

fn engine(kind: Kind) -> &'static str {
    match kind {
        Kind::WeirUring => "io_uring",
        _ => "epoll",
    }
}

/// Does this build have the engine? Its settings say so without starting anything.
pub fn available(kind: Kind, program: &Path) -> Result<String, String> {
    let version = super::version(program, &["--version"])?;
    let dir = std::env::temp_dir();
    let output = Command::new(program)
        .args(["config", "show", "--engine", engine(kind), "--manifests"])
        .arg(dir)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(version);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().next().unwrap_or_default();
    Err(format!("{} refuses this engine: {line}", program.display()))
}

pub fn command(
    kind: Kind,
    program: &Path,
    topology: &Topology,
    services: usize,
    dir: &Path,
) -> Result<Command> {
    let manifests = dir.join("manifests");
    std::fs::create_dir(&manifests)?;
    std::fs::write(manifests.join("bench.yaml"), bench_service())?;
    if services > 1 {
        let others: String = (1..services).map(other_service).collect();
        std::fs::write(manifests.join("others.yaml"), others)?;
    }
    let mut command = Command::new(program);
    command
        .args(["serve", "--engine", engine(kind)])
        .arg("--manifests")
        .arg(manifests)
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--admin")
        .arg(format!("unix:{}", dir.join("admin.sock").display()))
        .args(["--workers", &threads(topology).to_string()])
        .args(["--pool", &format!("{}/32", vip())])
        .args(["--pool", "others=10.4.0.0/18"])
        .env_remove("WEIR_ENGINE");
    // Unpinned in mode spread, as everybody else is.
    if topology.mode == Mode::Spread {
        command.args(["--pin", "false"]);
    }
    Ok(command)
}

/// The Service that is measured: every port of the load tool at the VIP.
fn bench_service() -> String {
    let mut ports = String::new();
    for (protocol, all) in [("TCP", &TCP_PORTS[..]), ("UDP", &UDP_PORTS[..])] {
        for port in all {
            let _ = writeln!(
                ports,
                "- {{name: p{port}, protocol: {protocol}, port: {port}}}"
            );
        }
    }
    service("bench", &vip(), &ports)
}

/// One of the others in the table: an address and a port of its own.
fn other_service(n: usize) -> String {
    let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 4, 0, 0)) + n as u32);
    let ports = format!("- {{name: tcp, protocol: TCP, port: {ECHO}}}\n");
    service(&format!("other-{n}"), &address.to_string(), &ports)
}

fn service(name: &str, address: &str, ports: &str) -> String {
    let endpoints: String = backends()
        .map(|backend| format!("- {{addresses: [\"{backend}\"], conditions: {{ready: true}}}}\n"))
        .collect();
    let indented: String = ports.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "---
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: default
  annotations: {{weir.dev/load-balancer-ips: \"{address}\"}}
spec:
  type: LoadBalancer
  ports:
{indented}---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  namespace: default
  labels: {{kubernetes.io/service-name: {name}}}
addressType: IPv4
ports:
{ports}endpoints:
{endpoints}"
    )
}
