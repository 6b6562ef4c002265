//! Two pods with the same addresses, that are put through one configuration after the other.

use std::slice::from_ref;

use anyhow::{Context, anyhow, bail};

use super::configuration::Configuration;
use super::half::{FIRST_OWN_PORT, Half};
use super::known::is_known;
use super::probes::Probe;
use crate::harness::names;
use crate::harness::oracle;
use crate::harness::oracle::mangle;
use crate::harness::oracle::options::Options;
use crate::harness::pair::compare::{Difference, compare, forgive_replaced_ports};
use crate::harness::probe::observation::Observation;
use crate::harness::product::{Run, exit, redirector};

/// How often the oracle is asked again where it differs.
const SECOND_OPINIONS: usize = 3;

/// A mistake that a test plants in the oracle's rules.
pub type Mistake = fn(&str) -> String;

/// What came of a configuration.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The probes that were run.
    pub probes: usize,
    /// Differences that are meant.
    pub documented: usize,
    /// The others, with the probe that shows each.
    pub differences: Vec<(usize, Difference)>,
    /// Where the probes ended, for a summary.
    pub reached: Reached,
}

/// Where probes ended under the oracle: a matrix in which nothing is captured would prove nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    /// Redirected.
    pub proxy: usize,
    /// Where they were going.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
}

/// The two pods.
pub struct Arena {
    oracle: Half,
    instance: Option<Attached>,
    subject: Half,
    own_port: u16,
    mistake: Option<Mistake>,
    /// The configuration in force.
    options: Options,
}

/// An instance; detached on drop.
struct Attached {
    name: String,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let run = redirector(&["detach", "--name", &self.name, "--ignore-missing"], &[]);
        if let Err(error) = run.and_then(|run| run.expect(exit::OK)) {
            eprintln!("clean-up: {error:#}");
        }
    }
}

impl Arena {
    /// Sets up both pods, with a mistake in the oracle's rules if the test wants one.
    ///
    /// # Errors
    /// When the machine does not let us.
    pub fn new(mistake: Option<Mistake>) -> anyhow::Result<Self> {
        // Not in threads of their own: what runs in the pods dies with the thread that started it.
        let (oracle, subject) = (Half::new()?, Half::new()?);
        Ok(Self {
            oracle,
            instance: None,
            subject,
            own_port: FIRST_OWN_PORT,
            mistake,
            options: Options::sidecar(),
        })
    }

