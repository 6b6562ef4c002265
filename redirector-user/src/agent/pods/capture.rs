//! Which pods are captured, with which policy.

use std::time::{Duration, Instant};

use super::cache::{PodCache, Source, Told};
use super::model::{NodePod, ambiguous};
use super::source_files::PodFiles;
use crate::agent::file_events::Names;
use crate::agent::metrics::{Metrics, Reason};
use crate::agent::plan::{Desired, DesiredState, Location, Present};
use crate::agent::retry::{Failures, Subject};
use crate::agent::sync::lock;
use crate::agent::targets::capture::Gathered;
use crate::base::error::{Error, Result};
use crate::instance::directory::Directory;
use crate::instance::find;
use crate::instance::inventory::{ActiveInstance, InstanceState, InventoryItem};
use crate::pod::cgroup::Cgroup;
use crate::pod::{Target, kubernetes};
use crate::policy::annotations::Membership;

/// A container's first process enters its cgroup before its namespaces.
const SETTLE_TIME: Duration = Duration::from_secs(2);

pub struct PodCapture<'a> {
    pub root: &'a Directory,
    pub pods: &'a PodCache,
    pub failures: &'a Failures,
    pub metrics: &'a Metrics,
}

impl PodCapture<'_> {
    /// Adds the node's pods to the desired state.
    pub fn gather(&self, inventory: &[InventoryItem], state: &mut DesiredState, gathered: &mut Gathered) {
        if let Source::Files(dir) = &self.pods.source {
            gathered.signs.entry(dir.clone()).or_default().add(Names::suffix(".json"));
        }
        let PodFiles { pods, wrong } = match self.pods.source.all() {
            Ok(pods) => pods,
            Err(e) => {
                self.failures.failed(Subject::Pods, Reason::Pods, &e);
                return;
            }
        };
        self.failures.succeeded(&Subject::Pods);
        for (path, e) in wrong {
            self.failures.failed(Subject::PodFile(path), Reason::Pods, &e);
        }
        let names = pods.iter().map(|pod| (pod.instance(), pod.name.to_string()));
        self.failures.name_pods(names.collect());
        let ambiguous = ambiguous(&pods);
        for pod in pods.iter().filter(|pod| self.pods.membership(&pod.pod) == Membership::Inside) {
            let name = pod.instance();
            let instance = inventory.iter().find(|instance| instance.name == name);
            let desired = if ambiguous.contains(pod.uid.as_str()) {
                let why = format!("another pod, too, says that the node knows it as {}", pod.uid);
                Err(Error::failed(why))
            } else {
                match instance.map(|instance| &instance.state) {
                    Some(InstanceState::Active(active)) => self.of_captured(pod, active, state),
                    _ => self.of_missed(pod, state, gathered),
                }
            };
            let desired = desired.unwrap_or_else(|e| {
                if self.failures.failed(Subject::Target(name.clone()), Reason::Target, &e) {
                    self.pods.source.tell(pod, &Told::Failed(&e), self.metrics);
                }
                Desired::unknown(None)
            });
            // A pod that was not found has not been examined either.
            if desired.location != Location::Unknown {
                self.failures.succeeded(&Subject::Target(name.clone()));
            }
            state.desired.insert(name, desired);
        }
        self.pods.tell_left_alone(&pods, self.metrics);
        self.pods.retain(&pods);
    }

    /// A pod that is captured may have got other annotations.
    fn of_captured(
        &self,
        pod: &NodePod,
        active: &ActiveInstance,
        state: &mut DesiredState,
    ) -> Result<Desired> {
        let location = Location::Present { netns: active.netns_cookie, cgroup: active.cgroup_id };
        if let Some(policy) = self.pods.policy(pod)
            && active.policy.as_ref() == Some(&policy)
            && active.complete
        {
            return Ok(Desired { location, policy: Some(policy) });
        }
        // A target that cannot be reached is about to end.
        match find::target(self.root, &pod.instance()) {
            Ok(target) => self.present(pod, target, state),
            Err(_) => Ok(Desired { location, policy: None }),
        }
    }

    /// A pod that starts without the plugin is captured when its first process is in its namespace.
    fn of_missed(&self, pod: &NodePod, state: &mut DesiredState, gathered: &mut Gathered) -> Result<Desired> {
        let root = self.pods.cgroup_root.as_deref();
        let Some(cgroup) = kubernetes::find(&pod.uid, root)? else {
            for dir in kubernetes::directories(root)? {
                gathered.signs.entry(dir).or_default().add(Names::suffix(""));
            }
            return Ok(Desired::unknown(None));
        };
        // It changes with the first process of any container, and with the last.
        gathered.signs.entry(cgroup.join("cgroup.events")).or_default();
        let name = pod.instance();
        match Target::of_cgroup(Cgroup::open(&cgroup)?) {
            Ok(Some(target)) => {
                lock(&self.pods.unsettled).remove(&name);
                self.present(pod, target, state)
            }
            Ok(None) => Ok(Desired::unknown(None)),
            // A runtime's process is in the machine's namespace when it enters the cgroup.
            Err(e) => {
                let since = *lock(&self.pods.unsettled).entry(name).or_insert_with(Instant::now);
                if since.elapsed() > SETTLE_TIME {
                    return Err(e);
                }
                gathered.in_transition = true;
                Ok(Desired::unknown(None))
            }
        }
    }

    fn present(&self, pod: &NodePod, target: Target, state: &mut DesiredState) -> Result<Desired> {
        let policy = self.pods.make_policy(pod, &target)?;
        let target = Target { pod: Some(pod.name.clone()), ..target };
        let present = Present { target, policy, allow_partial: true };
        let desired = present.desired();
        state.present.insert(pod.instance(), present);
        Ok(desired)
    }
}
