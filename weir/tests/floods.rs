//! Floods: more callers than the backlog holds, spoofed SYNs, thousands who say nothing. Rows R5 to
//! R7 of the fault catalogue.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};
use support::net::pod_v4;
use support::traffic::*;
use support::wire::{Segment, raw};
use support::*;

/// Each of these takes most of the descriptors that the machine gives a process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pod that says a byte to everybody and keeps them, a descriptor each, until it is dropped.
struct Patient {
    listener: TcpListener,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Patient {
    fn serve(lab: &Lab) -> Patient {
        let listener = lab.server.run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let address = SocketAddr::new(pod_v4(0).into(), 80);
            socket.bind(&address.into()).unwrap();
            socket.listen(4096).unwrap();
            TcpListener::from(socket)
        });
        let own = listener.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = own.accept() {
                let _ = stream.write_all(b"!");
                held.push(stream);
            }
        });
        Patient {
            listener,
            thread: Some(thread),
        }
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
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

/// The byte that [`Patient`] says.
fn greeting(socket: Socket) -> std::io::Result<TcpStream> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut stream = TcpStream::from(socket);
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// The process stands still for a moment while more callers come than its backlog holds: they wait
/// or come again, and none is refused.
#[test]
fn r5_more_callers_than_the_backlog_holds_are_all_served() {
    if skip("r5") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let weir = Weir::prepare()
        .pools()
        .args(["--workers", "1"])
        .launch(&lab.lb);
    let pod = Patient::serve(&lab);
    let vip = one_pod(&weir, "burst", false, false, 80);
    let listening = lab.lb.out("ss", &["-tlnH", "src", &vip.to_string()]);
    let backlog: u64 = listening
        .split_whitespace()
        .nth(2)
        .unwrap()
        .parse()
        .unwrap();
    assert!(backlog >= 4_096, "a backlog of {backlog}");

    weir.signal(Signal::STOP);
    let callers: Vec<Socket> = lab
        .client
        .run(move || (0..backlog + 800).map(|_| begin(vip)).collect());
    let overflows = || lab.lb.kernel_counter("TcpExt", "ListenOverflows");
    eventually("the backlog overflows", SOON, || overflows() > 0);
    weir.signal(Signal::CONT);
    let begun = Instant::now();
    let count = callers.len();
    let mut failed = Vec::new();
    let mut held = Vec::new();
    for caller in callers {
        // A SYN that found no room is sent again after a second, then after two.
        match greeting_of(caller) {
            Ok(stream) => held.push(stream),
            Err(e) => failed.push(e.to_string()),
        }
    }
    println!(
        "{count} callers served in {:?}; {} overflows",
        begun.elapsed(),
        overflows()
    );
    assert!(
        failed.is_empty(),
        "{} of {count}: {:?}",
        failed.len(),
        failed[0]
    );
    drop((held, pod));
    weir.nothing_in_use();
}

