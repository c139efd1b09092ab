//! Which datagrams leave in one send.
//!
//! PURE. A *piece* is what one receive gave: a datagram, or several of one size in a row of which
//! the last may be shorter, as UDP_GRO joins them. A *run* is what one send with UDP_SEGMENT
//! takes: the same shape, gathered from pieces that follow one another. Every byte leaves once,
//! in order, and each datagram keeps its boundaries.

/// Datagrams in one run. The kernel's limit (UDP_MAX_SEGMENTS) was 64 until Linux 6.9, and is 128.
pub(super) const MAX_DATAGRAMS: usize = 64;
/// Bytes in one run: what an IPv4 packet holds beside its header and UDP's.
pub(super) const MAX_BYTES: usize = 65_507;

/// One or more datagrams of one flow, one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    payload: &'a [u8],
    segment: usize,
}

impl<'a> Piece<'a> {
    /// `payload` is datagrams of `segment` bytes, the last of them maybe shorter; one datagram if
    /// `segment` is not less than all.
    pub(super) fn new(payload: &'a [u8], segment: usize) -> Piece<'a> {
        let segment = if segment == 0 {
            payload.len()
        } else {
            segment.min(payload.len())
        };
        Piece { payload, segment }
    }

    /// How many datagrams it is; one that is empty is one.
    pub(super) fn count(&self) -> usize {
        count(self.payload.len(), self.segment)
    }

    /// The bytes of all of them.
    pub(super) fn bytes(&self) -> usize {
        self.payload.len()
    }
}

/// What one send takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Run<'a> {
    /// Its bytes, in order.
    pub(super) slices: Vec<&'a [u8]>,
    /// The size of each of its datagrams but the last, which may be shorter.
    pub(super) segment: usize,
    /// How many datagrams it is.
    pub(super) count: usize,
}

impl<'a> Run<'a> {
    /// The last of its datagrams.
    pub(super) fn last(&self) -> &'a [u8] {
        let Some(last) = self.slices.last() else {
            return &[];
        };
        match last.len() {
            0 => last,
            len => &last[(len - 1) / self.segment * self.segment..],
        }
    }

    /// Each of its datagrams by itself.
    pub(super) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> {
        // `chunks` makes nothing of a datagram without a byte.
        let empty = self.slices.iter().filter(|s| s.is_empty()).copied();
        let full = self
            .slices
            .iter()
            .flat_map(|s| s.chunks(self.segment.max(1)));
        empty.chain(full)
    }
}

/// A walk over pieces, run by run.
#[derive(Clone, Debug)]
pub(super) struct Runs<'p, 'a> {
    pieces: &'p [Piece<'a>],
    /// Bytes of the first piece that earlier runs took.
    taken: usize,
}

impl<'p, 'a> Runs<'p, 'a> {
    pub(super) fn new(pieces: &'p [Piece<'a>]) -> Runs<'p, 'a> {
        Runs { pieces, taken: 0 }
    }

    /// Puts the next run into `run`; false if there is none. Datagrams of more than `largest`
    /// bytes go alone: with 0 all do.
    pub(super) fn next(&mut self, largest: usize, run: &mut Run<'a>) -> bool {
        run.slices.clear();
        run.count = 0;
        let Some(first) = self.pieces.first() else {
            return false;
        };
        run.segment = first.segment;
        let (limit, most) = if first.segment == 0 || first.segment > largest {
            (first.segment, 1)
        } else {
            (MAX_BYTES, MAX_DATAGRAMS)
        };
        let mut bytes = 0;
        while let Some(piece) = self.pieces.first()
            && (run.count == 0 || piece.follows(run.segment))
        {
            let left = piece.payload.len() - self.taken;
            let room = (most - run.count).min((limit - bytes) / run.segment.max(1));
            let taken = left.min(room * run.segment);
            if taken < left && taken == 0 {
                break;
            }
            run.slices.push(&piece.payload[self.taken..][..taken]);
            run.count += count(taken, run.segment);
            bytes += taken;
            self.taken += taken;
            if taken < left {
                break;
            }
            self.pieces = &self.pieces[1..];
            self.taken = 0;
            if run.count == most || !taken.is_multiple_of(run.segment) {
                break;
            }
        }
        true
    }
}

impl Piece<'_> {
    /// May it come behind datagrams of `segment` bytes? Then it is of the same, or ends the run.
    fn follows(&self, segment: usize) -> bool {
        let ends_it = self.count() == 1 && self.segment < segment;
        self.segment > 0 && (self.segment == segment || ends_it)
    }
}

