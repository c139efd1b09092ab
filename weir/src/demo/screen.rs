//! What the demo shows: a table that redraws itself on a terminal, a line a second elsewhere.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::backends::Backend;
use super::clients::Tally;

/// Where a backend is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In the EndpointSlice, ready.
    Ready,
    /// In it, terminating: nothing new.
    Terminating,
    /// Out of it; its last connections end.
    Removed,
    /// Its process would be gone.
    Ended,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Stage::Ready => "ready",
            Stage::Terminating => "terminating",
            Stage::Removed => "removed",
            Stage::Ended => "ended",
        }
    }
}

/// The screen.
#[derive(Debug)]
pub struct Screen {
    begun: Instant,
    terminal: bool,
    drawn: usize,
    last_line: Option<Instant>,
}

/// Backends that are listed; the oldest ended ones give way.
const ROWS: usize = 10;

impl Screen {
    /// A new one on standard output.
    pub fn new() -> Screen {
        Screen {
            begun: Instant::now(),
            terminal: std::io::stdout().is_terminal(),
            drawn: 0,
            last_line: None,
        }
    }

    /// Shows how things stand.
    pub fn show(
        &mut self,
        title: &str,
        backends: &[(Backend, Stage)],
        tally: &Tally,
        rolled: usize,
    ) {
        let text = if self.terminal {
            let text = self.table(title, backends, tally, rolled);
            // Back to the first line of what was drawn before, then over it; without wrapping, or a
            // narrow terminal would have more lines than were counted.
            let up = if self.drawn > 0 {
                format!("\x1b[{}A", self.drawn)
            } else {
                String::new()
            };
            self.drawn = text.lines().count();
            format!(
                "\x1b[?7l{up}{}\x1b[?7h",
                text.lines()
                    .fold(String::new(), |all, line| all + line + "\x1b[K\n")
            )
        } else {
            if self
                .last_line
                .is_some_and(|last| last.elapsed() < Duration::from_secs(1))
            {
                return;
            }
            self.last_line = Some(Instant::now());
            self.line(backends, tally, rolled)
        };
        let mut out = std::io::stdout().lock();
        // A closed terminal is no reason to stop: the exit code still tells.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn line(&self, backends: &[(Backend, Stage)], tally: &Tally, rolled: usize) -> String {
        let ready = backends
            .iter()
            .filter(|(_, stage)| *stage == Stage::Ready)
            .count();
        format!(
            "{:>4.0}s  {ready} backends ready, {rolled} replaced;  {}\n",
            self.begun.elapsed().as_secs_f64(),
            totals(tally)
        )
    }

    fn table(
        &self,
        title: &str,
        backends: &[(Backend, Stage)],
        tally: &Tally,
        rolled: usize,
    ) -> String {
        let mut text = format!(
            "{title}\n\n  {:<11} {:<13} {:<11} {:>5} {:>6} {:>9} {:>9}\n",
            "BACKEND", "ADDRESS", "STATE", "OPEN", "CONNS", "REQUESTS", "DATAGRAMS"
        );
        let first = backends.len().saturating_sub(ROWS);
        for (backend, stage) in &backends[first..] {
            let (on, off) = match stage {
                Stage::Ready => ("\x1b[32m", "\x1b[0m"),
                Stage::Terminating => ("\x1b[33m", "\x1b[0m"),
                Stage::Removed | Stage::Ended => ("\x1b[2m", "\x1b[0m"),
            };
            let served = &backend.served;
            let _ = writeln!(
                text,
                "  {on}{:<11} {:<13} {:<11} {:>5} {:>6} {:>9} {:>9}{off}",
                backend.name,
                backend.address,
                stage.word(),
                served.open.load(Ordering::Relaxed),
                served.connections.load(Ordering::Relaxed),
                served.requests.load(Ordering::Relaxed),
                served.datagrams.load(Ordering::Relaxed),
            );
        }
        for _ in backends.len()..ROWS {
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "\n  {:.0} s, {rolled} backends replaced\n  {}",
            self.begun.elapsed().as_secs_f64(),
            totals(tally)
        );
        text
    }
}

/// All clients together, in one line.
pub fn totals(tally: &Tally) -> String {
    format!(
        "answered: {} connections, {} requests, {} datagrams;  lost: {}",
        tally.connections.load(Ordering::Relaxed),
        tally.requests.load(Ordering::Relaxed),
        tally.datagrams.load(Ordering::Relaxed),
        tally.lost.load(Ordering::Relaxed),
    )
}
