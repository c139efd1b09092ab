//! The source against a scripted API server, over real sockets, and the store behind it.

mod impostor;
mod nodes;
mod pace;
pub(crate) mod server;
mod store;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc, watch};

use self::server::{Fault, Server};
use super::*;
use crate::cluster::Cluster;
use crate::object::Key;

/// What anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A tenth of the real times.
fn times() -> Times {
    Times {
        watch: Duration::from_secs(1),
        slack: Duration::from_millis(500),
        begin: Duration::from_millis(1_000),
        page: Duration::from_secs(3),
        restore: Duration::from_millis(300),
        save: Duration::from_millis(50),
        settle: Duration::from_secs(2),
    }
}

/// The source, and what a control task would know of it.
struct Harness {
    runtime: Runtime,
    events: mpsc::Receiver<(SourceId, Event)>,
    said: watch::Receiver<Vec<Problem>>,
    rescan: Arc<Notify>,
    watches: Watches,
    settings: Settings,
    cluster: Cluster,
    /// The fewest Services since the first complete lists.
    fewest: usize,
    directory: tempfile::TempDir,
}

pub(crate) fn kubeconfig(server: &Server, directory: &Path, user: &str) -> PathBuf {
    let authority = directory.join("ca.crt");
    let (scheme, named) = match &server.authority {
        Some(pem) => {
            std::fs::write(&authority, pem).expect("write");
            (
                "https",
                format!(", certificate-authority: {}", authority.display()),
            )
        }
        None => ("http", String::new()),
    };
    let text = format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: \"{scheme}://{}\"{named}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n",
        server.address
    );
    let path = directory.join("kubeconfig");
    std::fs::write(&path, text).expect("write");
    path
}

impl Harness {
    fn start(server: &Server) -> Harness {
        Harness::with(server, times(), &[], "", tempfile::tempdir().expect("temp"))
    }

    fn with(
        server: &Server,
        times: Times,
        namespaces: &[&str],
        user: &str,
        directory: tempfile::TempDir,
    ) -> Harness {
        let path = kubeconfig(server, directory.path(), user);
        let connection = Connection::start(Access::Kubeconfig(path)).expect("a way to it");
        let namespaces = namespaces.iter().map(|name| Arc::from(*name)).collect();
        let state_dir = Some(directory.path().join("state"));
        let settings = Settings {
            times,
            ..Settings::new(connection, namespaces, state_dir)
        };
        let watches = settings.watches.clone();
        let cluster = Cluster::new(settings.expected());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (sender, events) = mpsc::channel(64);
        let (say, said) = watch::channel(Vec::new());
        let rescan = Arc::new(Notify::new());
        runtime.spawn(run(settings.clone(), sender, say, Arc::clone(&rescan)));
        Harness {
            runtime,
            events,
            said,
            rescan,
            watches,
            settings,
            cluster,
            fewest: usize::MAX,
            directory,
        }
    }

    /// Ends the source, and returns what it left.
    fn end(self) -> tempfile::TempDir {
        self.runtime.shutdown_timeout(Duration::from_secs(5));
        self.directory
    }

    fn take(&mut self, event: Event) {
        self.cluster.apply(SOURCE, event);
        if self.cluster.complete() {
            self.fewest = self.fewest.min(self.cluster.services().count());
        }
    }

    /// Hears until `done`.
    #[track_caller]
    fn until(&mut self, what: &str, mut done: impl FnMut(&Harness) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(
                Instant::now() < end,
                "not {what}: {:?}; {:?}",
                self.names(),
                self.problems()
            );
            self.hear(Duration::from_millis(20));
        }
    }

    /// Hears what comes within this.
    fn hear(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self
                .runtime
                .block_on(async { tokio::time::timeout(left, self.events.recv()).await });
            match event {
                Ok(Some((_, event))) => self.take(event),
                Ok(None) => panic!("the source ended"),
                Err(_) => return,
            }
        }
    }

    fn complete(&mut self) {
        self.until("complete", |now| now.cluster.complete());
    }

    fn names(&self) -> Vec<String> {
        let services = self.cluster.services();
        services
            .map(|service| service.meta.key.to_string())
            .collect()
    }

    fn ports(&self, name: &str) -> Vec<u16> {
        let services = self.cluster.services();
        let mut found = services.filter(|service| service.meta.key.to_string() == name);
        let ports = found.next().map(|service| service.ports.clone());
        ports.iter().flatten().map(|port| port.port.get()).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.said.borrow().iter().map(ToString::to_string).collect()
    }

    fn watch(&self, kind: Kind) -> Watch {
        let all = self.watches.all();
        let found = all.into_iter().find(|(scope, _)| scope.kind == kind);
        found.expect("it is watched").1
    }
}

fn service(namespace: &str, name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}")},
        "spec": {"type": "LoadBalancer", "ports": [{"port": port}]},
    })
}

