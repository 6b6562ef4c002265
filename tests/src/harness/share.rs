//! How much of repetitive work is done: all of it, except on machines where that would take hours.
//!
//! `REDIRECTOR_TESTS_SHARE=K/N` asks for the K-th of N shares of whatever is long only because it has many independent
//! cases (a matrix of connections, the steps at which a command is killed). Every test still runs. `cargo xtask vm` sets it
//! where guests are emulated, and gives each kernel another share.

use crate::harness::pair::matrix::Part;
use crate::harness::probe::scenario::Scenario;

/// The variable's value: `(K - 1, N)`; everything if it is unset.
fn share() -> (usize, usize) {
    std::env::var("REDIRECTOR_TESTS_SHARE").ok().and_then(|text| parse(&text)).unwrap_or((0, 1))
}

fn parse(text: &str) -> Option<(usize, usize)> {
    let (index, of) = text.split_once('/')?;
    let (index, of) = (index.parse::<usize>().ok()?, of.parse::<usize>().ok()?);
    (1..=of).contains(&index).then(|| (index - 1, of))
}

/// The share of a list: every N-th, and never none of some.
pub fn of<T>(all: Vec<T>) -> Vec<T> {
    let (index, of) = share();
    let begin = index.min(all.len().saturating_sub(1));
    all.into_iter().skip(begin).step_by(of).collect()
}

/// The share of a number of repetitions, but not fewer than `least`.
pub fn times(all: usize, least: usize) -> usize {
    all.div_ceil(share().1).max(least.min(all))
}

/// The share of each caller's connections.
pub fn parts(all: Vec<Part>) -> Vec<Part> {
    parts_with(all, |_| false)
}

/// The share of each caller's connections, and all of those that must be there.
pub fn parts_with(all: Vec<Part>, must: impl Fn(&Scenario) -> bool) -> Vec<Part> {
    let thin = |Part { caller, scenarios }| {
        let (musts, others): (Vec<_>, Vec<_>) = scenarios.into_iter().partition(&must);
        Part { caller, scenarios: musts.into_iter().chain(of(others)).collect() }
    };
    all.into_iter().map(thin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_told_by_two_numbers() {
        assert_eq!(parse("2/8"), Some((1, 8)));
        for wrong in ["", "3", "0/8", "9/8", "1/0", "a/b"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn without_the_variable_it_is_everything() {
        assert_eq!(of(vec![1, 2, 3]), [1, 2, 3]);
        assert_eq!((times(20, 4), times(3, 4)), (20, 3));
    }
}
