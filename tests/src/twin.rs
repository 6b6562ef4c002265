//! Two worlds with the same addresses, redirected by the oracle and by the subject of the test, put through the same.

use std::collections::BTreeSet;
use std::slice::from_ref;

use anyhow::{anyhow, ensure};

use crate::compare::{Difference, compare, forgive_replaced_ports, table};
use crate::documented::is_documented;
use crate::istio::Options;
use crate::matrix::Part;
use crate::observation::Observation;
use crate::parity::known::is_known;
use crate::retry;
use crate::side::{By, Setup, Side};

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
        let (mut left, mut right) = std::thread::scope(|scope| {
            let right = scope.spawn(|| self.subject.observe_all(parts));
            let left = self.oracle.observe_all(parts)?;
            anyhow::Ok((left, right.join().map_err(|_| anyhow!("a thread panicked"))??))
        })?;
        ensure!(!left.is_empty(), "nothing was observed");
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
        let (seen, mut differences) = self.run(parts)?;
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
        Ok(seen)
    }
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
