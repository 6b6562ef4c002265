//! Pods: which there are, which of them are captured, and how.

pub mod source_api;

use super::Agent;
use super::pass::{Here, about_target};
use super::plan::{At, POD, Want};
use crate::base::error::{Context, Error, Result};
use crate::base::input;
use crate::cni::protocol::PodName;
use crate::instance::find;
use crate::instance::inventory::{ActiveInstance, InstanceState, InventoryItem};
use crate::pod::{self, Target};
use crate::policy::annotations::{Membership, Pod, resolve_pod};
use crate::policy::{CaptureFlags, Policy};
use source_api::Kubernetes;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The annotations that the kubelet gives the API's copy of a static pod, both with one value: its cgroup and CNI_ARGS have
/// this uid, the API another.
const STATIC_UID: &str = "kubernetes.io/config.hash";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod as somebody knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: PodName,
    /// The uid that the node knows it by.
    pub uid: String,
    /// The uid that the API knows it by: another for a static pod.
    pub api_uid: String,
    /// What of it matters to capture.
    pub pod: Pod,
}

impl Known {
    /// From an object of the API.
    ///
    /// # Errors
    ///
    /// If it is no pod.
    pub fn parse(object: &serde_json::Value) -> Result<Self, String> {
        let pod: Pod = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
        let text = |name: &str| object["metadata"][name].as_str().map(str::to_owned);
        let api_uid = text("uid").ok_or("it has no uid")?;
        let uid = static_uid(&pod).unwrap_or(&api_uid).clone();
        if !is_uid(&uid) {
            return Err(format!("{uid:?} is no uid"));
        }
        let name = text("name").ok_or("it has no name")?;
        let name = PodName { namespace: pod.namespace.clone(), name, uid: Some(uid.clone()) };
        Ok(Self { name, uid, api_uid, pod })
    }

    /// Name of its instance.
    pub fn instance(&self) -> String {
        instance(&self.uid)
    }
}

/// The uid of a static pod. Whoever may create a pod may write these annotations, and must not pass for another pod by them:
/// the uids that the API server gives have dashes, the kubelet's, which are hashes, have none.
fn static_uid(pod: &Pod) -> Option<&String> {
    let uid = pod.annotations.get(STATIC_UID)?;
    (pod.annotations.get(MIRROR) == Some(uid) && !uid.contains('-')).then_some(uid)
}

/// Uids that more than one pod says it has: nobody can tell which is which.
fn ambiguous(all: &[Known]) -> HashSet<&str> {
    let mut seen = HashSet::new();
    all.iter().map(|known| known.uid.as_str()).filter(|uid| !seen.insert(*uid)).collect()
}

/// Name of the instance of a pod.
pub fn instance(uid: &str) -> String {
    format!("{POD}{uid}")
}

/// It becomes part of paths and of the instance's name.
pub fn is_uid(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=59).contains(&text.len()) && text.bytes().all(good)
}

/// Who knows the pods of this node.
pub enum Source {
    /// Nobody: there are no pods.
    None,
    /// A directory of Pod objects in JSON.
    Files(PathBuf),
    /// The API server.
    Kubernetes(Arc<Kubernetes>),
}

/// What a source knows of a pod.
pub enum Found {
    /// This.
    Pod(Box<Known>),
    /// Nothing, and why.
    Unknown(String),
}

impl Source {
    /// The pod of this name (and uid, if it is known).
    pub fn find(&self, wanted: &PodName) -> Found {
        match self {
            Self::None => Found::Unknown("the agent was started without a source of pods".into()),
            Self::Kubernetes(server) => server.find(wanted),
            Self::Files(dir) => {
                let same = |known: &Known| {
                    (&known.name.namespace, &known.name.name) == (&wanted.namespace, &wanted.name)
                        && wanted.uid.as_ref().is_none_or(|uid| *uid == known.uid)
                };
                match files(dir) {
                    Ok(all) => all.into_iter().find(same).map_or_else(
                        || Found::Unknown(format!("no file in {} is of the pod {wanted}", dir.display())),
                        |known| Found::Pod(Box::new(known)),
                    ),
                    Err(e) => Found::Unknown(e.to_string()),
                }
            }
        }
    }

