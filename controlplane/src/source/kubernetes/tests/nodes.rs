//! Nodes: watched when they are asked for, and waited for by nobody else.

use serde_json::{Value, json};

use super::super::{Failure, Origin, SOURCE};
use super::server::{Fault, Server};
use super::{Harness, service, slice};
use crate::object::Kind;

fn node(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"edge": ""}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

fn server() -> Server {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    server.put(slice("shop", "web", &["10.0.0.1"]));
    server.put(node("n1", "192.0.2.1"));
    server
}

fn addresses(harness: &Harness) -> Vec<String> {
    let nodes = harness.cluster.nodes();
    nodes.map(|node| node.addresses[0].to_string()).collect()
}

#[test]
fn nodes_are_watched_once_they_are_wanted_and_kept_for_the_next_start() {
    let server = server();
    let mut harness = Harness::start(&server);
    harness.complete();
    assert_eq!(server.count("list", "/nodes"), 0, "nobody has asked");
    assert!(!harness.cluster.has_settled_nodes(SOURCE));
    harness.settings.watch_nodes();
    harness.until("listed", |now| now.cluster.knows_nodes(SOURCE));
    assert_eq!(addresses(&harness), ["192.0.2.1"]);
    server.put(node("n1", "192.0.2.9"));
    harness.until("changed", |now| addresses(now) == ["192.0.2.9"]);
    server.put(node("n2", "192.0.2.2"));
    server.delete(&node("n1", ""));
    harness.until("gone", |now| addresses(now) == ["192.0.2.2"]);

    // They are kept with the rest: a start without an API server has them.
    let kept = |harness: &Harness| {
        let state = harness.directory.path().join("state");
        let files = std::fs::read_dir(state).into_iter().flatten().flatten();
        let mut texts = files.filter_map(|file| std::fs::read(file.path()).ok());
        let has = |text: Vec<u8>| String::from_utf8_lossy(&text).contains("192.0.2.2");
        texts.any(has)
    };
    harness.until("kept", |now| kept(now));
    server.stop();
    let directory = harness.end();
    let mut harness = Harness::with(&server, super::times(), &[], "", directory);
    harness.until("restored", |now| addresses(now) == ["192.0.2.2"]);
    assert_eq!(harness.watch(Kind::Node).origin, Origin::Kept);
    assert_eq!(harness.names(), ["shop/web"]);
}

#[test]
fn a_missing_verb_for_nodes_is_said_and_holds_up_nothing_else() {
    let server = server();
    server.always("list", "nodes", Fault::Status(403));
    let mut harness = Harness::start(&server);
    harness.settings.watch_nodes();
    harness.complete();
    harness.until("not waited for", |now| {
        now.cluster.has_settled_nodes(SOURCE) && !now.watch(Kind::Node).failures.is_empty()
    });
    assert!(!harness.cluster.knows_nodes(SOURCE));
    assert_eq!(harness.names(), ["shop/web"]);
    harness.until("said", |now| {
        matches!(
            now.watch(Kind::Node).failure,
            Some(Failure::Forbidden { .. })
        )
    });
    let problems = harness.problems().join("; ");
    assert!(problems.contains("forbidden: list nodes"), "{problems}");
    server.mend();
    harness.until("granted", |now| now.cluster.knows_nodes(SOURCE));
    assert_eq!(addresses(&harness), ["192.0.2.1"]);
}

#[test]
fn nodes_that_do_not_come_are_waited_for_a_moment() {
    let server = server();
    server.always("list", "nodes", Fault::Silence);
    let mut harness = Harness::start(&server);
    harness.settings.watch_nodes();
    harness.until("not waited for", |now| {
        now.cluster.has_settled_nodes(SOURCE)
    });
    assert!(!harness.cluster.knows_nodes(SOURCE));
}
