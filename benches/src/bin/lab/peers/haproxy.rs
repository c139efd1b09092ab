//! HAProxy, copying or with splice(2).

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{fill, threads, vip};
use crate::load::TCP_PORTS;
use crate::net::Topology;

const HEAD: &str = include_str!("../../../../peers/haproxy.cfg");
const LISTEN: &str = include_str!("../../../../peers/haproxy-listen.cfg");

pub fn command(program: &Path, options: &str, topology: &Topology, dir: &Path) -> Result<Command> {
    let mut text = fill(
        HEAD,
        &[
            ("THREADS", &threads(topology).to_string()),
            ("OPTIONS", options),
        ],
    );
    for port in TCP_PORTS {
        text += &fill(LISTEN, &[("VIP", &vip()), ("PORT", &port.to_string())]);
    }
    let path = dir.join("haproxy.cfg");
    std::fs::write(&path, text)?;
    let mut command = Command::new(program);
    command.arg("-db").arg("-f").arg(path);
    Ok(command)
}
