//! The data plane's counters as metrics. A Service's VIPs are summed: labels are who and what, not
//! where, so that a series lives as long as its Service.

use std::collections::BTreeMap;

use lb_core::stats::{
    CloseReason, ConnectError, DropReason, FrontendTotals, Snapshot, WorkerTotals,
};
use lb_core::table::{Owner, Protocol};

use super::{Kind, Page};

/// One frontend port of a Service, over all its VIPs.
type Row<'a> = ((&'a Owner, &'static str), Vec<&'a FrontendTotals>);

/// Writes every family of the data plane.
pub fn write(page: &mut Page, snapshot: &Snapshot) {
    let mut rows: BTreeMap<(&Owner, &'static str), Vec<&FrontendTotals>> = BTreeMap::new();
    for ((frontend, owner), totals) in &snapshot.frontends {
        let protocol = match frontend.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        rows.entry((owner, protocol)).or_default().push(totals);
    }
    let rows: Vec<Row<'_>> = rows.into_iter().collect();
    connections(page, &rows);
    traffic(page, &rows);
    refusals(page, &rows);
    workers(page, &snapshot.workers);
}

/// One family with one series per row.
fn family(
    page: &mut Page,
    rows: &[Row<'_>],
    name: &str,
    kind: Kind,
    help: &str,
    value: fn(&FrontendTotals) -> u64,
) {
    let mut family = page.family(name, kind, help);
    for ((owner, protocol), totals) in rows {
        let sum: u64 = totals.iter().map(|totals| value(totals)).sum();
        family.sample(&labels(owner, protocol), sum);
    }
}

/// One family with a series per row and value of one more label; what never happened is left out.
fn by<T: Copy>(
    page: &mut Page,
    rows: &[Row<'_>],
    (name, help): (&str, &str),
    label: (&'static str, &[(T, &'static str)]),
    value: fn(&FrontendTotals, T) -> u64,
) {
    let mut family = page.family(name, Kind::Counter, help);
    for ((owner, protocol), totals) in rows {
        for (which, word) in label.1 {
            let sum: u64 = totals.iter().map(|totals| value(totals, *which)).sum();
            if sum > 0 {
                let [a, b, c, d] = labels(owner, protocol);
                family.sample(&[a, b, c, d, (label.0, word)], sum);
            }
        }
    }
}

fn labels<'a>(owner: &'a Owner, protocol: &'static str) -> [(&'static str, &'a str); 4] {
    [
        ("namespace", &owner.group),
        ("service", &owner.name),
        ("port", &owner.port),
        ("protocol", protocol),
    ]
}