fn slice(namespace: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints = addresses
        .iter()
        .map(|address| json!({"addresses": [address]}));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-1"), "namespace": namespace, "uid": format!("uid-{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8_080}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn key(namespace: &str, name: &str) -> Key {
    Key {
        source: SOURCE,
        ..crate::testing::service(namespace, name)
    }
}

#[test]
fn lists_come_in_pages_and_watches_go_on_from_there() {
    let server = Server::start();
    server.page(3);
    for number in 0..10 {
        server.put(service("shop", &format!("web-{number}"), 80));
        server.put(slice("shop", &format!("web-{number}"), &["10.0.0.1"]));
    }
    let mut harness = Harness::start(&server);
    harness.complete();
    assert_eq!(harness.names().len(), 10);
    assert_eq!(server.count("list", "/services"), 4, "3 + 3 + 3 + 1");
    server.put(service("shop", "web-3", 81));
    server.put(service("shop", "new", 82));
    server.delete(&service("shop", "web-4", 0));
    harness.until("changed", |now| now.ports("shop/web-3") == [81]);
    harness.until("added", |now| now.ports("shop/new") == [82]);
    harness.until("deleted", |now| now.names().len() == 10);
    let slices = harness.cluster.slices_of(&key("shop", "web-3")).count();
    assert_eq!(slices, 1);
    // Watches end and go on, and nothing is listed again.
    let watches = server.count("watch", "/services");
    harness.until("watched on", |_| {
        server.count("watch", "/services") > watches + 2
    });
    server.put(service("shop", "late", 83));
    harness.until("late", |now| now.ports("shop/late") == [83]);
    assert_eq!(server.count("list", "/services"), 4);
    assert_eq!(harness.problems(), [""; 0]);
    let asked = server.asked();
    let watch = asked
        .iter()
        .find(|asked| asked.verb() == "watch")
        .expect("watched");
    assert_eq!(watch.query["allowWatchBookmarks"], "true");
    assert_eq!(watch.query["timeoutSeconds"], "1");
}

#[test]
fn lists_are_streams_where_they_are_offered() {
    let server = Server::start();
    server.offer_streams();
    server.page(3);
    for number in 0..50 {
        server.put(service("shop", &format!("web-{number}"), 80));
    }
    let mut harness = Harness::start(&server);
    harness.complete();
    assert_eq!((harness.names().len(), harness.fewest), (50, 50));
    server.put(service("shop", "web-3", 81));
    harness.until("watched", |now| now.ports("shop/web-3") == [81]);
    // Too old: a stream again, which lacks what is gone.
    server.forget(|object| object["metadata"]["name"] == "web-0");
    server.compact();
    harness.until("listed anew", |now| now.names().len() == 49);
    assert_eq!(harness.fewest, 49);
    assert_eq!(server.count("list", "/services"), 0);
    assert_eq!(harness.watch(Kind::Service).lists, 2);
    assert_eq!(harness.problems(), [""; 0]);
}

#[test]
fn who_does_not_offer_streams_is_asked_once() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    let mut harness = Harness::start(&server);
    harness.complete();
    server.forget(|_| true);
    server.compact();
    harness.until("listed anew", |now| now.names().is_empty());
    assert_eq!(server.count("stream", "/services"), 1);
    assert_eq!(server.count("list", "/services"), 2);
    assert_eq!(harness.problems(), [""; 0]);
}

/// Whatever a stream does, a list by pages mends it.
#[test]
fn a_stream_that_fails_is_a_list_by_pages() {
    let line = |kind: &str, object: &Value| {
        format!("{}\n", json!({"type": kind, "object": object})).into_bytes()
    };
    let web = service("shop", "ghost", 80);
    for fault in [
        Fault::Status(500),
        Fault::Status(410),
        Fault::Error(410),
        Fault::Silence,
        Fault::SilentBody,
        Fault::Drip,
        Fault::Cut(line("ADDED", &web)),
        Fault::Body(b"<html>".to_vec()),
        // Ends without its end, as a watch of an old server does.
        Fault::Body(line("ADDED", &web)),
        Fault::Body(line("DELETED", &json!({}))),
    ] {
        let server = Server::start();
        server.offer_streams();
        server.put(service("shop", "web", 80));
        server.always("stream", "/services", fault.clone());
        let mut harness = Harness::start(&server);
        harness.complete();
        assert_eq!(harness.names(), ["shop/web"], "{fault:?}");
        assert_eq!(server.count("stream", "/services"), 1, "{fault:?}");
        harness.until("well", |now| now.problems().is_empty());
    }
}

/// What is deleted between the beginning of a stream and its end is gone.
#[test]
fn what_is_deleted_within_a_stream_is_gone() {
    let server = Server::start();
    server.offer_streams();
    server.put(service("shop", "web", 80));
    let mut ghost = service("shop", "ghost", 80);
    ghost["metadata"]["resourceVersion"] = "7".into();
    let mut lines = String::new();
    for kind in ["ADDED", "DELETED"] {
        lines.push_str(&format!("{}\n", json!({"type": kind, "object": ghost})));
    }
    let end = json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "100",
        "annotations": {"k8s.io/initial-events-end": "true"}}}});
    lines.push_str(&format!("{end}\n"));
    server.fault("stream", "/services", 1, Fault::Lines(lines.into_bytes()));
    let mut harness = Harness::start(&server);
    // The watch from version 100 brings the other.
    harness.until("gone", |now| now.names() == ["shop/web"]);
}

