//! The rounds: every pod does everything once, and again, and again.

use serde::Serialize;

use super::pods::{MeasuredPods, NAMES};
use super::stats::Estimate;
use super::worker::{Job, Mode};
use super::{Settings, say, sys};

/// What is measured in each round: mode, name, unit, how many of what a worker counts make a unit.
const FIGURES: [(Mode, &str, &str, f64); 3] = [
    (Mode::Connections, "connections", "connections/s", 1.0),
    (Mode::Requests, "requests", "requests/s", 1.0),
    (Mode::Bulk, "throughput", "MiB/s", 1024.0 * 1024.0),
];

/// A rate, each way.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    pub name: &'static str,
    pub unit: &'static str,
    pub direct: Estimate,
    /// With the rules of istio-init.
    pub iptables: Estimate,
    pub redirector: Estimate,
    /// The product's as a part of the direct one, round by round.
    pub of_direct: Estimate,
    /// The product's as a multiple of iptables', round by round.
    pub of_iptables: Estimate,
    /// iptables' as a part of the direct one, round by round.
    pub iptables_of_direct: Estimate,
}

/// Lets the pods take turns.
pub fn run(pods: &mut MeasuredPods, settings: Settings) -> anyhow::Result<Vec<Rate>> {
    let mut samples = vec![[const { Vec::new() }; NAMES.len()]; FIGURES.len()];
    // The first round warms caches up and does not count.
    for round in 0..=settings.rounds {
        if round % 20 == 1 {
            say(&format!("round {round} of {}", settings.rounds));
        }
        for (figure, (mode, _, _, one)) in samples.iter_mut().zip(FIGURES) {
            for turn in 0..NAMES.len() {
                sys::go_on()?;
                // Nobody is always the first.
                let place = (turn + round as usize) % NAMES.len();
                let pod = &mut pods.all[place];
                let done = pod.client.run(Job { mode, to: pod.to, slice: settings.slice })?;
                if round > 0 {
                    figure[place].push(done.amount as f64 / one / done.time.as_secs_f64());
                }
            }
        }
    }
    Ok(FIGURES.iter().zip(&samples).map(|((_, name, unit, _), figure)| rate(name, unit, figure)).collect())
}

fn rate(name: &'static str, unit: &'static str, [direct, iptables, redirector]: &[Vec<f64>; 3]) -> Rate {
    let all = |samples: &[f64]| Estimate::of(samples.iter().copied());
    let ratio = |ours: &[f64], theirs: &[f64]| Estimate::of(ours.iter().zip(theirs).map(|(a, b)| a / b));
    Rate {
        name,
        unit,
        direct: all(direct),
        iptables: all(iptables),
        redirector: all(redirector),
        of_direct: ratio(redirector, direct),
        of_iptables: ratio(redirector, iptables),
        iptables_of_direct: ratio(iptables, direct),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine gets slower and slower, all alike.
        let slower = |factor: f64| (1..=9).map(|round| factor / f64::from(round)).collect::<Vec<_>>();
        let rate = rate("x", "x/s", &[slower(4.0), slower(1.0), slower(2.0)]);
        assert_eq!(rate.of_direct, Estimate { median: 0.5, low: 0.5, high: 0.5 });
        assert_eq!(rate.of_iptables.median, 2.0);
        assert_eq!(rate.iptables_of_direct.median, 0.25);
        assert_eq!(rate.direct.median, 0.8);
    }
}
