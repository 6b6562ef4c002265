//! From a configuration that shows a difference to the smallest one, and one probe.

use std::fmt;

use super::configuration::Configuration;
use super::options::Choice;
use super::pair::ParityPair;
use super::probes::Probe;
use crate::harness::pair::compare::{Difference, table};

/// A difference, in few words.
#[derive(Clone, Debug)]
pub struct Finding {
    pub configuration: Configuration,
    /// The probe that shows it.
    pub probe: Probe,
    pub differences: Vec<Difference>,
    /// Seen only when this configuration was in force before.
    pub after: Option<Configuration>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "configuration: {}", self.configuration)?;
        if let Some(before) = &self.after {
            writeln!(f, "not when attached anew, only after: {before}")?;
        }
        write!(f, "{}", table(&self.differences, "iptables", "redirector"))
    }
}

/// Looks for the smallest configuration under which any of the probes differs. `before` is the configuration that was
/// in force before this one.
pub fn shrink(
    pair: &mut ParityPair,
    configuration: &Configuration,
    probes: &[Probe],
    before: Option<&Configuration>,
) -> anyhow::Result<Option<Finding>> {
    if !differ(pair, configuration, probes, None)?.is_empty() {
        return smallest(pair, configuration.clone(), probes, None).map(Some);
    }
    let Some(before) = before else { return Ok(None) };
    if differ(pair, configuration, probes, Some(before))?.is_empty() {
        return Ok(None);
    }
    smallest(pair, configuration.clone(), probes, Some(before)).map(Some)
}

fn smallest(
    pair: &mut ParityPair,
    mut configuration: Configuration,
    probes: &[Probe],
    before: Option<&Configuration>,
) -> anyhow::Result<Finding> {
    loop {
        let mut smaller = None;
        for candidate in candidates(&configuration) {
            if !differ(pair, &candidate, probes, before)?.is_empty() {
                smaller = Some(candidate);
                break;
            }
        }
        match smaller {
            Some(candidate) => configuration = candidate,
            None => break,
        }
    }
    let found = differ(pair, &configuration, probes, before)?;
    let index = found.iter().map(|(index, _)| *index).min();
    let index = index.ok_or_else(|| anyhow::anyhow!("seen before, but not again: {configuration}"))?;
    let probe = probes[index].clone();
    // By itself, it must differ, too.
    let alone = differ(pair, &configuration, std::slice::from_ref(&probe), before)?;
    anyhow::ensure!(!alone.is_empty(), "only together with other probes: {}", probe.scenario.name);
    let differences = alone.into_iter().map(|(_, difference)| difference).collect();
    Ok(Finding { configuration, probe, differences, after: before.cloned() })
}

/// Attaches anew, and compares.
fn differ(
    pair: &mut ParityPair,
    configuration: &Configuration,
    probes: &[Probe],
    before: Option<&Configuration>,
) -> anyhow::Result<Vec<(usize, Difference)>> {
    pair.detach()?;
    if let Some(before) = before {
        pair.configure(before)?;
    }
    pair.configure(configuration)?;
    Ok(pair.run(probes)?.differences)
}

/// The same with one option, or one item of a list, less.
fn candidates(configuration: &Configuration) -> Vec<Configuration> {
    let given: Vec<(Choice, &str)> = configuration.given().collect();
    let mut all: Vec<Configuration> =
        given.iter().map(|(choice, _)| configuration.clone().without(*choice)).collect();
    for (choice, value) in given {
        let items: Vec<&str> = value.split(',').collect();
        for dropped in (0..items.len()).filter(|_| items.len() > 1) {
            let mut rest = items.clone();
            rest.remove(dropped);
            all.push(configuration.clone().with(choice, rest.join(",")));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_first_then_items() {
        let configuration =
            Configuration::default().with(Choice::OutboundPorts, "1,2").with(Choice::Cidrs, "*");
        let shown: Vec<String> = candidates(&configuration).iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "--istio-defaults -q 1,2",
                "--istio-defaults -i '*'",
                "--istio-defaults -i '*' -q 2",
                "--istio-defaults -i '*' -q 1"
            ]
        );
    }
}