#[test]
fn namespaces_are_listed_one_by_one_and_are_one_list() {
    let server = Server::start();
    server.put(service("a", "web", 80));
    server.put(service("b", "web", 80));
    server.put(service("c", "web", 80));
    server.fault("list", "/namespaces/b/services", 3, Fault::Status(500));
    let directory = tempfile::tempdir().expect("temp");
    let mut harness = Harness::with(&server, times(), &["a", "b"], "", directory);
    harness.complete();
    assert_eq!(harness.names(), ["a/web", "b/web"]);
    assert_eq!(harness.fewest, 2, "never a part");
    server.put(service("b", "api", 80));
    server.put(service("c", "api", 80));
    harness.until("added", |now| now.names() == ["a/web", "b/api", "b/web"]);
    assert_eq!(server.count("list", "/api/v1/services"), 0);
}

#[test]
fn k1_a_watch_that_died_in_silence_is_noticed_and_nothing_is_lost_meanwhile() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    server.fault("watch", "/services", 1, Fault::SilentBody);
    let mut harness = Harness::start(&server);
    harness.complete();
    harness.until("watched", |_| server.count("watch", "/services") == 1);
    let begun = Instant::now();
    server.put(service("shop", "web", 81));
    harness.until("noticed", |now| now.ports("shop/web") == [81]);
    let took = begun.elapsed();
    let Times { watch, slack, .. } = times();
    assert!(
        took >= watch / 2,
        "it was silent, and nobody waited: {took:?}"
    );
    assert!(took < watch + slack + PATIENCE / 2, "{took:?}");
    assert_eq!(harness.watch(Kind::Service).failures["silent"], 1);
    assert_eq!(
        server.count("list", "/services"),
        1,
        "from where the watch was"
    );
    assert_eq!(harness.fewest, 1);
    let Times { watch, slack, .. } = Times::default();
    assert!(watch + slack <= Duration::from_secs(15), "as promised");
}

#[test]
fn k2_gone_at_the_list_in_mid_watch_and_in_a_loop_is_listed_anew_without_an_empty_moment() {
    let server = Server::start();
    server.page(2);
    for number in 0..5 {
        server.put(service("shop", &format!("web-{number}"), 80));
    }
    server.fault("list", "/services", 2, Fault::Status(410));
    let mut harness = Harness::start(&server);
    harness.complete();
    assert_eq!(harness.names().len(), 5);
    harness.until("well", |_| server.count("watch", "/services") > 1);
    // In mid-watch, and something happened that no watch told.
    server.forget(|object| object["metadata"]["name"] == "web-0");
    server.compact();
    harness.until("listed anew", |now| now.names().len() == 4);
    assert_eq!(
        harness.fewest, 4,
        "one went, and no other, not for a moment"
    );
    assert_eq!(harness.problems(), [""; 0], "that is everyday life");
    // In a loop: by the status and within the watch.
    server.always("watch", "/services", Fault::Error(410));
    let lists = server.count("list", "/services");
    let begun = Instant::now();
    server.put(service("shop", "new", 80));
    harness.until("seen by a list", |now| now.names().len() == 5);
    harness.until("said", |now| {
        now.problems().iter().any(|said| said.contains("410 Gone"))
    });
    harness.hear(Duration::from_secs(1));
    let lists = (server.count("list", "/services") - lists) / 3;
    let seconds = begun.elapsed().as_secs_f64();
    assert!(
        (lists as f64) < 6.0 + seconds,
        "{lists} lists in {seconds} s"
    );
    server.mend();
    harness.until("well", |now| now.problems().is_empty());
    assert_eq!(harness.fewest, 4);
}

#[test]
fn k3_a_server_that_is_gone_and_back_is_found_within_5_s_and_what_was_seen_stays() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    let mut harness = Harness::start(&server);
    harness.complete();
    server.stop();
    harness.until("said", |now| {
        now.problems()
            .iter()
            .any(|said| said.contains("cannot be reached"))
    });
    harness.hear(Duration::from_secs(7));
    assert_eq!(harness.names(), ["shop/web"]);
    server.put(service("shop", "web", 81));
    server.start_again();
    let back = Instant::now();
    harness.until("found", |now| now.ports("shop/web") == [81]);
    assert!(
        back.elapsed() < Duration::from_secs(5),
        "{:?}",
        back.elapsed()
    );
    harness.until("well", |now| now.problems().is_empty());
    assert_eq!(harness.fewest, 1);
    assert!(harness.watch(Kind::Service).failures["unreachable"] > 0);
}

