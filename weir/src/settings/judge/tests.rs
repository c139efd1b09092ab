use std::io::Write;

use clap::Parser;
use lb_core::balance::Algorithm;
use lb_core::table::{
    FrontendKey, FrontendSpec, HashKey, Owner, Policy, Protocol, SourceRanges, TableBuilder,
};
use proptest::prelude::*;

use super::super::file::parse;
use super::*;

#[derive(Parser)]
struct Only {
    #[command(flatten)]
    layer: Layer,
}

fn flags(line: &str) -> Layer {
    let words = std::iter::once("weir").chain(line.split_whitespace());
    Only::try_parse_from(words).expect(line).layer
}

fn said(line: &str) -> String {
    let problems = judge(&flags(line), &Layer::default(), None);
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    texts.join("\n")
}

#[test]
fn the_defaults_and_every_sane_setting_pass() {
    for line in [
        "",
        "--idle-timeout 0s --half-close-timeout 0s --drain-timeout 0s",
        "--connect-timeout 3s --connect-budget 3s",
        "--idle-timeout 8760h --peer-timeout 24h",
        "--memory-stop 0 --memory-shed 0",
        "--memory-stop 99 --memory-shed 99",
        "--pool 192.0.2.0/28 --pool a=192.0.2.16/28 --pool a=2001:db8::/64",
        "--node-port-address 192.0.2.1,::1,127.0.0.1",
        "--source-address 192.0.2.1,2001:db8::1",
        "--vip-interface bond0.100 --zone eu-1a --log weir=debug",
        "--manifests a --state-dir b --status-dir c",
        "--kubeconfig a --namespaces shop,web-1 --manifests b",
        "--in-cluster --namespaces kube-system",
        "--log WARN,weir=debug,controlplane=trace --manifests src",
        "--log off",
        "--backends nodes --node-selector edge",
        "--backends auto --node-selector=!old,zone!=a",
        // Whether it can run is the kernel's to say, at the start.
        "--engine io_uring",
    ] {
        assert_eq!(said(line), "", "{line}");
    }
}

#[test]
fn what_cannot_work_is_named_with_its_flag_and_what_is_right() {
    for (line, parts) in [
        (
            "--connect-timeout 0s",
            [
                "--connect-timeout or WEIR_CONNECT_TIMEOUT: connectTimeout: 0s",
                "above 0s",
            ],
        ),
        ("--connect-budget 0s", ["connectBudget: 0s", "above 0s"]),
        (
            "--flow-one-way-timeout 0s",
            ["flowOneWayTimeout", "above 0s"],
        ),
        (
            "--flow-two-way-timeout 0s",
            ["flowTwoWayTimeout", "above 0s"],
        ),
        (
            "--connect-timeout 5s",
            [
                "connectTimeout, connectBudget: one attempt (5s)",
                "all together (3s)",
            ],
        ),
        (
            "--connect-budget 100ms",
            ["--connect-budget or WEIR_CONNECT_BUDGET: ", "(100ms)"],
        ),
        ("--peer-timeout 0s", ["peerTimeout: 0s", "1s to 24h"]),
        ("--peer-timeout 25h", ["peerTimeout: 90000s", "1s to 24h"]),
        (
            "--memory-stop 10",
            ["memoryStop, memoryShed: 10 percent", "50 to 99"],
        ),
        (
            "--memory-shed 80",
            ["--memory-shed or WEIR_MEMORY_SHED: ", "raise the first"],
        ),
        (
            "--pool 192.0.2.0/28 --pool b=192.0.2.8",
            ["--pool or WEIR_POOL: pools: ", "overlap"],
        ),
        (
            "--pool pool-2=10.0.0.1 --pool 10.0.0.2",
            ["pools: ", "two pools are named"],
        ),
        (
            "--node-port-address 0.0.0.0",
            ["--node-port-address or WEIR_NODE_PORT_ADDRESS: ", "unicast"],
        ),
        (
            "--node-port-address ff02::1",
            ["nodePortAddresses: ", "unicast"],
        ),
        (
            "--source-address 0.0.0.0",
            ["--source-address or WEIR_SOURCE_ADDRESS: ", "unicast"],
        ),
        (
            "--source-address 192.0.2.1,192.0.2.1",
            ["sourceAddresses: 192.0.2.1", "twice"],
        ),
        (
            "--log weir=loud",
            ["--log or WEIR_LOG: log: ", "info or weir=debug"],
        ),
        (
            "--log inof",
            ["log: inof is no level: error, warn", "or target=level"],
        ),
        ("--log info,weir", ["log: weir is no level", "target=level"]),
        (
            "--manifests Cargo.toml",
            ["--manifests or WEIR_MANIFESTS: ", "give its directory"],
        ),
        (
            "--vip-interface sixteen-letters-",
            ["vipInterface: ", "ip link"],
        ),
        ("--class=", ["class: ", "weir.dev/l4"]),
        (
            "--kubeconfig a --in-cluster",
            ["kubeconfig, inCluster: ", "keep one"],
        ),
        (
            "--namespaces a,B",
            ["--namespaces or WEIR_NAMESPACES: ", "a to z"],
        ),
        ("--namespaces a,a", ["namespaces: a stands", "twice"]),
        ("--zone=", ["zone: ", "leave it out"]),
        (
            "--manifests m --status-dir m/",
            ["statusDir, manifests: ", "another directory"],
        ),
        (
            "--manifests m --state-dir m",
            ["stateDir, manifests: ", "another directory"],
        ),
    ] {
        let said = said(line);
        for part in parts {
            assert!(said.contains(part), "{line}: {said:?} lacks {part:?}");
        }
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
    }
}

