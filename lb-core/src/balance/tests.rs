use super::*;
use crate::table::{Backend, BackendState};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::net::SocketAddr;

const KEY: HashKey = HashKey([3; 16]);

/// A worker's view for tests: fixed skips and loads, a small generator, tickets from 0.
#[derive(Default)]
struct Fixed {
    skipped: BTreeSet<usize>,
    active: Vec<u32>,
    random: u64,
    ticket: u64,
}

impl View for Fixed {
    fn skip(&self, i: usize) -> bool {
        self.skipped.contains(&i)
    }

    fn active(&self, i: usize) -> u32 {
        self.active.get(i).copied().unwrap_or(0)
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(1);
        mixed(self.random ^ 0xabcd_ef01)
    }

    fn round(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket - 1
    }
}

/// A well mixed hash from a small number, as SipHash would give.
fn mixed(n: u64) -> u64 {
    use siphasher::sip::SipHasher13;
    use std::hash::Hasher;
    let mut hasher = SipHasher13::new_with_keys(1, 2);
    hasher.write_u64(n);
    hasher.finish()
}

fn backend(host: u32, weight: u16) -> Backend {
    let address = SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + host), 8080));
    Backend {
        address,
        weight,
        state: BackendState::Active,
    }
}

fn equal(count: u32) -> Vec<Backend> {
    (1..=count).map(|host| backend(host, 1)).collect()
}

fn index(algorithm: Algorithm, backends: &[Backend]) -> Index {
    let candidates = backends.iter().map(Backend::candidate);
    Index::new(algorithm, candidates, &KEY)
}

fn address(index: &Index, backends: &[Backend], hash: u64) -> Option<SocketAddr> {
    let picked = index.pick(hash, &mut Fixed::default())?;
    Some(backends[picked].address)
}

fn counts(index: &Index, size: usize, keys: u64) -> Vec<u64> {
    let mut counts = vec![0; size];
    let mut view = Fixed::default();
    for n in 0..keys {
        counts[index.pick(mixed(n), &mut view).expect("usable")] += 1;
    }
    counts
}

