//! Memory pressure: row R3 of the fault catalogue.
//!
//! The memory cgroup is a real one. TCP's own limit, `net.ipv4.tcp_mem`, is the whole machine's and is
//! not to be seen in another network namespace than the first: the daemon is shown a file in its place,
//! against what the kernel says is in use.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use support::manifest::service;
use support::net::pod_v4;
use support::traffic::*;
use support::*;

/// What a loaded machine may take for something that is due within a second or two.
const LATE: Duration = Duration::from_secs(20);

/// A pod that accepts, keeps and never reads, on one thread.
struct Keeper {
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn serve(lab: &Lab, n: u16) -> Keeper {
        let listener = lab.server.run(move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let address = SocketAddr::new(pod_v4(n).into(), 80);
            socket.bind(&address.into()).unwrap();
            socket.listen(4096).unwrap();
            TcpListener::from(socket)
        });
        let own = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((stream, _)) = own.accept() {
                held.push(stream);
            }
        });
        let thread = Some(thread);
        Keeper { listener, thread }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connections that carry bytes all the time, each byte compared.
struct Transfers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Transfers {
    fn start(lab: &Lab, vip: SocketAddr) -> Transfers {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..4).map(|seed| {
            let stop = Arc::clone(&stop);
            let mut stream = connect(&lab.client, vip).unwrap();
            std::thread::spawn(move || {
                let mut pattern = Pattern::new(seed);
                let (mut sent, mut got) = (vec![0; 10_000], vec![0; 10_000]);
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    pattern.fill(&mut sent);
                    stream.write_all(&sent).expect("an established one goes on");
                    stream
                        .read_exact(&mut got)
                        .expect("an established one goes on");
                    assert!(sent == got, "round {rounds} came back changed");
                    rounds += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                rounds
            })
        });
        let threads = threads.collect();
        Transfers { stop, threads }
    }

    #[track_caller]
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            assert!(thread.join().expect("every byte came back") > 0);
        }
    }
}

/// A memory cgroup of this test's own; gone with it.
struct Group {
    folder: PathBuf,
    v2: bool,
}

impl Group {
    /// `None`: no hierarchy here has memory.
    fn new() -> Option<Group> {
        let name = format!("weir-test-{}", std::process::id());
        let v1 = PathBuf::from("/sys/fs/cgroup/memory");
        let top = PathBuf::from("/sys/fs/cgroup");
        let kinds = fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
        let v2 = kinds.split_whitespace().any(|kind| kind == "memory");
        if v2 {
            let _ = fs::write(top.join("cgroup.subtree_control"), "+memory");
        }
        let folder = if v2 { top } else { v1 }.join(name);
        fs::create_dir(&folder).ok()?;
        let group = Group { folder, v2 };
        group.folder.join(group.names().0).exists().then_some(group)
    }

    /// Its limit, what it uses, the line and file that count kills.
    fn names(&self) -> (&str, &str, &str) {
        match self.v2 {
            true => ("memory.max", "memory.current", "memory.events"),
            false => (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "memory.oom_control",
            ),
        }
    }

    fn limit(&self, bytes: &str) {
        fs::write(self.folder.join(self.names().0), bytes).unwrap();
    }

    fn used(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join(self.names().1)).unwrap();
        text.trim().parse().unwrap()
    }

    fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join(self.names().2)).unwrap();
        let mut kills = text.lines().filter_map(|l| l.strip_prefix("oom_kill "));
        kills.next().unwrap().parse().unwrap()
    }

    /// What a shell does inside before it becomes weir: `ip netns exec` has hidden the hierarchy.
    fn enter(&self) -> String {
        let name = self.folder.file_name().unwrap().to_str().unwrap();
        match self.v2 {
            true => format!(
                "mount -t cgroup2 c /sys/fs/cgroup && echo $$ > /sys/fs/cgroup/{name}/cgroup.procs && exec \"$@\""
            ),
            false => format!(
                "mount -t cgroup -o memory c /sys/fs/cgroup && echo $$ > /sys/fs/cgroup/{name}/cgroup.procs && exec \"$@\""
            ),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Those who were in it are gone, but maybe not for long enough.
        for _ in 0..500 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Begins to connect, and waits for nothing.
fn begin(vip: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&vip.into());
    socket
}

/// Is somebody new served?
fn is_served(lab: &Lab, vip: SocketAddr) -> bool {
    lab.client.run(move || {
        dial(vip).is_ok_and(|mut stream| {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0]).is_ok()
        })
    })
}

