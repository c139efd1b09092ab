//! How long it takes until a change of endpoints is in force.

use super::*;

/// A change counts from the time that its slice names, if that can be of this change.
#[test]
fn changes_of_endpoints_are_timed_from_their_trigger() {
    let bench = Bench::start(36);
    let [one, two] = ["one", "two"].map(backend);
    let dated = |backend, trigger: &str| {
        let annotation = format!("endpoints.kubernetes.io/last-change-trigger-time: {trigger:?}");
        let name = "name: web-1, ";
        manifest("web", backend).replace(name, &format!("{name}annotations: {{{annotation}}}, "))
    };
    let long_ago = "2026-01-02T03:04:05Z";
    bench.write("web.yaml", &dated(one, long_ago));
    let vip = bench.serving("web");
    let change = |backend, name: &str, trigger: &str| {
        bench.write("web.yaml", &dated(backend, trigger));
        eventually(name, || (ask(vip).ok()? == name).then_some(()));
    };
    let count = || bench.metric(&format!("{}_count", measure::ENDPOINTS));
    let undated = |reason: &str| {
        let series = format!("weir_endpoints_changes_undated_total{{reason=\"{reason}\"}}");
        bench.metric(&series)
    };
    // The first list is no change.
    assert_eq!((count(), undated("before_start")), (0, 0));
    change(two, "two", "2026-01-02T03:04:06Z");
    change(one, "one", &jiff::Timestamp::MAX.to_string());
    change(two, "two", "soon");
    let now = jiff::Timestamp::now().to_string();
    change(one, "one", &now);
    change(two, "two", &now);
    eventually("the dated one is counted", || (count() == 1).then_some(()));
    let reasons = ["before_start", "future", "unreadable", "repeated", "absent"];
    assert_eq!(reasons.map(undated), [1, 1, 1, 1, 0]);
}
