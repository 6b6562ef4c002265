//! Medians and how well they are known.

use serde::Serialize;

/// A median with an interval that holds the true median with a probability of (at least) 95%.
///
/// The interval goes from one order statistic to another, by the binomial distribution: nothing is assumed of the
/// distribution of the samples, so outliers of a shared machine do no harm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub median: f64,
    /// Lower end of the interval.
    pub low: f64,
    pub high: f64,
}

impl Estimate {
    /// Of samples in any order; not a number if there is none.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let count = sorted.len();
        if count == 0 {
            return Self { median: f64::NAN, low: f64::NAN, high: f64::NAN };
        }
        // Ranks count/2 ∓ 1.96 standard deviations of a binomial distribution (sqrt(count)/2 each), rounded outwards.
        let below = (count as f64 / 2.0 - 0.98 * (count as f64).sqrt()).floor().max(1.0) as usize;
        let median = f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]);
        Self { median, low: sorted[below - 1], high: sorted[count - below] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_interval() {
        let hundred = Estimate::of((1..=100).rev().map(f64::from));
        // The textbook's ranks for 100 samples are 40 and 61.
        assert_eq!(hundred, Estimate { median: 50.5, low: 40.0, high: 61.0 });
    }

    #[test]
    fn few_samples_give_all_they_have() {
        assert_eq!(Estimate::of([3.0, 1.0, 2.0]), Estimate { median: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(Estimate::of([7.0]), Estimate { median: 7.0, low: 7.0, high: 7.0 });
        assert!(Estimate::of([]).median.is_nan());
    }
}
