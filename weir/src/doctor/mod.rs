//! `weir doctor`: what this machine has for Weir and what it keeps from it, each with its verdict
//! and the command that changes it. Reads, and changes nothing; needs neither root nor a daemon.
//!
//! - `tree`: /proc and /sys, or a copy of them below another directory;
//! - `check`: one thing looked at;
//! - `found`: the probe's findings; `sockets`, `links`, `process`: settings of the kernel, of its
//!   interfaces, of this process;
//! - `report`: what is printed.

mod check;
mod found;
mod links;
mod process;
mod report;
mod sockets;
#[cfg(test)]
mod tests;
mod tree;

use std::path::Path;
use std::process::ExitCode;

use lb_core::plane::Probe;
use lb_core::plane::memory::Books;

use crate::cli::{DoctorArgs, DoctorOutput};
use crate::exit;
use check::{Check, Verdict};
use tree::Tree;

pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let checks = examine(Path::new("/"), &Probe::run());
    match args.output {
        DoctorOutput::Table => print!("{}", report::table(&checks)),
        DoctorOutput::Json => println!("{}", report::json(&checks)),
    }
    Ok(match report::worst(&checks) {
        Verdict::Fail => ExitCode::from(exit::NEGATIVE),
        Verdict::Ok | Verdict::Warn => ExitCode::SUCCESS,
    })
}

/// Everything, of the machine whose files are below `root` and whose kernel gave `probe`.
fn examine(root: &Path, probe: &Probe) -> Vec<Check> {
    let tree = Tree::new(root);
    let rights = Rights::of(&tree);
    let mut checks = found::checks(probe);
    checks.extend(process::checks(&tree, rights));
    checks.extend(process::stocks(&Books::open(root).read()));
    checks.extend(sockets::checks(&tree, rights));
    checks.extend(links::checks(&tree));
    checks
}

/// Capabilities that lift a limit which others are held to.
#[derive(Clone, Copy, Debug)]
struct Rights {
    net_admin: bool,
    sys_admin: bool,
    sys_resource: bool,
}

impl Rights {
    /// Of this process, by their bits in linux/capability.h.
    fn of(tree: &Tree) -> Rights {
        let status = tree.text("proc/self/status").unwrap_or_default();
        let mut lines = status.lines();
        let mask = lines.find_map(|line| line.strip_prefix("CapEff:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let holds = |bit: u32| mask.unwrap_or(0) >> bit & 1 == 1;
        Rights {
            net_admin: holds(12),
            sys_admin: holds(21),
            sys_resource: holds(24),
        }
    }
}