    /// All pods of the node that are known.
    ///
    /// # Errors
    ///
    /// If nobody can say.
    pub fn all(&self) -> Result<Vec<Known>> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Files(dir) => files(dir),
            // What is captured stays so without anybody saying anything.
            Self::Kubernetes(server) => Ok(server.all().unwrap_or_default()),
        }
    }
}

impl Source {
    /// Tells whoever looks at the pod.
    pub(super) fn warn(&self, known: &Known, error: &Error) {
        if let Self::Kubernetes(server) = self {
            server.warn(
                known,
                "CaptureFailed",
                &format!("redirector cannot capture this pod: {}", error.advice()),
            );
        }
    }

    /// What is missing before a pod can start; None: nothing.
    pub fn waits_for(&self) -> Option<&'static str> {
        match self {
            Self::Kubernetes(server) if server.all().is_none() => {
                Some("the API server to tell the node's pods")
            }
            _ => None,
        }
    }
}

fn files(dir: &Path) -> Result<Vec<Known>> {
    let mut all = Vec::new();
    for entry in
        std::fs::read_dir(dir).context(|| format!("read the directory of pods {}", dir.display()))?.flatten()
    {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = input::file(&path).context(|| format!("read {}", path.display()))?;
        let known =
            serde_json::from_str(&text).map_err(|e| e.to_string()).and_then(|value| Known::parse(&value));
        all.push(known.map_err(|why| Error::input(format!("{}: {why}", path.display())))?);
    }
    Ok(all)
}

/// What the agent does with pods.
pub struct Pods {
    /// Who knows them.
    pub source: Source,
    /// Namespaces that are left alone.
    pub excluded: Vec<String>,
    /// Where the kubelet's cgroups are, if not somewhere below the root.
    pub cgroup_root: Option<PathBuf>,
    /// Let pods start that nobody knows, uncaptured.
    pub pass_unknown: bool,
    /// The policy of each instance, and the pod it was made from: not to ask the namespace each time.
    policies: Mutex<HashMap<String, (Pod, Policy)>>,
}

impl Pods {
    /// No policy is known yet.
    pub fn new(
        source: Source,
        excluded: Vec<String>,
        cgroup_root: Option<PathBuf>,
        pass_unknown: bool,
    ) -> Self {
        Self { source, excluded, cgroup_root, pass_unknown, policies: Mutex::default() }
    }

    /// Whether a pod is captured, or why not.
    pub fn membership(&self, pod: &Pod) -> Membership {
        pod.membership(&self.excluded)
    }

    /// The policy of a pod that is at this target.
    ///
    /// # Errors
    ///
    /// [`Error::input`] if an annotation is wrong.
    pub fn policy(&self, known: &Known, target: &Target) -> Result<Policy> {
        let resolved = resolve_pod(&known.pod, &CaptureFlags::default(), &pod::facts::of(target)?)?;
        for note in &resolved.notes {
            tracing::info!(pod = %known.name, "{}: {}", note.about, note.text);
        }
        self.remember(known, &resolved.policy);
        Ok(resolved.policy)
    }

    fn remember(&self, known: &Known, policy: &Policy) {
        let mut policies = super::lock(&self.policies);
        policies.insert(known.instance(), (known.pod.clone(), policy.clone()));
    }

    fn remembered(&self, known: &Known) -> Option<Policy> {
        let policies = super::lock(&self.policies);
        policies.get(&known.instance()).filter(|(pod, _)| *pod == known.pod).map(|(_, policy)| policy.clone())
    }

    fn forget(&self, all: &[Known]) {
        let mut policies = super::lock(&self.policies);
        if policies.len() > all.len() + 64 {
            let names: Vec<String> = all.iter().map(Known::instance).collect();
            policies.retain(|name, _| names.contains(name));
        }
    }
}