    /// Detaches the product, so that the next configuration is not a change but an attachment.
    ///
    /// # Errors
    /// When it does not detach.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        let Some(instance) = self.instance.take() else { return Ok(()) };
        redirector(&["detach", "--name", &instance.name], &[])?.expect(exit::OK)?;
        Ok(())
    }

    /// Puts a configuration in force on both sides.
    ///
    /// # Errors
    /// When a side refuses it.
    pub fn configure(&mut self, configuration: &Configuration) -> anyhow::Result<()> {
        let before = std::mem::replace(&mut self.options, configuration.options());
        if before.tproxy.is_some() && self.options.tproxy.is_some() && before.tproxy != self.options.tproxy {
            // Mark and table cannot be exchanged.
            self.detach()?;
        }
        let mut texts = oracle::rule_texts(&self.options);
        if let Some(mistake) = self.mistake {
            texts = texts.map(|text| mistake(&text));
        }
        let netns = &self.oracle.world.pod().netns;
        std::thread::scope(|scope| {
            let oracle = scope.spawn(|| {
                mangle::route(netns, "del", &before)?;
                mangle::route(netns, "add", &self.options)?;
                oracle::load(netns, &texts)
            });
            let subject = attach(&self.subject, &mut self.instance, configuration);
            oracle.join().map_err(|_| anyhow!("a thread panicked"))??;
            subject
        })
        .with_context(|| format!("configuring {configuration}"))
    }

    /// Gives the oracle the rules of another configuration, without TPROXY in either: what differs then shows what the
    /// one in force does.
    ///
    /// # Errors
    /// When iptables refuses them.
    pub fn mislead_oracle(&self, configuration: &Configuration) -> anyhow::Result<()> {
        oracle::load(&self.oracle.world.pod().netns, &oracle::rule_texts(&configuration.options()))
    }

    /// Runs probes under the configuration in force.
    ///
    /// # Errors
    /// When a prober fails.
    pub fn run(&mut self, probes: &[Probe]) -> anyhow::Result<Outcome> {
        let (mut port, start) = (self.own_port, self.own_port);
        let (oracle, subject) = (&mut self.oracle, &mut self.subject);
        let (mut left, right) = std::thread::scope(|scope| {
            let right = scope.spawn(|| subject.observe(probes, &mut { start }));
            let left = oracle.observe(probes, &mut port)?;
            anyhow::Ok((left, right.join().map_err(|_| anyhow!("a thread panicked"))??))
        })?;
        self.own_port = port;
        let mut outcome = Outcome { probes: probes.len(), ..Outcome::default() };
        for index in 0..probes.len() {
            forgive_replaced_ports(&mut left[index]);
            outcome.reached.count(&left[index]);
            let mut found = compare(from_ref(&left[index]), from_ref(&right[index]));
            let all = found.len();
            found.retain(|difference| !is_known(&self.options, difference));
            outcome.documented += all - found.len();
            if !found.is_empty() && !self.agrees_after_all(&probes[index], &right[index], &found)? {
                outcome.differences.extend(found.into_iter().map(|difference| (index, difference)));
            }
        }
        Ok(outcome)
    }

    /// iptables itself varies, rarely (see `twin`): agreeing once is enough.
    fn agrees_after_all(
        &mut self,
        probe: &Probe,
        subject: &Observation,
        first: &[Difference],
    ) -> anyhow::Result<bool> {
        for _ in 0..SECOND_OPINIONS {
            let again = self.oracle.observe(from_ref(probe), &mut self.own_port)?;
            let mut again = again.into_iter().next().context("an observation")?;
            forgive_replaced_ports(&mut again);
            let differences = compare(from_ref(&again), from_ref(subject));
            if differences.iter().all(|difference| is_known(&self.options, difference)) {
                let shown = |row: &Difference| format!("{} was {}", row.field, row.left);
                let first: Vec<String> = first.iter().map(shown).collect();
                eprintln!("note: iptables itself varies in: {}: {}", again.scenario, first.join(", "));
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Reached {
    fn count(&mut self, seen: &Observation) {
        match &seen.reached {
            Some(reached) if reached.role == "proxy" => self.proxy += 1,
            Some(_) => self.passed += 1,
            None => self.failed += 1,
        }
    }

    /// Adds another's.
    pub fn add(&mut self, other: Self) {
        self.proxy += other.proxy;
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// `redirector attach`: the first time it attaches, after that it changes the policy (or finds it equal).
fn attach(half: &Half, instance: &mut Option<Attached>, configuration: &Configuration) -> anyhow::Result<()> {
    let known = instance.is_some();
    let name = &instance.get_or_insert_with(|| Attached { name: names::unique() }).name;
    let pod = half.world.pod();
    let target = if configuration.needs_name_servers() {
        vec!["--pid".to_owned(), half.pid().to_string()]
    } else {
        let (netns, cgroup) = (pod.netns.file().display(), pod.cgroup.directory().display());
        vec!["--netns".to_owned(), netns.to_string(), "--cgroup".to_owned(), cgroup.to_string()]
    };
    let flags = configuration.flags();
    let words = ["attach", "--name", name].into_iter().chain(target.iter().chain(&flags).map(String::as_str));
    let run: Run = redirector(&words.collect::<Vec<_>>(), &configuration.environment())?.expect(exit::OK)?;
    match run.json()?["outcome"].as_str() {
        Some("attached") if !known => Ok(()),
        Some("changed" | "unchanged") if known => Ok(()),
        other => bail!("{} gave {other:?}", run.command),
    }
}
