//! Where lines go: a bounded queue and one thread that alone may wait for the sink. Who logs
//! never waits: a line that finds the queue full is counted and gone.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

enum Item {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

/// The way in; clones share one queue.
#[derive(Clone, Debug)]
pub struct Sink {
    queue: SyncSender<Item>,
    dropped: Dropped,
}

/// How many lines were dropped since the start.
#[derive(Clone, Debug, Default)]
pub struct Dropped(Arc<AtomicU64>);

impl Dropped {
    /// The number.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Sink {
    /// Starts the thread that writes to `out`. Once a blocked `out` takes lines again and the
    /// queue is written, `notice` makes the one line that says how many were lost.
    ///
    /// # Errors
    ///
    /// No thread can be made.
    pub fn start(
        out: impl Write + Send + 'static,
        lines: usize,
        notice: fn(u64) -> String,
    ) -> io::Result<Sink> {
        let (queue, waiting) = sync_channel(lines);
        let dropped = Dropped::default();
        let counted = dropped.clone();
        std::thread::Builder::new()
            .name("weir-log".into())
            .spawn(move || drain(&waiting, out, &counted, notice))?;
        Ok(Sink { queue, dropped })
    }

    /// The counter of this sink.
    pub fn dropped(&self) -> Dropped {
        self.dropped.clone()
    }

    /// Waits until what was logged before is written, at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            let _ = written.recv_timeout(limit);
        }
    }
}

fn drain(
    waiting: &Receiver<Item>,
    mut out: impl Write,
    dropped: &Dropped,
    notice: fn(u64) -> String,
) {
    let mut told = 0;
    loop {
        let item = match waiting.try_recv() {
            Ok(item) => item,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let lost = dropped.count();
                if lost != told && out.write_all(notice(lost - told).as_bytes()).is_ok() {
                    told = lost;
                }
                match waiting.recv() {
                    Ok(item) => item,
                    Err(_) => return,
                }
            }
        };
        match item {
            // A sink that is closed, or full, takes no line: counted like one that blocks.
            Item::Line(line) => {
                if out.write_all(&line).is_err() {
                    dropped.0.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Nobody may be waiting any more.
            Item::Flush(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

/// One line: the formatter writes it in one piece.
#[derive(Debug)]
pub struct Line<'a>(&'a Sink);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.queue.try_send(Item::Line(line.to_vec())).is_err() {
            self.0.dropped.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::time::Instant;

    fn notice(lines: u64) -> String {
        format!("lost {lines}\n")
    }

    /// A pipe that nobody reads: the kernel takes 64 KiB and then blocks the writer.
    #[test]
    fn an_unread_pipe_delays_nobody_and_loses_only_lines() {
        let (read, write) = io::pipe().expect("pipe");
        let sink = Sink::start(write, 16, notice).expect("start");
        let line = [b'x'; 1023]
            .iter()
            .chain(b"\n")
            .copied()
            .collect::<Vec<_>>();
        let start = Instant::now();
        for _ in 0..10_000 {
            sink.make_writer().write_all(&line).expect("never fails");
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
        let lost = sink.dropped().count();
        assert!(lost > 9_000, "{lost}");

        let mut lines = BufReader::new(read).lines();
        // Usually one notice; more where the writer got a turn before the pipe was full.
        let mut told = 0;
        while told < lost {
            let line = lines.next().expect("a notice").expect("text");
            let part = line.strip_prefix("lost ").map(str::parse::<u64>);
            told += part.transpose().expect("a number").unwrap_or(0);
        }
        assert_eq!(told, lost);
        sink.make_writer()
            .write_all(b"after\n")
            .expect("never fails");
        assert_eq!(lines.next().expect("a line").expect("text"), "after");
        assert_eq!(sink.dropped().count(), lost, "recovered");
    }

    #[test]
    fn a_closed_pipe_is_counted() {
        let (read, write) = io::pipe().expect("pipe");
        let sink = Sink::start(write, 16, notice).expect("start");
        drop(read);
        sink.make_writer()
            .write_all(b"gone\n")
            .expect("never fails");
        sink.flush(Duration::from_secs(5));
        assert_eq!(sink.dropped().count(), 1);
    }

    #[test]
    fn flush_waits_for_what_was_logged() {
        let (read, write) = io::pipe().expect("pipe");
        let sink = Sink::start(write, 16, notice).expect("start");
        sink.make_writer()
            .write_all(b"last\n")
            .expect("never fails");
        sink.flush(Duration::from_secs(5));
        drop(sink);
        let mut lines = BufReader::new(read).lines();
        assert_eq!(lines.next().expect("a line").expect("text"), "last");
    }
}
