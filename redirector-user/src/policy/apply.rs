//! Applies the options to a draft of a policy, in their order.
//!
//! Source: `tools/common/config/config.go` (`DefaultConfig`, `FillConfigFromEnvironment`, `getLocalIP`),
//! `validation.go` and `tools/istio-iptables/pkg/capture/run.go`. A setting that is given, even empty, means
//! what it means there. One that is absent has the value of the base: istio-iptables' default with
//! `--istio-defaults`, the policy file's, or the sidecar default.

use super::annotations::Reader;
use super::draft::Draft;
use super::error::ConfigError;
use super::flag_input::FlagInput;
use super::model::Policy;
use super::note::Note;
use super::options::{CaptureOption, GROUPS, Set};
use super::requests::Requests;

/// A policy, and what else the flags and annotations say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The policy, in normal form.
    pub policy: Policy,
    /// Remarks for the user, in a stable order.
    pub notes: Vec<Note>,
    /// What the operational flags ask of the verb.
    pub requests: Requests,
}

/// Applies all options, in their order.
pub(super) fn apply(mut draft: Draft<'_>) -> Result<Resolved, ConfigError> {
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