#[test]
fn k3_a_token_that_is_no_longer_known_is_read_anew_at_once() {
    let server = Server::start_tls();
    server.want_token("one");
    server.put(service("shop", "web", 80));
    let directory = tempfile::tempdir().expect("temp");
    let token = directory.path().join("token");
    std::fs::write(&token, "one").expect("write");
    let user = format!("tokenFile: {}", token.display());
    let mut harness = Harness::with(&server, times(), &[], &user, directory);
    harness.complete();
    server.want_token("two");
    harness.until("said", |now| {
        now.problems().iter().any(|said| said.contains("401"))
    });
    assert_eq!(harness.names(), ["shop/web"], "what was seen stays");
    server.put(service("shop", "web", 81));
    std::fs::write(&token, "two").expect("write");
    let renewed = Instant::now();
    harness.until("known again", |now| now.ports("shop/web") == [81]);
    assert!(
        renewed.elapsed() < Duration::from_secs(10),
        "{:?}",
        renewed.elapsed()
    );
    harness.until("well", |now| now.problems().is_empty());
    // A new token is taken up before the old one is refused.
    std::fs::write(&token, "three").expect("write");
    harness.until("taken up", |_| {
        let asked = server.asked();
        let last = asked.last().and_then(|asked| asked.authorization.clone());
        last.as_deref() == Some("Bearer three")
    });
}

#[test]
fn k3_a_kubeconfig_that_breaks_is_said_and_not_hammered() {
    let server = Server::start_tls();
    server.want_token("one");
    server.put(service("shop", "web", 80));
    let directory = tempfile::tempdir().expect("temp");
    let mut harness = Harness::with(&server, times(), &[], "token: one", directory);
    harness.complete();
    let path = harness.directory.path().join("kubeconfig");
    let good = std::fs::read_to_string(&path).expect("read");
    // What was made of it before is used on.
    std::fs::write(&path, "current-context: none").expect("write");
    server.put(service("shop", "web", 81));
    harness.until("used on", |now| now.ports("shop/web") == [81]);
    harness.hear(times().watch * 2);
    assert_eq!(harness.problems(), [""; 0]);
    // Until it is refused.
    server.want_token("two");
    harness.until("said", |now| {
        now.problems()
            .iter()
            .any(|said| said.contains("no context named \"none\""))
    });
    harness.rescan.notify_one();
    let before = harness.watch(Kind::Service).failures["unconfigured"];
    harness.hear(Duration::from_secs(1));
    let tries = harness.watch(Kind::Service).failures["unconfigured"] - before;
    assert!(tries < 10, "{tries} tries in a second");
    std::fs::write(&path, good.replace("token: one", "token: two")).expect("write");
    server.put(service("shop", "web", 82));
    harness.until("mended", |now| now.ports("shop/web") == [82]);
    harness.until("well", |now| now.problems().is_empty());
}

#[test]
fn k3_a_credential_plugin_is_asked_again_and_a_new_authority_is_trusted() {
    let mut server = Server::start_tls();
    server.want_token("one");
    server.put(service("shop", "web", 80));
    let directory = tempfile::tempdir().expect("temp");
    let plugin = directory.path().join("plugin");
    let token = directory.path().join("token-of-the-plugin");
    std::fs::write(&token, "one").expect("write");
    let text = format!(
        "#!/bin/sh\nprintf '{{\"kind\":\"ExecCredential\",\"apiVersion\":\"client.authentication.k8s.io/v1\",\"status\":{{\"token\":\"%s\"}}}}' \"$(cat {})\"\n",
        token.display()
    );
    std::fs::write(&plugin, text).expect("write");
    let user = format!(
        "exec: {{apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: /bin/sh, args: [\"{}\"]}}",
        plugin.display()
    );
    let mut harness = Harness::with(&server, times(), &[], &user, directory);
    harness.complete();
    server.want_token("two");
    std::fs::write(&token, "two").expect("write");
    server.put(service("shop", "web", 81));
    harness.until("asked again", |now| now.ports("shop/web") == [81]);
    // The server comes back with a certificate that the old authority does not vouch for.
    server.stop();
    let authority = server.renew();
    server.put(service("shop", "web", 82));
    server.start_again();
    harness.until("not trusted", |now| {
        now.problems()
            .iter()
            .any(|said| said.contains("certificate"))
    });
    std::fs::write(harness.directory.path().join("ca.crt"), authority).expect("write");
    harness.until("trusted", |now| now.ports("shop/web") == [82]);
    harness.until("well", |now| now.problems().is_empty());
    assert_eq!(harness.fewest, 1);
}

