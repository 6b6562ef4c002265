//! Whether Istio captures a pod.

use std::fmt;

use super::pod::{PROXY_CONTAINER, Pod};
use super::values::key;
use crate::policy::flag_input::parse_bool;
use crate::policy::note::Note;

/// The init container that has set the rules already.
const INIT_CONTAINER: &str = "istio-init";

/// Whether a pod is captured, or why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// It is.
    Inside,
    /// It is not.
    Outside(Outside),
}

/// Why a pod is not captured, in the order in which it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// Its namespace is excluded.
    ExcludedNamespace(String),
    /// It has no network namespace of its own; the CNI plugin is never called for it.
    HostNetwork,
    /// It was injected with istio-init, which sets iptables rules.
    IstioInit,
    /// `DISABLE_ENVOY` of its proxy is true.
    EnvoyDisabled,
    /// It has no container istio-proxy.
    NoProxy,
    /// Its proxy is no sidecar (a gateway: `router`).
    ProxyType(String),
    /// The label or annotation `sidecar.istio.io/inject` says no.
    InjectionDisabled,
    /// It has no annotation `sidecar.istio.io/status`: it was not injected.
    NotInjected,
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ExcludedNamespace(namespace) => write!(f, "namespace {namespace} is excluded"),
            Self::HostNetwork => write!(f, "it is in the machine's network namespace (hostNetwork)"),
            Self::IstioInit => {
                write!(f, "it has the init container {INIT_CONTAINER}, which sets iptables rules")
            }
            Self::EnvoyDisabled => write!(f, "DISABLE_ENVOY of {PROXY_CONTAINER} is true"),
            Self::NoProxy => write!(f, "it has no container {PROXY_CONTAINER}"),
            Self::ProxyType(kind) => write!(f, "its proxy is a {kind:?} and no sidecar"),
            Self::InjectionDisabled => write!(f, "{} is false", key::INJECT),
            Self::NotInjected => write!(f, "it has no annotation {}", key::STATUS),
        }
    }
}

impl Pod {
    /// Whether Istio captures the pod (`doAddRun` in `plugin.go`).
    pub fn membership(&self, excluded_namespaces: &[impl AsRef<str>]) -> Membership {
        self.outside(excluded_namespaces).map_or(Membership::Inside, Membership::Outside)
    }

    /// A remark if Istio would leave the pod alone. Of bare annotations nothing can be said.
    pub(in crate::policy) fn not_captured_by_istio(&self) -> Option<Note> {
        let outside = self.outside(&[""; 0]).filter(|_| !self.containers.is_empty())?;
        Some(Note::warning("--annotations", format!("Istio would not capture this pod: {outside}")))
    }

    fn outside(&self, excluded_namespaces: &[impl AsRef<str>]) -> Option<Outside> {
        if excluded_namespaces.iter().any(|excluded| excluded.as_ref() == self.namespace) {
            return Some(Outside::ExcludedNamespace(self.namespace.clone()));
        }
        if self.host_network {
            return Some(Outside::HostNetwork);
        }
        if self.containers.contains(INIT_CONTAINER) {
            return Some(Outside::IstioInit);
        }
        let Some(proxy) = &self.proxy else {
            return Some(Outside::NoProxy);
        };
        if proxy.env.get("DISABLE_ENVOY").and_then(|text| parse_bool(text)) == Some(true) {
            return Some(Outside::EnvoyDisabled);
        }
        if let Some(kind) = proxy.kind()
            && !matches!(kind, "" | "sidecar")
        {
            return Some(Outside::ProxyType(kind.into()));
        }
        // The label wins, even an empty one; what is no boolean excludes nothing.
        let inject = self.labels.get(key::INJECT).or_else(|| self.annotations.get(key::INJECT));
        if inject.and_then(|text| parse_bool(text)) == Some(false) {
            return Some(Outside::InjectionDisabled);
        }
        (!self.annotations.contains_key(key::STATUS)).then_some(Outside::NotInjected)
    }
}