/// More connections than fit into the group: accepting stops, nobody is killed, what lives goes on. With
/// less memory still, the idle ones go. With more, accepting begins again by itself.
#[test]
fn r3_a_flood_in_a_small_cgroup_is_made_to_wait_and_nobody_is_killed() {
    if skip("r3 cgroup") {
        return;
    }
    let Some(group) = Group::new() else {
        println!("SKIP: r3 cgroup: no cgroup hierarchy with memory can be written here");
        return;
    };
    let lab = Lab::new();
    let weir = Weir::prepare()
        .pools()
        .wrap(["sh", "-c", &group.enter(), "sh"])
        .launch(&lab.lb);
    let (_echo, keeper) = (
        TcpPod::echo(&lab.server, pod_v4(0), 80),
        Keeper::serve(&lab, 1),
    );
    let vip = one_pod(&weir, "busy", false, false, 80);
    let idle = service("idle")
        .spec("ipFamilies: [IPv4]")
        .tcp(80)
        .endpoints([pod_v4(1)], 80);
    let idle = SocketAddr::new(weir.serve(&idle)[0], 80);
    let transfers = Transfers::start(&lab, vip);
    let level = || weir.metric("weir_memory_level", &[]);
    assert_eq!(level(), 0.0);

    // Room for some 2,500 connections; 5,000 come.
    group.limit(&(group.used() + (16 << 20)).to_string());
    // One that has just been set is seen at the next look.
    eventually("the limit is seen", LATE, || {
        weir.metric("weir_memory_limit_bytes", &["of=\"cgroup\""]) > 0.0
    });
    let flood: Vec<Socket> = lab
        .client
        .run(move || (0..5_000).map(|_| begin(idle)).collect());
    eventually("accepting stops", LATE, || {
        level() >= 1.0 && weir.metric("weir_worker_listeners_waiting", &[]) > 0.0
    });
    let accepted = weir.metric("weir_connections_active", &["service=\"idle\""]);
    println!("{accepted} of 5,000 were accepted");
    assert!((100.0..5_000.0).contains(&accepted), "{accepted}");
    let verbose = weir.get("/readyz?verbose");
    assert_eq!(verbose.0, 200, "{}", verbose.1);
    assert!(verbose.1.contains("new connections wait"), "{}", verbose.1);
    let cpu = weir.cpu();
    std::thread::sleep(Duration::from_millis(500));
    let spent = weir.cpu() - cpu;
    println!("{spent:?} of CPU in 500 ms");
    assert!(spent < Duration::from_millis(250), "{spent:?}");

    // Less than a twentieth is left: the idle ones go, the busy ones stay.
    group.limit(&(group.used() + (1 << 20)).to_string());
    let shed = || {
        let reason = ["reason=\"memory_pressure\""];
        weir.metric("weir_connections_closed_total", &reason)
    };
    eventually("idle ones are closed", LATE, || shed() > 0.0);

    // Enough again: whoever waits is served, and so is who comes.
    group.limit(&(256u64 << 20).to_string());
    eventually("it is ample again", LATE, || level() == 0.0);
    eventually("somebody new is served", LATE, || is_served(&lab, vip));
    eventually("nobody waits", LATE, || {
        weir.metric("weir_worker_listeners_waiting", &[]) == 0.0
    });
    println!("{} were shed", shed());
    transfers.finish();
    drop((flood, keeper));
    assert_eq!(group.kills(), 0, "somebody was killed");
    let log = weir.log();
    for line in ["memory is scarce", "memory is ample again"] {
        assert!(log.contains(line), "{line}: {log}");
    }
    weir.nothing_in_use();
}

