use super::*;

fn host() -> Host {
    Host {
        kernel: "5.10.0".to_owned(),
        io_uring_disabled: Some("0".to_owned()),
        confined: false,
        capabilities: 0,
    }
}

fn disabled(value: &str) -> Host {
    Host {
        io_uring_disabled: Some(value.to_owned()),
        ..host()
    }
}

fn confined() -> Host {
    Host {
        confined: true,
        ..host()
    }
}

fn refused(errno: Errno) -> Rings {
    Rings {
        setup: Err(errno),
        enter: None,
        opcodes: None,
        buffers: None,
    }
}

fn working() -> Rings {
    Rings {
        setup: Ok(()),
        enter: Some(Ok(())),
        opcodes: Some(Ok([true; trial::OPCODES.len()])),
        buffers: Some(Ok(())),
    }
}

fn missing(host: &Host, rings: &Rings) -> Option<String> {
    let probe = Probe {
        io_uring: host.of_rings(rings),
        optional: Vec::new(),
    };
    probe.io_uring_lack()
}

#[test]
fn each_refusal_names_its_cause_and_the_way_out() {
    let older = host;
    for (host, errno, parts) in [
        (
            disabled("2"),
            Errno::PERM,
            [
                "io_uring_disabled is 2",
                "`sysctl -w kernel.io_uring_disabled=0`",
            ],
        ),
        (
            disabled("1"),
            Errno::PERM,
            ["io_uring_disabled is 1", "kernel.io_uring_group"],
        ),
        (
            confined(),
            Errno::PERM,
            ["seccomp filter forbids io_uring_setup (EPERM)", "allow it"],
        ),
        (
            confined(),
            Errno::NOSYS,
            ["seccomp filter forbids io_uring_setup (ENOSYS)", "allow it"],
        ),
        (
            older(),
            Errno::NOSYS,
            ["kernel 5.10.0 has no io_uring_setup (ENOSYS)", "6.1"],
        ),
        (
            older(),
            Errno::PERM,
            ["is forbidden (EPERM)", "journalctl -k"],
        ),
        (
            older(),
            Errno::INVAL,
            ["IORING_SETUP_DEFER_TASKRUN", "boot 6.1 or later"],
        ),
        (
            older(),
            Errno::NOMEM,
            ["no memory (ENOMEM)", "LimitMEMLOCK"],
        ),
        (
            older(),
            Errno::MFILE,
            ["no descriptor (EMFILE)", "LimitNOFILE"],
        ),
        (older(), Errno::IO, ["error 5", "manual page"]),
    ] {
        let said = missing(&host, &refused(errno)).expect("refused");
        for part in parts {
            assert!(said.contains(part), "{errno:?}: {said:?} lacks {part:?}");
        }
        assert!(said.contains("; "), "what to do: {said}");
    }
}

#[test]
fn an_errno_is_kept_and_nothing_is_said_of_what_was_not_tried() {
    let findings = host().of_rings(&refused(Errno::PERM));
    assert_eq!(findings.len(), 1);
    let lack = findings[0].lack.as_ref().expect("refused");
    assert_eq!(lack.errno, Some(libc::EPERM));
}

#[test]
fn everything_that_the_engine_needs_can_be_what_is_missing() {
    assert_eq!(missing(&host(), &working()), None);
    for (n, (name, _)) in trial::OPCODES.iter().enumerate() {
        let mut known = [true; trial::OPCODES.len()];
        known[n] = false;
        let opcodes = Some(Ok(known));
        let rings = Rings {
            opcodes,
            ..working()
        };
        let said = missing(&host(), &rings).expect("missing");
        assert_eq!(
            said,
            format!("kernel 5.10.0 has no {name}; boot 6.1 or later")
        );
    }
    let enter = Some(Err(Errno::OPNOTSUPP));
    let said = missing(&host(), &Rings { enter, ..working() });
    assert!(said.expect("missing").contains("EXT_ARG; boot 5.11"));
    let enter = Some(Err(Errno::PERM));
    let said = missing(&confined(), &Rings { enter, ..working() });
    assert!(said.expect("missing").contains("forbids io_uring_enter"));
    let opcodes = Some(Err(Errno::PERM));
    let said = missing(
        &confined(),
        &Rings {
            opcodes,
            ..working()
        },
    );
    assert!(said.expect("missing").contains("forbids io_uring_register"));
    let buffers = Some(Err(Errno::INVAL));
    let said = missing(
        &host(),
        &Rings {
            buffers,
            ..working()
        },
    );
    assert!(said.expect("missing").contains("PBUF_RING; boot 5.19"));
}

#[test]
fn small_pipes_are_a_lack_and_large_ones_none() {
    assert_eq!(of_pipes(Ok(PIPE)).lack, None);
    assert_eq!(of_pipes(Ok(2 * PIPE)).lack, None);
    let lack = of_pipes(Ok(4_096)).lack.expect("too small");
    assert!(lack.what.contains("4096 of 262144"), "{lack}");
    let lack = of_pipes(Err(Errno::MFILE)).lack.expect("none");
    assert_eq!(lack.errno, Some(libc::EMFILE));
}

#[test]
fn a_capability_is_a_bit_of_what_proc_says() {
    let mut host = host();
    host.capabilities = 1 << 12 | 1 << 39;
    let has = |name| {
        let findings = host.of_the_rest();
        let found = findings.iter().find(|finding| finding.name == name);
        found.expect(name).lack.is_none()
    };
    assert!(has("CAP_NET_ADMIN") && has("CAP_BPF"));
    assert!(!has("CAP_NET_BIND_SERVICE") && !has("CAP_SYS_RESOURCE"));
}

#[test]
fn turns_that_are_refused_name_the_capability_or_what_else_refuses() {
    let said = |host: &Host, errno| {
        let (what, fix) = host.no_rotation(errno);
        format!("{what}; {fix}")
    };
    let mut host = host();
    assert!(said(&host, Errno::PERM).ends_with("`setcap cap_bpf+ep /usr/local/bin/weir`"));
    assert!(said(&host, Errno::INVAL).ends_with("boot 5.12 or later"));
    host.capabilities = 1 << CAP_BPF;
    host.confined = true;
    let said = said(&host, Errno::PERM);
    assert!(
        said.contains("a seccomp filter forbids bpf (EPERM)"),
        "{said}"
    );
}

#[test]
fn the_probe_runs_here() {
    let probe = Probe::run();
    assert!(!probe.io_uring.is_empty());
    assert!(probe.optional.iter().all(|finding| {
        let lack = finding.lack.as_ref();
        lack.is_none_or(|lack| !lack.what.is_empty() && !lack.fix.is_empty())
    }));
}
