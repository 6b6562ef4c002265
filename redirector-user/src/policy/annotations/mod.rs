//! A pod's annotations, read as Istio's CNI plugin reads them.
//!
//! Source: `cni/pkg/plugin/{sidecar_redirect,sidecar_iptables_linux,plugin,kubernetes}.go`. No Kubernetes type
//! appears here: [`Pod`] has what the plugin looks at, whoever found it out. [`Pod::membership`] says whether Istio
//! captures the pod at all; which annotation sets what is part of each option.

mod file;
mod membership;
mod pod;
mod values;

pub use file::{load, parse};
pub use membership::{Membership, Outside};
pub use pod::{PROXY_CONTAINER, Pod, Proxy};
pub use values::{Reader, key};
