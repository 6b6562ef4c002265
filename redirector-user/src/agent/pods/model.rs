//! A pod of this node.

use std::collections::HashSet;

use crate::agent::plan::POD_PREFIX;
use crate::pod::name::PodName;
use crate::policy::annotations::Pod;

/// The annotations that the kubelet gives the API's copy of a static pod, both with one value: its cgroup and CNI_ARGS have
/// this uid, the API another.
pub const STATIC_UID: &str = "kubernetes.io/config.hash";
pub const MIRROR: &str = "kubernetes.io/config.mirror";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePod {
    pub name: PodName,
    /// The uid that the node uses.
    pub uid: String,
    /// The uid that the API uses: a static pod has another one there.
    pub api_uid: String,
    /// What of it matters to capture.
    pub pod: Pod,
}

impl NodePod {
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

    pub fn instance(&self) -> String {
        instance_name(&self.uid)
    }

    /// Whether a request can mean this pod; old runtimes name no uid.
    pub fn is(&self, name: &PodName) -> bool {
        (&self.name.namespace, &self.name.name) == (&name.namespace, &name.name)
            && name.uid.as_ref().is_none_or(|uid| *uid == self.uid)
    }
}

/// The uid of a static pod. Whoever may create a pod may write these annotations, and must not pass for another pod by them:
/// the uids that the API server gives have dashes, the kubelet's, which are hashes, have none.
fn static_uid(pod: &Pod) -> Option<&String> {
    let uid = pod.annotations.get(STATIC_UID)?;
    (pod.annotations.get(MIRROR) == Some(uid) && !uid.contains('-')).then_some(uid)
}

/// Uids that more than one pod claims.
pub fn ambiguous(pods: &[NodePod]) -> HashSet<&str> {
    let mut claimed = HashSet::new();
    pods.iter().map(|pod| pod.uid.as_str()).filter(|uid| !claimed.insert(*uid)).collect()
}

/// Name of the instance of a pod.
pub fn instance_name(uid: &str) -> String {
    format!("{POD_PREFIX}{uid}")
}

/// A uid becomes part of paths and of the instance's name.
pub fn is_uid(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=59).contains(&text.len()) && text.bytes().all(good)
}
