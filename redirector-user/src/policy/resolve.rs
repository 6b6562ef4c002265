//! From flags, variables, annotations and the target to the policy.
//!
//! Source: `tools/common/config/config.go` (`DefaultConfig`, `FillConfigFromEnvironment`, `getLocalIP`),
//! `validation.go` and `tools/istio-iptables/pkg/capture/run.go`. A setting that is given, even empty, means
//! what it means there. One that is absent has the value of the base: istio-iptables' default with
//! `--istio-defaults`, the policy file's, or the sidecar default.

use super::annotations::{self, Pod, Reader};
use super::draft::{Base, Draft};
use super::error::ConfigError;
use super::file::{self, Exclusions};
use super::flag_input::FlagInput;
use super::flags::CaptureFlags;
use super::model::Policy;
use super::note::Note;
use super::options::{self, CAPTURE_ALL_DNS, CaptureOption, GROUPS, REDIRECT_DNS, Set};
use super::requests::Requests;
use super::target_info::TargetInfo;

/// What [`resolve`] makes of the flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The policy, in normal form.
    pub policy: Policy,
    /// Remarks for the user, in a stable order.
    pub notes: Vec<Note>,
    /// What the operational flags ask of the verb.
    pub requests: Requests,
}

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

/// Applies all options, in their order.
fn apply(mut draft: Draft<'_>) -> Result<Resolved, ConfigError> {
    let requests = draft.flags.requests()?;
    for group in GROUPS {
        for option in group.options {
            apply_option(option, &mut draft)?;
        }
        (group.finish)(&mut draft)?;
    }
    draft.notes.extend(draft.flags.notes_on_variables());
    let Draft { mut policy, notes, .. } = draft;
    policy.validate()?;
    policy.normalise();
    Ok(Resolved { policy, notes, requests })
}

/// An annotation is read even if a flag wins over it: the plugin would refuse a wrong one all the same.
fn apply_option(option: &CaptureOption, draft: &mut Draft<'_>) -> Result<(), ConfigError> {
    if let Some(pod) = draft.pod {
        for annotation in option.annotations {
            (annotation.read)(draft, &Reader::new(&pod.annotations), annotation.key)?;
        }
    }
    let flags = draft.flags;
    let asked = |input: &FlagInput| match option.is_switch() {
        true => input.switch() == Some(true),
        false => !input.text().is_empty(),
    };
    match (&option.set, flags.input(option)) {
        (Set::Text(set), Some(input)) => set(draft, input)?,
        (Set::Switch(set), _) => {
            if let Some((name, on)) = flags.switch(option) {
                set(draft, name, on);
            }
        }
        (Set::Note(text), Some(input)) if asked(input) => draft.notes.push(Note::remark(input.name(), *text)),
        _ => {}
    }
    Ok(())
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
