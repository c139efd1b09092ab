//! Which I/O driver runs, and why (row R9 of the fault catalogue); what the doctor finds.
//!
//! What a container's profile or a sysctl would do to the daemon alone: a seccomp filter is
//! installed on the thread that starts it, and inherited; the sysctl, which is the whole machine's,
//! is another file mounted over it.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Output};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
use serde_json::Value;
use support::manifest::service;
use support::net::pod_v4;
use support::traffic::*;
use support::*;

/// Runs `f` on a thread on which, and in whose children, io_uring_setup(2) meets `action`.
fn confined<T: Send>(action: SeccompAction, f: impl FnOnce() -> T + Send) -> T {
    let rules = BTreeMap::from([(libc::SYS_io_uring_setup, Vec::new())]);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    std::thread::scope(|scope| {
        let confined = scope.spawn(|| {
            apply_filter(&program).unwrap();
            f()
        });
        confined.join().unwrap()
    })
}

fn forbidden(errno: i32) -> SeccompAction {
    SeccompAction::Errno(errno as u32)
}

fn weir(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(args).output().unwrap()
}

/// `weir version -o json`.
fn version() -> Value {
    let output = weir(&["version", "-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let all = list.as_array().unwrap();
    let found = all.iter().find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list:#}"))
}

/// The start's line, field by field.
fn first_line(weir: &Weir) -> Value {
    let log = weir.log();
    let mut lines = log.lines().filter_map(|l| serde_json::from_str(l).ok());
    let line = lines.find(|line: &Value| line["msg"] == "weir serves");
    line.unwrap_or_else(|| panic!("no line of the start: {log}"))
}

/// It runs on epoll, says so everywhere with `why`, and serves.
#[track_caller]
fn serves_on_epoll(lab: &Lab, weir: &Weir, why: &str) {
    let line = first_line(weir);
    assert_eq!(line["engine"], "epoll", "{line}");
    assert!(line["why"].as_str().unwrap().contains(why), "{line}");
    let (_, checks) = weir.get("/readyz?verbose");
    let check = checks.lines().find(|line| line.contains("engine ok"));
    let check = check.unwrap_or_else(|| panic!("{checks}"));
    assert!(check.starts_with("[+]engine ok: epoll: "), "{check}");
    assert!(check.contains(why), "{check}");
    let (_, shown) = weir.get("/version");
    assert!(shown.contains("\"engine\":\"epoll\""), "{shown}");
    assert_eq!(weir.metric("weir_build_info", &["engine=\"epoll\""]), 1.0);

    let _pod = TcpPod::named(&lab.server, pod_v4(0), 80, "pod");
    let svc = service("web").tcp(80).endpoints([pod_v4(0)], 80);
    let vip = SocketAddr::new(weir.serve(&svc)[0], 80);
    assert_eq!(lab.client.run(move || ask(vip)).unwrap(), "pod");
}

#[test]
fn r9_a_profile_without_io_uring_leaves_epoll_and_the_reason() {
    if skip("r9 seccomp") {
        return;
    }
    for (errno, name) in [(libc::EPERM, "EPERM"), (libc::ENOSYS, "ENOSYS")] {
        let lab = Lab::new();
        let why = format!("a seccomp filter forbids io_uring_setup ({name}); allow it");
        let weir = confined(forbidden(errno), || Weir::prepare().pools().launch(&lab.lb));
        serves_on_epoll(&lab, &weir, &why);
    }
}

#[test]
fn r9_a_machine_that_turned_io_uring_off_leaves_epoll_and_the_command_to_type() {
    if skip("r9 sysctl") {
        return;
    }
    let lab = Lab::new();
    let mut setting = tempfile::NamedTempFile::new().unwrap();
    writeln!(setting, "2").unwrap();
    let mount = format!(
        "mount --bind {} /proc/sys/kernel/io_uring_disabled && exec \"$@\"",
        setting.path().display()
    );
    let weir = confined(forbidden(libc::EPERM), || {
        let start = Weir::prepare().pools();
        let wrapped = start.wrap(["unshare", "--mount", "sh", "-c", &mount, "sh"]);
        wrapped.launch(&lab.lb)
    });
    serves_on_epoll(&lab, &weir, "kernel.io_uring_disabled is 2");
    serves_on_epoll(&lab, &weir, "`sysctl -w kernel.io_uring_disabled=0`");
}

#[test]
fn r9_an_engine_that_is_asked_for_and_cannot_run_fails_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let args = [
        "--manifests",
        dir,
        "--state-dir",
        state,
        "--engine",
        "io_uring",
    ];
    let output = confined(forbidden(libc::EPERM), || {
        weir(&[&["serve"], &args[..]].concat())
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "cannot run the io_uring engine: a seccomp filter forbids io_uring_setup (EPERM)",
        "`--engine auto` or `--engine epoll`",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn r9_epoll_that_is_asked_for_tries_no_io_uring() {
    if skip("r9 epoll") {
        return;
    }
    let lab = Lab::new();
    // Who as much as tries is killed.
    let weir = confined(SeccompAction::KillProcess, || {
        let start = Weir::prepare().pools().args(["--engine", "epoll"]);
        start.launch(&lab.lb)
    });
    serves_on_epoll(&lab, &weir, "asked for");
}

#[test]
fn r9_version_says_which_engines_run_here_and_what_was_tried() {
    let value = confined(forbidden(libc::ENOSYS), version);
    assert_eq!(value["engine"]["name"], "epoll", "{value:#}");
    assert_eq!(named(&value["engines"], "epoll")["available"], true);
    let ring = named(&value["engines"], "io_uring");
    assert_eq!(ring["available"], false);
    let why = "seccomp filter forbids io_uring_setup (ENOSYS)";
    assert!(ring["why"].as_str().unwrap().contains(why), "{ring}");
    let tried = named(&value["probe"], "io_uring_setup");
    assert_eq!(tried["errno"], libc::ENOSYS, "{tried}");
    assert_eq!(named(&value["probe"], "splice")["available"], true);

    // Without the filter what runs is what is said to be there.
    let value = version();
    let auto = value["engine"]["name"].as_str().unwrap();
    assert_eq!(named(&value["engines"], auto)["available"], true);
}

/// The checks of `weir doctor -o json` below `wrap`, its verdict, and its exit code.
fn doctor(net: &net::Net, wrap: &[&str]) -> (Value, Option<i32>) {
    let words = [wrap, &[env!("CARGO_BIN_EXE_weir"), "doctor", "-o", "json"]].concat();
    let mut command = net.command(words[0]);
    let output = command.args(&words[1..]).output().unwrap();
    let value = serde_json::from_slice(&output.stdout);
    let value = value.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (value, output.status.code())
}

#[test]
fn the_doctor_finds_what_is_amiss_and_its_fix_heals_it() {
    if skip("doctor") {
        return;
    }
    let lab = Lab::new();
    let (before, code) = doctor(&lab.lb, &[]);
    let failed = |value: &Value| {
        let checks = value["checks"].as_array().unwrap().iter();
        let failed = checks.filter(|check| check["verdict"] == "fail");
        failed
            .map(|check| check["name"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        code,
        Some(i32::from(!failed(&before).is_empty())),
        "{before:#}"
    );

    let name = "net.ipv4.ip_local_port_range";
    lab.lb
        .exec("sysctl", &["-w", &format!("{name}=50000 50099")]);
    let (ill, code) = doctor(&lab.lb, &[]);
    assert_eq!(code, Some(1), "{ill:#}");
    assert_eq!(ill["verdict"], "fail");
    let check = named(&ill["checks"], name);
    assert_eq!(check["value"], "50000 50099");
    let fix = check["fix"].as_str().unwrap();
    let (command, _) = fix.split_once(';').unwrap();
    lab.lb.exec("sh", &["-c", command]);
    let (healed, _) = doctor(&lab.lb, &[]);
    assert_eq!(
        named(&healed["checks"], name)["verdict"],
        "ok",
        "{healed:#}"
    );
    assert_eq!(failed(&healed), failed(&before));
}

#[test]
fn the_doctor_needs_no_privilege_and_says_what_is_lost_without() {
    if skip("doctor without root") {
        return;
    }
    let lab = Lab::new();
    let bare = [
        "setpriv",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
    ];
    let (value, _) = doctor(&lab.lb, &bare);
    let checks = &value["checks"];
    assert_eq!(
        named(checks, "CAP_NET_ADMIN")["verdict"],
        "warn",
        "{value:#}"
    );
    let fix = named(checks, "CAP_NET_ADMIN")["fix"].as_str().unwrap();
    assert_eq!(fix, "setcap cap_net_admin+ep /usr/local/bin/weir");
    let (value, _) = doctor(&lab.lb, &[]);
    assert_eq!(named(&value["checks"], "CAP_NET_ADMIN")["verdict"], "ok");

    let table = weir(&["doctor"]);
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("ok    kernel ")),
        "{text}"
    );
    let usage = weir(&["doctor", "-o", "yaml"]);
    assert_eq!(usage.status.code(), Some(2));
}
