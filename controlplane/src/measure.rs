//! What the control task records about itself, through the `metrics` facade: into the recorder of
//! its appliance, which is set for its thread alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::control::Undated;
use crate::probe::{Answer, Target, Verdicts};

/// Where an appliance's numbers go; not the process's, since one process may run several.
pub type Recorder = Arc<dyn metrics::Recorder + Send + Sync>;

/// From the first event of a burst to the table that is in force in all workers.
pub const PROGRAMMING: &str = "weir_programming_duration_seconds";
/// Upper bounds of the buckets of [`PROGRAMMING`], seconds. The promise is 0.3 s from a file to new
/// connections, of which the control task may use 0.1.
pub const PROGRAMMING_BOUNDS: [f64; 10] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

/// From the trigger of a change of endpoints, as its EndpointSlice dates it, to the table with it in
/// force in all workers.
pub const ENDPOINTS: &str = "weir_endpoints_programming_duration_seconds";
/// Upper bounds of the buckets of [`ENDPOINTS`], seconds: kubelet, controller and API server are in
/// it, and what pods date is whole seconds.
pub const ENDPOINTS_BOUNDS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
const UNDATED: &str = "weir_endpoints_changes_undated_total";

const WRITES: &str = "weir_kubernetes_writes_total";
/// What may become of a write to a Service.
const WRITE_RESULTS: [&str; 5] = ["ok", "gone", "conflict", "forbidden", "error"];
const EVENTS: &str = "weir_kubernetes_events_total";
/// What may become of an event.
const EVENT_RESULTS: [&str; 3] = ["ok", "failed", "dropped"];

const OVERWRITTEN: &str = "weir_kubernetes_overwritten_total";
const RIVALS: &str = "weir_kubernetes_rivals";

const PROBES: &str = "weir_probes_total";
const OMITTED: &str = "weir_probe_targets_omitted";
const TARGETS: &str = "weir_probe_targets";
const NODES: &str = "weir_nodes";

const RESTARTS: &str = "weir_control_restarts_total";

/// Describes what is recorded here, and begins it: a scrape before the first event shows zeros.
pub(crate) fn begin() {
    describe_histogram!(
        PROGRAMMING,
        Unit::Seconds,
        "From a source's first event to the table in force in all workers, in seconds."
    );
    describe_histogram!(
        ENDPOINTS,
        Unit::Seconds,
        "From the trigger of a change of endpoints, as its EndpointSlice dates it, to the table in force in all workers, in seconds."
    );
    describe_counter!(
        UNDATED,
        Unit::Count,
        "Changes of endpoints whose trigger time does not count, by why."
    );
    for reason in Undated::WORDS {
        counter!(UNDATED, "reason" => reason).absolute(0);
    }
    describe_counter!(
        RESTARTS,
        Unit::Count,
        "Times that the control task was started anew after a panic."
    );
    describe_counter!(
        WRITES,
        Unit::Count,
        "Writes of a Service's status or finalizers to the API server, by result."
    );
    describe_counter!(
        EVENTS,
        Unit::Count,
        "Events about Services, by what became of them."
    );
    describe_counter!(
        OVERWRITTEN,
        Unit::Count,
        "Writes of ours to a Service that somebody else undid."
    );
    describe_gauge!(
        RIVALS,
        Unit::Count,
        "Services that another provider is at work in, by what is done about it."
    );
    counter!(OVERWRITTEN).absolute(0);
    rivals(0, 0);
    describe_counter!(
        PROBES,
        Unit::Count,
        "Questions to nodes, pods and endpoints, by what was asked and the answer."
    );
    describe_gauge!(
        NODES,
        Unit::Count,
        "Nodes, by whether their node ports may be dialled."
    );
    let kinds = [&Target::NODE_KINDS[..], &Target::ENDPOINT_KINDS];
    for kind in kinds.into_iter().flatten().copied() {
        for result in Answer::WORDS.into_iter().chain([Answer::UNASKED]) {
            counter!(PROBES, "kind" => kind, "result" => result).absolute(0);
        }
    }
    describe_gauge!(
        TARGETS,
        Unit::Count,
        "Nodes, node ports, nodes' pods and endpoints that are asked, by what their answers come to."
    );
    describe_gauge!(
        OMITTED,
        Unit::Count,
        "Endpoints whose health check is not asked: there are too many of a namespace or in all."
    );
    kinds
        .iter()
        .for_each(|kinds| targets(kinds, &Verdicts::new()));
    omitted(0);
    nodes(&NodeCounts::default());
    for result in WRITE_RESULTS {
        counter!(WRITES, "result" => result).absolute(0);
    }
    for result in EVENT_RESULTS {
        counter!(EVENTS, "result" => result).absolute(0);
    }
    // To name it is to have it on the page.
    let _ = histogram!(PROGRAMMING);
    let _ = histogram!(ENDPOINTS);
    counter!(RESTARTS).absolute(0);
}

