//! Destination NAT by nftables: the kernel's own load balancer.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{fill, vip};
use crate::net::Topology;

const RULES: &str = include_str!("../../../../peers/nft.conf");

pub fn set_up(topology: &Topology, dir: &Path) -> Result<()> {
    let path = dir.join("nft.conf");
    std::fs::write(
        &path,
        format!("flush ruleset\n{}", fill(RULES, &[("VIP", &vip())])),
    )?;
    let output = topology
        .lb
        .exec("nft")
        .arg("-f")
        .arg(path)
        .output()
        .context("cannot run nft")?;
    ensure!(
        output.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Entries of connections that have ended leave soon, or the table would fill.
    topology
        .lb
        .sysctls(&[("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1")])
}
