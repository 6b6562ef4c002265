//! Passes: gather, plan, execute. What fails is tried again, later each time.

use super::decisions;
use super::file_events::{Names, Signs};
use super::plan::{At, FILE, POD, Step, Want, plan};
use super::retry::Failures;
use super::target_files::{self, Entry};
use super::target_path::Place;
use super::{Agent, lock};
use crate::base::error::{Error, Result};
use crate::cni_install;
use crate::instance::attach::{self, Attached, Outcome};
use crate::instance::inventory::{InstanceState, InventoryItem, take_inventory};
use crate::instance::{detach, find, sweep, upgrade};
use crate::netdev::virtual_interfaces;
use crate::pod::{Target, kubernetes, live_rules};
use crate::policy::Policy;
use crate::routes::RouteSnapshot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the agent remembers from one pass to the next. Nothing of it is needed to start again.
#[derive(Default)]
pub struct Memory {
    pub(super) failures: Failures,
    /// How each followed namespace was when its instance was last refreshed, by cookie.
    pub(super) mirrors: Mutex<HashMap<u64, RouteSnapshot>>,
    /// Namespaces of which something was heard that nobody has looked at yet, by cookie.
    pub(super) heard: Mutex<BTreeSet<u64>>,
    /// Held by who reads a namespace into its instance, until that is remembered.
    pub(super) looking: Mutex<()>,
    /// Since when files are missing, by the names of their instances.
    missing: Mutex<BTreeMap<String, Instant>>,
    pub(super) decisions: decisions::Read,
    ending: Mutex<Ending>,
    /// A namespace is being made or removed.
    soon: AtomicBool,
}

/// How many passes in a row have seen a namespace that is not whole, or that nobody can follow.
#[derive(Default)]
struct Ending(u32);

impl Ending {
    /// Counts a pass; None if it has seen none.
    fn next(&mut self, seen: bool) -> Option<u32> {
        self.0 = if seen { self.0 + 1 } else { 0 };
        seen.then_some(self.0)
    }
}

/// A file that is missing this long is gone: some editors rename the old one before they write the new one.
const SAVING: Duration = Duration::from_secs(1);

/// Something that shall be captured and is there.
pub(super) struct Here {
    pub target: Target,
    pub policy: Policy,
    pub allow_partial: bool,
}

/// Passes for ever: one now, then one whenever something happens, or after a while.
pub async fn passes(agent: Arc<Agent>) -> Result<()> {
    loop {
        let passing = Arc::clone(&agent);
        let next = tokio::task::spawn_blocking(move || passing.pass()).await;
        let next = next.map_err(|e| Error::failed(format!("a pass has panicked: {e}")))?;
        agent.health.passed();
        let _ = tokio::time::timeout(next, agent.wake.notified()).await;
    }
}

impl Agent {
    /// Looks at everything once; says when to look again at the latest.
    fn pass(&self) -> Duration {
        let begin = Instant::now();
        // What a killed agent has left half-made; others at work have it in hand.
        for swept in sweep::sweep_if_idle(&self.root).unwrap_or_default() {
            tracing::info!("{swept}");
        }
        // First what there is, then what is wanted: whoever wants something says so before making it.
        let there = match take_inventory(&self.root) {
            Ok(there) => there,
            Err(e) => {
                self.failed("the node", "target", &e);
                return Duration::from_secs(1);
            }
        };
        let mut here = BTreeMap::new();
        let mut wants = self.wants(&there, &mut here);
        let saved = self.unwanted_files(&mut wants, &there);
        self.pod_wants(&there, &mut wants, &mut here);
        let there_now = wants.values().filter(|want| want.at != At::Unknown).count();
        self.metrics.wanted(wants.len(), there_now);
        self.install_plugin();
        for step in plan(&wants, &there) {
            self.execute(step, &here);
            self.health.working();
        }
        let ending = self.follow_all(&there) | self.memory.soon.swap(false, Ordering::Relaxed);
        self.forget_what_was_due(begin);
        let times = lock(&self.memory.ending).next(ending);
        let soon = times.map(|times| Duration::from_millis(250 << times.min(8)));
        [self.retry_in(), soon, saved].into_iter().flatten().fold(self.resync, Duration::min)
    }

    /// What is wanted, and what of it is there.
    fn wants(&self, there: &[InventoryItem], here: &mut BTreeMap<String, Here>) -> BTreeMap<String, Want> {
        let mut wants = BTreeMap::new();
        let mut signs = Signs::new();
        if let Some(dir) = &self.config {
            signs.insert(dir.clone(), Names::suffix(".toml"));
            match target_files::read(dir) {
                Ok(entries) => {
                    for (name, entry) in entries {
                        let instance = there.iter().find(|instance| instance.name == name);
                        let want = self.want((&name, instance), entry, &mut signs, here);
                        wants.insert(name, want);
                    }
                    self.fine("the configuration");
                }
                Err(e) => {
                    self.failed("the configuration", "config", &e);
                }
            }
        }
        if let Some(places) = &self.plugin {
            signs.entry(places.bin_dir.clone()).or_default().add(Names::one(cni_install::TYPE.as_ref()));
            let conf = signs.entry(places.conf_dir.clone()).or_default();
            [".conflist", ".conf", ".json"].into_iter().for_each(|kind| conf.add(Names::suffix(kind)));
        }
        // Something may have happened between the look and the watch.
        if self.watcher.set(signs) {
            self.wake.notify_one();
        }
        wants
    }

