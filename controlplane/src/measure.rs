//! What the control task records about itself, through the `metrics` facade: into the recorder of
//! its appliance, which is set for its thread alone.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

/// Where an appliance's numbers go; not the process's, since one process may run several.
pub type Recorder = Arc<dyn metrics::Recorder + Send + Sync>;

/// From the first event of a burst to the table that is in force in all workers.
pub const PROGRAMMING: &str = "weir_programming_duration_seconds";
/// Upper bounds of the buckets of [`PROGRAMMING`], seconds. The promise is 0.3 s from a file to new
/// connections, of which the control task may use 0.1.
pub const PROGRAMMING_BOUNDS: [f64; 10] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0];

const WRITES: &str = "weir_kubernetes_writes_total";
/// What may become of a write to a Service.
const WRITE_RESULTS: [&str; 5] = ["ok", "gone", "conflict", "forbidden", "error"];
const EVENTS: &str = "weir_kubernetes_events_total";
/// What may become of an event.
const EVENT_RESULTS: [&str; 3] = ["ok", "failed", "dropped"];

const RESTARTS: &str = "weir_control_restarts_total";

/// Describes what is recorded here, and begins it: a scrape before the first event shows zeros.
pub(crate) fn begin() {
    describe_histogram!(
        PROGRAMMING,
        Unit::Seconds,
        "From a source's first event to the table in force in all workers, in seconds."
    );
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
    for result in WRITE_RESULTS {
        counter!(WRITES, "result" => result).absolute(0);
    }
    for result in EVENT_RESULTS {
        counter!(EVENTS, "result" => result).absolute(0);
    }
    // To name it is to have it on the page.
    let _ = histogram!(PROGRAMMING);
    counter!(RESTARTS).absolute(0);
}

/// A table is in force in all workers, so long after its first cause.
pub(crate) fn programmed(after: Duration) {
    histogram!(PROGRAMMING).record(after);
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
