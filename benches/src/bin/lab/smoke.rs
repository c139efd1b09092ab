//! The smallest whole run: it needs root, and says so where it is not.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli::Mode;
use crate::measure::Bench;
use crate::meter::Meter;
use crate::net::Topology;
use crate::rows;
use crate::stop::Stop;

#[test]
fn requests_go_by_plain_routing_and_nothing_is_left_behind() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: network namespaces need root");
        return;
    }
    let begun = Instant::now();
    let (stop, _never_asks) = Stop::by_hand();
    let meter = Meter::start(1).expect("a spinner");
    let bench = Bench {
        meter: &meter,
        stop: &stop,
        weir: Path::new("none"),
        warmup: Duration::from_millis(100),
        time: Duration::from_millis(500),
        during: None,
    };
    let row = rows::named("rr64").expect("a row");
    let direct = "direct".parse().expect("a variant");
    // Unpinned: the tests of others fill these CPUs too.
    let topology = Topology::new(Mode::Spread, 0).expect("namespaces");
    let sample = bench.measure(&row, &direct, &topology).expect("a sample");
    assert!(sample.value > 0.0, "{sample:?}");
    assert_eq!(sample.errors, 0, "{sample:?}");
    assert!(
        sample.p99_us >= sample.p50_us && sample.p50_us > 0.0,
        "{sample:?}"
    );
    drop(topology);
    let mark = format!("wb{}x", std::process::id());
    let left = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten();
    let left = left.filter(|name| name.file_name().to_string_lossy().starts_with(&mark));
    assert_eq!(left.count(), 0, "namespaces are left behind");
    assert!(begun.elapsed() < Duration::from_secs(20));
}