#[test]
fn k4_without_an_api_server_what_was_seen_last_is_served_and_the_list_is_a_difference() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    server.put(service("shop", "api", 80));
    server.put(slice("shop", "web", &["10.0.0.1"]));
    let mut harness = Harness::start(&server);
    harness.complete();
    let kept = harness.directory.path().join("state/cluster.jsonl");
    harness.until("kept", |_| kept.exists());
    server.put(service("shop", "web", 81));
    harness.until("changed", |now| now.ports("shop/web") == [81]);
    harness.until("kept again", |_| {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("\"port\":81"))
    });
    let directory = harness.end();
    server.stop();

    let begun = Instant::now();
    let mut harness = Harness::with(&server, times(), &[], "", directory);
    harness.complete();
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    assert_eq!(harness.names(), ["shop/api", "shop/web"]);
    assert_eq!(harness.ports("shop/web"), [81]);
    assert_eq!(harness.cluster.slices_of(&key("shop", "web")).count(), 1);
    assert_eq!(
        harness.watch(Kind::Service).origin,
        Origin::Kept,
        "said to be old"
    );
    server.delete(&service("shop", "api", 0));
    server.put(slice("shop", "web", &["10.0.0.2"]));
    server.start_again();
    harness.until("listed", |now| now.names() == ["shop/web"]);
    harness.until("listed, too", |now| {
        now.watch(Kind::EndpointSlice).origin == Origin::Listed
    });
    assert_eq!(harness.fewest, 1, "a difference, and no empty moment");
}

#[test]
fn k4_a_damaged_snapshot_is_said_and_the_api_server_waited_for() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    let directory = tempfile::tempdir().expect("temp");
    std::fs::create_dir(directory.path().join("state")).expect("dir");
    let kept = directory.path().join("state/cluster.jsonl");
    std::fs::write(&kept, "{\"document\":\"kubernetes-objects\"").expect("write");
    server.fault("list", "/services", 3, Fault::Status(503));
    let mut harness = Harness::with(&server, times(), &[], "", directory);
    harness.complete();
    assert_eq!(harness.names(), ["shop/web"]);
    harness.until("replaced", |_| {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("sha256"))
    });
}

#[test]
fn k4_what_never_answers_is_no_reason_to_serve_nothing_of_the_other_kind() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    server.put(slice("shop", "web", &["10.0.0.1"]));
    let mut harness = Harness::start(&server);
    harness.complete();
    let kept = harness.directory.path().join("state/cluster.jsonl");
    harness.until("kept", |_| {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.lines().count() == 4)
    });
    let directory = harness.end();
    server.put(service("shop", "web", 81));
    server.always("list", "/endpointslices", Fault::Silence);
    let mut harness = Harness::with(&server, times(), &[], "", directory);
    harness.complete();
    assert_eq!(harness.ports("shop/web"), [81], "listed");
    assert_eq!(
        harness.cluster.slices_of(&key("shop", "web")).count(),
        1,
        "kept"
    );
    assert_eq!(harness.watch(Kind::EndpointSlice).origin, Origin::Kept);
    assert_eq!(harness.watch(Kind::Service).origin, Origin::Listed);
}

#[test]
fn k5_garbage_instead_of_a_list_is_said_and_what_was_seen_stays() {
    let html = b"<html>502 Bad Gateway</html>".to_vec();
    let pods = br#"{"kind":"PodList","metadata":{"resourceVersion":"1"},"items":[]}"#.to_vec();
    let torn = br#"{"kind":"ServiceList","metadata":{"resourceVersion":"1"},"items":[{"metadata""#;
    let nulls = br#"{"kind":"ServiceList","metadata":null,"items":null}"#.to_vec();
    let packed = "Content-Encoding: gzip\r\n";
    for (fault, said) in [
        (Fault::Body(html.clone()), "no whole JSON document"),
        (Fault::Body(pods), "no ServiceList but \"PodList\""),
        (Fault::Body(torn.to_vec()), "no whole JSON document"),
        (Fault::Cut(torn.to_vec()), "cannot be reached"),
        (Fault::Body(nulls), "resourceVersion"),
        (Fault::Body(Vec::new()), "no whole JSON document"),
        (Fault::Header(packed, vec![0x1f, 0x8b, 8, 0]), "compressed"),
        (Fault::Drip, "did not say"),
        (Fault::Silence, "did not say"),
        (Fault::SilentBody, "did not say"),
        (Fault::Status(302), "status 302"),
        (Fault::Status(418), "refuses (418)"),
    ] {
        let server = Server::start();
        server.put(service("shop", "web", 80));
        let mut harness = Harness::start(&server);
        harness.complete();
        server.always("list", "/services", fault.clone());
        harness.rescan.notify_one();
        harness.until(said, |now| {
            now.problems().iter().any(|text| text.contains(said))
        });
        assert_eq!(harness.names(), ["shop/web"], "{fault:?}");
        // Nothing else is disturbed.
        server.put(slice("shop", "web", &["10.0.0.1"]));
        harness.until("a slice", |now| {
            now.cluster.slices_of(&key("shop", "web")).count() == 1
        });
        server.mend();
        server.put(service("shop", "web", 81));
        harness.until("mended", |now| now.ports("shop/web") == [81]);
        harness.until("well", |now| now.problems().is_empty());
        assert_eq!(harness.fewest, 1, "{fault:?}");
    }
}

