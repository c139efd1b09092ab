//! Settings that read well and cannot work: refused before anything starts, with the setting, where
//! it is from and what is right. Without this they would be found by every Service, one by one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use controlplane::allocate::Range;
use lb_core::plane::PEER_TIMEOUTS;
use lb_core::table::MAX_TIMEOUT;

use super::problem::Problem;
use super::{Layer, Settings, is_unset};
use crate::telemetry::parse_filter;

/// The longest name of an interface: IFNAMSIZ without its last byte (netdevice(7)).
const MAX_INTERFACE_NAME: usize = 15;

/// One thing that cannot work.
#[derive(Debug)]
struct Mistake {
    /// The settings that it is about, as the file has them.
    settings: Vec<&'static str>,
    /// What is wrong and what is right.
    message: String,
}

/// Everything in `flags` laid over the file's settings that cannot work. `path` is the file.
pub fn judge(flags: &Layer, file: &Layer, path: Option<&Path>) -> Vec<Problem> {
    let settings = Settings::new(flags.clone(), file.clone());
    let mistakes = settings.mistakes().into_iter();
    mistakes
        .map(|mistake| locate(&mistake, flags, file, path))
        .collect()
}

/// A mistake and where the first of its settings that somebody made is from.
fn locate(mistake: &Mistake, flags: &Layer, file: &Layer, path: Option<&Path>) -> Problem {
    let names = mistake.settings.join(", ");
    let message = format!("{names}: {}", mistake.message);
    let has = |layer: &Layer, name: &str| {
        let layer = serde_json::to_value(layer).unwrap_or_default();
        layer.get(name).is_some_and(|value| !is_unset(value))
    };
    let mut made = mistake.settings.iter();
    let Some(name) = made.find(|name| has(flags, name) || has(file, name)) else {
        return Problem::unlocated("default", &message);
    };
    if has(flags, name) {
        let origin = format!("{} or {}", flag(name), variable(name));
        return Problem::unlocated(&origin, &message);
    }
    let shown = path.map_or_else(|| "file".to_owned(), |path| path.display().to_string());
    let text = path.and_then(|path| std::fs::read_to_string(path).ok());
    let text = text.unwrap_or_default();
    let line = text.lines().position(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.trim_start().starts_with(':'))
    });
    match line {
        Some(line) => Problem::located(&shown, &text, line as u64 + 1, 1, &message),
        None => Problem::unlocated(&shown, &message),
    }
}

/// A setting's flag.
fn flag(name: &str) -> String {
    match name {
        "pools" => "--pool".to_owned(),
        "nodePortAddresses" => "--node-port-address".to_owned(),
        "sourceAddresses" => "--source-address".to_owned(),
        _ => format!("--{}", split(name, '-')),
    }
}

/// A setting's variable: its flag in upper case.
fn variable(name: &str) -> String {
    let flag = flag(name).trim_start_matches('-').replace('-', "_");
    format!("WEIR_{}", flag.to_uppercase())
}

/// A name of the file as words with `by` between them.
pub(super) fn split(name: &str, by: char) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            text.push(by);
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

