//! Weir, by either engine.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Kind, threads, vip};
use crate::cli::Mode;
use crate::load::{ECHO, TCP_PORTS, UDP_PORTS};
use crate::net::{Topology, backends};

/// How long it may take until its admin socket answers.
const START: Duration = Duration::from_secs(10);

fn engine(kind: Kind) -> &'static str {
    match kind {
        Kind::WeirUring => "io_uring",
        _ => "epoll",
    }
}

/// Does this build start with the engine, here? An appliance without Services tells.
pub fn available(kind: Kind, program: &Path) -> Result<String, String> {
    let version = super::version(program, &["--version"])?;
    let said = starts(kind, program).map_err(|error| format!("{error:#}"))?;
    match said {
        None => Ok(format!("{version} ({})", program.display())),
        Some(said) => Err(format!("{} says: {said}", program.display())),
    }
}

/// Nothing if it starts, else what it says.
fn starts(kind: Kind, program: &Path) -> Result<Option<String>> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("manifests"))?;
    let log = dir.path().join("log");
    let mut child = serve(kind, program, dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log)?)
        .spawn()?;
    let deadline = Instant::now() + START;
    let said = loop {
        if child.try_wait()?.is_some() {
            let text = std::fs::read_to_string(&log)?;
            break Some(text.lines().last().unwrap_or_default().to_owned());
        }
        if UnixStream::connect(dir.path().join("admin.sock")).is_ok() {
            break None;
        }
        if Instant::now() > deadline {
            break Some(format!("nothing within {START:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let _ = child.kill();
    let _ = child.wait();
    Ok(said)
}

/// `weir serve` with everything it keeps in `dir`.
fn serve(kind: Kind, program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["serve", "--engine", engine(kind)])
        .arg("--manifests")
        .arg(dir.join("manifests"))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--admin")
        .arg(format!("unix:{}", dir.join("admin.sock").display()));
    command
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
    let mut command = serve(kind, program, dir);
    command
        .args(["--workers", &threads(topology).to_string()])
        .args(["--pool", &format!("{}/32", vip())])
        .args(["--pool", "others=10.4.0.0/18"]);
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
