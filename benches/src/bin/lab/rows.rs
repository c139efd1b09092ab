//! What is measured: the catalogue of rows.

use crate::cli::Mode;
use crate::load::SMALL;
use crate::load::client::{Group, Task};
use crate::load::udp::Flows;

/// The work of a row.
#[derive(Clone, Debug)]
pub enum Work {
    Tcp(Vec<Group>),
    /// So many connections that keep silent: what do they cost?
    Idle(usize),
    Flows(Flows),
    OneWay,
}

/// The figure that a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests, connections or datagrams a second.
    Rate,
    /// Bits a second that arrived.
    Bulk,
    /// Median time of a request, microseconds.
    P50,
    /// The time that one request in a hundred exceeds, microseconds.
    P99,
    /// Memory of the load balancer's processes (PSS), bytes per connection.
    Memory,
}

impl Metric {
    pub fn unit(self) -> &'static str {
        match self {
            Metric::Rate => "k/s",
            Metric::Bulk => "Gbit/s",
            Metric::P50 => "us (p50)",
            Metric::P99 => "us (p99)",
            Metric::Memory => "B/conn",
        }
    }

    pub fn higher_is_better(self) -> bool {
        matches!(self, Metric::Rate | Metric::Bulk)
    }
}

/// Who can take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Everybody,
    /// Who forwards datagrams.
    Udp,
    /// Who is a process with connections of its own.
    Proxies,
    Weir,
}

/// One row of the tables.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    pub what: &'static str,
    pub work: Work,
    pub metric: Metric,
    pub who: Who,
    /// Is it part of a full run in this mode?
    pub spread: bool,
    /// Services in Weir's table.
    pub services: usize,
}

/// All rows, in the order of the tables.
pub fn all() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, what, conns, task) in [
        ("bulk1-down", "bulk, 1 stream to the client", 1, Task::Down),
        ("bulk1-up", "bulk, 1 stream to the server", 1, Task::Up),
        ("bulk8-down", "bulk, 8 streams to the client", 8, Task::Down),
        ("bulk8-up", "bulk, 8 streams to the server", 8, Task::Up),
    ] {
        rows.push(row(name, what, Metric::Bulk, group(conns, task)).spread(conns == 8));
    }
    for (name, what, conns, task) in [
        (
            "rr64",
            "64 B request and response, 64 connections",
            64,
            Task::Request(SMALL),
        ),
        (
            "rr4k",
            "4 KiB request and response, 64 connections",
            64,
            Task::Request(4 << 10),
        ),
        (
            "rr64k",
            "64 KiB request and response, 16 connections",
            16,
            Task::Request(64 << 10),
        ),
        (
            "conn-client",
            "connect, 64 B, close by the client; 64 at a time",
            64,
            Task::ConnectClose,
        ),
        (
            "conn-server",
            "connect, 64 B, close by the server; 64 at a time",
            64,
            Task::ConnectServerCloses,
        ),
    ] {
        let spread = !matches!(name, "rr4k" | "conn-server");
        rows.push(row(name, what, Metric::Rate, group(conns, task)).spread(spread));
    }
    rows.push(row(
        "one64",
        "one 64 B request at a time",
        Metric::P50,
        group(1, Task::Request(SMALL)),
    ));
    rows.push(row(
        "mixed",
        "16 connections with 64 B requests beside 4 bulk streams",
        Metric::P99,
        Work::Tcp(vec![
            Group {
                conns: 16,
                task: Task::Request(SMALL),
            },
            Group {
                conns: 4,
                task: Task::Down,
            },
        ]),
    ));
    for (name, what, conns) in [
        ("idle4k", "4,000 idle connections", 4_000),
        ("idle9k", "9,000 idle connections", 9_000),
    ] {
        rows.push(row(name, what, Metric::Memory, Work::Idle(conns)).who(Who::Proxies));
    }
    rows.push(
        row(
            "udp-oneway",
            "64 B datagrams one way, 16 flows",
            Metric::Rate,
            Work::OneWay,
        )
        .who(Who::Udp),
    );
    for (name, what, flows, window, total) in [
        (
            "udp-echo",
            "64 B datagrams echoed, 16 flows of 16",
            16,
            16,
            256,
        ),
        (
            "udp-512",
            "64 B datagrams echoed, 512 flows of 1",
            512,
            1,
            512,
        ),
        (
            "udp-10k",
            "64 B datagrams echoed, 10,000 flows, 512 in flight",
            10_000,
            1,
            512,
        ),
    ] {
        let work = Work::Flows(Flows {
            flows,
            window,
            total,
        });
        rows.push(
            row(name, what, Metric::Rate, work)
                .who(Who::Udp)
                .spread(name == "udp-echo"),
        );
    }
    for (name, what, task) in [
        (
            "svc10k-rr64",
            "as rr64, with 10,000 Services in the table",
            Task::Request(SMALL),
        ),
        (
            "svc10k-conn",
            "as conn-client, with 10,000 Services in the table",
            Task::ConnectClose,
        ),
    ] {
        let mut row = row(name, what, Metric::Rate, group(64, task)).who(Who::Weir);
        row.services = 10_000;
        rows.push(row);
    }
    rows
}

