//! Two worlds with the same addresses, the reference and the subject, put through the same connections.
//!
//! * A [`fixture`] is one of them, the [`matrix`] has the connections, and [`compare`](mod@compare) compares the fields.

pub mod compare;
pub mod fixture;
pub mod matrix;

use std::collections::BTreeSet;
use std::slice::from_ref;

use anyhow::{anyhow, ensure};

use self::compare::{Difference, compare, forgive_replaced_ports, table};
use self::fixture::{Fixture, Redirection, Setup};
use self::matrix::Part;
use crate::harness::oracle::documented::is_documented;
use crate::harness::oracle::options::Options;
use crate::harness::probe::observation::Observation;
use crate::harness::retry;

/// How often a side is asked again where it differs.
const SECOND_OPINIONS: usize = 3;

/// Accidents are rare: where more scenarios differ, asking again is no help.
const MAX_ASKED_AGAIN: usize = 100;

pub struct Pair {
    /// Real iptables redirects its pod.
    pub reference: Fixture,
    /// The system under test redirects its pod.
    pub subject: Fixture,
}

impl Pair {
    /// The sidecar's rules beside `redirector attach` without options.
    pub fn of_sidecars(setup: &Setup) -> anyhow::Result<Self> {
        Self::new(Options::sidecar(), Redirection::redirector(), setup)
    }

    /// Rules and `redirector attach` with the same options.
    pub fn with(options: Options, setup: &Setup) -> anyhow::Result<Self> {
        let subject = Redirection::with(&options);
        Self::new(options, subject, setup)
    }

    /// Rules with these options beside anything.
    pub fn new(options: Options, subject: Redirection, setup: &Setup) -> anyhow::Result<Self> {
        let reference = Fixture::with(Redirection::Iptables(options), setup)?;
        Ok(Self { reference, subject: Fixture::with(subject, setup)? })
    }

    /// Runs everything in both worlds and gives what the reference saw, and what differs, documented or not.
    ///
    /// netfilter replaces source ports; see [`forgive_replaced_ports`]. Where something else differs the reference is
    /// asked again, and agreeing then is enough: `SO_ORIGINAL_DST` at the wrong level looks up 127.0.0.6 for an IPv6
    /// socket, which finds something if a connection of that address happens to have the same ports. The subject is not
    /// asked again: it has no such excuse. Except in an emulated machine, where either side's connection from a port
    /// that was reset just now may meet the remains of the one before.
    pub fn run(&self, parts: &[Part]) -> anyhow::Result<(Vec<Observation>, Vec<Difference>)> {
        let (mut left, mut right) = self.observe(parts)?;
        self.ask_again(&self.reference, parts, &mut left, &right)?;
        if !matches!(self.subject.redirection, Redirection::Redirector { .. }) || retry::is_slow() {
            self.ask_again(&self.subject, parts, &mut right, &left)?;
        }
        let differences = compare(&left, &right);
        Ok((left, differences))
    }

    /// Fails with a table, if anything differs that is not meant to; else gives what the reference saw.
    pub fn check(&self, parts: &[Part]) -> anyhow::Result<Vec<Observation>> {
        let (observed, differences) = self.run(parts)?;
        self.judge(parts, differences)?;
        Ok(observed)
    }

    /// As [`check`](Self::check), with a proxy that connects onwards from the same namespace. Nothing is asked again, so
    /// that the proxy's own log has each connection once.
    ///
    /// Once in 14,000 connections the kernel picks for the proxy the very port that its client has: in one scenario
    /// the server may see the client's own port on one side only. Whether the proxy has had the connection its log tells.
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

    /// Whether a difference is meant, under the rules of the reference.
    pub fn is_documented(&self, difference: &Difference) -> bool {
        match &self.reference.redirection {
            Redirection::Iptables(options) | Redirection::Nft(options) => is_documented(options, difference),
            _ => false,
        }
    }

    fn observe(&self, parts: &[Part]) -> anyhow::Result<(Vec<Observation>, Vec<Observation>)> {
        let (left, right) = std::thread::scope(|scope| {
            let right = scope.spawn(|| self.subject.observe_all(parts));
            let left = self.reference.observe_all(parts)?;
            anyhow::Ok((left, right.join().map_err(|_| anyhow!("a thread panicked"))??))
        })?;
        ensure!(!left.is_empty(), "nothing was observed");
        Ok((left, right))
    }

    fn judge(&self, parts: &[Part], mut differences: Vec<Difference>) -> anyhow::Result<()> {
        differences.retain(|difference| !self.is_documented(difference));
        let scenarios: BTreeSet<&str> = differences.iter().map(|row| row.scenario.as_str()).collect();
        ensure!(
            differences.is_empty(),
            "{} fields differ in {} of {} scenarios:\n{}",
            differences.len(),
            scenarios.len(),
            parts.iter().map(|part| part.scenarios.len()).sum::<usize>(),
            table(&differences, self.reference.redirection.label(), self.subject.redirection.label())
        );
        Ok(())
    }

    /// Repeats on one side what differs, and keeps the answers that agree.
    fn ask_again(
        &self,
        fixture: &Fixture,
        parts: &[Part],
        ours: &mut [Observation],
        theirs: &[Observation],
    ) -> anyhow::Result<()> {
        ours.iter_mut().for_each(forgive_replaced_ports);
        let differences = |one: &Observation, other: &Observation| {
            let mut rows = compare(from_ref(one), from_ref(other));
            rows.retain(|row| !self.is_documented(row));
            rows
        };
        for _ in 0..SECOND_OPINIONS {
            let mut indices = Vec::new();
            let mut doubtful = Vec::new();
            let mut pairs = ours.iter().zip(theirs).enumerate();
            for Part { caller, scenarios } in parts {
                let mut again = Part { caller: *caller, scenarios: Vec::new() };
                for (scenario, (index, (one, other))) in scenarios.iter().zip(&mut pairs) {
                    if !differences(one, other).is_empty() {
                        again.scenarios.push(scenario.clone());
                        indices.push(index);
                    }
                }
                doubtful.push(again);
            }
            if indices.is_empty() || indices.len() > MAX_ASKED_AGAIN {
                break;
            }
            for (index, mut again) in indices.into_iter().zip(fixture.observe_all(&doubtful)?) {
                forgive_replaced_ports(&mut again);
                if differences(&again, &theirs[index]).is_empty() {
                    let label = fixture.redirection.label();
                    let rows = differences(&ours[index], &theirs[index]);
                    let fields: Vec<&str> = rows.iter().map(|row| row.field.as_str()).collect();
                    eprintln!("note: {label} itself varies in: {}: {}", again.scenario, fields.join(", "));
                    ours[index] = again;
                }
            }
        }
        Ok(())
    }
}

/// The same address, whose port is the client's own on one side, and another picked one on the other.
fn is_port_alone(difference: &Difference) -> bool {
    let sides = [&difference.left, &difference.right].map(|text| text.rsplit_once(':'));
    let [Some((left, port)), Some((right, others))] = sides else { return false };
    left == right && matches!((port, others), ("<own>", "<other>") | ("<other>", "<own>"))
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
