//! Which configurations are compared: each option alone, all pairs, and many at once.

use super::configuration::Configuration;
use super::options::{ALL, Choice};
use super::random::Random;
use crate::harness::kernel;

/// The chance of an option to be given in a random combination.
const GIVEN_PERCENT: usize = 45;

/// In a round, so many random combinations follow the pairs.
const COMBINATIONS: usize = 47;

/// Before 5.17 `attach` refuses options that name interfaces (test `kernel`).
fn possible(choice: &Choice) -> bool {
    kernel::tells_interfaces() || !matches!(choice, Choice::ExcludeInterfaces | Choice::VirtualInterfaces)
}

/// The first `count` configurations of a seed. A round has each option alone, then all pairs of options beside the
/// sidecar's, then random combinations; the next has other values. Alone means that nothing else is given, pairs are
/// added to the sidecar's configuration because by default nothing is captured.
pub fn configurations(seed: u64, count: usize) -> Vec<Configuration> {
    let mut random = Random::new(seed);
    let mut plan = Vec::new();
    while plan.len() < count {
        let all = |configuration: &Configuration| configuration.given().all(|(choice, _)| possible(&choice));
        plan.extend(round(&mut random).into_iter().filter(all));
    }
    plan.truncate(count);
    plan
}

/// The number of configurations in a round.
pub fn round_length() -> usize {
    ALL.len() + ALL.len() * (ALL.len() - 1) / 2 + COMBINATIONS
}

fn round(random: &mut Random) -> Vec<Configuration> {
    let mut plan: Vec<Configuration> =
        ALL.iter().map(|choice| Configuration::default().with(*choice, choice.value(random))).collect();
    let mut pairs: Vec<[Choice; 2]> = Vec::new();
    for (index, first) in ALL.iter().enumerate() {
        pairs.extend(ALL[index + 1..].iter().map(|second| [*first, *second]));
    }
    random.shuffle(&mut pairs);
    plan.extend(pairs.iter().map(|pair| {
        let add = |base: Configuration, choice: &Choice| base.with(*choice, choice.value(random));
        pair.iter().fold(Configuration::sidecar(), add)
    }));
    for _ in 0..COMBINATIONS {
        plan.push(combination(random));
    }
    plan
}

/// Many options at once, usually on top of a sidecar's.
fn combination(random: &mut Random) -> Configuration {
    let mut configuration =
        if random.percent(70) { Configuration::sidecar() } else { Configuration::default() };
    for &choice in ALL {
        if random.percent(GIVEN_PERCENT) {
            configuration = configuration.with(choice, choice.value(random));
        }
    }
    configuration
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_has_all_pairs() {
        let plan = configurations(7, round_length());
        assert_eq!(plan, configurations(7, round_length()));
        assert_ne!(plan, configurations(8, round_length()));
        for (index, first) in ALL.iter().enumerate() {
            for second in &ALL[index + 1..] {
                let has = |configuration: &Configuration, choice| {
                    configuration.given().any(|(given, _)| given == choice)
                };
                let found = plan.iter().any(|it| has(it, *first) && has(it, *second));
                assert!(found, "{first:?} {second:?}");
            }
        }
    }
}
