//! Resources and runtime: rows R1, R2, R10 and R12 of the fault catalogue (R4, R8 and R9 are with the
//! streams, R5 to R7 with the floods).
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use support::machine::Settings;
use support::manifest::service;
use support::net::pod_v4;
use support::traffic::*;
use support::*;

#[test]
fn r1_running_out_of_descriptors_sheds_the_newest_and_recovers_at_once() {
    if skip("r1") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::prepare()
        .pools()
        .args(["--workers", "1"])
        .wrap(["prlimit", "--nofile=256:256"])
        .launch(&lab.lb);
    let _pod = TcpPod::echo(&lab.server, pod_v4(0), 80);
    let svc = service("few").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    let mut alive = connect(&lab.client, vip).unwrap();
    talk(&mut alive).unwrap();

    // Far more than fit: 256 descriptors are about 120 connections.
    let mut held: Vec<TcpStream> = lab
        .client
        .run(move || (0..400).filter_map(|_| dial(vip).ok()).collect());
    std::thread::sleep(Duration::from_millis(300));
    let served = held.iter_mut().filter_map(|s| talk(s).ok()).count();
    assert!(
        (50..128).contains(&served),
        "{served} of 400 are served with 256 descriptors"
    );
    talk(&mut alive).expect("an established connection is safe");
    let shed = weir.metric(
        "weir_connections_closed_total",
        &["reason=\"descriptor_limit\""],
    );
    assert!(shed >= 200.0, "sheds are counted: {shed}");

    // No spin while it lasts.
    let cpu = weir.cpu();
    std::thread::sleep(Duration::from_secs(1));
    let spent = weir.cpu() - cpu;
    assert!(
        spent < Duration::from_millis(50),
        "{spent:?} of CPU in a second at the limit"
    );
    assert_eq!(
        weir.get("/livez").0,
        200,
        "the admin interface has descriptors of its own"
    );

    // The first free descriptor is used.
    drop(held);
    // The backend has a thread per connection, which must see the end first: none of Weir's time.
    eventually("descriptors are free", SOON, || weir.descriptors() < 200);
    let begun = Instant::now();
    eventually("new connections are served", SOON / 4, || {
        connect(&lab.client, vip).is_ok_and(|mut s| talk(&mut s).is_ok())
    });
    let took = begun.elapsed();
    println!("served again {took:?} after descriptors were free");
    talk(&mut alive).unwrap();
}

/// A pod that echoes, a VIP of it, and some connections that live.
struct Service {
    _pod: TcpPod,
    vip: SocketAddr,
    alive: Vec<TcpStream>,
}

impl Service {
    fn open(lab: &Lab, weir: &Weir) -> Service {
        let _pod = TcpPod::echo(&lab.server, pod_v4(0), 80);
        let vip = one_pod(weir, "scarce", false, false, 80);
        let alive = (0..10).map(|_| connect(&lab.client, vip).unwrap());
        let mut service = Service {
            _pod,
            vip,
            alive: alive.collect(),
        };
        service.lives();
        service
    }

    #[track_caller]
    fn lives(&mut self) {
        for stream in &mut self.alive {
            talk(stream).expect("an established connection is safe");
        }
    }

    /// How long it takes until somebody new is served.
    fn served_after(&self, lab: &Lab) -> Duration {
        let (begun, vip) = (Instant::now(), self.vip);
        lab.client.run(move || {
            eventually("somebody new is served", SOON, || {
                dial(vip).is_ok_and(|mut stream| talk(&mut stream).is_ok())
            });
        });
        begun.elapsed()
    }
}