    fn want(
        &self,
        (name, instance): (&str, Option<&InventoryItem>),
        entry: Result<Entry>,
        signs: &mut Signs,
        here: &mut BTreeMap<String, Here>,
    ) -> Want {
        let unknown = |policy| Want { at: At::Unknown, policy };
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => {
                self.failed(&about_target(name), "config", &e);
                return unknown(None);
            }
        };
        for (path, names) in entry.place.signs() {
            signs.entry(path).or_default().add(names);
        }
        let found = entry.place.find();
        if entry.place.is_in_the_making() {
            self.memory.soon.store(true, Ordering::Relaxed);
        }
        if found.is_ok() {
            self.fine(&about_target(name));
        }
        let target = match found {
            Ok(Some(target)) => self.settled(target, &entry.place, instance),
            Ok(None) => return unknown(Some(entry.policy)),
            Err(e) => {
                self.failed(&about_target(name), "target", &e);
                return unknown(Some(entry.policy));
            }
        };
        let at = At::Here { netns: target.netns.cookie, cgroup: target.cgroup.id };
        let want = Want { at, policy: Some(entry.policy.clone()) };
        here.insert(
            name.to_owned(),
            Here { target, policy: entry.policy, allow_partial: entry.allow_partial },
        );
        want
    }

    /// A process tells its namespace, and the innermost cgroup of all its processes is another one whenever some come
    /// or go: the one that is captured stays as long as it holds them all.
    fn settled(&self, found: Target, place: &Place, instance: Option<&InventoryItem>) -> Target {
        let (Place::PidFile(_), Some(InventoryItem { name, state: InstanceState::Active(active), .. })) =
            (place, instance)
        else {
            return found;
        };
        if active.netns_cookie != found.netns.cookie || active.cgroup_id == found.cgroup.id {
            return found;
        }
        let captured = find::target(&self.root, name).ok();
        let holds_all = |target: &Target| target.processes_outside().is_ok_and(|strays| strays.is_empty());
        captured.filter(holds_all).unwrap_or(found)
    }

    /// While nobody can say which files there are, none is gone; nor is one that comes back at once, unless another file
    /// has its namespace. Says how long the first of these is waited for.
    fn unwanted_files(
        &self,
        wants: &mut BTreeMap<String, Want>,
        there: &[InventoryItem],
    ) -> Option<Duration> {
        let known = self.config.is_some() && !self.is_failing("the configuration");
        let is_taken = |instance: &InventoryItem| match &instance.state {
            InstanceState::Active(active) => wants.values().any(|want| is_in(want, active.netns_cookie)),
            _ => false,
        };
        let unwanted = there.iter().filter(|it| it.name.starts_with(FILE) && !wants.contains_key(&it.name));
        let unwanted: BTreeSet<String> =
            unwanted.filter(|it| !(known && is_taken(it))).map(|it| it.name.clone()).collect();
        let mut missing = lock(&self.memory.missing);
        missing.retain(|name, _| known && unwanted.contains(name));
        let mut soonest = None;
        for name in unwanted {
            if known {
                let since = *missing.entry(name.clone()).or_insert_with(Instant::now);
                let left = SAVING.saturating_sub(since.elapsed());
                if left.is_zero() {
                    continue;
                }
                soonest = Some(soonest.map_or(left, |soonest: Duration| soonest.min(left)));
            }
            wants.insert(name, Want { at: At::Unknown, policy: None });
        }
        soonest
    }

    /// The plugin's binary and entry are put back whenever somebody has taken them away.
    fn install_plugin(&self) {
        const ABOUT: &str = "the CNI plugin";
        let Some(places) = &self.plugin else { return };
        match cni_install::install(places) {
            Ok(cni_install::State::Unchanged) => self.fine(ABOUT),
            Ok(cni_install::State::Written(path)) => {
                self.fine(ABOUT);
                self.metrics.step("install");
                tracing::info!(path = %path.display(), "installed the CNI plugin");
            }
            Ok(cni_install::State::NoNetwork) => {
                let why = format!(
                    "there is no network's configuration in {} to chain to",
                    places.conf_dir.display()
                );
                self.failed(ABOUT, "install", &Error::failed(why));
            }
            Err(e) => {
                self.failed(ABOUT, "install", &e);
            }
        }
    }

    fn execute(&self, step: Step, here: &BTreeMap<String, Here>) {
        let (name, what) = match &step {
            Step::Attach(name) => (name.clone(), "attach"),
            Step::Upgrade(name) => (name.clone(), "upgrade"),
            Step::Detach { name, .. } => (name.clone(), "detach"),
        };
        if self.is_too_early(&name) {
            return;
        }
        let result = match step {
            Step::Attach(_) => match here.get(&name) {
                Some(here) => {
                    self.attach(&name, &here.target, &here.policy, here.allow_partial).map(|r| r.notes)
                }
                None => return,
            },
            Step::Upgrade(_) => self.upgrade(&name),
            Step::Detach { why, identity, .. } => {
                tracing::info!(instance = name, "detaching: {why}");
                match self.detach_ended(&name, identity) {
                    Ok(Some(notes)) => Ok(notes),
                    // Somebody was quicker, and what is there now is looked at by the next pass.
                    Ok(None) => {
                        self.wake.notify_one();
                        return;
                    }
                    Err(e) => Err(e),
                }
            }
        };
        match result {
            Ok(notes) => {
                self.fine(&name);
                if what != "attach" {
                    self.metrics.step(what);
                    tracing::info!(instance = name, "{what} done");
                }
                for note in notes {
                    tracing::info!(instance = name, "{note}");
                }
            }
            Err(e) => {
                if self.failed(&name, what, &e) {
                    self.tell(&name, &e);
                }
            }
        }
    }

    fn upgrade(&self, name: &str) -> Result<Vec<String>> {
        let _turn = lock(&self.memory.looking);
        let renewed = upgrade::upgrade(&self.root, name)?;
        // One that is not followed is adopted.
        if self.namespaces.follows(renewed.netns_cookie) {
            self.remember(renewed.netns_cookie, renewed.routes);
        }
        Ok(renewed.notes)
    }

    /// Attaches or changes an instance and follows its namespace.
    pub(super) fn attach(
        &self,
        name: &str,
        target: &Target,
        policy: &Policy,
        allow_partial: bool,
    ) -> Result<Attached> {
        virtual_interfaces::check(policy)?;
        if let Some(strays) = target.describe_processes_outside()? {
            if !allow_partial {
                return Err(Error::input(format!(
                    "{strays}; name a cgroup that holds them all, or set allow_partial = true"
                )));
            }
            tracing::warn!(instance = name, "{strays}");
        }
        live_rules::refuse_istio(&target.netns)?;
        // Before the attach looks at it: what changes afterwards is heard of.
        let cookie = target.netns.cookie;
        self.namespaces.follow(target.netns.as_fd(), cookie)?;
        let turn = lock(&self.memory.looking);
        let begin = Instant::now();
        let mut report =
            attach::attach(&self.root, name, target, policy, decisions::wanted()).inspect_err(|_| {
                // What was repaired before it failed is adopted anew.
                lock(&self.memory.mirrors).remove(&cookie);
            })?;
        let took = begin.elapsed();
        if let Some(facts) = report.routes.take() {
            self.remember(cookie, facts);
        }
        drop(turn);
        self.read_decisions(name);
        let step = match report.outcome {
            Outcome::Attached => "attach",
            Outcome::Changed => "change",
            Outcome::Unchanged => return Ok(report),
        };
        // What was heard meanwhile was nobody's: the instance was not there yet.
        if !self.catch_up(name, cookie) {
            self.wake.notify_one();
        }
        self.metrics.step(step);
        if report.outcome == Outcome::Attached {
            self.metrics.attach_seconds.observe(took.as_secs_f64());
        }
        let milliseconds = took.as_secs_f64() * 1e3;
        let cgroup = target.cgroup.path.display();
        tracing::info!(instance = name, netns = %target.netns_path.display(), %cgroup, milliseconds, "{step} done");
        Ok(report)
    }

    /// The same for one whose target has ended.
    pub(super) fn detach_ended(&self, name: &str, identity: u64) -> Result<Option<Vec<String>>> {
        let cgroup = find::recorded_cgroup(&self.root, name);
        let notes = self.detach(name, identity)?;
        if notes.is_some() && name.starts_with(POD) {
            cgroup.as_deref().into_iter().for_each(kubernetes::leave);
        }
        Ok(notes)
    }

    /// Detaches an instance, with its last connections counted; None if it has gone, though there may be a later one of
    /// its name: the pod's next sandbox must not lose its capture to the end of the one before.
    pub(super) fn detach(&self, name: &str, identity: u64) -> Result<Option<Vec<String>>> {
        self.metrics.take(&self.root, name);
        Ok(detach::detach_only(&self.root, name, identity)?.map(|report| report.notes))
    }
}

fn is_in(want: &Want, cookie: u64) -> bool {
    matches!(want.at, At::Here { netns, .. } if netns == cookie)
}

/// What a failure to find a target is about: not the instance, which may have to be detached meanwhile.
pub(super) fn about_target(name: &str) -> String {
    format!("{name} (target)")
}
