//! The record of addresses on disk: rows P1, P3, P4 and P5 of the fault catalogue with the real
//! binary. (P2, every crash point and torn write, is enumerated in controlplane's own tests.)
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use support::manifest::{Service, service};
use support::net::pod_v4;
use support::*;

/// Ten Services and the addresses they hold; in reverse order of age, so that chance would not
/// give the same again.
fn ten(weir: &Weir) -> Vec<(Service, Vec<IpAddr>)> {
    (0..10)
        .map(|n| {
            let svc = service(&format!("s{n}"))
                .created(&format!("20{:02}-01-01T00:00:00Z", 30 - n))
                .tcp(80)
                .endpoints([pod_v4(0)], 80);
            let addresses = weir.serve(&svc);
            (svc, addresses)
        })
        .collect()
}

#[track_caller]
fn same(weir: &Weir, all: &[(Service, Vec<IpAddr>)]) {
    for (svc, addresses) in all {
        weir.wait_state(svc, "serving");
        assert_eq!(weir.addresses(svc), *addresses, "{}", svc.name);
    }
}

/// The files of the state directory that hold the record, newest first.
fn records(weir_state: &std::path::Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(weir_state)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| {
            p.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("addresses")
        })
        .collect();
    files.sort();
    files
}

#[test]
fn p1_a_kill_at_any_moment_loses_no_address() {
    if skip("p1") {
        return;
    }
    let lab = Lab::new();
    let mut weir = Weir::start(&lab);
    let all = ten(&weir);
    for round in 0..6_u64 {
        // Changes in flight while it is killed.
        let extra = service("extra")
            .tcp(81 + round as u16)
            .endpoints([pod_v4(0)], 80);
        weir.apply(&extra);
        std::thread::sleep(Duration::from_millis(round * 13));
        weir = weir.kill().pools().launch(&lab.lb);
        same(&weir, &all);
    }
}

#[test]
fn p3_a_disk_that_takes_nothing_is_reported_and_forwarding_goes_on() {
    if skip("p3") {
        return;
    }
    let lab = Lab::new();
    let weir = Weir::start(&lab);
    let all = ten(&weir);
    let start = weir.stop();
    // A full disk of the test's own: a tiny tmpfs over the state directory's content.
    let state = start.dir.path().join("state");
    let copy = start.dir.path().join("copy");
    std::fs::rename(&state, &copy).unwrap();
    std::fs::create_dir(&state).unwrap();
    let sh = |script: &str| {
        assert!(
            std::process::Command::new("sh")
                .args(["-ec", script])
                .status()
                .unwrap()
                .success(),
            "{script}"
        )
    };
    let (s, c) = (state.display(), copy.display());
    sh(&format!(
        "mount -t tmpfs -o size=64k tmpfs {s}; cp -a {c}/. {s}/; head -c 1000000 /dev/zero > {s}/filler 2>/dev/null || true"
    ));
    let weir = start.pools().launch(&lab.lb);
    same(&weir, &all);
    let new = service("new").tcp(80).endpoints([pod_v4(0)], 80);
    weir.serve(&new);
    eventually("the failure is said", SOON, || {
        weir.get("/readyz?verbose").1.contains("state")
    });
    // Space again: written by itself.
    sh(&format!("rm {s}/filler"));
    eventually("it is written", Duration::from_secs(15), || {
        records(&weir.state_dir())
            .iter()
            .any(|f| std::fs::read_to_string(f).unwrap().contains("\"new\""))
    });
    let address = weir.addresses(&new);
    let start = weir.kill();
    let weir = start.pools().launch(&lab.lb);
    weir.wait_state(&new, "serving");
    assert_eq!(weir.addresses(&new), address);
    drop(weir);
    sh(&format!("umount -l {s}"));
}

#[test]
fn p4_a_damaged_record_is_set_aside_and_the_one_before_is_used() {
    if skip("p4") {
        return;
    }
    let lab = Lab::new();
    let mut weir = Weir::start(&lab);
    let all = ten(&weir);
    for damage in ["flip", "truncate", "garbage", "empty"] {
        let start = weir.stop();
        let file = records(&start.dir.path().join("state"))[0].clone();
        let mut bytes = std::fs::read(&file).unwrap();
        match damage {
            "flip" => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            "truncate" => bytes.truncate(bytes.len() / 2),
            "garbage" => bytes = (0..5000).map(|n| (n * 7 % 251) as u8).collect(),
            _ => bytes.clear(),
        }
        std::fs::write(&file, bytes).unwrap();
        weir = start.pools().launch(&lab.lb);
        same(&weir, &all);
        let said = weir.get("/readyz?verbose").1 + &weir.log();
        assert!(
            said.contains("quarantine") || said.contains("set aside") || said.contains("damaged"),
            "{damage}: {said}"
        );
    }
    // Both generations damaged: the start goes on all the same, and every Service is served.
    let start = weir.stop();
    for file in records(&start.dir.path().join("state")) {
        std::fs::write(file, "{").unwrap();
    }
    let weir = start.pools().launch(&lab.lb);
    for (svc, _) in &all {
        weir.wait_state(svc, "serving");
    }
}