fn talk(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// CPU time that it uses in half a second.
fn half_a_second(weir: &Weir) -> Duration {
    let before = weir.cpu();
    std::thread::sleep(Duration::from_millis(500));
    weir.cpu() - before
}

/// The limit of the running process sinks below what it has: at accept, or at the socket for the
/// backend. Callers are told at once.
#[test]
fn r1_emfile_at_run_time_sheds_at_once_and_ends_at_once() {
    if skip("r1 run time") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::prepare()
        .pools()
        .args(["--workers", "1"])
        .launch(&lab.lb);
    let mut service = Service::open(&lab, &weir);
    let pid = rustix::process::Pid::from_raw(weir.pid());
    let limit = |soft: u64| {
        let before = rustix::process::getrlimit(Resource::Nofile);
        let new = Rlimit {
            current: Some(soft),
            maximum: before.maximum,
        };
        rustix::process::prlimit(pid, Resource::Nofile, new).unwrap()
    };
    // The machine may be busy otherwise: the soonest counts.
    let mut soonest = Duration::MAX;
    for room in [0, 1, 0, 1] {
        // Descriptors are given from below: what is above the highest is free.
        let highest = std::fs::read_dir(format!("/proc/{}/fd", weir.pid()))
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .parse::<u64>()
                    .unwrap()
            })
            .max()
            .unwrap();
        let free = highest + 1 - weir.descriptors() as u64;
        println!("{free} descriptors are free below the highest");
        let before = limit(highest + 1 + room);
        let vip = service.vip;
        let told = lab.client.run(move || {
            let begun = Instant::now();
            // Some may still find a gap.
            let held: Vec<_> = (0..free).map(|_| dial(vip)).collect();
            let told: Vec<_> = (0..40).map(|_| refusal(vip)).collect();
            drop(held);
            (told, begun.elapsed())
        });
        assert!(
            told.0
                .iter()
                .all(|kind| *kind == ErrorKind::ConnectionReset),
            "{told:?}"
        );
        assert!(told.1 < SOON, "{told:?}");
        let spent = half_a_second(&weir);
        assert!(spent < Duration::from_millis(30), "{spent:?} in 500 ms");
        service.lives();
        limit(before.current.unwrap());
        let took = service.served_after(&lab);
        println!("served again {took:?} after the limit rose");
        soonest = soonest.min(took);
        service.lives();
    }
    assert!(soonest < Duration::from_millis(100), "{soonest:?}");
    let shed = weir.metric(
        "weir_connections_closed_total",
        &["reason=\"descriptor_limit\""],
    );
    assert!(shed >= 80.0, "sheds are counted: {shed}");
    drop(service);
    weir.nothing_in_use();
}

/// The whole machine is out of files for everybody but root.
#[test]
fn r1_enfile_of_the_machine_spins_nobody_and_ends_at_once() {
    if skip("r1 enfile") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::prepare().pools().unprivileged(64_119).launch(&lab.lb);
    let mut service = Service::open(&lab, &weir);
    // Root is spared, but for local sockets: twice as many as this may be open.
    let open = std::fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
    let open: u64 = open.split_whitespace().next().unwrap().parse().unwrap();
    let limit = Settings::change(&[("fs/file-max", &(open / 2).to_string())]);
    let vip = service.vip;
    let mut callers: Vec<TcpStream> = lab
        .client
        .run(move || (0..20).filter_map(|_| dial(vip).ok()).collect());
    let spent = half_a_second(&weir);
    assert!(spent < Duration::from_millis(30), "{spent:?} in 500 ms");
    service.lives();
    drop(limit);
    let took = service.served_after(&lab);
    println!("served again {took:?} after files were free");
    assert!(took < SOON / 4, "{took:?}");
    // Who waited is served or was reset; nobody hangs.
    for caller in &mut callers {
        caller.set_read_timeout(Some(SOON)).unwrap();
        if let Err(e) = talk(caller) {
            assert_ne!(e.kind(), ErrorKind::WouldBlock, "a caller hangs");
        }
    }
    service.lives();
    drop((callers, service));
    weir.nothing_in_use();
}

#[test]
fn r1_frontends_that_do_not_fit_say_so_and_the_oldest_are_served() {
    if skip("r1 frontends") {
        return;
    }
    let lab = Lab::new();
    let mut start = Weir::prepare()
        .args(["--pool", "10.1.16.0/20", "--workers", "1"])
        .wrap(["prlimit", "--nofile=200:200"]);
    let all: Vec<_> = (0..300)
        .map(|n| {
            service(&format!("s{n:03}"))
                .created(&format!("2020-01-01T00:{:02}:{:02}Z", n / 60, n % 60))
                .tcp(80)
                .endpoints([pod_v4(0)], 80)
        })
        .collect();
    for svc in &all {
        start = start.with(svc);
    }
    let weir = start.spawn(&lab.lb);
    eventually(
        "the last one has its reason",
        Duration::from_secs(10),
        || {
            std::fs::metadata(weir.state_dir()).is_ok()
                && weir_reasons(&weir, &all[299]).contains("DescriptorLimit")
        },
    );
    let serving: Vec<bool> = all
        .iter()
        .map(|s| weir.service(s).unwrap()["state"] == "serving")
        .collect();
    let count = serving.iter().filter(|s| **s).count();
    assert!(
        (20..160).contains(&count),
        "{count} of 300 fit into 200 descriptors"
    );
    assert!(serving[..count].iter().all(|s| *s), "the oldest come first");
    assert_ne!(
        weir.get("/readyz").0,
        200,
        "not everything published is listening"
    );
    // One goes: the next in age takes its place.
    assert!(!serving[count]);
    weir.remove(&all[0]);
    weir.wait_state(&all[count], "serving");
}