impl Agent {
    /// What is wanted of the node's pods.
    pub(super) fn pod_wants(
        &self,
        there: &[InventoryItem],
        wants: &mut BTreeMap<String, Want>,
        here: &mut BTreeMap<String, Here>,
    ) {
        let all = match self.pods.source.all() {
            Ok(all) => all,
            Err(e) => {
                self.failed("the pods", "pods", &e);
                return;
            }
        };
        self.fine("the pods");
        let ambiguous = ambiguous(&all);
        for known in all.iter().filter(|known| self.pods.membership(&known.pod) == Membership::Inside) {
            let name = known.instance();
            if ambiguous.contains(known.uid.as_str()) {
                let why = format!("another pod, too, says that the node knows it as {}", known.uid);
                self.failed_pod(known, &about_target(&name), "target", &Error::failed(why));
                wants.insert(name, Want { at: At::Unknown, policy: None });
                continue;
            }
            let active = there.iter().find(|instance| instance.name == name).and_then(|i| match &i.state {
                InstanceState::Active(active) => Some(&**active),
                _ => None,
            });
            let want = match active {
                Some(active) => self.captured_pod(known, active, here),
                None => self.missed_pod(known, here),
            };
            let want = match want {
                Ok(want) => {
                    // Where nobody has looked at anything, nothing works again.
                    if want.at != At::Unknown {
                        self.fine(&about_target(&name));
                    }
                    want
                }
                Err(e) => {
                    self.failed_pod(known, &about_target(&name), "target", &e);
                    Want { at: At::Unknown, policy: None }
                }
            };
            wants.insert(name, want);
        }
        self.pods.forget(&all);
    }

    /// A pod that is captured may have got other annotations.
    fn captured_pod(
        &self,
        known: &Known,
        active: &ActiveInstance,
        here: &mut BTreeMap<String, Here>,
    ) -> Result<Want> {
        let at = At::Here { netns: active.netns_cookie, cgroup: active.cgroup_id };
        if let Some(policy) = self.pods.remembered(known)
            && active.policy.as_ref() == Some(&policy)
            && active.complete
        {
            return Ok(Want { at, policy: Some(policy) });
        }
        // It is about to end, if nobody can reach it.
        let Ok(target) = find::target(&self.root, &known.instance()) else {
            return Ok(Want { at, policy: None });
        };
        let policy = self.pods.policy(known, &target)?;
        here.insert(known.instance(), Here { target, policy: policy.clone(), allow_partial: true });
        Ok(Want { at, policy: Some(policy) })
    }

    /// A pod that started while there was no plugin.
    fn missed_pod(&self, known: &Known, here: &mut BTreeMap<String, Here>) -> Result<Want> {
        let unknown = Want { at: At::Unknown, policy: None };
        let Some(cgroup) = pod::kubernetes::find(&known.uid, self.pods.cgroup_root.as_deref())? else {
            return Ok(unknown);
        };
        let cgroup = pod::cgroup::Cgroup::open(&cgroup)?;
        let Some(target) = Target::of_cgroup(cgroup)? else { return Ok(unknown) };
        let at = At::Here { netns: target.netns.cookie, cgroup: target.cgroup.id };
        let policy = self.pods.policy(known, &target)?;
        here.insert(known.instance(), Here { target, policy: policy.clone(), allow_partial: true });
        Ok(Want { at, policy: Some(policy) })
    }

    /// Something about a pod has failed.
    pub(super) fn failed_pod(&self, known: &Known, about: &str, reason: &'static str, error: &Error) {
        if self.failed(about, reason, error) {
            self.pods.source.warn(known, error);
        }
    }

    /// The same of an instance, which may be a pod's.
    pub(super) fn tell(&self, instance: &str, error: &Error) {
        let all = self.pods.source.all().unwrap_or_default();
        if let Some(known) = all.iter().find(|known| known.instance() == instance) {
            self.pods.source.warn(known, error);
        }
    }
}

#[cfg(test)]
mod tests;
