//! When a direction of a connection is bulk, and when it is not any more.
//!
//! PURE. To splice a small message costs more calls than to copy it, to copy bulk several times
//! what splicing costs; what comes next is guessed from what came last. Where the two meet was
//! measured with responses of one size, in CPU of the worker for each (veth, Linux 6.18): 2 KiB and
//! 4 KiB cost the same either way, 8 KiB 31 us spliced and 40 us copied, 16 KiB 32 and 47 us.

/// A copying receive of this many bytes or more is a large one.
const LARGE: usize = 8 << 10;
/// So many large ones in a row, and the direction is bulk.
const LARGE_IN_A_ROW: u8 = 2;
/// While bulk, a receive of fewer bytes is a small one.
const SMALL: usize = 4 << 10;
/// So many small ones in a row, and it is bulk no more.
const SMALL_IN_A_ROW: u8 = 8;

/// How the receives of one direction have been of late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    bulk: bool,
    /// Receives in a row that speak for the other way.
    against: u8,
}

impl Pace {
    /// Of a direction that has carried nothing: not bulk.
    pub(crate) const fn new() -> Pace {
        Pace {
            bulk: false,
            against: 0,
        }
    }

    /// Is it to be spliced, or received in large pieces if that cannot be?
    pub(crate) const fn is_bulk(self) -> bool {
        self.bulk
    }

    /// A receive brought `n` bytes.
    pub(crate) fn note(&mut self, n: usize) {
        let (against, limit) = match self.bulk {
            false => (n >= LARGE, LARGE_IN_A_ROW),
            true => (n < SMALL, SMALL_IN_A_ROW),
        };
        self.against = if against { self.against + 1 } else { 0 };
        if self.against == limit {
            self.bulk = !self.bulk;
            self.against = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_receives_in_a_row_make_bulk_and_small_ones_end_it() {
        let mut pace = Pace::new();
        let mut after = |n: usize| {
            pace.note(n);
            pace.is_bulk()
        };
        assert!(!after(LARGE));
        assert!(!after(LARGE - 1), "not in a row");
        assert!(!after(LARGE));
        assert!(after(LARGE));
        for _ in 1..SMALL_IN_A_ROW {
            assert!(after(SMALL - 1));
        }
        assert!(after(SMALL), "a larger one begins the count anew");
        for _ in 1..SMALL_IN_A_ROW {
            assert!(after(1));
        }
        assert!(!after(SMALL - 1));
        assert!(!after(4 * LARGE));
        assert!(after(LARGE));
    }
}
