use super::file::parse;
use super::*;
use clap::Parser;
use controlplane::source::kubernetes::Access;

#[derive(Parser)]
struct Only {
    #[command(flatten)]
    layer: Layer,
}

fn flags(line: &str) -> Layer {
    let words = std::iter::once("weir").chain(line.split_whitespace());
    Only::try_parse_from(words).expect("flags").layer
}

fn problem(text: &str) -> String {
    parse("weir.yaml", text).expect_err(text).to_string()
}

#[test]
fn the_file_holds_every_setting() {
    let text = "
manifests: /etc/weir/manifests.d
kubeconfig: /etc/weir/kubeconfig
inCluster: false
namespaces: [shop]
pools: [192.0.2.0/28, public=2001:db8::1-2001:db8::f]
admin: 127.0.0.1:9090
stateDir: /var/lib/weir
statusDir: /run/weir/status
workers: 2
engine: epoll
pin: false
class: weir.dev/l4
defaultProvider: false
zone: a
backends: auto
nodeSelector: pool=edge
nodePortAddresses: [192.0.2.99]
vipInterface: eth0
allowEndpoints: [127.0.0.0/8]
sourceAddresses: [192.0.2.98]
hashKey: 000102030405060708090a0b0c0d0e0f
confirmDeletions: true
drainTimeout: 10s
connectTimeout: 100ms
connectBudget: 1s
idleTimeout: 0s
halfCloseTimeout: 1m
peerTimeout: 2m
memoryStop: 80
memoryShed: 90
flowOneWayTimeout: 5s
flowTwoWayTimeout: 1h
logFormat: json
log: debug
";
    let layer = parse("weir.yaml", text).expect("parses");
    let value = serde_json::to_value(&layer).expect("JSON");
    let fields = value.as_object().expect("object");
    for (name, value) in fields {
        assert!(!is_unset(value), "{name} is not in the text above");
    }
    assert_eq!(fields.len(), text.lines().filter(|l| !l.is_empty()).count());
    assert!(
        !format!("{layer:?}{value}").contains("0a0b"),
        "the key stays hidden"
    );
}

#[test]
fn flag_over_file_over_default() {
    let file = || parse("f", "workers: 3\npools: [192.0.2.0/28]\nclass: file/c\n").expect("file");
    let over = Settings::new(
        flags("--workers 1 --pool 198.51.100.1 --pool x=2001:db8::1"),
        file(),
    );
    assert_eq!(over.workers.map(|n| n.get()), Some(1));
    let pools: Vec<_> = over.pools.iter().map(ToString::to_string).collect();
    assert_eq!(
        pools,
        ["198.51.100.1-198.51.100.1", "x=2001:db8::1-2001:db8::1"]
    );
    assert_eq!(over.class, "file/c");
    let under = Settings::new(Layer::default(), file());
    assert_eq!(under.workers.map(|n| n.get()), Some(3));
    assert_eq!(under.pools[0].to_string(), "192.0.2.0-192.0.2.15");
    let default = Settings::new(Layer::default(), Layer::default());
    assert_eq!(
        (default.workers, default.class.as_str()),
        (None, "weir.dev/l4")
    );
    assert_eq!(default.connect_timeout.as_millis(), 250);
    assert_eq!(default.drain_timeout.as_secs(), 30);
}

#[test]
fn what_has_no_class_is_served_from_a_directory_and_in_a_cluster_on_request() {
    let serves = |line: &str| Settings::new(flags(line), Layer::default()).default_provider;
    assert!(serves("--manifests m"));
    assert!(!serves("--kubeconfig k") && !serves("--in-cluster"));
    assert!(serves("--kubeconfig k --default-provider true"));
    let of = |line: &str| Settings::new(flags(line), Layer::default()).access();
    assert_eq!(of("--manifests m"), None);
    assert_eq!(of("--in-cluster"), Some(Access::InCluster));
    assert_eq!(of("--kubeconfig k"), Some(Access::Kubeconfig("k".into())));
}

#[test]
fn unknown_keys_suggest_the_near_one() {
    let cases = [
        ("manifest: x\n", "manifests"),
        ("workers: 1\nstate_dir: x\n", "stateDir"),
        ("State-Dir: x\n", "stateDir"),
        ("pool: [x]\n", "pools"),
        ("idletimout: 3s\n", "idleTimeout"),
        ("hashkey: x\n", "hashKey"),
    ];
    for (text, near) in cases {
        let problem = problem(text);
        assert!(
            problem.contains(&format!("did you mean {near:?}?")),
            "{problem}"
        );
    }
    let far = problem("zebra: 1\n");
    assert!(
        far.contains("weir.yaml:1:1: unknown setting \"zebra\"; `weir config schema`"),
        "{far}"
    );
}

#[test]
fn every_error_has_its_place() {
    assert_eq!(
        problem("workers: 2\nstatedirs: x\n"),
        "weir.yaml:2:1: unknown setting \"statedirs\"; did you mean \"stateDir\"?\n  2 | statedirs: x\n    | ^"
    );
    assert_eq!(
        problem("pools:\n  - 192.0.2.0/28\n  - 192.0.2.9-192.0.2.1\n"),
        "weir.yaml:3:5: pool \"192.0.2.9-192.0.2.1\" ends before it begins; swap the two addresses\n  3 |   - 192.0.2.9-192.0.2.1\n    |     ^"
    );
    let cases = [
        ("idleTimeout: 30\n", "1:14", "30s"),
        ("engine: iouring\n", "1:9", "did you mean \"io_uring\"?"),
        ("admin: 0.0.0.0:80\n", "1:8", "not a loopback address"),
        ("workers: 0\n", "1:10", "\"0\" is no number of workers"),
        ("workers: many\n", "1:10", "write a whole number from 1 on"),
        ("pools: [192.0.2.0/33]\n", "1:9", "/32 is the longest"),
        (
            "allowEndpoints: [\"fd00::/129\"]\n",
            "1:18",
            "/128 is the longest",
        ),
        ("workers: [\n", "1:10", ""),
        ("workers: 1\nworkers: 2\n", "2:1", "workers"),
        ("- a\n", "1:1", ""),
        ("hashKey: 12345\n", "1:10", "32 hexadecimal digits"),
    ];
    for (text, place, part) in cases {
        let problem = problem(text);
        assert!(
            problem.starts_with(&format!("weir.yaml:{place}: ")),
            "{text:?}: {problem}"
        );
        assert!(problem.contains(part), "{text:?}: {problem}");
        assert!(!problem.contains(" at line "), "{text:?}: {problem}");
    }
}

#[test]
fn an_empty_file_is_an_empty_layer() {
    for text in ["", "\n\n", "# nothing yet\n"] {
        assert_eq!(parse("f", text), Ok(Layer::default()), "{text:?}");
    }
}

#[test]
fn the_published_schema_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/weir.schema.json");
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        published == schema(),
        "deploy/weir.schema.json is old; run `cargo run -p weir -- config schema > deploy/weir.schema.json`"
    );
}

#[test]
fn show_names_the_origin() {
    let file = parse("f", "workers: 3\nzone: a\n").expect("file");
    let text = show(&flags("--workers 1 --class a/b"), &file, |id| {
        id == "workers"
    });
    assert!(text.contains("workers: 1 # flag\n"), "{text}");
    assert!(text.contains("zone: \"a\" # file\n"), "{text}");
    for line in [
        "class: \"a/b\" # environment\n",
        "# drainTimeout: 30s (default)\n",
        "# flowTwoWayTimeout: 120s (default)\n",
        "# pools: none (default)\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}
