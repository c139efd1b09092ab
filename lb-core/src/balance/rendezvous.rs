//! Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights after Schindelhauer and
//! Schomaker 2005): every backend draws u in (0, 1) from the key, and the smallest -ln(u) / weight
//! takes it. Shares are exactly proportional to weight, and a backend that comes or goes touches no
//! key but its own, because no draw depends on another backend.
//!
//! The logarithm grows with the draw, so among backends of equal weight the greatest draw wins as
//! an integer, and one logarithm per distinct weight is enough. That keeps a pick at one multiply
//! per backend.

use super::Member;

/// Backends of equal weight from which on draws are compared by fours (benches).
const LONG: usize = 128;

#[derive(Clone, Debug)]
pub(super) struct Rendezvous {
    /// By weight, heaviest first: the likely winner bounds the rest early.
    groups: Box<[Group]>,
    /// Seeds of all groups, group after group.
    seeds: Box<[(u64, u64)]>,
    /// Position in the pool's list of each of `seeds`.
    indices: Box<[u32]>,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    weight: f64,
    start: usize,
    end: usize,
}

impl Rendezvous {
    pub(super) fn new(members: &[Member]) -> Rendezvous {
        let mut members = members.to_vec();
        members.sort_by_key(|m| (std::cmp::Reverse(m.weight), m.index));
        let mut groups = Vec::new();
        let mut start = 0;
        for run in members.chunk_by(|a, b| a.weight == b.weight) {
            let end = start + run.len();
            groups.push(Group {
                weight: f64::from(run[0].weight),
                start,
                end,
            });
            start = end;
        }
        Rendezvous {
            groups: groups.into(),
            seeds: members.iter().map(|m| m.seed).collect(),
            indices: members.iter().map(|m| m.index).collect(),
        }
    }

    /// `skip` is asked about the winner alone; only if it is skipped does a second, slower pass ask
    /// about each.
    pub(super) fn pick(&self, hash: u64, skip: impl Fn(usize) -> bool) -> Option<usize> {
        let winner = self.winner(|group| self.strongest(group, hash))?;
        if !skip(winner) {
            return Some(winner);
        }
        self.winner(|group| self.strongest_unless(group, hash, &skip))
    }

    /// The best over all groups, given the best of each as (draw, place in `seeds`).
    fn winner(&self, best_of: impl Fn(Group) -> Option<(u64, usize)>) -> Option<usize> {
        let place = match *self.groups {
            // Equal weights, the usual case: no logarithm at all.
            [group] => best_of(group)?.1,
            _ => {
                let mut best: Option<(f64, usize)> = None;
                for &group in &self.groups {
                    let Some((draw, place)) = best_of(group) else {
                        continue;
                    };
                    // -ln(u) >= 1 - u: most groups lose without a logarithm.
                    let floor = complement(draw) / group.weight;
                    if best.is_some_and(|(cost, _)| floor >= cost) {
                        continue;
                    }
                    let cost = negative_ln(draw) / group.weight;
                    if best.is_none_or(|(least, _)| cost < least) {
                        best = Some((cost, place));
                    }
                }
                best?.1
            }
        };
        Some(self.indices[place] as usize)
    }

    fn strongest(&self, group: Group, hash: u64) -> Option<(u64, usize)> {
        // A new maximum is rare in a long row (ln n of n), so four draws share one test that nearly
        // always fails: half the time of one by one at 1,000 backends, more of it below 100.
        let seeds = &self.seeds[group.start..group.end];
        let (fours, rest) = if seeds.len() < LONG {
            ([].as_slice(), seeds)
        } else {
            seeds.as_chunks::<4>()
        };
        let mut best = (0, 0);
        for (number, four) in fours.iter().enumerate() {
            let draws = four.map(|seed| draw(hash, seed));
            if draws.iter().any(|&draw| draw > best.0) {
                strongest_of(&mut best, draws, number * 4);
            }
        }
        let rest_draws = rest.iter().map(|&seed| draw(hash, seed));
        strongest_of(&mut best, rest_draws, fours.len() * 4);
        Some((best.0, group.start + best.1))
    }