impl Settings {
    fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let mut wrong = |settings: &[&'static str], message: String| {
            let settings = settings.to_vec();
            mistakes.push(Mistake { settings, message });
        };
        self.timeouts(&mut wrong);
        self.names(&mut wrong);
        if let Err(error) = self.watermarks() {
            wrong(&["memoryStop", "memoryShed"], error.to_string());
        }
        if let Err(error) = self.pools(self.own_addresses()) {
            wrong(&["pools"], error.to_string());
        }
        for address in &self.node_port_addresses {
            if !can_be_vip(*address) {
                let message = format!("clients cannot dial {address}; give a unicast address");
                wrong(&["nodePortAddresses"], message);
            }
        }
        for (at, address) in self.source_addresses.iter().enumerate() {
            let message = if !can_be_vip(*address) {
                format!("no backend answers to {address}; give a unicast address of this machine")
            } else if self.source_addresses[..at].contains(address) {
                format!("{address} stands there twice; give each once")
            } else {
                continue;
            };
            wrong(&["sourceAddresses"], message);
        }
        if let Err(message) = parse_filter(&self.log) {
            wrong(&["log"], message);
        }
        self.cluster(&mut wrong);
        let manifests = self.manifests.as_ref();
        // One that is missing may be mounted later.
        if let Some(file) = manifests.filter(|path| path.is_file()) {
            let message = format!("{} is a file; give its directory", file.display());
            wrong(&["manifests"], message);
        }
        for (name, directory) in [
            ("stateDir", &self.state_dir),
            ("statusDir", &self.status_dir),
        ] {
            if directory.is_some() && directory.as_ref() == manifests {
                let message = "the JSON files written there would be read as manifests; choose another directory";
                wrong(&[name, "manifests"], message.to_owned());
            }
        }
        mistakes
    }

    /// What there is to say of a cluster without looking at it.
    fn cluster(&self, wrong: &mut impl FnMut(&[&'static str], String)) {
        if self.in_cluster && self.kubeconfig.is_some() {
            let message = "both name a cluster; keep one of them";
            wrong(&["kubeconfig", "inCluster"], message.to_owned());
        }
        for (at, namespace) in self.namespaces.iter().enumerate() {
            let message = if !is_label(namespace) {
                format!("{namespace:?} is no namespace: a to z, 0 to 9 and -, 1 to 63 of them")
            } else if self.namespaces[..at].contains(namespace) {
                format!("{namespace} stands there twice; give each once")
            } else {
                continue;
            };
            wrong(&["namespaces"], message);
        }
    }

    /// The limits are those of the table's builder and of the plane.
    fn timeouts(&self, wrong: &mut impl FnMut(&[&'static str], String)) {
        let timeouts = [
            ("connectTimeout", self.connect_timeout, false),
            ("connectBudget", self.connect_budget, false),
            ("idleTimeout", self.idle_timeout, true),
            ("halfCloseTimeout", self.half_close_timeout, true),
            ("flowOneWayTimeout", self.flow_one_way_timeout, false),
            ("flowTwoWayTimeout", self.flow_two_way_timeout, false),
            ("drainTimeout", self.drain_timeout, true),
        ];
        for (name, found, zero) in timeouts {
            let least = if zero { "0s" } else { "above 0s" };
            if found > MAX_TIMEOUT || (found.is_zero() && !zero) {
                let most = MAX_TIMEOUT.as_secs() / 3_600;
                let message = format!(
                    "{} is out of bounds; write a time {least}, {most}h at most",
                    shown(found)
                );
                wrong(&[name], message);
            }
        }
        let (timeout, budget) = (self.connect_timeout, self.connect_budget);
        if timeout > budget && !budget.is_zero() {
            let message = format!(
                "one attempt ({}) may not take longer than all together ({}); lower the first or raise the second",
                shown(timeout),
                shown(budget)
            );
            wrong(&["connectTimeout", "connectBudget"], message);
        }
        if !PEER_TIMEOUTS.contains(&self.peer_timeout) {
            let message = format!(
                "{} is out of bounds; write a time from 1s to 24h",
                shown(self.peer_timeout)
            );
            wrong(&["peerTimeout"], message);
        }
    }

    /// Names that nothing can have, and empty paths.
    fn names(&self, wrong: &mut impl FnMut(&[&'static str], String)) {
        let is_word = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
        if !is_word(&self.class) {
            let message = format!(
                "{:?} is no class; write for example weir.dev/l4",
                self.class
            );
            wrong(&["class"], message);
        }
        if let Some(zone) = self.zone.as_deref().filter(|zone| !is_word(zone)) {
            wrong(
                &["zone"],
                format!("{zone:?} is no zone; leave it out for none"),
            );
        }
        if let Some(name) = &self.vip_interface
            && (!is_word(name) || name.len() > MAX_INTERFACE_NAME || name.contains('/'))
        {
            let message = format!("{name:?} is no interface's name; `ip link` lists them");
            wrong(&["vipInterface"], message);
        }
        let paths = [
            ("manifests", &self.manifests, "directory"),
            ("kubeconfig", &self.kubeconfig, "file"),
            ("stateDir", &self.state_dir, "directory"),
            ("statusDir", &self.status_dir, "directory"),
        ];
        for (name, path, what) in paths {
            if path.as_ref().is_some_and(|path| *path == PathBuf::new()) {
                wrong(&[name], format!("is empty; write a {what}"));
            }
        }
    }
}

/// RFC 1123: what a namespace may be named.
fn is_label(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = text.starts_with('-') || text.ends_with('-');
    (1..=63).contains(&text.len()) && text.chars().all(fits) && !ends
}

/// As settings are written.
fn shown(time: Duration) -> String {
    super::values::Span(time).to_string()
}

/// The rule of the pools, for one address.
fn can_be_vip(address: IpAddr) -> bool {
    let address = address.to_canonical();
    format!("{address}-{address}").parse::<Range>().is_ok()
}

#[cfg(test)]
mod tests {
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
}
