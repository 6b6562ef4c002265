//! The rounds: every pod does everything once, and again, and again.

use serde::Serialize;

use super::pods::{Destination, MeasuredPods, WAYS, Way};
use super::stats::Estimate;
use super::worker::{Job, Mode};
use super::{Settings, say, sys};

/// What is measured in each round.
struct Figure {
    mode: Mode,
    destination: Destination,
    name: &'static str,
    unit: &'static str,
    /// How many of what a worker counts make a unit.
    one: f64,
}

const FIGURES: [Figure; 6] = [
    figure(Mode::Connections, Destination::V4, "connections, IPv4", "connections/s"),
    figure(Mode::Connections, Destination::V6, "connections, IPv6", "connections/s"),
    figure(Mode::Connections, Destination::Inbound, "connections, inbound", "connections/s"),
    figure(Mode::Requests, Destination::V4, "requests", "requests/s"),
    Figure { one: 1024.0 * 1024.0, ..figure(Mode::Bulk, Destination::V4, "throughput", "MiB/s") },
    figure(Mode::Options, Destination::V4, "getsockopt of another socket", "calls/s"),
];

const fn figure(mode: Mode, destination: Destination, name: &'static str, unit: &'static str) -> Figure {
    Figure { mode, destination, name, unit, one: 1.0 }
}

/// One figure, each way.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    pub name: &'static str,
    pub unit: &'static str,
    /// In the order of [`WAYS`].
    pub ways: Vec<WayRate>,
    /// The product's as a multiple of each iptables', round by round.
    pub of_iptables_nft: Estimate,
    pub of_iptables_legacy: Estimate,
}

/// A figure, one way.
#[derive(Clone, Debug, Serialize)]
pub struct WayRate {
    pub way: Way,
    pub rate: Estimate,
    /// As a part of the direct one, round by round.
    pub of_direct: Estimate,
    /// Microseconds of one connect() or one request.
    pub p50_us: Estimate,
    pub p99_us: Estimate,
}

impl Rate {
    /// One way's.
    pub fn by(&self, way: Way) -> &WayRate {
        &self.ways[way as usize]
    }
}

#[derive(Clone, Default)]
struct Samples {
    rates: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

/// Lets the pods take turns.
pub fn run(pods: &mut MeasuredPods, settings: Settings) -> anyhow::Result<Vec<Rate>> {
    let mut samples = vec![vec![Samples::default(); WAYS.len()]; FIGURES.len()];
    // The first round warms caches up and does not count.
    for round in 0..=settings.rounds {
        if round % 20 == 1 {
            say(&format!("round {round} of {}", settings.rounds));
        }
        for (samples, figure) in samples.iter_mut().zip(&FIGURES) {
            for turn in 0..WAYS.len() {
                sys::go_on()?;
                // Nobody is always the first.
                let way = (turn + round as usize) % WAYS.len();
                let job = |to| Job { mode: figure.mode, to, slice: settings.slice };
                let done = pods.run(way, figure.destination, job)?;
                if round > 0 {
                    samples[way].rates.push(done.amount as f64 / figure.one / done.time.as_secs_f64());
                    samples[way].p50.extend(done.p50.map(|time| time.as_secs_f64() * 1e6));
                    samples[way].p99.extend(done.p99.map(|time| time.as_secs_f64() * 1e6));
                }
            }
        }
    }
    Ok(FIGURES
        .iter()
        .zip(samples)
        .map(|(figure, samples)| rate(figure.name, figure.unit, &samples))
        .collect())
}

fn rate(name: &'static str, unit: &'static str, samples: &[Samples]) -> Rate {
    let all = |samples: &[f64]| Estimate::of(samples.iter().copied());
    let ratio = |ours: &[f64], theirs: Way| {
        Estimate::of(ours.iter().zip(&samples[theirs as usize].rates).map(|(a, b)| a / b))
    };
    let ours = &samples[Way::Redirector as usize].rates;
    Rate {
        name,
        unit,
        ways: WAYS
            .into_iter()
            .zip(samples)
            .map(|(way, samples)| WayRate {
                way,
                rate: all(&samples.rates),
                of_direct: ratio(&samples.rates, Way::Direct),
                p50_us: all(&samples.p50),
                p99_us: all(&samples.p99),
            })
            .collect(),
        of_iptables_nft: ratio(ours, Way::IptablesNft),
        of_iptables_legacy: ratio(ours, Way::IptablesLegacy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        // The machine gets slower and slower, all alike.
        let slower = |factor: f64| Samples {
            rates: (1..=9).map(|round| factor / f64::from(round)).collect(),
            ..Samples::default()
        };
        let rate = rate("x", "x/s", &[4.0, 3.9, 1.0, 0.5, 2.0].map(slower));
        assert_eq!(rate.by(Way::Redirector).of_direct, Estimate { median: 0.5, low: 0.5, high: 0.5 });
        assert_eq!(rate.of_iptables_nft.median, 2.0);
        assert_eq!(rate.of_iptables_legacy.median, 4.0);
        assert_eq!(rate.by(Way::IptablesNft).of_direct.median, 0.25);
        assert_eq!(rate.by(Way::Direct).rate.median, 0.8);
    }
}
