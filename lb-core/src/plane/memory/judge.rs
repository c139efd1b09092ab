//! How scarce memory is, and what follows from it.
//!
//! PURE: what there is and the time are arguments.
//!
//! ```text
//!            left <= margin(stop)                left <= margin(shed)
//!   Ample ───────────────────────▶ Scarce ──────────────────────────▶ Critical    at once
//!     ▲                              │ ▲                                 │
//!     └──────────────────────────────┘ └─────────────────────────────────┘
//!       half as much again as the margin is left, and was for as long as CALM
//! ```

use std::time::Duration;

use super::{Kind, Level, Stock, Watermarks};
use crate::time::Time;

/// How long it must have been better before it counts: what a burst of closes gives back comes in
/// several pieces.
const CALM: Duration = Duration::from_millis(200);

/// Of a larger limit than this the margins are those of this one: 400 MiB at 90 percent are room
/// enough on any machine.
const LARGEST: u64 = 4 << 30;

/// What one more connection may take before the next look: two sockets with their inodes and files,
/// some 10 KiB as measured, and what it may have begun to buffer.
const PER_NEW: u64 = 32 << 10;

/// What closing one connection gives back at the least; and one that is stalled, of TCP's buffers.
const PER_CLOSED: u64 = 8 << 10;
const PER_STALLED: u64 = 128 << 10;

/// Connections that one worker closes for one look.
const MOST_CLOSED: u64 = 1_024;

/// No program fills memory faster than this, in bytes a second: when the next look has to be.
const FASTEST: u64 = 1 << 30;
const SOONEST: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_millis(250);
/// While it is not ample: what has waited goes on within this.
const ALERT: Duration = Duration::from_millis(50);

impl Watermarks {
    /// Bytes that have to be left of `limit` at `percent` used; none if it is off.
    fn margin(percent: u8, limit: u64) -> Option<u64> {
        let free = 100u64.checked_sub(percent.into())?;
        (percent > 0).then(|| limit.min(LARGEST) / 100 * free)
    }

    /// How one stock stands with `eased` margins (half as large again) or as they are.
    fn grade(self, stock: Stock, eased: bool) -> Level {
        let reached = |percent| {
            Watermarks::margin(percent, stock.limit).is_some_and(|margin| {
                let margin = if eased { margin + margin / 2 } else { margin };
                stock.left() <= margin
            })
        };
        if reached(self.shed) {
            Level::Critical
        } else if reached(self.stop) {
            Level::Scarce
        } else {
            Level::Ample
        }
    }

    fn worst(self, stocks: &[Stock], eased: bool) -> Level {
        let grades = stocks.iter().map(|stock| self.grade(*stock, eased));
        grades.max().unwrap_or(Level::Ample)
    }
}

/// What the workers are to do until the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) level: Level,
    /// By how many connections and flows each worker may grow.
    pub(crate) growth: u64,
    /// How many idle connections each worker closes.
    pub(crate) close: usize,
    /// Only those that hold bytes which their receiver does not take: it is TCP's buffers alone
    /// that are short, and the others have none.
    pub(crate) stalled: bool,
}

impl Order {
    /// Nothing is short.
    pub(crate) const NONE: Order = Order {
        level: Level::Ample,
        growth: u64::MAX,
        close: 0,
        stalled: false,
    };
}

/// Says how scarce memory is, from one look to the next.
#[derive(Debug)]
pub(super) struct Judge {
    watermarks: Watermarks,
    workers: u64,
    level: Level,
    /// Since when it has been better than `level`.
    better: Option<Time>,
}

impl Judge {
    pub(super) fn new(watermarks: Watermarks, workers: usize) -> Judge {
        Judge {
            watermarks,
            workers: workers.max(1) as u64,
            level: Level::Ample,
            better: None,
        }
    }

    /// What follows from a look at `now`.
    pub(super) fn step(&mut self, now: Time, stocks: &[Stock]) -> Order {
        let worse = self.watermarks.worst(stocks, false);
        let better = self.watermarks.worst(stocks, true);
        if worse > self.level {
            self.level = worse;
        }
        if better >= self.level {
            self.better = None;
        } else if now.since(*self.better.get_or_insert(now)) >= CALM {
            self.level = better;
            self.better = None;
        }
        self.order(stocks)
    }

