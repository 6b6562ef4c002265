//! What of a pod matters to capture.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::policy::flag_input::FlagInput;

/// The container whose traffic is the proxy's.
pub const PROXY_CONTAINER: &str = "istio-proxy";

/// A pod, as far as capture is concerned. Deserialised from a Pod object of the Kubernetes API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Object")]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Names of its containers and init containers.
    pub containers: BTreeSet<String>,
    /// The container istio-proxy, if there is one: among the containers, or the init containers (a native
    /// sidecar).
    pub proxy: Option<Proxy>,
    /// Whether it uses the machine's network namespace.
    pub host_network: bool,
}

impl Pod {
    /// A variable of the container istio-proxy.
    pub(in crate::policy) fn variable(&self, name: &str) -> Option<FlagInput> {
        let text = self.proxy.as_ref()?.env.get(name)?;
        Some(FlagInput::new(format!("variable {name} of {PROXY_CONTAINER}"), text.as_str()))
    }
}

/// The container istio-proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// `args`.
    pub args: Vec<String>,
    /// `env`; a variable whose value comes from elsewhere (`valueFrom`) is empty, as to Istio.
    pub env: BTreeMap<String, String>,
    /// `securityContext.runAsUser`.
    pub uid: Option<i64>,
    /// `securityContext.runAsGroup`.
    pub gid: Option<i64>,
}

impl Proxy {
    /// The proxy's type: `sidecar`, `router`.
    pub(super) fn kind(&self) -> Option<&str> {
        match self.args.as_slice() {
            [first, kind, ..] if first == "proxy" => Some(kind),
            _ => None,
        }
    }
}

/// A Pod object of the Kubernetes API, what is needed of it. The API leaves empty lists and maps out or says
/// null.
#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Metadata {
    namespace: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Spec {
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
    host_network: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    security_context: Option<SecurityContext>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecurityContext {
    run_as_user: Option<i64>,
    run_as_group: Option<i64>,
}

impl From<Object> for Pod {
    fn from(object: Object) -> Self {
        let spec = object.spec.unwrap_or_default();
        // In this order (`containers` in `kubernetes.go`): should there be two, the later one counts.
        let all: Vec<Container> = spec.init_containers.into_iter().chain(spec.containers).flatten().collect();
        Self {
            namespace: object.metadata.namespace.unwrap_or_default(),
            labels: object.metadata.labels.unwrap_or_default(),
            annotations: object.metadata.annotations.unwrap_or_default(),
            containers: all.iter().map(|container| container.name.clone()).collect(),
            host_network: spec.host_network.unwrap_or_default(),
            proxy: all.into_iter().rfind(|container| container.name == PROXY_CONTAINER).map(Proxy::from),
        }
    }
}

impl From<Container> for Proxy {
    fn from(container: Container) -> Self {
        let variables = container.env.into_iter().flatten();
        let context = container.security_context.as_ref();
        Self {
            args: container.args.unwrap_or_default(),
            env: variables.map(|v| (v.name, v.value.unwrap_or_default())).collect(),
            uid: context.and_then(|context| context.run_as_user),
            gid: context.and_then(|context| context.run_as_group),
        }
    }
}
