//! Arithmetic on what was measured. PURE.

use serde::{Deserialize, Serialize};

/// Middle, lowest and highest of some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: &[f64]) -> Option<Spread> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        };
        Some(Spread { median, low, high })
    }
}

/// The value that `percent` of `times` do not exceed (nearest rank); 0 without any.
pub fn percentile(times: &mut [u32], percent: f64) -> u32 {
    if times.is_empty() {
        return 0;
    }
    let rank = (times.len() as f64 * percent / 100.0).ceil() as usize;
    let at = rank.clamp(1, times.len()) - 1;
    *times.select_nth_unstable(at).1
}

/// Three significant digits, as people read them: 1,234; 97.4; 8.05.
pub fn short(value: f64) -> String {
    let digits = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 10.0 {
        1
    } else {
        2
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) = text
        .split_once('.')
        .map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
    let mut grouped = String::new();
    for (n, c) in whole.chars().enumerate() {
        if n > 0 && c != '-' && (whole.len() - n) % 3 == 0 && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(c);
    }
    match rest {
        Some(rest) => format!("{grouped}.{rest}"),
        None => grouped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_two() {
        let of = |values: &[f64]| Spread::of(values).expect("values");
        let odd = of(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.low, odd.high), (2.0, 1.0, 3.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(of(&[7.0]).median, 7.0);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut times: Vec<u32> = (1..=100).rev().collect();
        assert_eq!(percentile(&mut times, 50.0), 50);
        assert_eq!(percentile(&mut times, 99.0), 99);
        assert_eq!(percentile(&mut times, 100.0), 100);
        assert_eq!(percentile(&mut [5], 99.0), 5);
        assert_eq!(percentile(&mut [], 99.0), 0);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (8.054, "8.05"),
            (97.42, "97.4"),
            (123.4, "123"),
            (9873.0, "9,873"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
            (0.0, "0.00"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