fn weir_reasons(weir: &Weir, svc: &manifest::Service) -> String {
    if !weir.admin_answers() {
        return String::new();
    }
    weir.service(svc)
        .map(|s| s["reasons"].to_string())
        .unwrap_or_default()
}

/// A laboratory whose appliance has 100 local ports.
fn few_ports() -> Lab {
    let lab = Lab::new();
    let range = "net.ipv4.ip_local_port_range=50000 50099";
    lab.lb.exec("sysctl", &["-q", "-w", range]);
    lab
}

/// Dials `count` more, and keeps those that a backend answers.
fn hold(lab: &Lab, vip: SocketAddr, count: usize) -> Vec<TcpStream> {
    lab.client.run(move || {
        let dialled = (0..count).filter_map(|_| dial(vip).ok());
        let answered = dialled.filter_map(|mut stream| {
            stream.write_all(b"x").ok()?;
            stream.read_exact(&mut [0]).ok()?;
            Some(stream)
        });
        answered.collect()
    })
}

#[test]
fn r2_ports_that_run_out_are_told_before_and_only_the_excess_is_refused() {
    if skip("r2") {
        return;
    }
    let lab = few_ports();
    let _pod = TcpPod::echo(&lab.server, pod_v4(0), 80);
    let svc = service("many").tcp(80).endpoints([pod_v4(0)], 80);
    let weir = Weir::start(&lab);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    let ratio = || weir.metric("weir_upstream_ports_used_ratio", &["protocol=\"tcp\""]);
    let exhausted = || {
        weir.metric(
            "weir_backend_connect_errors_total",
            &["reason=\"ports_exhausted\""],
        )
    };

    let mut held = hold(&lab, vip, 85);
    assert_eq!(held.len(), 85);
    eventually("the metric shows it before it happens", SOON, || {
        ratio() >= 0.84
    });
    let checks = weir.get("/readyz?verbose").1;
    assert!(checks.contains("[!]ports warning: 8"), "{checks}");
    assert!(
        checks.contains(&format!("towards {}:80", pod_v4(0))),
        "{checks}"
    );
    eventually("the log says it", Duration::from_secs(15), || {
        weir.log()
            .contains("% of the local ports are in use by TCP")
    });
    assert_eq!(exhausted(), 0.0);

    held.extend(hold(&lab, vip, 40));
    assert_eq!(held.len(), 100, "every port is used, and only those");
    assert!(exhausted() >= 25.0, "{}", exhausted());
    for stream in &mut held {
        stream.write_all(b"y").unwrap();
        stream.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn r2_two_source_addresses_have_twice_the_ports() {
    if skip("r2 sources") {
        return;
    }
    let lab = few_ports();
    lab.lb.ip(&["addr", "add", "10.2.0.3/24", "dev", "back"]);
    let _pod = TcpPod::echo(&lab.server, pod_v4(0), 80);
    let svc = service("many").tcp(80).endpoints([pod_v4(0)], 80);
    let sources = ["--source-address", "10.2.0.1,10.2.0.3"];
    let weir = Weir::prepare().pools().args(sources).launch(&lab.lb);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    let held = hold(&lab, vip, 150);
    assert_eq!(held.len(), 150, "{}", weir.log());
    let dump = lab
        .lb
        .out("ss", &["-Htn", "dst", &format!("{}:80", pod_v4(0))]);
    for source in ["10.2.0.1:", "10.2.0.3:"] {
        let count = dump.lines().filter(|line| line.contains(source)).count();
        assert!((50..=100).contains(&count), "{count} from {source}\n{dump}");
    }
    // They are of the whole, which is twice as much; what a try left in TIME_WAIT counts, too.
    let mut ratio = 0.0;
    eventually("the metric counts both", SOON, || {
        let labels = ["protocol=\"tcp\""];
        ratio = weir.metric("weir_upstream_ports_used_ratio", &labels);
        ratio >= 0.75
    });
    assert!(ratio < 1.0, "{ratio}\n{}", lab.lb.out("ss", &["-atn"]));
}

#[cfg(feature = "failpoints")]
#[test]
fn r10_a_worker_that_panics_ends_the_process() {
    if skip("r10 worker") {
        return;
    }
    let lab = Lab::new();
    let svc = service("panic").tcp(80).endpoints([pod_v4(0)], 80);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let mut weir = Weir::prepare()
        .pools()
        .with(&svc)
        .env("WEIR_FAILPOINT", "worker-panic-on-accept-3")
        .launch(&lab.lb);
    let vip = SocketAddr::new(weir.addresses(&svc)[0], 80);
    let answered = lab
        .client
        .run(move || (0..3).map(|_| ask(vip).is_ok()).collect::<Vec<_>>());
    let status = weir.wait_exit(SOON);
    assert!(!status.success(), "{status}; answered {answered:?}");
    assert!(weir.log().contains("panicked"), "{}", weir.log());
    // Supervised: the next start serves again, with the same address.
    let weir = weir.kill().pools().launch(&lab.lb);
    weir.wait_state(&svc, "serving");
    assert_eq!(weir.addresses(&svc), [vip.ip()]);
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "pod");
}

#[cfg(feature = "failpoints")]
#[test]
fn r10_a_control_plane_that_panics_never_stops_forwarding() {
    if skip("r10 control") {
        return;
    }
    let lab = Lab::new();
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let weir = Weir::prepare()
        .pools()
        .env("WEIR_FAILPOINT", "control-panic-on-trigger")
        .launch(&lab.lb);
    let svc = service("calm").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    let load = Load::start(&lab.client, 4, 200, move || ask(vip).map(drop));
    // A Service of this name makes the control task panic, as a bug of ours would.
    let trigger = service("panic-trigger").tcp(81).endpoints([pod_v4(0)], 80);
    weir.apply(&trigger);
    eventually("it panicked, again and again, and says so", SOON, || {
        weir.log().matches("the control task panicked").count() >= 3
    });
    weir.remove(&trigger);
    let later = service("later").tcp(80).endpoints([pod_v4(0)], 80);
    weir.apply(&later);
    eventually("the control task is back", Duration::from_secs(10), || {
        weir.service(&later)
            .is_some_and(|s| s["state"] == "serving")
    });
    assert_eq!(weir.addresses(&svc), [vip.ip()]);
    load.goes_on(50);
    let (ok, errors) = load.finish();
    assert!(errors.is_empty(), "{ok} {errors:?}");
}

#[test]
fn r12_a_blocked_log_delays_nothing() {
    if skip("r12") {
        return;
    }
    let lab = Lab::new();
    // Standard error is a pipe that nobody reads.
    let (reader, writer) = std::io::pipe().unwrap();
    let weir = Weir::prepare()
        .args([
            "--pool",
            "10.1.0.64/26",
            "--pool",
            "10.1.16.0/20",
            "--workers",
            "1",
        ])
        .stderr(Stdio::from(writer))
        .launch(&lab.lb);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let svc = service("logged").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    // A line for each of 1,000 Services that change their state, again and again: far more than the
    // pipe's 64 KiB and the queue before it hold.
    let mut worst = Duration::ZERO;
    for round in 0..20 {
        let text: String = (0..1000)
            .map(|n| {
                let noise = service(&format!("noise-{n}")).tcp(80);
                let noise = if round % 2 == 0 {
                    noise
                } else {
                    noise.endpoints([pod_v4(1)], 80)
                };
                noise.yaml() + "---\n"
            })
            .collect();
        weir.write("noise.yaml", &text);
        let want = if round % 2 == 0 { "closed" } else { "serving" };
        let last = service("noise-999");
        eventually("the last one changed", Duration::from_secs(10), || {
            weir.service(&last).is_some_and(|s| s["state"] == want)
        });
        let begun = Instant::now();
        assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "pod");
        worst = worst.max(begun.elapsed());
        if weir.metric("weir_log_lines_dropped_total", &[]) > 0.0 {
            break;
        }
    }
    assert!(weir.metric("weir_log_lines_dropped_total", &[]) > 0.0);
    assert!(worst < SOON / 4, "{worst:?}");
    weir.serve(&service("last").tcp(80).endpoints([pod_v4(0)], 80));
    drop(reader);
}