/// Above TCP's limit those go whose bytes nobody takes, and not those that have none; no flow is opened,
/// callers wait. With a higher limit they are served.
#[test]
fn r3_short_of_tcp_buffers_the_stalled_go_and_the_idle_stay() {
    if skip("r3 tcp_mem") {
        return;
    }
    let lab = Lab::new();
    let start = Weir::prepare().pools();
    let tcp_mem = start.dir.path().join("tcp_mem");
    let limit = |pages: u64| fs::write(&tcp_mem, format!("1\t1\t{pages}\n")).unwrap();
    limit(1 << 40);
    let shown = format!(
        "mount -t tmpfs t /proc/sys/net/ipv4 && ln -s {} /proc/sys/net/ipv4/tcp_mem && exec \"$@\"",
        tcp_mem.display()
    );
    let weir = start.wrap(["sh", "-c", &shown, "sh"]).launch(&lab.lb);
    let (_echo, _keeper) = (
        TcpPod::echo(&lab.server, pod_v4(0), 80),
        Keeper::serve(&lab, 1),
    );
    let _udp = UdpPod::echo(&lab.server, pod_v4(0), 53);
    let vip = one_pod(&weir, "busy", false, false, 80);
    let ip4 = "ipFamilies: [IPv4]";
    let deaf = service("deaf").spec(ip4).tcp(80).endpoints([pod_v4(1)], 80);
    let deaf = SocketAddr::new(weir.serve(&deaf)[0], 80);
    let dns = service("dns").spec(ip4).udp(53).endpoints([pod_v4(0)], 53);
    let dns = SocketAddr::new(weir.serve(&dns)[0], 53);
    let known = udp(&lab.client, dns);
    exchange(&known, b"before").unwrap();
    let transfers = Transfers::start(&lab, vip);
    let idle = connect(&lab.client, deaf).unwrap();

    // Bytes that nobody reads: beside weir, so that the kernel's figure stays up; and through it.
    let mut beside = connect(&lab.lb, SocketAddr::new(pod_v4(1).into(), 80)).unwrap();
    let mut through = connect(&lab.client, deaf).unwrap();
    fill(&mut beside);
    fill(&mut through);
    limit(4);
    let closed = |reason: &str| weir.metric("weir_connections_closed_total", &[reason]);
    eventually("the stalled one is closed", LATE, || {
        closed("reason=\"memory_pressure\"") == 1.0
    });
    assert_eq!(weir.metric("weir_memory_level", &[]), 2.0);
    let active = weir.metric("weir_connections_active", &["service=\"deaf\""]);
    assert_eq!(active, 1.0, "the idle one has nothing to give");
    assert!(through.write_all(&[0; 1 << 16]).is_err(), "it was reset");

    exchange(&known, b"a known flow goes on").unwrap();
    let stranger = udp(&lab.client, dns);
    stranger
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(exchange(&stranger, b"a new one does not").is_err());
    let drops = weir.metric("weir_drops_total", &["reason=\"memory_pressure\""]);
    assert!(drops >= 1.0);
    let mut waits = connect(&lab.client, vip).expect("the kernel completes it");
    waits.write_all(b"x").unwrap();
    eventually("a caller waits", LATE, || {
        weir.metric("weir_worker_listeners_waiting", &[]) >= 1.0
    });

    limit(1 << 40);
    waits.read_exact(&mut [0]).expect("who waited is served");
    stranger.set_read_timeout(Some(LATE)).unwrap();
    exchange(&stranger, b"now it is opened").unwrap();
    transfers.finish();
    drop((idle, beside, waits));
}

/// Sends until nothing more is taken.
fn fill(stream: &mut TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let (mut idle, bytes) = (0, [0; 1 << 16]);
    while idle < 20 {
        match stream.write(&bytes) {
            Ok(n) if n > 0 => idle = 0,
            _ => {
                idle += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    stream.set_nonblocking(false).unwrap();
}
