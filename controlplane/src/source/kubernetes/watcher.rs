//! Lists and watches one scope, for ever: list, watch from there, again from where the watch ended,
//! and a list anew when that is too old. Runs on the connection's runtime; decides nothing but when
//! to try again.
//!
//! ```text
//!         +------- 410, versions that go back, an order, three refusals in a row -------+
//!         v                                                                             |
//!       list --- complete ---> watch (8 s) --- its end, or a cut ---> watch again ------+
//!         |  ^                   |    ^                                   |
//!         +--+ failed, after a   +----+ failed, after a wait              +--> ...
//!              wait
//! ```

mod listing;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use self::listing::Streaming;
use super::Times;
use super::backoff::{Answer as Answered, Backoff};
use super::connection::{Connection, Lease};
use super::failure::{Asked, Failure};
use super::health::Watches;
use super::lines::Lines;
use super::reading::{self, Refused, WatchLine};
use super::request::{self, Patience};
use super::scope::Scope;
use super::store::List;
use crate::object::{Key, Object};
use crate::source::parse::Reader;

/// Refusals of a watch in a row before everything is listed anew.
const MAX_REFUSALS: u32 = 3;
/// A watch that ends sooner than this without a word is no watch.
const SHORT: Duration = Duration::from_secs(1);

/// What a watcher has to say to the source.
#[derive(Debug)]
pub(super) enum Report {
    /// A list is complete.
    Listed(List),
    /// An object as it is now.
    Applied(Object),
    /// An object that cannot be read.
    Refused(Box<Refused>),
    /// It was deleted.
    Deleted(Key),
    /// Something is wrong, or nothing is any more.
    Fares(Option<Failure>),
}

/// What was seen to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Proof {
    /// A list was complete.
    Listed,
    /// A watch was accepted.
    Opened,
    /// It said something, or lasted.
    Lasted,
}

/// One scope's.
pub(super) struct Watcher {
    pub connection: Connection,
    pub scope: Scope,
    pub times: Times,
    pub reader: Reader,
    /// Lists of this number are wanted; what began before is not it.
    pub orders: watch::Receiver<u64>,
    pub reports: mpsc::Sender<(Scope, Report)>,
    pub watches: Watches,
    backoff: Backoff,
    streaming: Streaming,
    /// Watched from here; `None`: to be listed.
    version: Option<String>,
    refusals: u32,
    failing: Option<Failure>,
}

/// Nobody hears us any more.
struct Closed;

/// Something failed, or nobody hears us.
enum Stop {
    Failed(Failure),
    Closed,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Stop {
        Stop::Closed
    }
}

impl Watcher {
    pub(super) fn new(
        connection: Connection,
        scope: Scope,
        times: Times,
        reader: Reader,
        orders: watch::Receiver<u64>,
        reports: mpsc::Sender<(Scope, Report)>,
        watches: Watches,
    ) -> Watcher {
        Watcher {
            connection,
            scope,
            times,
            reader,
            orders,
            reports,
            watches,
            backoff: Backoff::default(),
            streaming: Streaming::default(),
            version: None,
            refusals: 0,
            failing: None,
        }
    }

