//! Settings that read well and cannot work: refused before anything starts, with the setting, where
//! it is from and what is right. Without this they would be found by every Service, one by one.

#[cfg(test)]
mod tests;

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
