//! The store alone: what is handed on, and in which order.

use std::sync::Arc;

use super::super::reading::{Refusal, Refused};
use super::super::scope::Scope;
use super::super::store::{List, Store};
use super::{key, service, slice};
use crate::object::{Event, Kind, Object};
use crate::source::kubernetes::{KINDS, SOURCE};
use crate::source::parse::Reader;

fn object(value: &serde_json::Value) -> Object {
    Reader::new(SOURCE, Arc::default())
        .object(value, None)
        .expect("it is read")
}

fn scope(kind: Kind) -> Scope {
    Scope {
        kind,
        namespace: None,
    }
}

fn list(values: &[serde_json::Value], order: u64) -> List {
    List {
        objects: values.iter().map(object).collect(),
        refused: Vec::new(),
        order,
    }
}

fn shown(events: &[Event]) -> Vec<String> {
    let show = |event: &Event| match event {
        Event::Init(kind) => format!("init {kind}"),
        Event::Apply(object) => format!("apply {} {}", object.key().kind, object.key()),
        Event::Delete(key) => format!("delete {key}"),
        Event::InitDone(kind) => format!("done {kind}"),
        Event::Unavailable(kind) => format!("no {kind}"),
    };
    events.iter().map(show).collect()
}

fn store() -> Store {
    Store::new(&Scope::all(&KINDS, &[]))
}

const SERVICE: Kind = Kind::Service;
const SLICE: Kind = Kind::EndpointSlice;

#[test]
fn slices_that_vanish_wait_for_word_of_their_services() {
    let mut store = store();
    let services = [service("shop", "a", 80), service("shop", "b", 80)];
    let slices = [
        slice("shop", "a", &["10.0.0.1"]),
        slice("shop", "b", &["10.0.0.1"]),
    ];
    store.listed(&scope(SLICE), list(&slices, 0));
    store.listed(&scope(SERVICE), list(&services, 0));
    assert!(store.complete() && store.waiting().is_none());

    let changed = slice("shop", "a", &["10.0.0.2"]);
    let events = store.listed(&scope(SLICE), list(&[changed], 0));
    assert_eq!(
        shown(&events),
        ["apply EndpointSlice shop/a-1"],
        "what is there is there"
    );
    let order = store.waiting().expect("b's waits");
    let events = store.listed(&scope(SERVICE), list(&services, order - 1));
    assert_eq!(shown(&events)[0], "init Service");
    assert!(store.waiting().is_some(), "that list began before");
    let events = store.listed(&scope(SERVICE), list(&services[..1], order));
    assert_eq!(
        shown(&events),
        [
            "init Service",
            "init EndpointSlice",
            "apply Service shop/a",
            "apply EndpointSlice shop/a-1",
            "done Service",
            "done EndpointSlice"
        ]
    );
    assert!(store.waiting().is_none());
    assert_eq!(store.objects().count(), 2);
}

#[test]
fn slices_that_return_or_wait_too_long_wait_no_longer() {
    let mut store = store();
    let slices = [
        slice("shop", "a", &["10.0.0.1"]),
        slice("shop", "b", &["10.0.0.1"]),
    ];
    store.listed(&scope(SLICE), list(&slices, 0));
    store.listed(&scope(SERVICE), list(&[service("shop", "a", 80)], 0));
    assert!(store.wait_no_longer().is_empty(), "nothing waits");
    store.listed(&scope(SLICE), list(&slices[..1], 0));
    let returned = store.applied(object(&slices[1])).expect("room");
    assert_eq!(returned, None, "it is as it was");
    let events = store.wait_no_longer();
    assert_eq!(shown(&events).len(), 4, "both are there: {events:?}");
    store.listed(&scope(SLICE), list(&[], 0));
    let events = store.wait_no_longer();
    assert_eq!(shown(&events), ["init EndpointSlice", "done EndpointSlice"]);
}

#[test]
fn there_is_room_for_what_is_in_use_and_the_rest_is_refused_by_name() {
    let mut store = Store::with_room(&Scope::all(&KINDS, &[]), 2);
    let all: Vec<_> = (0..4)
        .map(|n| service("shop", &format!("s{n}"), 80))
        .collect();
    store.listed(&scope(SERVICE), list(&all[2..3], 0));
    store.listed(&scope(SERVICE), list(&all, 0));
    let names: Vec<_> = store
        .objects()
        .map(|object| object.key().to_string())
        .collect();
    assert_eq!(names, ["shop/s0", "shop/s2"], "s2 was there first");
    let problems = store.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    let refused = store.applied(object(&all[1])).expect_err("no room");
    assert_eq!(refused.refusal, Refusal::TooMany);
    store.deleted(object(&all[0]).key());
    store.applied(object(&all[1])).expect("room again");
    assert_eq!(store.problems().len(), 1);
}

#[test]
fn an_object_that_is_made_anew_has_no_last_good_version() {
    let mut store = store();
    let good = service("shop", "a", 80);
    store.listed(&scope(SERVICE), list(std::slice::from_ref(&good), 0));
    let bad = |uid: &str| Refused {
        refusal: Refusal::Malformed,
        key: Some(crate::object::Key {
            uid: uid.into(),
            ..key("shop", "a")
        }),
        service: None,
        message: "is bad".to_owned(),
    };
    let with = |refused| List {
        refused: vec![refused],
        ..List::default()
    };
    let events = store.listed(&scope(SERVICE), with(bad("uid-a")));
    assert_eq!(shown(&events).len(), 3, "kept");
    assert!(store.problems()[0].message.contains("last good version"));
    let events = store.listed(&scope(SERVICE), with(bad("another")));
    assert_eq!(shown(&events).len(), 2, "gone");
}
