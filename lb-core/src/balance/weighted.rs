//! The algorithms that ask for no hash: round robin, random, least connections. They share one
//! array of running weights, searched by halves.

use super::{Member, View};

/// Tickets that round robin draws before it searches the pool for whoever is not skipped.
const TICKETS: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Weighted {
    /// Position in the pool's list of each usable backend.
    indices: Box<[u32]>,
    /// Sum of the weights up to and with each; weights are divided by what divides them all.
    ends: Box<[u64]>,
    /// What round robin multiplies a ticket by: 1 for equal weights, else about 0.618 of the total
    /// and without a common factor with it, so that `total` tickets meet every share once and a
    /// heavy backend's turns lie apart.
    stride: u64,
}

impl Weighted {
    pub(super) fn new(members: &[Member]) -> Weighted {
        let divisor = members
            .iter()
            .fold(0, |d, m| gcd(d, u64::from(m.weight)))
            .max(1);
        let mut total = 0;
        let ends: Box<[u64]> = members
            .iter()
            .map(|m| {
                total += u64::from(m.weight) / divisor;
                total
            })
            .collect();
        let equal = total == ends.len() as u64;
        Weighted {
            indices: members.iter().map(|m| m.index).collect(),
            stride: if equal { 1 } else { golden_stride(total) },
            ends,
        }
    }

    /// Round robin.
    pub(super) fn next(&self, view: &mut impl View) -> Option<usize> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let mut place = 0;
        for _ in 0..TICKETS {
            // Both factors are below 2^32: 65,536 backends of weight 65,535 at most.
            place = self.place_at(view.round() % total * self.stride % total);
            if !view.skip(self.index(place)) {
                return Some(self.index(place));
            }
        }
        let count = self.indices.len();
        (1..count)
            .map(|step| self.index((place + step) % count))
            .find(|&i| !view.skip(i))
    }

    /// Random.
    pub(super) fn random(&self, view: &mut impl View) -> Option<usize> {
        let place = self.draw(view, None)?;
        Some(self.index(place))
    }

    /// Least connections: two distinct ones by weighted chance, and of them the one with fewer per
    /// weight once it has taken this connection. With full knowledge of one's own load the second
    /// choice is where nearly all of the gain lies (Mitzenmacher 2001).
    pub(super) fn least(&self, view: &mut impl View) -> Option<usize> {
        let first = self.draw(view, None)?;
        let Some(second) = self.draw(view, Some(first)) else {
            return Some(self.index(first));
        };
        // load / weight compared crosswise; 33 bits by 32 fit.
        let load = |place: usize| u64::from(view.active(self.index(place))) + 1;
        let better = load(second) * self.weight(first) < load(first) * self.weight(second);
        Some(self.index(if better { second } else { first }))
    }

    /// A place by weighted chance, never `except` and never a skipped one.
    fn draw(&self, view: &mut impl View, except: Option<usize>) -> Option<usize> {
        let (hole, width) = except.map_or((u64::MAX, 0), |p| (self.start(p), self.weight(p)));
        let total = self.total() - width;
        if total == 0 {
            return None;
        }
        let point = scale(view.random(), total);
        let point = if point >= hole { point + width } else { point };
        let place = self.place_at(point);
        if view.skip(self.index(place)) {
            self.draw_around(view, except)
        } else {
            Some(place)
        }
    }

    /// As `draw`, exact among those not skipped, at the cost of asking about each.
    fn draw_around(&self, view: &mut impl View, except: Option<usize>) -> Option<usize> {
        let open: Vec<usize> = (0..self.indices.len())
            .filter(|&p| Some(p) != except && !view.skip(self.index(p)))
            .collect();
        let total: u64 = open.iter().map(|&p| self.weight(p)).sum();
        let mut point = scale(view.random(), total);
        open.into_iter().find(|&p| {
            let weight = self.weight(p);
            let here = point < weight;
            point = point.saturating_sub(weight);
            here
        })
    }

    fn total(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn place_at(&self, point: u64) -> usize {
        self.ends.partition_point(|&end| end <= point)
    }

    fn start(&self, place: usize) -> u64 {
        self.ends[place] - self.weight(place)
    }

    fn weight(&self, place: usize) -> u64 {
        let before = if place == 0 { 0 } else { self.ends[place - 1] };
        self.ends[place] - before
    }

    fn index(&self, place: usize) -> usize {
        self.indices[place] as usize
    }
}

/// `random` brought down to 0..total by its high bits (Lemire 2019, without the rejection: the
/// bias is below total / 2^64).
fn scale(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// The number nearest above 0.618 `total` that has no factor in common with it.
fn golden_stride(total: u64) -> u64 {
    let start = (u128::from(total) * 618_034 / 1_000_000) as u64;
    (start.max(1)..=total.max(1))
        .find(|&s| gcd(s, total) == 1)
        .unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
