//! Two worlds with the same addresses, redirected by the oracle and by the subject of the test, put through the same.

pub mod compare;
pub mod fixture;
pub mod matrix;

use std::collections::BTreeSet;
use std::slice::from_ref;

use anyhow::{anyhow, ensure};

use crate::harness::oracle::documented::is_documented;
use crate::harness::oracle::options::Options;
use crate::harness::pair::compare::{Difference, compare, forgive_replaced_ports, table};
use crate::harness::pair::fixture::{By, Setup, Side};
use crate::harness::pair::matrix::Part;
use crate::harness::parity::known::is_known;
use crate::harness::probe::observation::Observation;
use crate::harness::retry;

/// How often the oracle is asked again where it differs.
const SECOND_OPINIONS: usize = 3;

/// Accidents are rare: where more scenarios differ, asking again is no help.
const DOUBTFUL: usize = 100;

/// The two worlds.
pub struct Twin {
    /// Redirected by real iptables.
    pub oracle: Side,
    /// Redirected by what is tested.
    pub subject: Side,
}

impl Twin {
    /// The sidecar's rules beside `redirector attach` without options.
    ///
    /// # Errors
    /// When either cannot be set up.
    pub fn of_redirector(setup: &Setup) -> anyhow::Result<Self> {
        Self::new(Options::sidecar(), By::Redirector, setup)
    }

    /// Sets up both.
    ///
    /// # Errors
    /// When either cannot be set up.
    pub fn new(options: Options, subject: By, setup: &Setup) -> anyhow::Result<Self> {
        let oracle = Side::with(By::Iptables(options), setup)?;
        Ok(Self { oracle, subject: Side::with(subject, setup)? })
    }

    /// Runs everything in both worlds and gives what the oracle saw, and what differs.
    ///
    /// netfilter replaces source ports; see [`forgive_replaced_ports`]. Where something else differs it is asked again,
    /// and agreeing then is enough: `SO_ORIGINAL_DST` at the wrong level looks up 127.0.0.6 for an IPv6 socket, which
    /// finds something if a connection of that address happens to have the same ports. The subject is not asked again:
    /// it has no such excuse. Except in an emulated machine, where either side's connection from a port that was reset just now
    /// may meet the remains of the one before.
    ///
    /// # Errors
    /// When a probe fails.
    pub fn run(&self, parts: &[Part]) -> anyhow::Result<(Vec<Observation>, Vec<Difference>)> {
        let (mut left, mut right) = self.observe(parts)?;
        ask_again(&self.oracle, parts, &mut left, &right)?;
        if matches!(self.subject.by, By::Iptables(_)) || retry::is_slow() {
            ask_again(&self.subject, parts, &mut right, &left)?;
        }
        let differences = compare(&left, &right);
        Ok((left, differences))
    }

    /// Fails with a table, if anything differs that is not meant to; else gives what the oracle saw.
    ///
    /// # Errors
    /// When a probe fails or anything differs.
    pub fn check(&self, parts: &[Part]) -> anyhow::Result<Vec<Observation>> {
        let (seen, differences) = self.run(parts)?;
        self.judge(parts, differences)?;
        Ok(seen)
    }

    /// As [`check`](Self::check), with a proxy that connects onwards from the same namespace. Nothing is asked again, so
    /// that the proxy's own log has each connection once.
    ///
    /// Once in 14,000 connections the kernel picks for the proxy the very port that its client has: in one scenario
    /// the server may see the client's own port on one side only. Whether the proxy has had the connection its log tells.
    ///
    /// # Errors
    /// When a probe fails or anything else differs.
    pub fn check_through_proxy(&self, parts: &[Part]) -> anyhow::Result<Vec<Observation>> {
        let (left, right) = self.observe(parts)?;
        let mut differences = compare(&left, &right);
        let coincidences: BTreeSet<String> =
            differences.iter().filter(|row| is_port_alone(row)).map(|row| row.scenario.clone()).collect();
        if coincidences.len() == 1 {
            differences.retain(|row| !is_port_alone(row));
        }
        self.judge(parts, differences)?;
        Ok(left)
    }

    fn observe(&self, parts: &[Part]) -> anyhow::Result<(Vec<Observation>, Vec<Observation>)> {
        let (left, right) = std::thread::scope(|scope| {
            let right = scope.spawn(|| self.subject.observe_all(parts));
            let left = self.oracle.observe_all(parts)?;
            anyhow::Ok((left, right.join().map_err(|_| anyhow!("a thread panicked"))??))
        })?;
        ensure!(!left.is_empty(), "nothing was observed");
        Ok((left, right))
    }

    fn judge(&self, parts: &[Part], mut differences: Vec<Difference>) -> anyhow::Result<()> {
        differences.retain(|difference| match &self.oracle.by {
            By::Iptables(options) => !is_known(options, difference),
            _ => !is_documented(difference),
        });
        let scenarios: BTreeSet<&str> = differences.iter().map(|row| row.scenario.as_str()).collect();
        ensure!(
            differences.is_empty(),
            "{} fields differ in {} of {} scenarios:\n{}",
            differences.len(),
            scenarios.len(),
            parts.iter().map(|part| part.scenarios.len()).sum::<usize>(),
            table(&differences, self.oracle.by.label(), self.subject.by.label())
        );
        Ok(())
    }
}

/// The same address, whose port is the client's own on one side, and another picked one on the other.
fn is_port_alone(difference: &Difference) -> bool {
    let sides = [&difference.left, &difference.right].map(|text| text.rsplit_once(':'));
    let [Some((left, port)), Some((right, others))] = sides else { return false };
    left == right && matches!((port, others), ("<own>", "<other>") | ("<other>", "<own>"))
}

/// Repeats on an iptables side what differs, and keeps the answers that agree.
fn ask_again(
    side: &Side,
    parts: &[Part],
    ours: &mut [Observation],
    theirs: &[Observation],
) -> anyhow::Result<()> {
    ours.iter_mut().for_each(forgive_replaced_ports);
    let same = |one: &Observation, other: &Observation| compare(from_ref(one), from_ref(other)).is_empty();
    for _ in 0..SECOND_OPINIONS {
        let mut places = Vec::new();
        let mut doubtful = Vec::new();
        let mut index = 0;
        for part in parts {
            let mut again = Part { caller: part.caller, scenarios: Vec::new() };
            for scenario in &part.scenarios {
                if !same(&ours[index], &theirs[index]) {
                    again.scenarios.push(scenario.clone());
                    places.push(index);
                }
                index += 1;
            }
            doubtful.push(again);
        }
        if places.is_empty() || places.len() > DOUBTFUL {
            break;
        }
        for (index, mut again) in places.into_iter().zip(side.observe_all(&doubtful)?) {
            forgive_replaced_ports(&mut again);
            if same(&again, &theirs[index]) {
                eprintln!("note: {} itself varies in: {}", side.by.label(), again.scenario);
                ours[index] = again;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_told_from_an_address() {
        let row = |left: &str, right: &str| Difference {
            scenario: String::new(),
            field: "reached.peer".to_owned(),
            left: left.to_owned(),
            right: right.to_owned(),
        };
        assert!(is_port_alone(&row("10.77.0.2:<other>", "10.77.0.2:<own>")));
        assert!(!is_port_alone(&row("10.77.0.2:<other>", "10.77.0.3:<own>")));
        assert!(!is_port_alone(&row("10.77.0.2:80", "10.77.0.2:<own>")));
        assert!(!is_port_alone(&row("ECONNREFUSED", "10.77.0.2:<own>")));
    }
}
