//! The report of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::configuration::Configuration;
use super::options::{ALL, Choice};
use super::pair::{Comparison, Ends};
use super::shrink::Finding;

/// The sums of some configurations.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    configurations: usize,
    probes: usize,
    documented: usize,
    unexplained: usize,
}

impl Sum {
    fn add(&mut self, comparison: &Comparison) {
        self.configurations += 1;
        self.probes += comparison.probes;
        self.documented += comparison.documented;
        self.unexplained += comparison.differences.len();
    }
}

/// A run, summed up.
#[derive(Debug, Default)]
pub struct ParityReport {
    by_option: BTreeMap<Choice, Sum>,
    all: Sum,
    ends: Ends,
    /// How long it took.
    pub took: Duration,
    pub findings: Vec<Finding>,
    /// Configurations whose differences are not among the findings.
    pub not_shrunk: Vec<Configuration>,
    /// Configurations of which the differences did not come again.
    pub not_again: Vec<Configuration>,
}

impl ParityReport {
    /// Adds the comparison of a configuration.
    pub fn add(&mut self, configuration: &Configuration, comparison: &Comparison) {
        self.all.add(comparison);
        self.ends.add(comparison.ends);
        for (choice, _) in configuration.given() {
            self.by_option.entry(choice).or_default().add(comparison);
        }
    }

    /// Whether nothing differs that is not meant to.
    pub fn is_clean(&self) -> bool {
        self.all.unexplained == 0
    }

    /// The number of configurations.
    pub fn configurations(&self) -> usize {
        self.all.configurations
    }

    /// Where the probes ended.
    pub fn ends(&self) -> Ends {
        self.ends
    }
}

impl fmt::Display for ParityReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:38} {:>14} {:>9} {:>10} {:>11}",
            "option", "configurations", "probes", "documented", "unexplained"
        )?;
        let mut line = |name: &str, sum: Sum| {
            let Sum { configurations, probes, documented, unexplained } = sum;
            writeln!(f, "{name:38} {configurations:>14} {probes:>9} {documented:>10} {unexplained:>11}")
        };
        for &choice in ALL {
            line(choice.name(), self.by_option.get(&choice).copied().unwrap_or_default())?;
        }
        line("(all)", self.all)?;
        let Ends { proxy, passed, failed } = self.ends;
        let each = self.took.as_secs_f64() / self.all.configurations.max(1) as f64;
        writeln!(
            f,
            "\nUnder iptables {proxy} probes ended at the proxy, {passed} where they were going, {failed} failed."
        )?;
        writeln!(f, "{:.1} s, {each:.2} s for each configuration.", self.took.as_secs_f64())?;
        for (number, finding) in self.findings.iter().enumerate() {
            write!(f, "\nDifference {}: {finding}", number + 1)?;
        }
        for (list, what) in
            [(&self.not_shrunk, "Differs, too"), (&self.not_again, "Differed once, but not again")]
        {
            for configuration in list {
                write!(f, "\n{what}: {configuration}")?;
            }
        }
        Ok(())
    }
}
