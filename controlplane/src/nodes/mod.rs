//! Which nodes may be dialled at their node ports, and at which address. PURE; the control task
//! makes a new set when a Node changes, and a Service that looks at nodes looks at that.
//!
//! The rules are those of the service controller (cloud-provider `stableNodeSetPredicates`): the
//! label that excludes a node, and the taint of one that the cluster autoscaler is about to
//! delete. Whether a node is Ready does not count (KEP-3458): probes decide that.

mod selector;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

pub use self::selector::{Selector, SelectorError};
use crate::annotations::LABEL_EXCLUDE_NODE;
use crate::object::{Family, Node};
use crate::translate::{Rules, refusal, shown};

/// The taint of a node that the cluster autoscaler is about to delete.
pub const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// A node that may be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name, as EndpointSlices have it.
    pub name: Arc<str>,
    /// Its first InternalIP of the family, else its first ExternalIP.
    pub v4: Option<IpAddr>,
    /// As above.
    pub v6: Option<IpAddr>,
    /// It is about to go: no new work.
    pub leaving: bool,
}

impl Target {
    /// Where it is dialled for this family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// How many nodes may not be dialled, by why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Out {
    /// By the label `node.kubernetes.io/exclude-from-external-load-balancers`.
    pub excluded: u32,
    /// The node selector does not take them.
    pub deselected: u32,
    /// They have no address that may be dialled.
    pub unaddressed: u32,
}

/// The nodes of one source's cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSet {
    /// They were listed.
    pub known: bool,
    /// Those that may be dialled, by name.
    pub targets: Vec<Target>,
    /// The others.
    pub out: Out,
    /// Addresses that are never dialled, and why.
    pub refused: BTreeSet<(Arc<str>, &'static str)>,
}

impl NodeSet {
    /// Judges all nodes of a cluster, listed by now or not.
    pub fn new<'a>(
        known: bool,
        nodes: impl IntoIterator<Item = &'a Arc<Node>>,
        rules: &Rules,
    ) -> NodeSet {
        let mut set = NodeSet {
            known,
            ..NodeSet::default()
        };
        for node in nodes {
            set.judge(node, rules);
        }
        set.targets.sort_by(|a, b| a.name.cmp(&b.name));
        set
    }

    fn judge(&mut self, node: &Node, rules: &Rules) {
        if is_excluded(node) {
            self.out.excluded += 1;
            return;
        }
        if !rules.node_selector.matches(&node.meta.labels) {
            self.out.deselected += 1;
            return;
        }
        let mut target = Target {
            name: Arc::clone(&node.meta.key.name),
            v4: None,
            v6: None,
            leaving: is_leaving(node),
        };
        for address in node.addresses.iter().map(IpAddr::to_canonical) {
            let slot = match Family::of(address) {
                Family::V4 => &mut target.v4,
                Family::V6 => &mut target.v6,
            };
            if slot.is_some() {
                continue;
            }
            match refusal(address, rules) {
                None => *slot = Some(address),
                Some(problem) => {
                    let address = shown(&address.to_string());
                    self.refused.insert((address, problem));
                }
            }
        }
        match (target.v4, target.v6) {
            (None, None) => self.out.unaddressed += 1,
            _ => self.targets.push(target),
        }
    }
}

/// The label's presence excludes, unless its value is one that Go's ParseBool takes for false.
fn is_excluded(node: &Node) -> bool {
    const FALSE: [&str; 6] = ["0", "f", "F", "FALSE", "false", "False"];
    let value = node.meta.labels.get(LABEL_EXCLUDE_NODE);
    value.is_some_and(|value| !FALSE.contains(&&**value))
}

fn is_leaving(node: &Node) -> bool {
    let tainted = node.taints.iter().any(|key| **key == *TAINT_TO_BE_DELETED);
    node.meta.deleting || tainted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Kind, Meta};

    fn node(name: &str, addresses: &[&str], labels: &[(&str, &str)]) -> Node {
        let labels = labels.iter();
        Node {
            meta: Meta {
                key: crate::testing::key(Kind::Node, "", name),
                labels: labels.map(|(k, v)| ((*k).into(), (*v).into())).collect(),
                annotations: Default::default(),
                created: None,
                deleting: false,
                location: None,
            },
            addresses: addresses
                .iter()
                .map(|a| a.parse().expect("address"))
                .collect(),
            taints: Vec::new(),
        }
    }

    fn set(nodes: Vec<Node>, rules: &Rules) -> NodeSet {
        let nodes: Vec<_> = nodes.into_iter().map(Arc::new).collect();
        NodeSet::new(true, &nodes, rules)
    }

    #[test]
    fn the_label_excludes_unless_its_value_is_false_and_unparsable_excludes() {
        for (value, excluded) in [
            ("", true),
            ("true", true),
            ("1", true),
            ("no", true),
            ("off", true),
            ("fAlse", true),
            ("false", false),
            ("False", false),
            ("FALSE", false),
            ("f", false),
            ("F", false),
            ("0", false),
        ] {
            let all = vec![node("n", &["10.0.0.1"], &[(LABEL_EXCLUDE_NODE, value)])];
            let found = set(all, &Rules::default());
            assert_eq!(found.out.excluded, u32::from(excluded), "{value:?}");
            assert_eq!(found.targets.len(), usize::from(!excluded), "{value:?}");
        }
    }

    #[test]
    fn each_family_has_its_first_address_and_a_refused_one_is_said() {
        let addresses = ["127.0.0.1", "::ffff:10.0.0.1", "10.0.0.2", "fd00::1"];
        let all = vec![
            node("b", &addresses, &[]),
            node("a", &["fd00::2"], &[]),
            node("c", &[], &[]),
            node("d", &["169.254.169.254"], &[]),
        ];
        let found = set(all, &Rules::default());
        let shown: Vec<_> = found
            .targets
            .iter()
            .map(|t| (&*t.name, t.v4, t.v6))
            .collect();
        let ip = |text: &str| Some(text.parse().expect("address"));
        assert_eq!(
            shown,
            [
                ("a", None, ip("fd00::2")),
                ("b", ip("10.0.0.1"), ip("fd00::1"))
            ]
        );
        assert_eq!(found.out.unaddressed, 2);
        let refused: Vec<&str> = found.refused.iter().map(|(a, _)| &**a).collect();
        assert_eq!(refused, ["127.0.0.1", "169.254.169.254"]);
    }

    #[test]
    fn a_node_that_is_to_go_leaves_and_the_selector_takes_out_others() {
        let mut tainted = node("a", &["10.0.0.1"], &[("edge", "")]);
        tainted.taints = vec!["other".into(), TAINT_TO_BE_DELETED.into()];
        let mut deleting = node("b", &["10.0.0.2"], &[("edge", "")]);
        deleting.meta.deleting = true;
        let mut unreachable = node("c", &["10.0.0.3"], &[("edge", "")]);
        unreachable.taints = vec!["node.kubernetes.io/unreachable".into()];
        let other = node("d", &["10.0.0.4"], &[]);
        let rules = Rules {
            node_selector: "edge".parse().expect("a selector"),
            ..Rules::default()
        };
        let found = set(vec![tainted, deleting, unreachable, other], &rules);
        let leaving: Vec<_> = found
            .targets
            .iter()
            .map(|t| (&*t.name, t.leaving))
            .collect();
        assert_eq!(leaving, [("a", true), ("b", true), ("c", false)]);
        assert_eq!(found.out.deselected, 1);
    }
}