    fn strongest_unless(
        &self,
        group: Group,
        hash: u64,
        skip: impl Fn(usize) -> bool,
    ) -> Option<(u64, usize)> {
        let mut best: Option<(u64, usize)> = None;
        for place in group.start..group.end {
            let draw = draw(hash, self.seeds[place]);
            if best.is_none_or(|(most, _)| draw > most) && !skip(self.indices[place] as usize) {
                best = Some((draw, place));
            }
        }
        best
    }
}

/// Raises `best`, a draw and its place, by `draws`, the first of which is at place `start`.
#[inline]
fn strongest_of(best: &mut (u64, usize), draws: impl IntoIterator<Item = u64>, start: usize) {
    for (place, draw) in (start..).zip(draws) {
        if draw > best.0 {
            *best = (draw, place);
        }
    }
}

/// A backend's draw for a key, uniform in 64 bits: a folded 64 x 64 multiply, the step of wyhash
/// and foldhash. Both inputs come from SipHash, so one step mixes enough (the tests measure it).
#[inline]
fn draw(hash: u64, seed: (u64, u64)) -> u64 {
    let product = u128::from(hash ^ seed.0) * u128::from(hash.rotate_left(32) ^ seed.1);
    (product as u64) ^ ((product >> 64) as u64)
}

const TWO_POW_64: f64 = 18_446_744_073_709_551_616.0;

/// 1 - u for the draw u = draw / 2^64, without the cancellation of the subtraction.
fn complement(draw: u64) -> f64 {
    ((!draw) as f64 + 1.0) / TWO_POW_64
}

/// -ln(draw / 2^64), from IEEE 754 additions, multiplications and divisions alone: they round alike
/// on every machine, which a libm's `ln` does not promise, and appliances must agree.
///
/// Never less than [`complement`], as its use as a bound requires; infinite for 0.
fn negative_ln(draw: u64) -> f64 {
    if draw == 0 {
        return f64::INFINITY;
    }
    // u = m 2^-shift with m in [1/2, 1); -ln(m) = 2 atanh(s), s = (1 - m) / (1 + m) <= 1/3.
    let shift = draw.leading_zeros();
    let rest = complement(draw << shift);
    let s = rest / (2.0 - rest);
    let square = s * s;
    // atanh(s) / s = sum of s^2k / (2k + 1); (1/3)^(2 * 16) / 33 is below an ulp.
    let mut sum = 0.0;
    for k in (0..16u32).rev() {
        sum = sum * square + 1.0 / f64::from(2 * k + 1);
    }
    let ln = f64::from(shift) * std::f64::consts::LN_2 + 2.0 * s * sum;
    ln.max(complement(draw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_is_the_logarithm() {
        let mut draw = 1u64;
        for step in 0..10_000u64 {
            draw = draw
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(step);
            let shifted = draw >> (step % 64);
            if shifted == 0 {
                continue;
            }
            // ln_1p is exact where the draw is close to 1, ln where it is not.
            let rest = complement(shifted);
            let truth = if rest < 0.5 {
                -(-rest).ln_1p()
            } else {
                -(shifted as f64 / TWO_POW_64).ln()
            };
            let got = negative_ln(shifted);
            assert!(
                (got - truth).abs() <= truth * 1e-14,
                "{shifted}: {got} {truth}"
            );
            assert!(got >= rest);
        }
        assert_eq!(negative_ln(0), f64::INFINITY);
        assert_eq!(negative_ln(u64::MAX), 1.0 / TWO_POW_64);
    }

    #[test]
    fn draws_are_uniform_in_every_bit() {
        // Consecutive hashes and one seed: the hardest input that the real ones are not.
        let seed = (0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f);
        let mut ones = [0u32; 64];
        let keys = 1 << 16;
        for key in 0..keys {
            let draw = draw(key, seed);
            for (bit, count) in ones.iter_mut().enumerate() {
                *count += u32::from(draw >> bit & 1 == 1);
            }
        }
        // Five standard deviations of a fair coin.
        let slack = 5.0 * (keys as f64).sqrt() / 2.0;
        for count in ones {
            assert!(
                (f64::from(count) - keys as f64 / 2.0).abs() < slack,
                "{count}"
            );
        }
    }
}