#[test]
fn k5_a_bad_object_is_skipped_alone_and_keeps_its_last_good_version() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    let mut huge = service("shop", "huge", 80);
    huge["spec"]["x"] = "y".repeat(3 << 20).into();
    let mut mad = service("shop", "mad", 80);
    mad["spec"] = json!({"ports": [{"port": 1e30}]});
    server.put(huge.clone());
    server.put(mad);
    let mut harness = Harness::start(&server);
    harness.complete();
    assert_eq!(harness.names(), ["shop/web"]);
    harness.until("said", |now| now.problems().len() == 2);
    let problems = harness.problems();
    let path = "/api/v1/namespaces/shop/services";
    assert!(
        problems[0].starts_with(&format!("{path}/huge: is refused: it is larger")),
        "{problems:?}"
    );
    assert!(
        problems[1].starts_with(&format!("{path}/mad: spec.ports[0].port: ")),
        "{problems:?}"
    );
    let refused = harness.watch(Kind::Service).refused;
    assert_eq!((refused["too_large"], refused["malformed"]), (1, 1));
    // By a watch: the last good version stays, and others go on.
    let mut worse = service("shop", "web", 80);
    worse["spec"]["ports"][0]["port"] = json!("x");
    server.put(worse);
    huge["spec"]["ports"][0]["port"] = 81.into();
    server.put(huge);
    server.put(service("shop", "good", 80));
    harness.until("gone on", |now| now.names() == ["shop/good", "shop/web"]);
    harness.until("said, too", |now| now.problems().len() == 3);
    let problems = harness.problems();
    assert!(
        problems[2].contains("its last good version stays"),
        "{problems:?}"
    );
    assert_eq!(harness.ports("shop/web"), [80]);
    // By a list as well.
    server.compact();
    harness.until("listed anew", |_| server.count("list", "/services") >= 2);
    harness.until("still", |now| now.names() == ["shop/good", "shop/web"]);
    // And it is mended.
    server.put(service("shop", "web", 82));
    server.put(service("shop", "huge", 82));
    harness.until("mended", |now| {
        now.ports("shop/web") == [82] && now.ports("shop/huge") == [82]
    });
    harness.until("said no more", |now| now.problems().len() == 1);
}

#[test]
fn k5_garbage_within_a_watch_costs_that_watch() {
    for lines in [
        &b"<html>\n"[..],
        b"{\"type\":\"ADDED\"\n",
        b"{\"type\":\"WHAT\",\"object\":{}}\n",
        b"[]\n",
        b"null\n{}\n",
        b"{\"type\":\"ERROR\",\"object\":{\"code\":500}}\n",
        b"\xff\xfe\x00\n",
    ] {
        let server = Server::start();
        server.put(service("shop", "web", 80));
        server.fault("watch", "/services", 1, Fault::Lines(lines.to_vec()));
        let mut harness = Harness::start(&server);
        harness.complete();
        harness.until("counted", |now| {
            now.watch(Kind::Service).failures.values().sum::<u64>() > 0
        });
        server.put(service("shop", "web", 81));
        harness.until("gone on", |now| now.ports("shop/web") == [81]);
        harness.until("well", |now| now.problems().is_empty());
        assert_eq!(harness.fewest, 1);
    }
    // What is refused alone costs not even that.
    let null = b"{\"type\":\"MODIFIED\",\"object\":{\"kind\":\"Service\",\"apiVersion\":\"v1\",\"metadata\":null}}\n{\"type\":\"ADDED\",\"object\":null}\n";
    let server = Server::start();
    server.put(service("shop", "web", 80));
    server.fault("watch", "/services", 1, Fault::Lines(null.to_vec()));
    let mut harness = Harness::start(&server);
    harness.complete();
    harness.until("counted", |now| {
        now.watch(Kind::Service).refused["malformed"] == 2
    });
    harness.until("said", |now| {
        now.problems()
            == ["/api/v1/services: 2 objects are refused that do not even say their name"]
    });
    server.put(service("shop", "web", 81));
    harness.until("gone on", |now| now.ports("shop/web") == [81]);
}

#[test]
fn k6_a_cluster_that_forgets_most_services_is_held_with_their_endpoints() {
    let server = Server::start();
    for number in 0..8 {
        server.put(service("shop", &format!("web-{number}"), 80));
        server.put(slice("shop", &format!("web-{number}"), &["10.0.0.1"]));
    }
    let mut harness = Harness::start(&server);
    harness.complete();
    server.forget(|_| true);
    server.compact();
    harness.until("held", |now| now.cluster.held().count() == 8);
    harness.until("both listed", |now| {
        now.watch(Kind::Service).lists > 1 && now.watch(Kind::EndpointSlice).lists > 1
    });
    harness.hear(Duration::from_millis(500));
    assert_eq!(harness.fewest, 8);
    for number in 0..8 {
        let key = key("shop", &format!("web-{number}"));
        assert_eq!(harness.cluster.slices_of(&key).count(), 1, "{key}");
    }
    // A deletion on purpose is obeyed at once.
    server.put(service("shop", "web-1", 80));
    harness.until("returned", |now| now.cluster.held().count() == 7);
    server.delete(&service("shop", "web-1", 0));
    harness.until("deleted", |now| now.names().len() == 7);
}

