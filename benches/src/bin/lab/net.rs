//! Three network namespaces joined by veth pairs: client, load balancer (lb), server.
//!
//! ```text
//!  client 10.1.0.11-18 --- front 10.1.0.1, VIP 10.1.0.100  lb  back 10.2.0.1 --- server 10.2.0.11-14
//! ```
//!
//! Each variant has a topology of its own for the whole run, so that nobody meets the TIME_WAIT
//! sockets or the conntrack entries of another.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};

use crate::cli::Mode;

/// Where clients dial, unless the variant is routed straight to the servers.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 100);
/// How many addresses the client has.
const CLIENTS: u8 = 8;
/// How many backends there are.
const BACKENDS: u8 = 4;
/// The CPU of the load balancer's host in mode isolate.
pub const LB_CPU: usize = 0;
/// The CPU of client and server in mode isolate.
pub const LOAD_CPU: usize = 1;

const PREFIX: &str = "wb";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The addresses that clients come from.
pub fn clients() -> impl Iterator<Item = Ipv4Addr> {
    (0..CLIENTS).map(|n| Ipv4Addr::new(10, 1, 0, 11 + n))
}

/// The addresses of the servers.
pub fn backends() -> impl Iterator<Item = Ipv4Addr> {
    (0..BACKENDS).map(|n| Ipv4Addr::new(10, 2, 0, 11 + n))
}

/// One network namespace; deleted when dropped.
pub struct Net {
    name: String,
}

impl Net {
    fn new(lab: &str, role: &str) -> Result<Net> {
        let net = Net {
            name: format!("{lab}-{role}"),
        };
        ip(&["netns", "add", &net.name])?;
        net.ip_batch("link set lo up")?;
        net.sysctls(&[
            ("net/ipv4/tcp_tw_reuse", "1"),
            ("net/ipv4/ip_local_port_range", "1024 65535"),
            ("net/ipv4/ip_local_reserved_ports", "7000-7099"),
            ("net/ipv4/tcp_max_syn_backlog", "65535"),
            ("net/core/somaxconn", "65535"),
            ("net/ipv4/conf/all/rp_filter", "0"),
        ])?;
        Ok(net)
    }

    /// Sets kernel parameters of this namespace.
    pub fn sysctls(&self, all: &[(&str, &str)]) -> Result<()> {
        let all: Vec<(String, String)> = all
            .iter()
            .map(|(key, value)| (format!("/proc/sys/{key}"), value.to_string()))
            .collect();
        self.run(Place::default(), move || {
            for (path, value) in &all {
                std::fs::write(path, value).with_context(|| format!("cannot set {path}"))?;
            }
            Ok(())
        })?
    }

    /// Runs `ip -batch` with these lines inside.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run ip; install iproute2")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "ip -batch in {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// A command inside that sees the namespace's own /sys.
    pub fn exec(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `f` on a thread inside, at `place`, and waits for it. What it makes (sockets,
    /// processes) belongs to the namespace and the place for ever.
    pub fn run<T: Send + 'static>(
        &self,
        place: Place,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let thread = self.spawn(place, f)?;
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `f` on a thread inside, at `place`.
    pub fn spawn<T: Send + 'static>(
        &self,
        place: Place,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let door = self.door()?;
        Ok(std::thread::spawn(move || {
            door.enter()?;
            place.take()?;
            Ok(f())
        }))
    }

    /// A way in, for a thread that needs sockets of several namespaces.
    pub fn door(&self) -> Result<Door> {
        let path = format!("/run/netns/{}", self.name);
        Ok(Door(File::open(&path).with_context(|| path)?))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// An open namespace.
pub struct Door(File);

impl Door {
    /// Moves the calling thread inside.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter a network namespace")
    }
}

/// Where a thread runs, and how much it matters.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    pub cpu: Option<usize>,
    pub nice: i32,
}

impl Place {
    fn take(self) -> Result<()> {
        if let Some(cpu) = self.cpu {
            pin(cpu)?;
        }
        if self.nice != 0 {
            setpriority_process(None, self.nice).context("cannot set the nice value")?;
        }
        Ok(())
    }
}

/// Keeps the calling thread on `cpu`.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot pin to CPU {cpu}"))
}

/// The three namespaces of one variant.
pub struct Topology {
    pub client: Net,
    pub lb: Net,
    pub server: Net,
    pub mode: Mode,
    /// The nice value of load balancer and load.
    nice: i32,
}

impl Topology {
    pub fn new(mode: Mode, nice: i32) -> Result<Topology> {
        let id = format!(
            "{PREFIX}{}x{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let topology = Topology {
            client: Net::new(&id, "c")?,
            lb: Net::new(&id, "l")?,
            server: Net::new(&id, "s")?,
            mode,
            nice,
        };
        topology.join()?;
        topology.steer()?;
        Ok(topology)
    }

