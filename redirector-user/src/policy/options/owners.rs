//! The groups whose traffic is captured, and the variable that names the proxy's user.
//!
//! Source: `tools/common/config/config.go` (`FillConfigFromEnvironment`); group names are resolved by
//! iptables in the original, in the image it runs in, here in the target's root filesystem.

use super::option::{CaptureOption, Group, variable};
use crate::policy::draft::Draft;
use crate::policy::error::ConfigError;
use crate::policy::model::Selection;
use crate::policy::note::Note;
use crate::policy::target_info::{LookupError, TargetInfo};
use crate::policy::{parse, range};

/// Variables that name users and groups.
pub(super) static GROUP: Group = Group {
    heading: None,
    options: &[&OWNER_GROUPS, &OWNER_GROUPS_EXCLUDE, &ENVOY_USER],
    finish: note_useless_exclusions,
};

static OWNER_GROUPS: CaptureOption = variable("ISTIO_OUTBOUND_OWNER_GROUPS")
    .help(
        "groups whose traffic is captured, up to 64 numbers or\nnames; `*` (default) for all, \
         empty for none",
    )
    .row(
        "`*` | up to 64 numbers, or names with `--pid` | `parity_options` \
         `options_one_by_one`; names: `owner_groups`",
    )
    .text(|draft, input| {
        range::group_limit(input.name(), parse::items(input.text()).count())?;
        draft.policy.owner_groups = match input.text() {
            "*" => Selection::All,
            list => Selection::of(groups(draft.target, input.name(), list)?),
        };
        Ok(())
    });

static OWNER_GROUPS_EXCLUDE: CaptureOption = variable("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE")
    .help("groups whose traffic is not, where it is `*`")
    .row("none | only where the former is `*` | `parity_options` `options_one_by_one`")
    .text(|draft, input| {
        let all = draft.policy.owner_groups == Selection::All;
        if !all && parse::items(input.text()).next().is_some() {
            let text = "has no effect: groups are excluded only where all are captured \
                        (ISTIO_OUTBOUND_OWNER_GROUPS='*')";
            draft.notes.push(Note::warning(input.name(), text));
        }
        // The original does not look at a list it does not use.
        draft.policy.owner_groups_exclude =
            if all { groups(draft.target, input.name(), input.text())? } else { Vec::new() };
        Ok(())
    });

/// The user whose uid may be the proxy's.
pub(super) static ENVOY_USER: CaptureOption = variable("ENVOY_USER")
    .help("gives the uid where --proxy-uid is empty (istio-proxy)")
    .row("istio-proxy | where `--proxy-uid` is empty | not on the kernel: `the_proxys_users_and_groups`");

#[expect(clippy::unnecessary_wraps, reason = "one type for all options")]
fn note_useless_exclusions(draft: &mut Draft<'_>) -> Result<(), ConfigError> {
    let excluded = &draft.written.owner_groups_exclude;
    if draft.flags.input(&OWNER_GROUPS_EXCLUDE).is_none()
        && draft.policy.owner_groups != Selection::All
        && !excluded.is_empty()
    {
        let text = "has no effect: groups are excluded only where all are captured (owner_groups = \"all\")";
        draft.notes.push(Note::warning("owner_groups_exclude", text));
    }
    Ok(())
}

/// A comma list of group numbers and names.
fn groups(target: &dyn TargetInfo, name: &str, text: &str) -> Result<Vec<u32>, ConfigError> {
    parse::items(text).map(|item| group(target, name, item)).collect()
}

fn group(target: &dyn TargetInfo, name: &str, item: &str) -> Result<u32, ConfigError> {
    parse::starless(name, item)?;
    if item.contains(char::is_whitespace) || item.bytes().all(|b| b.is_ascii_digit()) {
        return parse::id(name, item);
    }
    let refuse = |why: String, remedy: &str| Err(ConfigError::invalid(name, item, why, remedy));
    match target.group(item) {
        Ok(gid) if gid != range::NO_ID => Ok(gid),
        Ok(_) => refuse("has a gid that is not valid".into(), "give a number"),
        Err(LookupError::Unknown) => refuse(
            "is a group name, and the target's groups are not known".into(),
            "give a number, or use --pid",
        ),
        Err(LookupError::Absent) => {
            refuse("is no group of the target".into(), "give a number, or a name in its /etc/group")
        }
        Err(LookupError::Unreadable(why)) => refuse(format!("cannot be looked up: {why}"), "give a number"),
    }
}