#[test]
fn k8_versions_that_go_back_are_listed_anew() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    let mut old = service("shop", "web", 7);
    old["metadata"]["resourceVersion"] = "3".into();
    let line = format!("{}\n", json!({"type": "MODIFIED", "object": old}));
    server.fault("watch", "/services", 1, Fault::Lines(line.into_bytes()));
    let mut harness = Harness::start(&server);
    harness.complete();
    harness.until("listed anew", |_| server.count("list", "/services") == 2);
    harness.until("well", |now| now.problems().is_empty());
    assert_eq!(
        harness.ports("shop/web"),
        [80],
        "and what was old is not believed"
    );
    assert_eq!(harness.watch(Kind::Service).failures["went_back"], 1);
}

#[test]
fn a_missing_right_is_said_with_its_verb_and_blocks_only_its_kind() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    let mut harness = Harness::start(&server);
    harness.complete();
    server.always("list", "/endpointslices", Fault::Status(403));
    server.always("watch", "/endpointslices", Fault::Status(403));
    harness.until("said", |now| {
        let wanted = "grant the verb \"watch\" on \"endpointslices.discovery.k8s.io\"";
        now.problems().iter().any(|said| said.contains(wanted))
    });
    server.compact();
    server.put(service("shop", "web", 81));
    harness.until("the other kind goes on", |now| {
        now.ports("shop/web") == [81]
    });
    assert_eq!(
        harness
            .watch(Kind::EndpointSlice)
            .failure
            .expect("failing")
            .code(),
        "forbidden"
    );
    assert_eq!(harness.watch(Kind::Service).failure, None);
    let tries = server.count("watch", "/endpointslices");
    harness.hear(Duration::from_secs(1));
    let tries = server.count("watch", "/endpointslices") - tries;
    assert!(tries <= 10, "it is not hammered: {tries}");
    server.mend();
    server.put(slice("shop", "web", &["10.0.0.1"]));
    harness.until("granted", |now| {
        now.cluster.slices_of(&key("shop", "web")).count() == 1
    });
    harness.until("well", |now| now.problems().is_empty());
}

#[test]
fn who_may_list_and_not_watch_is_served_by_lists() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    server.always("watch", "/services", Fault::Status(403));
    let mut harness = Harness::start(&server);
    harness.complete();
    server.put(service("shop", "web", 81));
    harness.until("listed", |now| now.ports("shop/web") == [81]);
    let problems = harness.problems();
    assert!(
        problems
            .iter()
            .all(|said| said.contains("forbidden: watch services")),
        "{problems:?}"
    );
    assert_eq!(problems.len(), 1, "said all the while");
}

#[test]
fn before_a_missing_right_is_granted_nothing_is_complete() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    server.always("list", "/endpointslices", Fault::Status(403));
    let mut harness = Harness::start(&server);
    harness.until("said", |now| {
        let wanted = "forbidden: list endpointslices.discovery.k8s.io";
        now.problems().iter().any(|said| said.contains(wanted))
    });
    harness.hear(Duration::from_millis(500));
    assert!(!harness.cluster.complete());
    assert_eq!(harness.watch(Kind::EndpointSlice).origin, Origin::Nothing);
    server.mend();
    harness.complete();
}

/// What a test does to the world. There are fewer Services than the deletion guard holds.
#[derive(Clone, Debug)]
enum Act {
    Put(u8, u16),
    Delete(u8),
    Slice(u8, u8),
    DeleteSlice(u8),
    Compact,
    Break(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0_u8..4, 1_u16..5).prop_map(|(name, port)| Act::Put(name, port)),
        2 => (0_u8..4).prop_map(Act::Delete),
        4 => (0_u8..4, 1_u8..5).prop_map(|(name, address)| Act::Slice(name, address)),
        2 => (0_u8..4).prop_map(Act::DeleteSlice),
        1 => Just(Act::Compact),
        1 => (0_u8..4).prop_map(Act::Break),
    ]
}

/// The same objects as a directory gives them.
fn of_a_directory(world: &[Value]) -> Cluster {
    let mut cluster = Cluster::new(KINDS.map(|kind| (SOURCE, kind)));
    let mut reader = Reader::new(SOURCE, Arc::default());
    let text: Vec<String> = world
        .iter()
        .map(|object| format!("---\n{object}\n"))
        .collect();
    let path = Arc::new(PathBuf::from("all.yaml"));
    let file = crate::source::file::File::read(&path, text.concat().as_bytes(), &mut reader, None);
    assert_eq!(file.problems, []);
    let events = KINDS.map(Event::Init).into_iter();
    let events = events.chain(file.objects.into_values().map(Event::Apply));
    for event in events.chain(KINDS.map(Event::InitDone)) {
        cluster.apply(SOURCE, event);
    }
    cluster
}

