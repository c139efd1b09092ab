//! The process's and the control plane's numbers that are known rather than heard of: set at the
//! moment of a scrape, through the `metrics` facade.

use controlplane::status::Snapshot;
use lb_core::plane::{Driver, PortUse, Report};
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use super::view::STATES;
use crate::version::VERSION;

/// Says what each of them is.
pub fn describe() {
    let gauges = [
        ("weir_build_info", "1; the labels say what runs."),
        (
            "weir_config_generation",
            "The table that every worker runs.",
        ),
        (
            "weir_config_published_generation",
            "The table published last.",
        ),
        (
            "weir_config_rejected",
            "Mistakes in what the sources read last.",
        ),
        (
            "weir_deletions_held",
            "Services that the deletion guard holds.",
        ),
        ("weir_services", "Services seen, by state."),
    ];
    for (name, help) in gauges {
        describe_gauge!(name, Unit::Count, help);
    }
    describe_gauge!(
        "weir_worker_heartbeat_seconds",
        Unit::Seconds,
        "Since each worker's last turn began, in seconds."
    );
    describe_gauge!(
        "weir_upstream_ports_used_ratio",
        Unit::Count,
        "Share of the local ports in use towards the backend that has most of them (udp: all)."
    );
    describe_counter!(
        "weir_log_lines_dropped_total",
        Unit::Count,
        "Log lines that the sink did not take."
    );
}

/// Sets all of them. `driver` runs; `rejected` mistakes are in the files; `dropped` lines were lost by the log.
pub fn set(snapshot: &Snapshot, report: &Report, driver: Driver, rejected: usize, dropped: u64) {
    gauge!("weir_build_info", "version" => VERSION, "engine" => driver.label()).set(1.0);
    // Exact up to 2^53: a generation every millisecond for 285,000 years.
    gauge!("weir_config_generation").set(report.generation() as f64);
    gauge!("weir_config_published_generation").set(snapshot.published as f64);
    gauge!("weir_config_rejected").set(rejected as f64);
    gauge!("weir_deletions_held").set(snapshot.held as f64);
    for (state, word) in STATES {
        let count = snapshot.counts.get(&state).copied().unwrap_or_default();
        gauge!("weir_services", "state" => word.label()).set(count as f64);
    }
    for worker in &report.workers {
        gauge!("weir_worker_heartbeat_seconds", "worker" => worker.worker.to_string())
            .set(worker.heartbeat);
    }
    counter!("weir_log_lines_dropped_total").absolute(dropped);
}

/// Sets the shares of the ports in use, if they are known.
pub fn set_ports(used: Option<&PortUse>) {
    let Some(used) = used else { return };
    for (protocol, share) in [("tcp", used.tcp), ("udp", used.udp)] {
        gauge!("weir_upstream_ports_used_ratio", "protocol" => protocol).set(share);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use admin_api::metrics::Registry;
    use controlplane::status::State;
    use lb_core::plane::WorkerReport;
    use lb_core::table::Radix;

    use super::*;

    #[test]
    fn what_is_set_is_described() {
        let worker = |number| {
            Arc::new(WorkerReport {
                worker: number,
                generation: 4,
                heartbeat: Duration::from_millis(250),
                listeners: Radix::new(),
            })
        };
        let report = Report {
            workers: vec![worker(0), worker(1)],
        };
        let mut snapshot = Snapshot::default();
        snapshot.published = 5;
        snapshot.counts.insert(State::Closed, 2);
        let registry = Registry::start(&[]).expect("registry");
        registry.record(|| {
            describe();
            set(&snapshot, &report, Driver::IoUring, 3, 9);
            set_ports(Some(&PortUse {
                tcp: 0.25,
                ..PortUse::default()
            }));
        });
        let text = registry.render();
        let families = |prefix: &str| -> BTreeSet<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(prefix));
            let names = lines.filter_map(|line| line.split(' ').next());
            names.map(str::to_owned).collect()
        };
        assert_eq!(families("# HELP "), families("# TYPE "));
        for line in [
            &format!("weir_build_info{{version=\"{VERSION}\",engine=\"io_uring\"}} 1"),
            "weir_config_generation 4",
            "weir_config_published_generation 5",
            "weir_config_rejected 3",
            "weir_services{state=\"closed\"} 2",
            "weir_services{state=\"serving\"} 0",
            "weir_worker_heartbeat_seconds{worker=\"1\"} 0.25",
            "weir_upstream_ports_used_ratio{protocol=\"tcp\"} 0.25",
            "weir_upstream_ports_used_ratio{protocol=\"udp\"} 0",
            "weir_log_lines_dropped_total 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