/// As [`greeting`], of a socket that may not be connected yet.
fn greeting_of(socket: Socket) -> std::io::Result<TcpStream> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while socket.peer_addr().is_err() {
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        if Instant::now() > deadline {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    greeting(socket)
}

/// Thousands who connect and say nothing cost little, hinder nobody, and end by the idle timeout.
#[test]
fn r7_a_flood_of_idle_connections_costs_little_and_is_reaped() {
    if skip("r7") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let weir = Weir::prepare()
        .pools()
        .args(["--idle-timeout", "10s", "--half-close-timeout", "3s"])
        .launch(&lab.lb);
    let _pod = Patient::serve(&lab);
    let vip = one_pod(&weir, "idle", false, false, 80);
    // The first ones allocate what all share.
    let first = lab.client.run(move || {
        let all = (0..100).map(|_| dial(vip).map(Socket::from).and_then(greeting));
        all.collect::<Result<Vec<_>, _>>().unwrap()
    });
    let before = weir.proc_status("VmRSS:");
    let count = long(6_000, 8_000) as u32;
    let idle = lab.client.run(move || {
        let all = (0..count).map(|_| dial(vip).map(Socket::from).and_then(greeting));
        all.collect::<Result<Vec<_>, _>>().unwrap()
    });
    let each = weir.proc_status("VmRSS:").saturating_sub(before) * 1024 / u64::from(count);
    println!("an idle connection costs {each} bytes of process memory");
    assert!(each <= 4 << 10, "{each} bytes for each idle connection");
    let cpu = weir.cpu();
    let mut times: Vec<Duration> = lab.client.run(move || {
        let call = |_| {
            let begun = Instant::now();
            let stream = dial(vip).map(Socket::from).and_then(greeting);
            stream.expect("a client who means it is served");
            begun.elapsed()
        };
        (0..200).map(call).collect()
    });
    times.sort();
    println!(
        "beside them: median {:?}, worst {:?}",
        times[100], times[199]
    );
    let spent = weir.cpu() - cpu;
    assert!(
        spent < Duration::from_secs(1),
        "{spent:?} of CPU for 200 calls"
    );
    drop(first);
    eventually("the idle ones are reaped", Duration::from_secs(25), || {
        weir.metric("weir_connections_active", &[]) == 0.0
    });
    let reaped = weir.metric(
        "weir_connections_closed_total",
        &["reason=\"idle_timeout\""],
    );
    assert!(reaped >= f64::from(count), "{reaped}");
    drop(idle);
    weir.nothing_in_use();
}

/// Spoofed SYNs as fast as a thread can send them; nobody who means it is turned away.
#[test]
fn r6_a_flood_of_syns_turns_nobody_away() {
    if skip("r6") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let vip = one_pod(&weir, "flooded", false, false, 80);
    // Where the answers go: by way of the client, which knows none of these addresses and drops
    // them. (The kernel's neighbour table would overflow otherwise.)
    lab.lb
        .ip(&["route", "add", "10.9.0.0/16", "via", "10.1.0.2"]);
    let SocketAddr::V4(to) = vip else {
        panic!("{vip}")
    };
    let (stop, sent) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let flood = lab.client.spawn({
        let (stop, sent) = (stop.clone(), sent.clone());
        move || {
            let raw = raw(Domain::IPV4);
            let mut random = 0x9e37_79b9_7f4a_7c15_u64;
            while !stop.load(Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let [a, b, c, d, e, f, g, h] = random.to_le_bytes();
                let segment = Segment {
                    from: (
                        Ipv4Addr::new(10, 9, a, b),
                        u16::from_le_bytes([c, d]) | 1024,
                    ),
                    to: (*to.ip(), to.port()),
                    sequence: u32::from_le_bytes([e, f, g, h]),
                    acknowledges: 0,
                    flags: 2,
                    payload: b"",
                    spoil: 0,
                };
                if segment.send(&raw).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    let mut live = connect(&lab.client, vip).unwrap();
    read_name(&mut live).unwrap();
    let tries = long(1_000, 10_000);
    let begun = Instant::now();
    let failed: Vec<String> = {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                lab.client.spawn(move || {
                    let calls = (0..tries / 4).map(|_| ask(vip).map(drop));
                    calls
                        .filter_map(|call| call.err().map(|e| e.to_string()))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    };
    live.write_all(b"still").unwrap();
    live.read_exact(&mut [0; 5]).unwrap();
    stop.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    let (sent, took) = (sent.load(Ordering::Relaxed), begun.elapsed());
    let cookies = lab.lb.kernel_counter("TcpExt", "SyncookiesSent");
    println!("{sent} SYNs in {took:?}, {cookies} cookies; failed: {failed:?}");
    assert!(cookies > 0, "the flood never filled the queue");
    assert!(failed.len() as u64 <= tries / 1_000, "{failed:?}");
    let opened = weir.metric("weir_connections_opened_total", &[]);
    assert_eq!(opened, (tries + 1) as f64, "spoofed ones count as none");
}