fn count(bytes: usize, segment: usize) -> usize {
    match bytes {
        0 => 1,
        bytes => bytes.div_ceil(segment),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    static DATA: [u8; 70_000] = [7; 70_000];

    fn piece(bytes: usize, segment: usize) -> Piece<'static> {
        Piece::new(&DATA[..bytes], segment)
    }

    /// (segment, count, slices) of every run.
    fn runs(pieces: &[Piece<'static>], largest: usize) -> Vec<(usize, usize, usize)> {
        let (mut walk, mut run, mut found) = (Runs::new(pieces), Run::default(), vec![]);
        while walk.next(largest, &mut run) {
            found.push((run.segment, run.count, run.slices.len()));
        }
        found
    }

    #[test]
    fn equal_sizes_join_and_a_shorter_one_ends_the_run() {
        let pieces = [100, 100, 40, 100, 100, 120, 0, 100, 0].map(|n| piece(n, 0));
        let expected = [
            (100, 3, 3),
            (100, 2, 2),
            (120, 1, 1),
            (0, 1, 1),
            (100, 1, 1),
            (0, 1, 1),
        ];
        assert_eq!(runs(&pieces, MAX_BYTES), expected);
    }

    #[test]
    fn what_was_joined_before_stays_so_or_is_taken_apart() {
        let pieces = [piece(350, 100), piece(100, 0), piece(300, 100)];
        assert_eq!(runs(&pieces, 100), [(100, 4, 1), (100, 4, 2)]);
        assert_eq!(runs(&pieces, 99), [(100, 1, 1); 8]);
        assert_eq!(runs(&pieces, 0), [(100, 1, 1); 8]);
    }

    #[test]
    fn a_run_ends_at_what_the_kernel_takes() {
        let many = [piece(10, 0); 100];
        assert_eq!(runs(&many, MAX_BYTES), [(10, 64, 64), (10, 36, 36)]);
        let joined = [piece(1280, 10), piece(10, 0)];
        assert_eq!(
            runs(&joined, MAX_BYTES),
            [(10, 64, 1), (10, 65 - 1, 1), (10, 1, 1)]
        );
        let large = [piece(30_000, 0); 3];
        assert_eq!(runs(&large, MAX_BYTES), [(30_000, 2, 2), (30_000, 1, 1)]);
        let whole = [piece(65_527, 0), piece(65_507, 0), piece(1, 0)];
        assert_eq!(
            runs(&whole, MAX_BYTES),
            [(65_527, 1, 1), (65_507, 1, 1), (1, 1, 1)]
        );
    }

    fn sizes() -> impl Strategy<Value = (usize, usize)> {
        let segment = prop_oneof![Just(0usize), Just(1), Just(64), Just(1_400), 0..2_000usize];
        let bytes = prop_oneof![3 => 0..3_000usize, 1 => 0..65_528usize];
        (segment, bytes).prop_map(|(segment, bytes)| match bytes / segment.max(1) {
            // No socket hands over more in one piece.
            0..=128 => (segment, bytes),
            _ => (segment, segment * 128),
        })
    }

    proptest! {
        /// What leaves is what came: the same datagrams in the same order, in runs that the
        /// kernel takes, and the last of a run is what `last` says.
        #[test]
        fn the_same_datagrams_leave_in_order(
            sizes in prop::collection::vec(sizes(), 0..40),
            largest in prop_oneof![Just(0), Just(MAX_BYTES), 0..2_000usize],
        ) {
            let data: Vec<Vec<u8>> = sizes.iter().enumerate()
                .map(|(n, (_, bytes))| (0..*bytes).map(|at| (at * 31 + n * 7) as u8).collect())
                .collect();
            let pieces: Vec<_> = sizes.iter().zip(&data)
                .map(|((segment, _), data)| Piece::new(data, *segment)).collect();
            let came: Vec<&[u8]> = sizes.iter().zip(&data)
                .flat_map(|((segment, _), data)| match (data.len(), *segment) {
                    (0, _) | (_, 0) => vec![&data[..]],
                    (_, segment) => data.chunks(segment).collect(),
                })
                .collect();
            let (mut walk, mut run, mut left) = (Runs::new(&pieces), Run::default(), vec![]);
            while walk.next(largest, &mut run) {
                let datagrams: Vec<&[u8]> = run.datagrams().collect();
                prop_assert_eq!(datagrams.len(), run.count);
                prop_assert_eq!(datagrams.last().copied(), Some(run.last()));
                if run.count > 1 {
                    let bytes: usize = run.slices.iter().map(|s| s.len()).sum();
                    prop_assert!(run.count <= MAX_DATAGRAMS && bytes <= MAX_BYTES);
                    prop_assert!(run.segment <= largest);
                    let (last, rest) = datagrams.split_last().expect("more than one");
                    prop_assert!(rest.iter().all(|d| d.len() == run.segment));
                    prop_assert!(!last.is_empty() && last.len() <= run.segment);
                }
                left.extend(datagrams);
            }
            prop_assert_eq!(left, came);
            prop_assert_eq!(pieces.iter().map(Piece::count).sum::<usize>(), left_count(&sizes));
        }
    }

    fn left_count(sizes: &[(usize, usize)]) -> usize {
        let count = |&(segment, bytes): &(usize, usize)| match (bytes, segment) {
            (0, _) | (_, 0) => 1,
            (bytes, segment) => bytes.div_ceil(segment),
        };
        sizes.iter().map(count).sum()
    }
}