    fn order(&self, stocks: &[Stock]) -> Order {
        let (mut growth, mut close, mut stalled) = (u64::MAX, 0, true);
        for stock in stocks {
            // A new connection has no buffers yet.
            if stock.kind != Kind::Tcp && self.watermarks.stop > 0 {
                growth = growth.min(stock.left() / 2 / PER_NEW / self.workers);
            }
            if self.watermarks.grade(*stock, true) == Level::Critical {
                stalled &= stock.kind == Kind::Tcp;
                close = close.max(self.too_many(*stock));
            }
        }
        let is_critical = self.level == Level::Critical;
        Order {
            level: self.level,
            growth: match self.level {
                Level::Ample => growth.max(1),
                Level::Scarce | Level::Critical => 0,
            },
            close: if is_critical { close as usize } else { 0 },
            stalled: is_critical && stalled && close > 0,
        }
    }

    /// How many connections of each worker stand between a stock and the end of what is critical.
    fn too_many(&self, stock: Stock) -> u64 {
        let margin = Watermarks::margin(self.watermarks.shed, stock.limit).unwrap_or(0);
        let missing = (margin + margin / 2).saturating_sub(stock.left());
        let each = match stock.kind {
            Kind::Tcp => PER_STALLED,
            Kind::Group | Kind::Machine => PER_CLOSED,
        };
        (missing / each / self.workers).clamp(1, MOST_CLOSED)
    }

