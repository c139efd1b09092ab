//! Network namespaces joined by veth pairs.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// One network namespace; deleted when dropped.
pub struct Net {
    pub name: String,
}

impl Net {
    fn new(lab: &str, role: &str) -> Net {
        let net = Net {
            name: format!("{lab}-{role}"),
        };
        ip(&["netns", "add", &net.name]);
        net.ip(&["link", "set", "lo", "up"]);
        for (key, value) in [
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv4/tcp_congestion_control", "cubic"),
        ] {
            let path = format!("/proc/sys/{key}");
            let _ = net.run(move || std::fs::write(path, value));
        }
        net
    }

    /// `ip ARGS` inside; the test fails if it does.
    #[track_caller]
    pub fn ip(&self, args: &[&str]) {
        let mut all = vec!["-n", &self.name];
        all.extend(args);
        ip(&all);
    }

    /// A command inside, not yet started.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a command inside; the test fails if it does.
    #[track_caller]
    pub fn exec(&self, program: &str, args: &[&str]) -> Output {
        let output = self.command(program).args(args).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// Its standard output.
    #[track_caller]
    pub fn out(&self, program: &str, args: &[&str]) -> String {
        String::from_utf8_lossy(&self.exec(program, args).stdout).into_owned()
    }

    /// Runs an nftables script inside.
    #[track_caller]
    pub fn nft(&self, script: &str) {
        let file = tempfile::NamedTempFile::new().unwrap();
        // One statement a line, as its grammar wants.
        let lines = script
            .replace('{', "{\n")
            .replace('}', "\n}\n")
            .replace(';', "\n");
        std::fs::write(file.path(), lines).unwrap();
        self.exec("nft", &["-f", file.path().to_str().unwrap()]);
    }

    /// Runs `f` on a thread inside and waits for it.
    #[track_caller]
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        match self.spawn(f).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `f` on a thread inside. Sockets that it makes belong to the namespace for ever.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let name = self.name.clone();
        std::thread::spawn(move || {
            enter(&name);
            f()
        })
    }

    /// Sets a setting of the namespace, by its path below /proc/sys.
    #[track_caller]
    pub fn sysctl(&self, path: &str, value: &str) {
        let file = format!("/proc/sys/{path}");
        let written = self.run({
            let value = value.to_owned();
            move || std::fs::write(file, value)
        });
        written.unwrap_or_else(|e| panic!("{path}={value}: {e}"));
    }

    /// A counter of the namespace's kernel, such as TcpExt's ListenOverflows.
    pub fn kernel_counter(&self, group: &str, name: &str) -> u64 {
        let text = self.run(|| {
            ["snmp", "netstat"]
                .map(|file| {
                    std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap()
                })
                .concat()
        });
        // Two lines for each group: its names, its values.
        let lines: Vec<&str> = text
            .lines()
            .filter(|l| l.starts_with(&format!("{group}:")))
            .collect();
        let mut pairs = lines[0].split(' ').zip(lines[1].split(' '));
        let found = pairs.find(|(key, _)| *key == name);
        found
            .unwrap_or_else(|| panic!("no counter {name}"))
            .1
            .parse()
            .unwrap()
    }
}