    /// Links, addresses, routes, and neighbours that never expire.
    fn join(&self) -> Result<()> {
        let (client, lb, server) = (&self.client, &self.lb, &self.server);
        for (far, far_mac, near, near_mac) in [
            (client, CLIENT_MAC, "front", FRONT_MAC),
            (server, SERVER_MAC, "back", BACK_MAC),
        ] {
            ip(&[
                "link", "add", "eth0", "address", far_mac, "netns", &far.name, "type", "veth",
                "peer", "name", near, "address", near_mac, "netns", &lb.name,
            ])?;
        }
        let mut at_lb =
            String::from("addr add 10.1.0.1/24 dev front\naddr add 10.2.0.1/24 dev back\n");
        let mut at_client = String::new();
        let mut at_server = String::new();
        for client in clients() {
            at_client += &format!("addr add {client}/24 dev eth0\n");
            at_lb += &neighbour(client, CLIENT_MAC, "front");
        }
        for backend in backends() {
            at_server += &format!("addr add {backend}/24 dev eth0\n");
            at_lb += &neighbour(backend, SERVER_MAC, "back");
        }
        at_client += "link set eth0 up\nroute add 10.2.0.0/24 via 10.1.0.1\nroute add 10.4.0.0/16 via 10.1.0.1\n";
        at_client += &neighbour(Ipv4Addr::new(10, 1, 0, 1), FRONT_MAC, "eth0");
        at_client += &neighbour(VIP, FRONT_MAC, "eth0");
        at_server += "link set eth0 up\nroute add 10.1.0.0/24 via 10.2.0.1\n";
        at_server += &neighbour(Ipv4Addr::new(10, 2, 0, 1), BACK_MAC, "eth0");
        at_lb += "link set front up\nlink set back up\n";
        client.ip_batch(&at_client)?;
        server.ip_batch(&at_server)?;
        lb.ip_batch(&at_lb)?;
        lb.sysctls(&[("net/ipv4/ip_forward", "1")])
    }

    /// Cubic everywhere: the pacing of bbr would be measured. [`crate::host::Settings`] allows it.
    pub fn use_cubic(&self) -> Result<()> {
        for net in [&self.client, &self.lb, &self.server] {
            net.sysctls(&[("net/ipv4/tcp_congestion_control", "cubic")])?;
        }
        Ok(())
    }

    /// In mode isolate, every host's receive work goes to its own CPU (RPS), as a NIC's interrupt
    /// would; otherwise veth does it on the CPU of the sender.
    fn steer(&self) -> Result<()> {
        if self.mode == Mode::Spread {
            return Ok(());
        }
        for (net, device, cpu) in [
            (&self.client, "eth0", LOAD_CPU),
            (&self.server, "eth0", LOAD_CPU),
            (&self.lb, "front", LB_CPU),
            (&self.lb, "back", LB_CPU),
        ] {
            let script = format!(
                "echo {:x} > /sys/class/net/{device}/queues/rx-0/rps_cpus",
                1 << cpu
            );
            let status = net.exec("sh").args(["-c", &script]).status()?;
            ensure!(status.success(), "cannot set RPS of {device}: {script}");
        }
        Ok(())
    }

    /// Where client and server run.
    pub fn load_place(&self) -> Place {
        self.place(LOAD_CPU)
    }

    /// Where the load balancer runs.
    pub fn lb_place(&self) -> Place {
        self.place(LB_CPU)
    }

    fn place(&self, cpu: usize) -> Place {
        Place {
            cpu: (self.mode == Mode::Isolate).then_some(cpu),
            nice: self.nice,
        }
    }
}

const CLIENT_MAC: &str = "02:00:00:00:01:02";
const FRONT_MAC: &str = "02:00:00:00:01:01";
const SERVER_MAC: &str = "02:00:00:00:02:02";
const BACK_MAC: &str = "02:00:00:00:02:01";

fn neighbour(address: Ipv4Addr, mac: &str, device: &str) -> String {
    format!("neigh replace {address} lladdr {mac} dev {device} nud permanent\n")
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .context("cannot run ip; install iproute2")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// Kills whatever runs in the namespace and deletes it.
fn delete(name: &str) {
    kill_all(name);
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

impl Net {
    /// Kills every process inside.
    pub fn kill_all(&self) {
        kill_all(&self.name);
    }
}

fn kill_all(name: &str) {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() else {
        return;
    };
    let own = std::process::id() as i32;
    for pid in String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .filter(|&pid: &i32| pid != own)
        .filter_map(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// Removes the namespaces of runs that were killed, and what still runs in them.
pub fn sweep() {
    remove_of(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists());
}

/// Removes the namespaces of this run, from whichever thread: the last resort.
pub fn sweep_own() {
    remove_of(|pid| pid == std::process::id());
}

fn remove_of(gone: impl Fn(u32) -> bool) {
    let Ok(names) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(&gone) {
            delete(&name);
        }
    }
}

/// The process that made a namespace of this name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('x').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_says_whose_it_is() {
        assert_eq!(owner("wb123x4-c"), Some(123));
        assert_eq!(owner("wt123x4-c"), None);
        assert_eq!(owner("wbx4-c"), None);
    }
}