#[test]
fn a_setting_of_the_file_has_its_line() {
    let text = "workers: 2\nidleTimeout: 1h\nconnectTimeout: 5s\n";
    let mut file = tempfile::NamedTempFile::new().expect("temp");
    file.write_all(text.as_bytes()).expect("write");
    let layer = parse("weir.yaml", text).expect("parses");
    let said = |flags: &Layer| -> Vec<String> {
        let problems = judge(flags, &layer, Some(file.path()));
        problems.iter().map(ToString::to_string).collect()
    };
    let [one] = &said(&Layer::default())[..] else {
        panic!("one mistake");
    };
    let place = format!("{}:3:1: connectTimeout, ", file.path().display());
    assert!(one.starts_with(&place), "{one}");
    assert!(one.contains("3 | connectTimeout: 5s"), "{one}");
    assert!(said(&flags("--connect-timeout 1s")).is_empty());
    // On a flag clap itself refuses it.
    let empty = parse("weir.yaml", "statusDir: ''\n").expect("parses");
    let problems = judge(&Layer::default(), &empty, None);
    assert_eq!(
        problems[0].to_string(),
        "file: statusDir: is empty; write a directory"
    );
}

fn time() -> impl Strategy<Value = Duration> {
    let year = MAX_TIMEOUT.as_secs();
    prop_oneof![
        Just(Duration::ZERO),
        (1u64..5_000).prop_map(Duration::from_millis),
        (year - 1..year + 2).prop_map(Duration::from_secs),
    ]
}

proptest! {
    /// What passes here the table takes, and what it would refuse does not pass.
    #[test]
    fn the_table_agrees(times in prop::collection::vec(time(), 6)) {
        let settings = Settings {
            connect_timeout: times[0],
            connect_budget: times[1],
            idle_timeout: times[2],
            half_close_timeout: times[3],
            flow_one_way_timeout: times[4],
            flow_two_way_timeout: times[5],
            ..Settings::new(Layer::default(), Layer::default())
        };
        let policy = Policy {
            sources: SourceRanges::any(),
            affinity: None,
            connect_timeout: times[0],
            connect_budget: times[1],
            idle_timeout: times[2],
            half_close_timeout: times[3],
            flow_one_way_timeout: times[4],
            flow_two_way_timeout: times[5],
        };
        let spec = FrontendSpec {
            key: FrontendKey {
                address: "192.0.2.1".parse().expect("an address"),
                port: 80.try_into().expect("a port"),
                protocol: Protocol::Tcp,
            },
            owner: Owner { group: "".into(), name: "".into(), port: "".into() },
            precedence: 0,
            algorithm: Algorithm::Consistent,
            backends: Vec::new(),
            policy,
        };
        let taken = TableBuilder::new(HashKey([0; 16])).set(spec);
        let mistakes = settings.mistakes();
        prop_assert_eq!(mistakes.is_empty(), taken.is_ok(), "{:?} {:?}", mistakes, taken);
    }
}
