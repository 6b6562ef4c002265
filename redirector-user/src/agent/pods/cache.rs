//! What the agent knows of pods: their source, and the policies made from their annotations.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kube::runtime::events::EventType;

use super::model::NodePod;
use super::source_api::ApiSource;
use super::source_files::{self, PodFiles};
use crate::agent::metrics::Metrics;
use crate::agent::sync::lock;
use crate::base::error::{Error, Result};
use crate::pod::name::PodName;
use crate::pod::{self, Target};
use crate::policy::annotations::{Membership, Outside, Pod};
use crate::policy::{CaptureFlags, Policy, resolve_pod};

/// Policies of pods that are gone are kept up to this many.
const MAX_STALE_POLICIES: usize = 64;

/// What Events say of a pod.
pub enum Told<'a> {
    Captured,
    Ignored(&'a Outside),
    Failed(&'a Error),
}

/// Where the node's pods are listed.
pub enum Source {
    /// There are no pods.
    None,
    /// A directory of Pod objects in JSON.
    Files(PathBuf),
    Api(Arc<ApiSource>),
}

impl Source {
    /// The pod that a request names; else why it is not known.
    pub fn find(&self, name: &PodName) -> Result<NodePod, String> {
        match self {
            Self::None => Err("the agent was started without a source of pods".into()),
            Self::Api(server) => server.find(name),
            Self::Files(dir) => {
                let PodFiles { pods, wrong } = source_files::read(dir).map_err(|e| e.to_string())?;
                let found = pods.into_iter().find(|pod| pod.is(name));
                let wrong: String = wrong.iter().map(|(_, e)| format!("; {e}")).collect();
                found.ok_or_else(|| format!("no file in {} is of the pod {name}{wrong}", dir.display()))
            }
        }
    }

    /// All pods of the node; none before the API server has listed them.
    ///
    /// # Errors
    ///
    /// If the directory of files cannot be read.
    pub fn all(&self) -> Result<PodFiles> {
        match self {
            Self::None => Ok(PodFiles::default()),
            Self::Files(dir) => source_files::read(dir),
            Self::Api(server) => Ok(PodFiles { pods: server.all(), wrong: Vec::new() }),
        }
    }

    /// Whether pods can be asked for now.
    pub async fn check(&self) -> Result<(), String> {
        match self {
            Self::None => Ok(()),
            Self::Files(dir) => source_files::read(dir).map(drop).map_err(|e| e.to_string()),
            Self::Api(server) => server.check().await,
        }
    }

    /// Writes an Event on the pod.
    pub fn tell(&self, pod: &NodePod, what: &Told<'_>, metrics: &Metrics) {
        let Self::Api(server) = self else { return };
        let (kind, reason, text) = match what {
            Told::Captured => {
                (EventType::Normal, "Captured", "redirector sends this pod's traffic to its proxy".to_owned())
            }
            Told::Ignored(why) => {
                (EventType::Normal, "NotCaptured", format!("redirector leaves this pod alone: {why}"))
            }
            Told::Failed(error) => {
                let text = format!("redirector cannot capture this pod: {}", error.advice());
                (EventType::Warning, "CaptureFailed", text)
            }
        };
        let outcome = if server.tell(pod, kind, reason, &text) { "written" } else { "dropped" };
        metrics.event(reason, outcome);
    }
}

pub struct PodCache {
    pub source: Source,
    /// Namespaces that are left alone.
    pub excluded: Vec<String>,
    /// Where the kubelet's cgroups are, if not somewhere below the root.
    pub cgroup_root: Option<PathBuf>,
    /// Pods that the source does not know start uncaptured.
    pub pass_unknown: bool,
    /// The policy of each instance, and the pod it was made from: making it takes a look into the namespace.
    policies: Mutex<HashMap<String, (Pod, Policy)>>,
    /// Since when the targets of pods cannot be captured, by the names of their instances.
    pub unsettled: Mutex<HashMap<String, Instant>>,
    /// Pods with a proxy that an Event says are left alone, by uid.
    left_alone: Mutex<HashSet<String>>,
}

impl PodCache {
    pub fn new(
        source: Source,
        excluded: Vec<String>,
        cgroup_root: Option<PathBuf>,
        pass_unknown: bool,
    ) -> Self {
        Self {
            source,
            excluded,
            cgroup_root,
            pass_unknown,
            policies: Mutex::default(),
            unsettled: Mutex::default(),
            left_alone: Mutex::default(),
        }
    }

    /// Whether a pod is captured, or why not.
    pub fn membership(&self, pod: &Pod) -> Membership {
        pod.membership(&self.excluded)
    }

    /// Makes the policy of a pod that is at this target.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if an annotation is wrong.
    pub fn make_policy(&self, pod: &NodePod, target: &Target) -> Result<Policy> {
        let resolved = resolve_pod(&pod.pod, &CaptureFlags::default(), &pod::facts::of(target)?)?;
        for note in &resolved.notes {
            tracing::info!(pod = %pod.name, "{}: {}", note.about, note.text);
        }
        let made = (pod.pod.clone(), resolved.policy.clone());
        lock(&self.policies).insert(pod.instance(), made);
        Ok(resolved.policy)
    }

    /// The policy that was made from the pod as it is now.
    pub fn policy(&self, pod: &NodePod) -> Option<Policy> {
        let policies = lock(&self.policies);
        let (_, policy) = policies.get(&pod.instance()).filter(|(from, _)| *from == pod.pod)?;
        Some(policy.clone())
    }

    /// Forgets the policies of all other pods.
    pub fn retain(&self, pods: &[NodePod]) {
        let mut policies = lock(&self.policies);
        if policies.len() > pods.len() + MAX_STALE_POLICIES {
            let names: Vec<String> = pods.iter().map(NodePod::instance).collect();
            policies.retain(|name, _| names.contains(name));
            lock(&self.unsettled).retain(|name, _| names.contains(name));
        }
    }

    /// Writes an Event on the pod of an instance.
    pub fn tell_instance(&self, instance: &str, what: &Told<'_>, metrics: &Metrics) {
        let pods = self.source.all().unwrap_or_default().pods;
        if let Some(pod) = pods.iter().find(|pod| pod.instance() == instance) {
            self.source.tell(pod, what, metrics);
        }
    }

    /// Tells once why a pod that has a proxy is left alone. Pods without one are none of the mesh's.
    pub fn tell_left_alone(&self, pods: &[NodePod], metrics: &Metrics) {
        let mut told = lock(&self.left_alone);
        told.retain(|uid| pods.iter().any(|pod| pod.uid == *uid));
        for pod in pods.iter().filter(|pod| pod.pod.proxy.is_some()) {
            if let Membership::Outside(why) = self.membership(&pod.pod)
                && !matches!(why, Outside::ExcludedNamespace(_) | Outside::HostNetwork)
                && told.insert(pod.uid.clone())
            {
                self.source.tell(pod, &Told::Ignored(&why), metrics);
            }
        }
    }
}
