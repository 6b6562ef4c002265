//! Executes what a pass has planned and the plugin asks for: attach, change, upgrade, detach.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::Notify;

use super::decisions;
use super::metrics::{Metrics, Reason};
use super::plan::{DesiredState, POD_PREFIX, Present, Step};
use super::pods::cache::{PodCache, Told};
use super::refresh::Refresher;
use super::retry::{Failures, Subject};
use super::sync::lock;
use crate::base::error::{Error, Result};
use crate::compile::mapped_policy::IdMappedPolicy;
use crate::instance::attach::{self, Attached, Outcome};
use crate::instance::directory::Directory;
use crate::instance::{detach, find, refresh};
use crate::netdev;
use crate::pod::{kubernetes, live_rules};

pub struct Executor {
    pub root: Directory,
    pub metrics: Arc<Metrics>,
    pub failures: Arc<Failures>,
    pub wake: Arc<Notify>,
    pub refresher: Arc<Refresher>,
    pub pods: Arc<PodCache>,
    /// Instances that were there, and that this agent has not detached.
    pub kept: Mutex<HashSet<String>>,
}

impl Executor {
    /// Executes one step of a plan, unless it failed just now.
    pub fn execute(&self, step: Step, state: &DesiredState) {
        let (name, what, reason) = match &step {
            Step::Attach(name) => (name.clone(), "attach", Reason::Attach),
            Step::Upgrade(name) => (name.clone(), "upgrade", Reason::Upgrade),
            Step::Detach { name, .. } => (name.clone(), "detach", Reason::Detach),
        };
        let subject = Subject::Instance(name.clone());
        if self.failures.is_too_early(&subject) {
            return;
        }
        let pod = find::recorded_pod(&self.root, &name).map(|pod| pod.to_string());
        let notes = match step {
            Step::Attach(_) => match state.present.get(&name) {
                Some(present) => self.attach(&name, present).map(|report| report.notes),
                None => return,
            },
            Step::Upgrade(_) => self.upgrade(&name),
            Step::Detach { why, identity, .. } => {
                tracing::info!(instance = name, pod, "detaching: {why}");
                match self.detach_ended(&name, identity) {
                    Ok(Some(notes)) => Ok(notes),
                    // It is gone already. The next pass examines what is there now.
                    Ok(None) => {
                        self.wake.notify_one();
                        return;
                    }
                    Err(e) => Err(e),
                }
            }
        };
        match notes {
            Ok(notes) => {
                self.failures.succeeded(&subject);
                if what != "attach" {
                    self.metrics.step(what);
                    tracing::info!(instance = name, pod, "{what} done");
                }
                for note in notes {
                    tracing::info!(instance = name, "{note}");
                }
            }
            Err(e) => {
                if self.failures.failed(subject, reason, &e) {
                    self.pods.tell_instance(&name, &Told::Failed(&e), &self.metrics);
                }
            }
        }
    }

    fn upgrade(&self, name: &str) -> Result<Vec<String>> {
        let _reading = self.refresher.reading();
        let renewed = refresh::upgrade(&self.root, name)?;
        // A namespace that is not followed yet is adopted by the next pass.
        if self.refresher.namespaces.follows(renewed.netns.number()) {
            self.refresher.store(renewed.netns.number(), renewed.routes);
        }
        Ok(renewed.notes)
    }

    /// Attaches or changes an instance and follows its namespace.
    pub fn attach(
        &self,
        name: &str,
        Present { target, policy, allow_partial }: &Present,
    ) -> Result<Attached> {
        netdev::check_virtual_interfaces(policy)?;
        let mapped = IdMappedPolicy::new(policy.clone(), target)?;
        // To look at all processes of the node only for a warning is too much for a pod that begins.
        let begins = *allow_partial && target.cgroup.processes()?.is_empty();
        let strays = if begins { None } else { target.describe_processes_outside()? };
        if let Some(strays) = strays {
            if !allow_partial {
                return Err(Error::input(format!(
                    "{strays}; name a cgroup that holds them all, or set allow_partial = true"
                )));
            }
            tracing::warn!(instance = name, "{strays}");
        }
        live_rules::refuse_meshes(&target.netns)?;
        // Followed before the attach reads it, so that no later change is missed.
        self.refresher.follow(&target.netns, name)?;
        let cookie = target.netns.id.number();
        let begin = Instant::now();
        let report = {
            let _reading = self.refresher.reading();
            let request = attach::Request { name, target, policy: &mapped, trace: decisions::enabled() };
            let attached = attach::attach(&self.root, &request);
            // An attach that failed may have repaired something before.
            let mut report = attached.inspect_err(|_| self.refresher.forget(cookie))?;
            if let Some(facts) = report.routes.take() {
                self.refresher.store(cookie, facts);
            }
            report
        };
        let seconds = begin.elapsed().as_secs_f64();
        self.refresher.decisions.read(&self.root, name);
        let was_kept = !lock(&self.kept).insert(name.to_owned());
        if report.repaired || (was_kept && report.outcome == Outcome::Attached) {
            self.metrics.step("repair");
            tracing::warn!(
                instance = name,
                "somebody had detached it, in whole or in part; it is attached again"
            );
        }
        let step = match report.outcome {
            Outcome::Attached => "attach",
            Outcome::Changed => "change",
            Outcome::Unchanged => return Ok(report),
        };
        // Changes during the attach were not refreshed: there was no instance yet.
        if !self.refresher.catch_up(name, cookie) {
            self.wake.notify_one();
        }
        self.metrics.step(step);
        if report.outcome == Outcome::Attached {
            self.metrics.attach_seconds.observe(seconds);
            self.pods.tell_instance(name, &Told::Captured, &self.metrics);
        }
        let milliseconds = seconds * 1e3;
        let cgroup = target.cgroup.path.display();
        let pod = target.pod.as_ref().map(ToString::to_string);
        tracing::info!(instance = name, pod, netns = %target.netns_path.display(), %cgroup, milliseconds, "{step} done");
        Ok(report)
    }

    /// Detaches an instance whose target has ended, and removes the cgroup of a pod where the kubelet does not.
    pub fn detach_ended(&self, name: &str, identity: u64) -> Result<Option<Vec<String>>> {
        let cgroup = find::recorded_cgroup(&self.root, name);
        let notes = self.detach(name, identity)?;
        if notes.is_some() && name.starts_with(POD_PREFIX) {
            cgroup.as_deref().into_iter().for_each(kubernetes::leave);
        }
        Ok(notes)
    }

    /// Detaches an instance, with its last connections counted; None if it is gone. A later instance of its name
    /// stays: the pod's next sandbox must not lose its capture to the end of the one before.
    pub fn detach(&self, name: &str, identity: u64) -> Result<Option<Vec<String>>> {
        self.metrics.count_last(&self.root, name);
        lock(&self.kept).remove(name);
        Ok(detach::detach_only(&self.root, name, identity)?.map(|report| report.notes))
    }
}
