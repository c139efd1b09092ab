//! nginx with its stream module.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{fill, threads, vip};
use crate::load::{TCP_PORTS, UDP_PORTS};
use crate::net::Topology;

const HEAD: &str = include_str!("../../../../peers/nginx.conf");
const TCP: &str = include_str!("../../../../peers/nginx-tcp.conf");
const UDP: &str = include_str!("../../../../peers/nginx-udp.conf");

pub fn command(program: &Path, topology: &Topology, dir: &Path) -> Result<Command> {
    let server =
        |template: &str, port: u16| fill(template, &[("VIP", &vip()), ("PORT", &port.to_string())]);
    let servers: String = TCP_PORTS
        .iter()
        .map(|&port| server(TCP, port))
        .chain(UDP_PORTS.iter().map(|&port| server(UDP, port)))
        .collect();
    let text = fill(
        HEAD,
        &[
            ("THREADS", &threads(topology).to_string()),
            ("DIR", &dir.to_string_lossy()),
            ("SERVERS", &servers),
        ],
    );
    let path = dir.join("nginx.conf");
    std::fs::write(&path, text)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(dir).arg("-c").arg(path);
    Ok(command)
}
