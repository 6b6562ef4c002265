//! The expectations from before the first measurement, and their verdicts.

use std::fmt;

use serde::Serialize;

use super::attach::Attach;
use super::hooks::Hook;
use super::rounds::Rate;
use super::stats::Estimate;

/// Expectations of the rates: name, of what, at least.
const RATES: [(&str, Against, f64); 5] = [
    ("connections", Against::Direct, 0.9),
    ("connections", Against::Iptables, 1.15),
    ("requests", Against::Direct, 0.97),
    ("throughput", Against::Direct, 0.97),
    ("throughput", Against::Iptables, 1.4),
];
/// No hook takes longer, in nanoseconds.
const HOOK_NS: f64 = 500.0;
/// Nor attach, in milliseconds.
const ATTACH_MS: f64 = 50.0;

enum Against {
    Direct,
    Iptables,
}

/// Where the figure must not be beyond.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// It must not be less.
    AtLeast(f64),
    /// It must not be more.
    AtMost(f64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(limit) => write!(f, ">= {limit}"),
            Self::AtMost(limit) => write!(f, "<= {limit}"),
        }
    }
}

/// Whether an expectation came true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval says so.
    Met,
    /// The whole interval says not.
    Missed,
    /// The bound is inside the interval.
    Open,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Missed => "MISSED",
            Self::Open => "open: within the interval",
        })
    }
}

/// An expectation, with what was found.
#[derive(Clone, Debug, Serialize)]
pub struct Expectation {
    pub figure: String,
    pub found: Estimate,
    pub bound: Bound,
    /// Whether it came true.
    pub verdict: Verdict,
}

impl Expectation {
    fn new(figure: impl Into<String>, found: Estimate, bound: Bound) -> Self {
        let (all, any) = match bound {
            Bound::AtLeast(limit) => (found.low >= limit, found.high >= limit),
            Bound::AtMost(limit) => (found.high <= limit, found.low <= limit),
        };
        let verdict = if all {
            Verdict::Met
        } else if any {
            Verdict::Open
        } else {
            Verdict::Missed
        };
        Self { figure: figure.into(), found, bound, verdict }
    }
}

pub fn check(rates: &[Rate], hooks: &[Hook], attach: &Attach) -> Vec<Expectation> {
    let mut all = Vec::new();
    for (name, against, limit) in RATES {
        let Some(rate) = rates.iter().find(|rate| rate.name == name) else { continue };
        let (of, found) = match against {
            Against::Direct => ("direct", rate.of_direct),
            Against::Iptables => ("iptables", rate.of_iptables),
        };
        all.push(Expectation::new(format!("{name}, of {of}"), found, Bound::AtLeast(limit)));
    }
    if let Some(slowest) = hooks.iter().max_by(|a, b| a.mean_ns.median.total_cmp(&b.mean_ns.median)) {
        let figure = format!("slowest hook, ns ({}, {})", slowest.hook, slowest.load);
        all.push(Expectation::new(figure, slowest.mean_ns, Bound::AtMost(HOOK_NS)));
    }
    all.push(Expectation::new("attach, ms", attach.attach_ms, Bound::AtMost(ATTACH_MS)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_interval_counts() {
        let found = Estimate { median: 0.95, low: 0.9, high: 0.99 };
        let verdict = |bound| Expectation::new("x", found, bound).verdict;
        assert_eq!(verdict(Bound::AtLeast(0.9)), Verdict::Met);
        assert_eq!(verdict(Bound::AtLeast(0.97)), Verdict::Open);
        assert_eq!(verdict(Bound::AtLeast(1.0)), Verdict::Missed);
        assert_eq!(verdict(Bound::AtMost(0.99)), Verdict::Met);
        assert_eq!(verdict(Bound::AtMost(0.91)), Verdict::Open);
        assert_eq!(verdict(Bound::AtMost(0.5)), Verdict::Missed);
    }
}