/// The row of this name.
pub fn named(name: &str) -> Option<Row> {
    all().into_iter().find(|row| row.name == name)
}

fn group(conns: usize, task: Task) -> Work {
    Work::Tcp(vec![Group { conns, task }])
}

fn row(name: &'static str, what: &'static str, metric: Metric, work: Work) -> Row {
    Row {
        name,
        what,
        work,
        metric,
        who: Who::Everybody,
        spread: false,
        services: 1,
    }
}

impl Row {
    fn who(mut self, who: Who) -> Row {
        self.who = who;
        self
    }

    fn spread(mut self, spread: bool) -> Row {
        self.spread = spread;
        self
    }
}

/// The rows that `words` ask for: a name, or the beginning of names up to a dash or a digit.
/// Without words, those that belong to `mode`.
///
/// # Errors
/// A word that is no row's.
pub fn select(words: &[String], mode: Mode) -> Result<Vec<Row>, String> {
    if words.is_empty() {
        return Ok(all()
            .into_iter()
            .filter(|row| mode == Mode::Isolate || row.spread)
            .collect());
    }
    for word in words {
        if !all().iter().any(|row| asked(word, row.name)) {
            let names: Vec<&str> = all().iter().map(|row| row.name).collect();
            return Err(format!("no row {word:?}; there are {}", names.join(", ")));
        }
    }
    Ok(all()
        .into_iter()
        .filter(|row| words.iter().any(|word| asked(word, row.name)))
        .collect())
}

fn asked(word: &str, name: &str) -> bool {
    let exact = all().iter().any(|row| row.name == word);
    name == word || !exact && name.starts_with(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str], mode: Mode) -> Vec<&'static str> {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        select(&words, mode)
            .expect("known words")
            .iter()
            .map(|row| row.name)
            .collect()
    }

    #[test]
    fn a_whole_name_is_that_row_and_a_beginning_is_several() {
        assert_eq!(names(&["rr64"], Mode::Isolate), ["rr64"]);
        assert_eq!(
            names(&["conn", "bulk8"], Mode::Spread),
            ["bulk8-down", "bulk8-up", "conn-client", "conn-server"]
        );
        assert!(select(&["rr65".into()], Mode::Isolate).is_err());
    }

    #[test]
    fn without_words_spread_is_the_shorter_list() {
        assert_eq!(names(&[], Mode::Isolate).len(), all().len());
        assert!(names(&[], Mode::Spread).contains(&"bulk8-down"));
        assert!(!names(&[], Mode::Spread).contains(&"idle4k"));
    }
}