    /// When to look again: before memory could pass the next margin.
    pub(super) fn pause(&self, stocks: &[Stock]) -> Duration {
        let Watermarks { stop, shed } = self.watermarks;
        let next = match self.level {
            Level::Ample if stop > 0 => stop,
            Level::Ample | Level::Scarce => shed,
            Level::Critical => 0,
        };
        let distances = stocks.iter().filter_map(|stock| {
            let margin = Watermarks::margin(next, stock.limit)?;
            Some(stock.left().saturating_sub(margin))
        });
        let micros = distances.min().map(|bytes| bytes / (FASTEST / 1_000_000));
        let soon = micros.map_or(LATEST, Duration::from_micros);
        let latest = match self.level {
            Level::Ample => LATEST,
            Level::Scarce | Level::Critical => ALERT,
        };
        soon.clamp(SOONEST, latest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Level::{Ample, Critical, Scarce};
    use super::*;

    /// Of 1,000 MiB: stop at 100 left (eased 150), shed at 50 left (eased 75).
    const LIMIT: u64 = 1_000 << 20;

    fn judge(level: Level) -> Judge {
        let watermarks = Watermarks::new(90, 95).expect("in bounds");
        Judge {
            level,
            ..Judge::new(watermarks, 2)
        }
    }

    fn left(kind: Kind, mib: u64) -> Stock {
        Stock {
            kind,
            used: LIMIT - (mib << 20),
            limit: LIMIT,
        }
    }

    fn at(ms: u64) -> Time {
        Time::from_micros(ms * 1_000)
    }

    #[test]
    fn every_transition() {
        // (level, MiB left) -> at once, and once it has lasted
        let table = [
            ((Ample, 1_000), Ample, Ample),
            ((Ample, 101), Ample, Ample),
            ((Ample, 100), Scarce, Scarce),
            ((Ample, 51), Scarce, Scarce),
            ((Ample, 50), Critical, Critical),
            ((Ample, 0), Critical, Critical),
            ((Scarce, 1_000), Scarce, Ample),
            ((Scarce, 151), Scarce, Ample),
            ((Scarce, 150), Scarce, Scarce),
            ((Scarce, 51), Scarce, Scarce),
            ((Scarce, 50), Critical, Critical),
            ((Critical, 1_000), Critical, Ample),
            ((Critical, 151), Critical, Ample),
            ((Critical, 150), Critical, Scarce),
            ((Critical, 76), Critical, Scarce),
            ((Critical, 75), Critical, Critical),
            ((Critical, 0), Critical, Critical),
        ];
        for kind in Kind::ALL {
            for ((from, mib), first, last) in table {
                let mut judge = judge(from);
                let step = |judge: &mut Judge, ms| judge.step(at(ms), &[left(kind, mib)]).level;
                let said = (
                    step(&mut judge, 0),
                    step(&mut judge, 199),
                    step(&mut judge, 200),
                );
                assert_eq!(said, (first, first, last), "{kind:?} {from:?} {mib}");
            }
        }
    }

    #[test]
    fn a_relapse_begins_the_calm_anew() {
        let mut judge = judge(Scarce);
        let mut step = |ms, mib| judge.step(at(ms), &[left(Kind::Group, mib)]).level;
        assert_eq!(step(0, 500), Scarce);
        assert_eq!(step(199, 150), Scarce, "it is not better any more");
        assert_eq!(step(200, 500), Scarce);
        assert_eq!(step(399, 500), Scarce);
        assert_eq!(step(400, 500), Ample);
    }

    #[test]
    fn nothing_known_and_nothing_asked_for_is_ample() {
        assert_eq!(judge(Ample).step(at(0), &[]).level, Ample);
        let mut off = Judge::new(Watermarks::new(0, 0).expect("off"), 1);
        assert_eq!(off.step(at(0), &[left(Kind::Machine, 0)]).level, Ample);
        let mut shed = Judge::new(Watermarks::new(0, 95).expect("one of them"), 1);
        assert_eq!(shed.step(at(0), &[left(Kind::Machine, 51)]).level, Ample);
        assert_eq!(shed.step(at(0), &[left(Kind::Machine, 50)]).level, Critical);
        let mut stop = Judge::new(Watermarks::new(90, 0).expect("the other"), 1);
        assert_eq!(stop.step(at(0), &[left(Kind::Machine, 0)]).level, Scarce);
    }

    #[test]
    fn a_large_limit_keeps_no_more_than_one_of_four_gib() {
        let large = |mib: u64| Stock {
            kind: Kind::Machine,
            used: (64 << 30) - (mib << 20),
            limit: 64 << 30,
        };
        assert_eq!(judge(Ample).step(at(0), &[large(420)]).level, Ample);
        assert_eq!(judge(Ample).step(at(0), &[large(400)]).level, Scarce);
    }

    #[test]
    fn what_is_short_says_whom_to_close() {
        let order = |stocks: &[Stock]| judge(Ample).step(at(0), stocks);
        let group = order(&[left(Kind::Group, 25), left(Kind::Tcp, 1_000)]);
        // 50 MiB are missing to 75: 6,400 connections, 3,200 of each worker.
        assert_eq!((group.close, group.stalled), (1_024, false));
        let tcp = order(&[left(Kind::Group, 500), left(Kind::Tcp, 25)]);
        assert_eq!((tcp.close, tcp.stalled), (200, true));
        let both = order(&[left(Kind::Group, 50), left(Kind::Tcp, 50)]);
        assert!(!both.stalled);
        let scarce = order(&[left(Kind::Tcp, 100)]);
        assert_eq!((scarce.level, scarce.close, scarce.growth), (Scarce, 0, 0));
        let ample = order(&[left(Kind::Group, 200), left(Kind::Tcp, 101)]);
        // 100 MiB in pieces of 32 KiB, for two workers.
        assert_eq!((ample.level, ample.growth), (Ample, 1_600));
    }

    #[test]
    fn looks_are_closer_the_nearer_it_is() {
        let pause = |level, mib| judge(level).pause(&[left(Kind::Group, mib)]);
        assert_eq!(pause(Ample, 1_000), LATEST);
        assert!(pause(Ample, 300) < Duration::from_millis(220));
        assert_eq!(pause(Ample, 101), SOONEST);
        assert_eq!(pause(Scarce, 1_000), ALERT);
        assert_eq!(pause(Scarce, 51), SOONEST);
        assert_eq!(pause(Critical, 0), ALERT);
        assert_eq!(judge(Ample).pause(&[]), LATEST);
    }

    proptest! {
        /// Whatever comes: never milder than the margins say, never harsher than the eased ones
        /// say for longer than the calm; and only what is critical closes anything.
        #[test]
        fn between_its_bounds(
            looks in prop::collection::vec((1u64..400, 0u64..=300, 0u64..=300), 1..100),
        ) {
            let mut judge = judge(Ample);
            let mut now = Time::ZERO;
            let mut harsh: Option<Time> = None;
            for (ms, group, tcp) in looks {
                now = now + Duration::from_millis(ms);
                let stocks = [left(Kind::Group, group), left(Kind::Tcp, tcp)];
                let order = judge.step(now, &stocks);
                prop_assert!(order.level >= judge.watermarks.worst(&stocks, false));
                prop_assert_eq!(order.close > 0, order.level == Critical && (group <= 75 || tcp <= 75));
                prop_assert_eq!(order.growth > 0, order.level == Ample);
                if order.level > judge.watermarks.worst(&stocks, true) {
                    let since = *harsh.get_or_insert(now);
                    prop_assert!(now.since(since) < CALM);
                } else {
                    harsh = None;
                }
                let pause = judge.pause(&stocks);
                prop_assert!((SOONEST..=LATEST).contains(&pause));
            }
        }
    }
}