    /// Runs until nobody hears it.
    pub(super) async fn run(mut self) {
        loop {
            let lease = match self.connection.client().await {
                Ok(lease) => lease,
                Err(failure) => {
                    if self.failed(failure, None).await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let done = match self.version.clone() {
                None => self.list(&lease).await,
                Some(version) => self.watch(&lease, version).await,
            };
            match done {
                Ok(()) => {}
                Err(Stop::Closed) => return,
                Err(Stop::Failed(failure)) => {
                    if self.failed(failure, Some(&lease)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Watches from `version`; all that was heard counts, however it ends.
    async fn watch(&mut self, lease: &Lease, version: String) -> Result<(), Stop> {
        let begun = Instant::now();
        let mut orders = self.orders.clone();
        tokio::select! {
            ended = self.watch_once(lease, version) => ended?,
            ordered = orders.changed() => {
                ordered.map_err(|_| Stop::Closed)?;
                self.version = None;
                return Ok(());
            }
        }
        if begun.elapsed() >= SHORT.min(self.times.watch / 2) {
            self.works(Proof::Lasted).await?;
        } else {
            // It may not spin, whatever the server does.
            let wait = self.backoff.wait(Answered::Refusal, chance());
            sleep(wait).await;
        }
        Ok(())
    }

    async fn watch_once(&mut self, lease: &Lease, version: String) -> Result<(), Stop> {
        let seconds = self.times.watch.as_secs().max(1);
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&resourceVersion={}",
            self.scope.path(),
            encoded(&version)
        );
        let patience = Patience {
            begin: self.times.begin.min(self.times.idle()),
            idle: self.times.idle(),
            whole: self.times.idle(),
        };
        let asked = self.asked("watch");
        let mut answer = request::get(lease, &path, &asked, patience).await?;
        self.watches.contact(&self.scope);
        self.works(Proof::Opened).await?;
        let mut lines = Lines::default();
        let mut read = Vec::new();
        while let Some(bytes) = answer.next().await? {
            self.watches.contact(&self.scope);
            let Watcher { reader, scope, .. } = self;
            lines.push(&bytes, |line| read.push(reading::line(reader, scope, line)));
            for line in read.drain(..) {
                self.hear(line, &asked).await?;
                self.works(Proof::Lasted).await?;
            }
        }
        Ok(())
    }

    /// Takes in one line of a watch.
    async fn hear(&mut self, line: WatchLine, asked: &Asked) -> Result<(), Stop> {
        let (report, version) = match line {
            WatchLine::Applied(Ok(object), version) => (Some(Report::Applied(object)), version),
            WatchLine::Applied(Err(refused), version) => {
                self.watches.refused(&self.scope, refused.refusal);
                (Some(Report::Refused(refused)), version)
            }
            WatchLine::Deleted(Some(key), version) => (Some(Report::Deleted(key)), version),
            // Something is gone, and only a list says what.
            WatchLine::Deleted(None, _) => return Err(Failure::Gone.into()),
            WatchLine::Bookmark(version, _) => (None, version),
            WatchLine::Error(code, message) => {
                return Err(Failure::of_status(code, &message, asked).into());
            }
            WatchLine::Garbage(problem) => return Err(Failure::Garbage { problem }.into()),
        };
        if let Some(version) = version {
            if goes_back(self.version.as_deref(), &version) {
                return Err(Failure::WentBack.into());
            }
            self.version = Some(version);
        }
        if let Some(report) = report {
            self.report(report).await?;
        }
        Ok(())
    }

    /// Something works: what it disproves is wrong no longer.
    async fn works(&mut self, proof: Proof) -> Result<(), Closed> {
        if proof == Proof::Lasted {
            self.backoff.reset();
            self.refusals = 0;
        }
        let disproved = self.failing.as_ref().is_some_and(|failing| match failing {
            Failure::Unreachable { .. }
            | Failure::Silent { .. }
            | Failure::Unauthorized
            | Failure::Unconfigured { .. } => true,
            Failure::Forbidden { verb: "list", .. } => true,
            Failure::Forbidden { .. } | Failure::Busy { .. } => proof >= Proof::Opened,
            // Said within a watch that was accepted.
            _ => proof == Proof::Lasted,
        });
        if disproved {
            self.failing = None;
            self.watches.well(&self.scope);
            self.report(Report::Fares(None)).await?;
        }
        Ok(())
    }

    /// Says it, and waits until it is time to try again.
    async fn failed(&mut self, failure: Failure, lease: Option<&Lease>) -> Result<(), Closed> {
        self.refusals += u32::from(failure.answer() == Answered::Refusal);
        match &failure {
            Failure::Gone | Failure::WentBack => self.version = None,
            Failure::Unauthorized | Failure::Silent { .. } => {
                if let Some(lease) = lease {
                    self.connection.give_up(lease.number);
                }
            }
            // Who may list and not watch is served by lists, as seldom as we may try.
            Failure::Forbidden { .. } => self.version = None,
            Failure::Unconfigured { .. } => {}
            _ if self.refusals >= MAX_REFUSALS => self.version = None,
            _ => {}
        }
        // Once is everyday life: a server compacts, and a list mends it.
        let is_everyday = matches!(failure, Failure::Gone) && self.refusals < MAX_REFUSALS;
        self.watches.failed(&self.scope, &failure, !is_everyday);
        if is_everyday {
            tracing::debug!(scope = %self.scope, "{failure}");
        } else if self.failing.as_ref() != Some(&failure) {
            self.failing = Some(failure.clone());
            self.report(Report::Fares(Some(failure.clone()))).await?;
        }
        let wait = self.backoff.wait(failure.answer(), chance());
        tracing::debug!(scope = %self.scope, ?wait, "{failure}");
        tokio::select! {
            () = sleep(wait) => Ok(()),
            () = self.reports.closed() => Err(Closed),
            // Somebody asks for it now: once for each order, whatever comes of it.
            ordered = self.orders.changed() => match ordered {
                Ok(()) => {
                    self.version = None;
                    Ok(())
                }
                Err(_) => Err(Closed),
            },
        }
    }

    async fn report(&self, report: Report) -> Result<(), Closed> {
        let sent = self.reports.send((self.scope.clone(), report)).await;
        sent.map_err(|_| Closed)
    }

    fn asked(&self, verb: &'static str) -> Asked {
        Asked {
            verb,
            resource: self.scope.rbac(),
            namespace: self
                .scope
                .namespace
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

/// Versions are whole numbers that grow, on every API server there is; others are not judged.
fn goes_back(before: Option<&str>, now: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    match (before.and_then(number), number(now)) {
        (Some(before), Some(now)) => now < before,
        _ => false,
    }
}

/// For a query: everything but letters, digits and a few signs as %XX.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Between 0 and 1; without randomness in the middle.
fn chance() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_are_no_numbers_are_not_judged() {
        assert!(goes_back(Some("10"), "9"));
        for (before, now) in [
            (Some("9"), "10"),
            (Some("9"), "9"),
            (None, "1"),
            (Some("b"), "a"),
            (Some("9"), "x"),
        ] {
            assert!(!goes_back(before, now), "{before:?} {now}");
        }
    }

    #[test]
    fn a_token_goes_into_a_query_whole() {
        assert_eq!(encoded("aZ-9_.~/+=& é"), "aZ-9_.~%2F%2B%3D%26%20%C3%A9");
    }
}
