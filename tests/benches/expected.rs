//! The expectations, and their verdicts.

use std::fmt;

use serde::Serialize;

use super::attach::CommandCost;
use super::node::NodeCost;
use super::pods::Way;
use super::rounds::Rate;
use super::stats::Estimate;

/// Expectations of the rates: name, of what, at least.
const RATES: [(&str, Against, f64); 7] = [
    ("connections, IPv4", Against::Direct, 0.95),
    ("connections, IPv4", Against::Iptables, 1.2),
    ("connections, IPv6", Against::Direct, 0.93),
    ("connections, inbound", Against::Direct, 0.965),
    ("requests", Against::Direct, 0.99),
    ("throughput", Against::Direct, 0.99),
    ("getsockopt of another socket", Against::Direct, 0.99),
];
/// CPU time of commands, of iptables-restore's, at most.
const COMMANDS: [(&str, f64); 2] = [("attach", 0.85), ("refresh", 0.6)];
/// Attaches at once, of as many iptables-restores at once; CPU of an attach with all instances, of one with few; KiB of
/// kernel memory of one more idle instance: at most.
const AT_ONCE: f64 = 0.5;
const SLOPE: f64 = 1.1;
const MEMORY_KIB: f64 = 48.0;

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

pub fn check(rates: &[Rate], commands: &[CommandCost], node: &NodeCost) -> Vec<Expectation> {
    let mut all = Vec::new();
    for (name, against, limit) in RATES {
        let Some(rate) = rates.iter().find(|rate| rate.name == name) else { continue };
        let (of, found) = match against {
            Against::Direct => ("direct", rate.by(Way::Redirector).of_direct),
            Against::Iptables => ("iptables-nft", rate.of_iptables_nft),
        };
        all.push(Expectation::new(format!("{name}, of {of}"), found, Bound::AtLeast(limit)));
    }
    for (name, limit) in COMMANDS {
        let Some(cost) = commands.iter().find(|cost| cost.command == name) else { continue };
        let figure = format!("{name}, CPU of iptables-restore");
        all.push(Expectation::new(figure, cost.of_iptables, Bound::AtMost(limit)));
    }
    let instances = node.instances;
    for (figure, found, limit) in [
        (
            format!("{instances} attaches at once by the agent, of iptables"),
            node.by_agent_at_once_ms / node.iptables_at_once_ms,
            AT_ONCE,
        ),
        (
            format!("attach with {instances} instances, of few"),
            node.attach_cpu_ms[1] / node.attach_cpu_ms[0],
            SLOPE,
        ),
        ("memory of one more instance, KiB".to_owned(), node.memory_kib, MEMORY_KIB),
    ] {
        all.push(Expectation::new(figure, Estimate::of([found]), Bound::AtMost(limit)));
    }
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
