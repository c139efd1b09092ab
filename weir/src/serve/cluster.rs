//! What readiness and metrics say of the watches of an API server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use admin_api::view::Check;
use controlplane::object::Kind;
use controlplane::source::kubernetes::{Answers, LATE, Origin, STALE_AFTER, Scope, Watch};
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

/// The check's name.
const NAME: &str = "watches";

type Watches = BTreeMap<Scope, Watch>;

/// How the watches fare; `None` if there are none.
pub fn check(watches: &Watches, now: Instant) -> Option<Check> {
    if watches.is_empty() {
        return None;
    }
    let wrong = watches
        .iter()
        .filter_map(|(scope, watch)| wrong(scope, watch, now));
    let wrong: Vec<String> = wrong.collect();
    // Without nodes the others are served.
    let nothing = watches
        .iter()
        .any(|(scope, watch)| scope.kind != Kind::Node && watch.origin == Origin::Nothing);
    let text = wrong.join("; ");
    Some(match (wrong.is_empty(), nothing) {
        (true, _) => {
            let scopes: Vec<_> = watches.keys().map(ToString::to_string).collect();
            Check::good(NAME, format!("{} are watched", scopes.join(", ")))
        }
        (false, true) => Check::failed(NAME, text),
        (false, false) => Check::warning(NAME, text),
    })
}

fn wrong(scope: &Scope, watch: &Watch, now: Instant) -> Option<String> {
    let age = watch.age(now);
    let mut parts = Vec::new();
    match watch.origin {
        Origin::Nothing => parts.push("no complete list yet".to_owned()),
        Origin::Kept => parts.push(
            "what was seen before the start is served until there is a complete list".to_owned(),
        ),
        Origin::Listed => {}
    }
    if age >= STALE_AFTER {
        let said = format!("stale: nothing was heard for {}s", age.as_secs());
        parts.push(said);
    }
    parts.extend(watch.failure.as_ref().map(ToString::to_string));
    (!parts.is_empty()).then(|| format!("{scope}: {}", parts.join(", ")))
}

/// Does the API server answer in time?
pub fn answers(seen: &Answers) -> Check {
    const NAME: &str = "api-server";
    let slowest = format!(
        "the slowest of its last answers began after {:.3}s",
        seen.slowest.as_secs_f64()
    );
    match (seen.count, seen.is_slow) {
        (0, _) => Check::good(NAME, "it was not heard of yet".to_owned()),
        (_, false) => Check::good(NAME, slowest),
        (_, true) => Check::warning(
            NAME,
            format!(
                "it answers late: {slowest}, and more than {}s is late; what is served and shown is that much older: look at its load, its etcd's disk, and the network between",
                LATE.as_secs()
            ),
        ),
    }
}

/// Sets the numbers of them.
pub fn set_answers(seen: &Answers) {
    counter!("weir_kubernetes_answers_total").absolute(seen.count);
    counter!("weir_kubernetes_answers_late_total").absolute(seen.late);
    gauge!("weir_kubernetes_answer_seconds").set(seen.slowest);
}

/// Says what each number is.
pub fn describe() {
    describe_counter!(
        "weir_kubernetes_answers_total",
        Unit::Count,
        "Answers of the API server."
    );
    describe_counter!(
        "weir_kubernetes_answers_late_total",
        Unit::Count,
        "Answers of the API server that began after more than 1 s, or never."
    );
    describe_gauge!(
        "weir_kubernetes_answer_seconds",
        Unit::Seconds,
        "Until an answer of the API server began: the slowest of the last ten."
    );
    describe_gauge!(
        "weir_watch_staleness_seconds",
        Unit::Seconds,
        "Since the API server last said anything, by kind: the longest of its watches."
    );
    describe_counter!(
        "weir_watch_lists_total",
        Unit::Count,
        "Complete lists of the API server."
    );
    describe_counter!(
        "weir_watch_failures_total",
        Unit::Count,
        "Lists and watches that failed, by why."
    );
    describe_counter!(
        "weir_watch_objects_refused_total",
        Unit::Count,
        "Objects of the API server that were not read, by why."
    );
}

/// Sets the numbers.
pub fn set(watches: &Watches, now: Instant) {
    let mut kinds: BTreeMap<String, Vec<&Watch>> = BTreeMap::new();
    for (scope, watch) in watches {
        kinds.entry(scope.kind.to_string()).or_default().push(watch);
    }
    for (kind, watches) in kinds {
        let ages = watches.iter().map(|watch| watch.age(now));
        let oldest = ages.max().unwrap_or(Duration::ZERO);
        gauge!("weir_watch_staleness_seconds", "kind" => kind.clone()).set(oldest);
        let lists = watches.iter().map(|watch| watch.lists).sum();
        counter!("weir_watch_lists_total", "kind" => kind.clone()).absolute(lists);
        for (reason, count) in sums(watches.iter().map(|watch| &watch.failures)) {
            counter!("weir_watch_failures_total", "kind" => kind.clone(), "reason" => reason)
                .absolute(count);
        }
        for (reason, count) in sums(watches.iter().map(|watch| &watch.refused)) {
            counter!("weir_watch_objects_refused_total", "kind" => kind.clone(), "reason" => reason)
                .absolute(count);
        }
    }
}