/// Moves the calling thread into a namespace.
pub fn enter(name: &str) {
    let handle = File::open(format!("/run/netns/{name}")).unwrap();
    move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// A client, the appliance and the servers.
pub struct Lab {
    pub client: Net,
    pub lb: Net,
    pub server: Net,
}

/// The IPv4 pool on the client's link.
pub const POOL_V4: &str = "10.1.0.64/26";
/// The IPv6 pool on the client's link.
pub const POOL_V6: &str = "fd01::64:0/112";
/// How many pod addresses the servers' namespace has, per family.
pub const PODS: u16 = 40;

impl Lab {
    pub fn new() -> Lab {
        sweep();
        let id = format!(
            "wt{}x{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let lab = Lab {
            client: Net::new(&id, "c"),
            lb: Net::new(&id, "l"),
            server: Net::new(&id, "s"),
        };
        join(&lab.client, "eth0", &lab.lb, "front");
        join(&lab.server, "eth0", &lab.lb, "back");
        for (net, device, addresses) in [
            (&lab.client, "eth0", ["10.1.0.2/24", "fd01::2/64"]),
            (&lab.lb, "front", ["10.1.0.1/24", "fd01::1/64"]),
            (&lab.lb, "back", ["10.2.0.1/24", "fd02::1/64"]),
            (&lab.server, "eth0", ["10.2.0.2/24", "fd02::2/64"]),
        ] {
            for address in addresses {
                net.ip(&["addr", "add", address, "dev", device, "nodad"]);
            }
        }
        let mut batch = String::new();
        for pod in 0..PODS {
            batch += &format!("addr add {}/24 dev eth0\n", pod_v4(pod));
            batch += &format!("addr add {}/64 dev eth0 nodad\n", pod_v6(pod));
        }
        ip_batch(&lab.server, &batch);
        // Clients may also come by many addresses, and by way of the appliance to the servers
        // themselves (to compare).
        lab.client
            .ip(&["route", "add", "10.2.0.0/24", "via", "10.1.0.1"]);
        lab.server
            .ip(&["route", "add", "10.1.0.0/24", "via", "10.2.0.1"]);
        lab
    }

    /// A second appliance on the clients' link, at 10.1.0.3; it reaches the servers and their pods by a link of
    /// its own.
    pub fn second_appliance(&self) -> Net {
        let net = Net::new(self.lb.name.trim_end_matches("-l"), "m");
        join(&self.client, "eth1", &net, "front");
        join(&self.server, "eth1", &net, "back");
        let client = "link add lan type bridge
            addr flush dev eth0
            link set eth0 master lan
            link set eth1 master lan
            link set lan up
            addr add 10.1.0.2/24 dev lan
            addr add fd01::2/64 dev lan nodad
            route add 10.2.0.0/24 via 10.1.0.1\n";
        ip_batch(&self.client, client);
        ip_batch(&self.server, "addr add 10.3.0.2/24 dev eth1\n");
        net.ip(&["addr", "add", "10.1.0.3/24", "dev", "front"]);
        net.ip(&["addr", "add", "fd01::3/64", "dev", "front", "nodad"]);
        net.ip(&["addr", "add", "10.3.0.1/24", "dev", "back"]);
        net.ip(&["route", "add", "10.2.0.0/24", "via", "10.3.0.2"]);
        net
    }

    /// Gives the client `count` more IPv4 addresses, 10.1.1.0 upwards, and returns them.
    pub fn more_clients(&self, count: u16) -> Vec<std::net::Ipv4Addr> {
        let all: Vec<_> = (0..count)
            .map(|n| std::net::Ipv4Addr::new(10, 1, 1 + (n >> 8) as u8, n as u8))
            .collect();
        let batch: String = all
            .iter()
            .map(|a| format!("addr add {a}/32 dev eth0\n"))
            .collect();
        ip_batch(&self.client, &batch);
        // By way of its one address: the kernel's neighbour table holds 1,024 entries (gc_thresh3)
        // for all namespaces together, and a full one looks like a network that loses connections.
        for net in 1..=(1 + (count >> 8)) {
            let prefix = format!("10.1.{net}.0/24");
            self.lb.ip(&["route", "add", &prefix, "via", "10.1.0.2"]);
        }
        all
    }
}

impl Lab {
    /// A node of a cluster behind the appliance, from 1: a namespace with the address 10.3.N.2 (its
    /// InternalIP) that forwards, and with 10.4.N.1 to 10.4.N.4 for its pods, to which the appliance
    /// and, by way of it, the other nodes have a route.
    pub fn node(&self, n: u8) -> Net {
        let lab = self.lb.name.trim_end_matches("-l");
        let node = Net::new(lab, &format!("n{n}"));
        let device = format!("node{n}");
        join(&node, "eth0", &self.lb, &device);
        node.ip(&["addr", "add", &format!("10.3.{n}.2/24"), "dev", "eth0"]);
        let gateway = format!("10.3.{n}.1");
        self.lb
            .ip(&["addr", "add", &format!("{gateway}/24"), "dev", &device]);
        node.ip(&["route", "add", "default", "via", &gateway]);
        for pod in 1..=4 {
            node.ip(&["addr", "add", &format!("10.4.{n}.{pod}/32"), "dev", "lo"]);
        }
        let pods = format!("10.4.{n}.0/24");
        self.lb
            .ip(&["route", "add", &pods, "via", &format!("10.3.{n}.2")]);
        for net in [&node, &self.lb] {
            net.sysctl("net/ipv4/ip_forward", "1");
        }
        node
    }
}

/// The address of pod `n` (from 0).
pub fn pod_v4(n: u16) -> std::net::Ipv4Addr {
    std::net::Ipv4Addr::new(10, 2, 0, 11 + n as u8)
}

/// The IPv6 address of pod `n` (from 0).
pub fn pod_v6(n: u16) -> std::net::Ipv6Addr {
    std::net::Ipv6Addr::new(0xfd02, 0, 0, 0, 0, 0, 0, 0x11 + n)
}

fn join(a: &Net, a_device: &str, b: &Net, b_device: &str) {
    ip(&[
        "link", "add", a_device, "netns", &a.name, "type", "veth", "peer", "name", b_device,
        "netns", &b.name,
    ]);
    a.ip(&["link", "set", a_device, "up"]);
    b.ip(&["link", "set", b_device, "up"]);
}

fn ip_batch(net: &Net, batch: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), batch).unwrap();
    net.ip(&["-batch", file.path().to_str().unwrap()]);
}

#[track_caller]
fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(
        output.status.success(),
        "ip {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Removes the namespaces of test processes that were killed.
fn sweep() {
    let Ok(names) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in names
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
    {
        let pid = name
            .strip_prefix("wt")
            .and_then(|rest| rest.split('x').next())
            .and_then(|p| p.parse::<u32>().ok());
        if let Some(pid) = pid
            && !std::path::Path::new(&format!("/proc/{pid}")).exists()
        {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}
