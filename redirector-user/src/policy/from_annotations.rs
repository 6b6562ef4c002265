//! The policy of a pod: its annotations, read as Istio's CNI plugin reads them, and what wins over them.

use super::annotations::Pod;
use super::apply::{Resolved, apply};
use super::draft::{Base, Draft};
use super::error::ConfigError;
use super::file::Exclusions;
use super::flag_input::FlagInput;
use super::flags::CaptureFlags;
use super::model::Policy;
use super::note::Note;
use super::options::{self, CAPTURE_ALL_DNS, CaptureOption, REDIRECT_DNS};
use super::target_info::TargetInfo;

/// Makes the policy of a pod as Istio's CNI plugin would. What `overrides` gives wins over the annotations.
/// IPv6 is on as istio-iptables decides it (`--ipv6 auto`); where the target's addresses are not known it is
/// on, with a note.
pub fn resolve_pod(
    pod: &Pod,
    overrides: &CaptureFlags,
    target: &dyn TargetInfo,
) -> Result<Resolved, ConfigError> {
    let mut flags = overrides.clone();
    let mut fill = |option: &CaptureOption, input: FlagInput| {
        if flags.input(option).is_none() {
            flags.set(option, input);
        }
    };
    // One variable for both (`sidecar_iptables_linux.go`).
    if let Some(dns) = REDIRECT_DNS.second_variable.and_then(|name| pod.variable(name))
        && dns.switch() == Some(true)
        && overrides.input(&REDIRECT_DNS).is_none()
    {
        fill(&CAPTURE_ALL_DNS, dns);
    }
    for option in options::all() {
        if let Some(input) = option.second_variable.and_then(|name| pod.variable(name)) {
            fill(option, input);
        }
    }
    let notes = notes_on_unknown(pod).collect();
    apply(Draft {
        flags: &flags,
        target,
        base: Base::Cni,
        pod: Some(pod),
        policy: Policy::default(),
        written: Exclusions::default(),
        excluded_ports: Default::default(),
        notes,
    })
}

/// Remarks on annotations that look like settings and are none.
fn notes_on_unknown(pod: &Pod) -> impl Iterator<Item = Note> {
    let is_read = |key: &str| {
        options::all().flat_map(|option| option.annotations).any(|annotation| annotation.key == key)
    };
    let unknown = move |key: &&String| key.starts_with("traffic.sidecar.istio.io/") && !is_read(key);
    let text = "is not read: Istio has no annotation of this name";
    pod.annotations.keys().filter(unknown).map(move |key| Note::warning(key, text))
}
