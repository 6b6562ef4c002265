//! The name of a pod of Kubernetes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A pod, as CNI_ARGS and the record of an instance have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; runtimes of before 2021 do not say.
    #[serde(default)]
    pub uid: Option<String>,
}

impl std::fmt::Display for PodName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