fn connections(page: &mut Page, rows: &[Row<'_>]) {
    let tcp: Vec<_> = rows
        .iter()
        .filter(|((_, protocol), _)| *protocol == "tcp")
        .cloned()
        .collect();
    let udp: Vec<_> = rows
        .iter()
        .filter(|((_, protocol), _)| *protocol == "udp")
        .cloned()
        .collect();
    family(
        page,
        &tcp,
        "weir_connections_opened_total",
        Kind::Counter,
        "TCP connections accepted.",
        |t| t.connections_opened,
    );
    family(
        page,
        &tcp,
        "weir_connections_active",
        Kind::Gauge,
        "TCP connections that live now.",
        |t| t.connections_active,
    );
    family(
        page,
        &udp,
        "weir_udp_flows_opened_total",
        Kind::Counter,
        "UDP flows created.",
        |t| t.flows_opened,
    );
    family(
        page,
        &udp,
        "weir_udp_flows_active",
        Kind::Gauge,
        "UDP flows that live now.",
        |t| t.flows_active,
    );
    let reasons: Vec<_> = CloseReason::ALL
        .iter()
        .map(|reason| (*reason, reason.label()))
        .collect();
    let help = "TCP connections and UDP flows ended, by reason.";
    by(
        page,
        rows,
        ("weir_connections_closed_total", help),
        ("reason", &reasons),
        FrontendTotals::closed,
    );
}

fn traffic(page: &mut Page, rows: &[Row<'_>]) {
    let directions = [(true, "downstream"), (false, "upstream")];
    let help = "Payload received, in bytes, by the side that sent it: downstream is the client.";
    by(
        page,
        rows,
        ("weir_bytes_total", help),
        ("direction", &directions),
        |t, downstream| match downstream {
            true => t.bytes_downstream,
            false => t.bytes_upstream,
        },
    );
    let help = "UDP datagrams received, by the side that sent them: downstream is the client.";
    by(
        page,
        rows,
        ("weir_packets_total", help),
        ("direction", &directions),
        |t, downstream| match downstream {
            true => t.datagrams_downstream,
            false => t.datagrams_upstream,
        },
    );
}

fn refusals(page: &mut Page, rows: &[Row<'_>]) {
    let reasons: Vec<_> = DropReason::ALL
        .iter()
        .map(|reason| (*reason, reason.label()))
        .collect();
    let help = "UDP datagrams discarded, by reason.";
    by(
        page,
        rows,
        ("weir_drops_total", help),
        ("reason", &reasons),
        FrontendTotals::dropped,
    );
    let reasons: Vec<_> = ConnectError::ALL
        .iter()
        .map(|reason| (*reason, reason.label()))
        .collect();
    let help =
        "Tries to reach a backend that failed, by reason; a connection or flow may have several.";
    by(
        page,
        rows,
        ("weir_backend_connect_errors_total", help),
        ("reason", &reasons),
        FrontendTotals::connect_failed,
    );
    let help = "New connections and flows that got no pin because the pins were full.";
    family(
        page,
        rows,
        "weir_affinity_full_total",
        Kind::Counter,
        help,
        |t| t.affinity_full,
    );
}

/// A family that has a series for each worker.
type WorkerColumn = (&'static str, Kind, &'static str, fn(&WorkerTotals) -> u64);

const WORKER_COLUMNS: [WorkerColumn; 20] = [
    (
        "weir_worker_turns_total",
        Kind::Counter,
        "Passes of the worker's loop.",
        |w| w.turns,
    ),
    (
        "weir_worker_events_total",
        Kind::Counter,
        "Readiness events handled.",
        |w| w.events,
    ),
    (
        "weir_worker_timers_total",
        Kind::Counter,
        "Timers fired.",
        |w| w.timers,
    ),
    (
        "weir_worker_listeners",
        Kind::Gauge,
        "Listening sockets that are open now.",
        |w| w.listeners,
    ),
    (
        "weir_worker_listeners_waiting",
        Kind::Gauge,
        "Listening sockets whose callers wait for memory.",
        |w| w.listeners_waiting,
    ),
    (
        "weir_worker_accept_waits_total",
        Kind::Counter,
        "Times that a listener's callers had to wait for memory.",
        |w| w.accept_waits,
    ),
    (
        "weir_worker_descriptors",
        Kind::Gauge,
        "Descriptors that connections and flows hold now.",
        |w| w.descriptors,
    ),
    (
        "weir_worker_pipe_descriptors",
        Kind::Gauge,
        "Descriptors that pipes for bulk hold, two each.",
        |w| w.pipe_descriptors,
    ),
    (
        "weir_worker_bulk_copied_total",
        Kind::Counter,
        "Receives of bulk that were copied for want of a pipe.",
        |w| w.bulk_copied,
    ),
    (
        "weir_worker_ring_overflows_total",
        Kind::Counter,
        "Waits after which the completion queue was full and the kernel kept more aside.",
        |w| w.ring_overflows,
    ),
    (
        "weir_worker_ring_full_total",
        Kind::Counter,
        "Submissions that found their queue full and went before their time.",
        |w| w.ring_full,
    ),
    (
        "weir_worker_ring_no_buffers_total",
        Kind::Counter,
        "Receives that ended because no provided buffer was left; each goes on when there are some.",
        |w| w.ring_no_buffers,
    ),
    (
        "weir_worker_ring_cancels_total",
        Kind::Counter,
        "Operations cancelled.",
        |w| w.ring_cancels,
    ),
    (
        "weir_worker_ring_buffers",
        Kind::Gauge,
        "Provided buffers that hold bytes on their way now.",
        |w| w.ring_buffers,
    ),
    (
        "weir_worker_ring_in_flight",
        Kind::Gauge,
        "Sends and connects under way in the ring now.",
        |w| w.ring_in_flight,
    ),
    (
        "weir_worker_bind_errors_total",
        Kind::Counter,
        "Times that opening a listener failed.",
        |w| w.bind_errors,
    ),
    (
        "weir_worker_shed_budget_total",
        Kind::Counter,
        "Connections shed because the descriptor budget was spent.",
        |w| w.shed_budget,
    ),
    (
        "weir_worker_shed_exhausted_total",
        Kind::Counter,
        "Connections shed because accept found no descriptor.",
        |w| w.shed_exhausted,
    ),
    (
        "weir_worker_copy_bytes",
        Kind::Gauge,
        "Memory of copies of flows' latest datagrams, in bytes.",
        |w| w.copy_bytes,
    ),
    (
        "weir_worker_copies_refused_total",
        Kind::Counter,
        "Datagrams of which no copy was kept because that memory was full.",
        |w| w.copies_refused,
    ),
];

fn workers(page: &mut Page, workers: &[WorkerTotals]) {
    for (name, kind, help, value) in WORKER_COLUMNS {
        let mut family = page.family(name, kind, help);
        for (number, worker) in workers.iter().enumerate() {
            family.sample(&[("worker", &number.to_string())], value(worker));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_core::table::FrontendKey;

    #[test]
    fn the_vips_of_a_service_are_one_series() {
        let mut snapshot = Snapshot::default();
        let owner = Owner {
            group: "shop".into(),
            name: "web".into(),
            port: "http".into(),
        };
        for address in ["192.0.2.1", "2001:db8::1"] {
            let frontend = FrontendKey {
                address: address.parse().expect("address"),
                port: 80.try_into().expect("port"),
                protocol: Protocol::Tcp,
            };
            let totals = FrontendTotals {
                connections_opened: 2,
                bytes_upstream: 5,
                ..FrontendTotals::default()
            };
            snapshot.frontends.insert((frontend, owner.clone()), totals);
        }
        snapshot.workers.push(WorkerTotals::default());
        let mut page = Page::default();
        write(&mut page, &snapshot);
        let text = page.finish();
        let labels = "namespace=\"shop\",service=\"web\",port=\"http\",protocol=\"tcp\"";
        let opened = format!("weir_connections_opened_total{{{labels}}} 4\n");
        assert!(text.contains(&opened), "{text}");
        let bytes = format!("weir_bytes_total{{{labels},direction=\"upstream\"}} 10\n");
        assert!(text.contains(&bytes), "{text}");
        assert!(
            text.contains("weir_worker_turns_total{worker=\"0\"} 0\n"),
            "{text}"
        );
        assert!(
            !text.contains("direction=\"downstream\""),
            "what never happened has no series"
        );
        let mut series: Vec<_> = text
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .collect();
        series.retain(|(name, _)| !name.starts_with('#'));
        let all = series.len();
        series.sort();
        series.dedup_by_key(|(name, _)| *name);
        assert_eq!(series.len(), all, "no series twice");
    }
}