/// A table is in force in all workers, so long after its first cause.
pub(crate) fn programmed(after: Duration) {
    histogram!(PROGRAMMING).record(after);
}

/// A change of endpoints is in force in all workers, so long after its trigger.
pub(crate) fn endpoints_programmed(after: Duration) {
    histogram!(ENDPOINTS).record(after);
}

/// A change of endpoints is not dated; one of [`Undated::WORDS`].
pub(crate) fn undated(reason: &'static str) {
    counter!(UNDATED, "reason" => reason).increment(1);
}

/// The control task is started anew.
pub(crate) fn restarted() {
    counter!(RESTARTS).increment(1);
}

/// A write to a Service has ended so; one of [`WRITE_RESULTS`].
pub(crate) fn wrote(result: &'static str) {
    counter!(WRITES, "result" => result).increment(1);
}

/// An event has ended so; one of [`EVENT_RESULTS`].
pub(crate) fn event(result: &'static str) {
    counter!(EVENTS, "result" => result).increment(1);
}

/// A write of ours was undone.
pub(crate) fn overwritten() {
    counter!(OVERWRITTEN).increment(1);
}

/// So many Services are left to another provider, and so many are written by another too.
pub(crate) fn rivals(left: usize, contested: usize) {
    for (state, count) in [("left", left), ("contested", contested)] {
        gauge!(RIVALS, "state" => state).set(count as f64);
    }
}

/// A node, pod or endpoint was asked, and answered so.
pub(crate) fn probed(kind: &'static str, result: &'static str) {
    counter!(PROBES, "kind" => kind, "result" => result).increment(1);
}

/// So the targets of these kinds stand now.
pub(crate) fn targets(kinds: &[&'static str], verdicts: &Verdicts) {
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for (target, answer) in verdicts {
        *counts.entry((target.kind(), answer.word())).or_default() += 1;
    }
    for &kind in kinds {
        for state in Answer::WORDS {
            let count = counts.get(&(kind, state)).copied().unwrap_or_default();
            gauge!(TARGETS, "kind" => kind, "state" => state).set(count);
        }
    }
}

/// So many endpoints are not asked for want of room.
pub(crate) fn omitted(count: usize) {
    gauge!(OMITTED).set(count as f64);
}

/// How many nodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeCounts {
    /// They take new work, as far as their objects say.
    pub eligible: usize,
    /// They are about to go.
    pub leaving: usize,
    /// By label, selector, or for want of an address.
    pub out: usize,
}

/// So many nodes there are now.
pub(crate) fn nodes(counts: &NodeCounts) {
    let NodeCounts {
        eligible,
        leaving,
        out,
    } = counts;
    for (state, count) in [("eligible", eligible), ("leaving", leaving), ("out", out)] {
        gauge!(NODES, "state" => state).set(*count as f64);
    }
}
