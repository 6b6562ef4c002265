//! From flags, variables, a file and the target to the policy.

use super::annotations;
use super::apply::{Resolved, apply};
use super::draft::{Base, Draft};
use super::error::ConfigError;
use super::file::{self, Exclusions};
use super::flags::CaptureFlags;
use super::from_annotations::resolve_pod;
use super::model::Policy;
use super::target_info::TargetInfo;

/// Makes a policy of `flags`, the file of a policy or of annotations they name included. `target` is asked only
/// for what the flags need.
pub fn resolve(flags: &CaptureFlags, target: &dyn TargetInfo) -> Result<Resolved, ConfigError> {
    if let Some(path) = &flags.own.annotations {
        let pod = annotations::load(path)?;
        let mut resolved = resolve_pod(&pod, flags, target)?;
        resolved.notes.extend(pod.not_captured_by_istio());
        return Ok(resolved);
    }
    let (base, policy, written) = match &flags.own.policy {
        Some(path) => {
            let (policy, written) = file::load(path)?;
            (Base::File, policy, written)
        }
        None if flags.own.istio_defaults => (Base::Istio, Policy::istio_default(), Exclusions::default()),
        None => (Base::Sidecar, Policy::default(), Exclusions::default()),
    };
    let excluded_ports = ("inbound_exclude_ports".into(), written.inbound_exclude_ports.clone());
    apply(Draft { flags, target, base, pod: None, policy, written, excluded_ports, notes: Vec::new() })
}