fn sums<'a>(
    all: impl Iterator<Item = &'a BTreeMap<&'static str, u64>>,
) -> BTreeMap<&'static str, u64> {
    let mut sums = BTreeMap::new();
    for (reason, count) in all.flatten() {
        *sums.entry(*reason).or_default() += count;
    }
    sums
}

#[cfg(test)]
mod tests {
    use admin_api::metrics::Registry;
    use admin_api::view::Level;
    use controlplane::source::kubernetes::Failure;

    use super::*;

    fn watches(origin: Origin, age: u64, failure: Option<Failure>, now: Instant) -> Watches {
        let scope = Scope {
            kind: Kind::EndpointSlice,
            namespace: Some("shop".into()),
        };
        let watch = Watch {
            begun: now,
            contact: now.checked_sub(Duration::from_secs(age)),
            origin,
            failure,
            lists: 3,
            failures: [("gone", 2), ("busy", 0)].into(),
            refused: [("malformed", 5)].into(),
        };
        [(scope, watch)].into()
    }

    #[test]
    fn a_check_says_what_is_wrong_with_which_watch() {
        let now = Instant::now() + Duration::from_secs(3_600);
        let checked = |origin, age, failure| {
            let check = check(&watches(origin, age, failure, now), now).expect("there are some");
            (check.level, check.message)
        };
        let (level, message) = checked(Origin::Listed, 29, None);
        assert_eq!(
            (level, &*message),
            (Level::Good, "endpointslices in namespace shop are watched")
        );
        let (level, message) = checked(Origin::Listed, 30, None);
        assert_eq!(level, Level::Warning);
        assert!(
            message.contains("stale: nothing was heard for 30s"),
            "{message}"
        );
        let (level, message) = checked(Origin::Kept, 1, Some(Failure::Unauthorized));
        assert_eq!(level, Level::Warning);
        assert!(
            message.contains("before the start") && message.contains("401"),
            "{message}"
        );
        let (level, message) = checked(Origin::Nothing, 1, Some(Failure::Gone));
        assert_eq!(level, Level::Failed);
        assert!(message.contains("no complete list yet"), "{message}");
        assert!(check(&Watches::new(), now).is_none());
        // Without nodes everything else is served.
        let nodes = Scope {
            kind: Kind::Node,
            namespace: None,
        };
        let all = watches(Origin::Nothing, 1, Some(Failure::Gone), now).into_values();
        let all = all.map(|watch| (nodes.clone(), watch)).collect();
        let said = check(&all, now).expect("there are some");
        assert_eq!(said.level, Level::Warning, "{}", said.message);
    }

    #[test]
    fn a_server_that_answers_late_is_a_warning_with_its_time() {
        let mut seen = Answers::default();
        assert_eq!(answers(&seen).level, Level::Good);
        seen.count = 3;
        seen.slowest = Duration::from_millis(2_345);
        let check = answers(&seen);
        assert_eq!(check.level, Level::Good);
        assert!(check.message.contains("2.345s"), "{}", check.message);
        seen.is_slow = true;
        let check = answers(&seen);
        assert_eq!(check.level, Level::Warning);
        assert!(check.message.contains("late"), "{}", check.message);
        assert!(check.message.contains("2.345s"), "{}", check.message);
    }

    #[test]
    fn numbers_are_by_kind_and_described() {
        let now = Instant::now() + Duration::from_secs(3_600);
        let registry = Registry::start(&[]).expect("registry");
        registry.record(|| {
            describe();
            set(&watches(Origin::Listed, 7, None, now), now);
        });
        let text = registry.render();
        for line in [
            "weir_watch_staleness_seconds{kind=\"EndpointSlice\"} 7",
            "weir_watch_lists_total{kind=\"EndpointSlice\"} 3",
            "weir_watch_failures_total{kind=\"EndpointSlice\",reason=\"gone\"} 2",
            "weir_watch_failures_total{kind=\"EndpointSlice\",reason=\"busy\"} 0",
            "weir_watch_objects_refused_total{kind=\"EndpointSlice\",reason=\"malformed\"} 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        for family in [
            "staleness_seconds",
            "lists_total",
            "failures_total",
            "objects_refused_total",
        ] {
            assert!(
                text.contains(&format!("# HELP weir_watch_{family} ")),
                "{text}"
            );
        }
    }
}