fn shown(cluster: &Cluster) -> Vec<String> {
    let services = cluster.services().map(|service| {
        let key = Key {
            uid: "".into(),
            ..service.meta.key.clone()
        };
        let slices: Vec<_> = cluster.slices_of(&key).collect();
        // Where it was read and in which version is no content, and Debug shows it.
        let mut service = crate::object::Service::clone(service);
        service.meta.location = None;
        service.stored.version = crate::object::Version(0);
        let slices = slices.into_iter().map(|slice| {
            let mut slice = crate::object::EndpointSlice::clone(slice);
            slice.meta.location = None;
            format!("{slice:?}")
        });
        format!("{service:?} {:?}", slices.collect::<Vec<_>>())
    });
    services.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 0, ..ProptestConfig::default() })]
    /// Whatever happens and however the server fails meanwhile, in the end both sources know the same.
    #[test]
    fn k8_any_order_of_events_ends_as_the_directory_source_has_it(acts in prop::collection::vec(act(), 1..25)) {
        let server = Server::start();
        server.page(2);
        let mut harness = Harness::start(&server);
        harness.complete();
        let mut world: BTreeMap<String, Value> = BTreeMap::new();
        for (number, act) in acts.into_iter().enumerate() {
            match act {
                Act::Put(name, port) => {
                    let mut object = service("shop", &format!("web-{name}"), port);
                    // What is made anew is another, and changes keep who they are.
                    let id = format!("service {name}");
                    object["metadata"]["uid"] = match world.get(&id) {
                        Some(before) => before["metadata"]["uid"].clone(),
                        None => format!("uid-{number}").into(),
                    };
                    server.put(object.clone());
                    world.insert(id, object);
                }
                Act::Delete(name) => {
                    server.delete(&service("shop", &format!("web-{name}"), 0));
                    world.remove(&format!("service {name}"));
                }
                Act::Slice(name, address) => {
                    let object = slice("shop", &format!("web-{name}"), &[&format!("10.0.0.{address}")]);
                    server.put(object.clone());
                    world.insert(format!("slice {name}"), object);
                }
                Act::DeleteSlice(name) => {
                    server.delete(&slice("shop", &format!("web-{name}"), &[]));
                    world.remove(&format!("slice {name}"));
                }
                Act::Compact => server.compact(),
                Act::Break(how) => {
                    let fault = [Fault::Status(503), Fault::Error(410), Fault::Body(b"<".to_vec()), Fault::Cut(b"{".to_vec())];
                    let plural = ["/services", "/endpointslices"][number % 2];
                    server.fault("watch", plural, 1, fault[usize::from(how)].clone());
                }
            }
            harness.hear(Duration::from_millis(number as u64 % 7));
        }
        let world: Vec<Value> = world.into_values().collect();
        let wanted = shown(&of_a_directory(&world));
        harness.until("the same", |now| shown(&now.cluster) == wanted);
    }
}

/// The real times, once: see `k1_a_watch_that_died_in_silence_is_noticed_and_nothing_is_lost_meanwhile`.
#[test]
fn k1_the_real_times_notice_a_silent_watch_within_15_s() {
    let server = Server::start();
    server.put(service("shop", "web", 80));
    server.fault("watch", "/services", 1, Fault::SilentBody);
    let directory = tempfile::tempdir().expect("temp");
    let mut harness = Harness::with(&server, Times::default(), &[], "", directory);
    harness.complete();
    harness.until("watched", |_| server.count("watch", "/services") == 1);
    let begun = Instant::now();
    server.put(service("shop", "web", 81));
    harness.until("noticed", |now| now.ports("shop/web") == [81]);
    let took = begun.elapsed();
    // The times themselves are 13 s, which the test beside it holds to 15; a busy machine gets some more. The client's
    // own limit would be 295 s.
    assert!(
        took > Duration::from_secs(10) && took < Duration::from_secs(20),
        "{took:?}"
    );
}

/// The environment cannot be changed within a process: another one runs a test of this file in it.
#[test]
fn s11_proxies_of_the_environment_are_not_asked() {
    let nowhere = "http://127.0.0.1:1";
    let tests = std::env::current_exe().expect("a test binary");
    let module = module_path!().split_once("::").expect("in a crate").1;
    let ran = std::process::Command::new(tests)
        .args([
            "--exact",
            &format!("{module}::lists_come_in_pages_and_watches_go_on_from_there"),
        ])
        .envs([
            ("HTTPS_PROXY", nowhere),
            ("https_proxy", nowhere),
            ("HTTP_PROXY", nowhere),
        ])
        .envs([
            ("http_proxy", "::"),
            ("ALL_PROXY", "socks5://127.0.0.1:1"),
            ("NO_PROXY", "a,,b"),
        ])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}