/// Chi-square of counts against weights, less its mean, in standard deviations.
fn excess(counts: &[u64], weights: &[u16]) -> f64 {
    let keys: u64 = counts.iter().sum();
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let chi: f64 = counts
        .iter()
        .zip(weights)
        .map(|(&count, &weight)| {
            let expected = keys as f64 * f64::from(weight) / total;
            (count as f64 - expected).powi(2) / expected
        })
        .sum();
    let freedom = (counts.len() - 1) as f64;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

/// The definition, by floating point and without groups.
fn naive_rendezvous(backends: &[Backend], hash: u64, skipped: &BTreeSet<usize>) -> Option<usize> {
    let cost = |b: &Backend| {
        let seed = key::backend_seed(&KEY, b.address);
        let product = u128::from(hash ^ seed.0) * u128::from(hash.rotate_left(32) ^ seed.1);
        let draw = (product as u64) ^ ((product >> 64) as u64);
        -(draw as f64 / 2f64.powi(64)).ln() / f64::from(b.weight)
    };
    (0..backends.len())
        .filter(|i| !skipped.contains(i))
        .filter(|&i| backends[i].state == BackendState::Active && backends[i].weight > 0)
        .min_by(|&a, &b| cost(&backends[a]).total_cmp(&cost(&backends[b])))
}

fn pools() -> impl Strategy<Value = Vec<Backend>> {
    let one = (
        1u32..200,
        prop_oneof![Just(0u16), Just(1), 1u16..5, any::<u16>()],
        any::<bool>(),
    );
    proptest::collection::vec(one, 1..24).prop_map(|list| {
        let mut pool: Vec<Backend> = list
            .into_iter()
            .map(|(host, weight, draining)| Backend {
                state: if draining && host % 3 == 0 {
                    BackendState::Draining
                } else {
                    BackendState::Active
                },
                ..backend(host, weight)
            })
            .collect();
        pool.sort_by_key(|b| b.address);
        pool.dedup_by_key(|b| b.address);
        pool
    })
}

const ALL: [Algorithm; 5] = [
    Algorithm::Consistent,
    Algorithm::Maglev,
    Algorithm::RoundRobin,
    Algorithm::Random,
    Algorithm::LeastConnections,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn consistent_is_the_definition(
        pool in pools(),
        skipped in proptest::collection::btree_set(0usize..24, 0..8),
    ) {
        let index = index(Algorithm::Consistent, &pool);
        let mut view = Fixed { skipped, ..Fixed::default() };
        for n in 0..200 {
            let expected = naive_rendezvous(&pool, mixed(n), &view.skipped);
            prop_assert_eq!(index.pick(mixed(n), &mut view), expected);
        }
    }

    #[test]
    fn consistent_moves_only_what_it_must(pool in pools(), gone in any::<prop::sample::Index>()) {
        let gone = gone.index(pool.len());
        let mut fewer = pool.clone();
        let removed = fewer.remove(gone).address;
        let (with, without) =
            (index(Algorithm::Consistent, &pool), index(Algorithm::Consistent, &fewer));
        // Read forwards this is a removal, backwards an addition.
        for n in 0..300 {
            let before = address(&with, &pool, mixed(n));
            let after = address(&without, &fewer, mixed(n));
            prop_assert!(before == after || before == Some(removed), "{before:?} {after:?}");
        }
    }

    #[test]
    fn nobody_picks_the_unusable_and_none_means_none(
        pool in pools(),
        skipped in proptest::collection::btree_set(0usize..24, 0..24),
        n in any::<u64>(),
    ) {
        let open = |i: usize, b: &Backend| {
            b.weight > 0 && b.state == BackendState::Active && !skipped.contains(&i)
        };
        let any_open = pool.iter().enumerate().any(|(i, b)| open(i, b));
        for algorithm in ALL {
            let index = index(algorithm, &pool);
            let mut view = Fixed { skipped: skipped.clone(), random: n, ticket: n >> 8, ..Fixed::default() };
            for turn in 0..20 {
                let picked = index.pick(mixed(n.wrapping_add(turn)), &mut view);
                prop_assert_eq!(picked.is_some(), any_open, "{:?}", algorithm);
                prop_assert!(picked.is_none_or(|i| open(i, &pool[i])), "{:?}", algorithm);
            }
        }
    }

    #[test]
    fn a_skipped_backend_loses_only_its_own_keys(pool in pools(), skip in 0usize..24) {
        for algorithm in [Algorithm::Consistent, Algorithm::Maglev] {
            let index = index(algorithm, &pool);
            let mut around = Fixed { skipped: [skip].into(), ..Fixed::default() };
            for n in 0..200 {
                let free = index.pick(mixed(n), &mut Fixed::default());
                if free != Some(skip) {
                    prop_assert_eq!(index.pick(mixed(n), &mut around), free);
                }
            }
        }
    }
}

/// Long rows are compared by fours, with up to three left over.
#[test]
fn consistent_is_the_definition_in_large_pools_too() {
    for (size, weights) in [(127, 1), (128, 1), (131, 1), (1_000, 1), (701, 2)] {
        let pool: Vec<Backend> = (0..size)
            .map(|n| backend(n, 1 + n as u16 % weights))
            .collect();
        let index = index(Algorithm::Consistent, &pool);
        let mut view = Fixed::default();
        for n in 0..500 {
            view.skipped = (0..n as usize % 3).collect();
            let expected = naive_rendezvous(&pool, mixed(n), &view.skipped);
            assert_eq!(index.pick(mixed(n), &mut view), expected);
        }
    }
}

#[test]
fn consistent_shares_are_exact() {
    let weights: Vec<u16> = (0..40).map(|i| [1, 1, 2, 7, 50][i % 5]).collect();
    let pool: Vec<Backend> = (1u32..)
        .zip(&weights)
        .map(|(h, &w)| backend(h, w))
        .collect();
    let found = counts(&index(Algorithm::Consistent, &pool), pool.len(), 200_000);
    assert!(excess(&found, &weights) < 5.0, "{found:?}");
}

#[test]
fn random_shares_are_exact_and_so_they_are_around_a_skipped_one() {
    let weights = [5u16, 1, 10, 100, 3];
    let pool: Vec<Backend> = (1u32..).zip(weights).map(|(h, w)| backend(h, w)).collect();
    let index = index(Algorithm::Random, &pool);
    assert!(excess(&counts(&index, 5, 100_000), &weights) < 5.0);
    let mut view = Fixed {
        skipped: [3].into(),
        ..Fixed::default()
    };
    let mut found = [0u64; 5];
    for n in 0..20_000 {
        found[index.pick(n, &mut view).expect("usable")] += 1;
    }
    assert_eq!(found[3], 0);
    let rest = [found[0], found[1], found[2], found[4]];
    assert!(excess(&rest, &[5, 1, 10, 3]) < 5.0, "{found:?}");
}

#[test]
fn round_robin_of_equals_is_each_in_turn() {
    let pool = equal(3);
    let index = index(Algorithm::RoundRobin, &pool);
    let mut view = Fixed::default();
    let turns: Vec<_> = (0..6).filter_map(|_| index.pick(0, &mut view)).collect();
    assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    view.skipped = [1].into();
    let turns: Vec<_> = (0..4).filter_map(|_| index.pick(0, &mut view)).collect();
    assert_eq!(turns, [0, 2, 0, 2]);
}

#[test]
fn round_robin_keeps_weights_exactly_in_every_cycle_and_spreads_them() {
    let pool = [backend(1, 5), backend(2, 1), backend(3, 4)];
    let index = index(Algorithm::RoundRobin, &pool);
    let mut view = Fixed::default();
    for _ in 0..3 {
        let turns: Vec<_> = (0..10).filter_map(|_| index.pick(0, &mut view)).collect();
        let of = |i: usize| turns.iter().filter(|&&t| t == i).count();
        assert_eq!((of(0), of(1), of(2)), (5, 1, 4));
        let longest = turns.chunk_by(|a, b| a == b).map(<[usize]>::len).max();
        assert!(longest <= Some(2), "{turns:?}");
    }
}

#[test]
fn least_connections_prefers_the_idle_and_counts_weight() {
    let pool = [backend(1, 1), backend(2, 1)];
    let mut view = Fixed {
        active: vec![10, 3],
        ..Fixed::default()
    };
    let two = index(Algorithm::LeastConnections, &pool);
    assert!((0..100).all(|_| two.pick(0, &mut view) == Some(1)));
    // Ten times the weight: 30 of 10 is less than 4 of 1.
    let pool = [backend(1, 10), backend(2, 1)];
    let weighted = index(Algorithm::LeastConnections, &pool);
    view.active = vec![30, 4];
    assert!((0..100).all(|_| weighted.pick(0, &mut view) == Some(0)));
}

#[test]
fn least_connections_levels_the_load() {
    let pool = equal(50);
    let index = index(Algorithm::LeastConnections, &pool);
    let mut view = Fixed {
        active: vec![0; 50],
        ..Fixed::default()
    };
    for _ in 0..5_000 {
        let i = index.pick(0, &mut view).expect("usable");
        view.active[i] += 1;
    }
    let spread = view.active.iter().max().zip(view.active.iter().min());
    let (most, least) = spread.expect("fifty");
    // By chance alone the spread would be about 45 (measured: 4).
    assert!(most - least < 12, "{:?}", view.active);
}

/// (Keys of others that moved, largest deviation of a share), as fractions.
fn maglev_quality(size: u32) -> (f64, f64) {
    let pool = equal(size);
    let with = index(Algorithm::Maglev, &pool);
    let fewer: Vec<Backend> = pool.iter().copied().filter(|b| b != &pool[0]).collect();
    let without = index(Algorithm::Maglev, &fewer);
    let keys = 100_000;
    let moved = (0..keys)
        .map(|n| {
            (
                address(&with, &pool, mixed(n)),
                address(&without, &fewer, mixed(n)),
            )
        })
        .filter(|(before, after)| *before != Some(pool[0].address) && before != after)
        .count();
    // Places, not keys: keys would add the noise of sampling.
    let Kind::Maglev(table) = &with.0 else {
        unreachable!("asked for Maglev");
    };
    (moved as f64 / keys as f64, table.imbalance(pool.len()))
}

#[test]
fn maglev_moves_and_deviates_less_than_one_percent() {
    for size in [
        2, 3, 5, 10, 15, 16, 18, 50, 100, 128, 130, 500, 1_000, 1_024,
    ] {
        let (moved, imbalance) = maglev_quality(size);
        assert!(moved < 0.01, "{size} backends: {moved} moved");
        assert!(imbalance < 0.01, "{size} backends: {imbalance} imbalance");
    }
}

#[test]
fn a_draining_backend_of_a_maglev_pool_does_not_resize_the_table() {
    let mut pool = equal(17);
    let before = index(Algorithm::Maglev, &pool);
    pool[4].state = BackendState::Draining;
    let after = index(Algorithm::Maglev, &pool);
    let moved = (0..10_000)
        .map(|n| {
            (
                address(&before, &pool, mixed(n)),
                address(&after, &pool, mixed(n)),
            )
        })
        .filter(|(a, b)| *a != Some(pool[4].address) && a != b)
        .count();
    assert!(moved < 100, "{moved} of 10,000 moved");
}

#[test]
fn one_key_agrees_and_another_does_not() {
    let pool = equal(20);
    for algorithm in [Algorithm::Consistent, Algorithm::Maglev] {
        let here = Index::new(algorithm, pool.iter().map(Backend::candidate), &KEY);
        let there = Index::new(algorithm, pool.iter().map(Backend::candidate), &KEY);
        let foreign = Index::new(
            algorithm,
            pool.iter().map(Backend::candidate),
            &HashKey([4; 16]),
        );
        let picks = |index: &Index| -> Vec<_> {
            (0..100).map(|n| address(index, &pool, mixed(n))).collect()
        };
        assert_eq!(picks(&here), picks(&there));
        assert_ne!(picks(&here), picks(&foreign));
    }
}
