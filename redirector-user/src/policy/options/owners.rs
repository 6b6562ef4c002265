//! Users and groups: the proxy's own, and the groups whose traffic is captured.
//!
//! Source: `tools/common/config/config.go` (`FillConfigFromEnvironment`); group names are resolved by
//! iptables in the original, in the image it runs in, here in the target's root filesystem.

use super::proxy::{PROXY_GID, PROXY_UID};
use super::{CaptureOption, Group, variable};
use crate::policy::draft::{Base, Draft};
use crate::policy::error::ConfigError;
use crate::policy::model::Selection;
use crate::policy::note::Note;
use crate::policy::target_info::{LookupError, TargetInfo};
use crate::policy::{parse, range};

/// The uid istio-iptables falls back to (`DefaultProxyUID`), and the CNI plugin for a proxy that has none of its
/// own, or root's (`defaultNoRedirectUID`): under TPROXY the injector runs Envoy as root.
const DEFAULT_PROXY_ID: u32 = 1337;

/// The user whose uid is taken if no uid is given.
const DEFAULT_PROXY_USER: &str = "istio-proxy";

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

static ENVOY_USER: CaptureOption = variable("ENVOY_USER")
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

/// The proxy's cgroup, users and groups. An empty `--proxy-uid` is the uid of `$ENVOY_USER`, an empty or absent
/// `--proxy-gid` the same list as `--proxy-uid`. Only a policy file keeps its groups when just the users are
/// given.
pub fn set_proxy(draft: &mut Draft<'_>) -> Result<(), ConfigError> {
    let flags = draft.flags;
    if let Some(path) = &flags.own.proxy_cgroup {
        let whole = std::path::absolute(path).map_err(|error| {
            let item = path.display().to_string();
            ConfigError::invalid("--proxy-cgroup", &item, error.to_string(), "name a directory")
        })?;
        draft.policy.proxy_cgroup = Some(whole);
    }
    let has_cgroup = flags.own.proxy_cgroup.is_some();
    let container = draft.pod.map(|pod| pod.proxy.clone().unwrap_or_default());
    let uids = match (flags.input(&PROXY_UID), &container) {
        (Some(input), _) if !input.text().is_empty() => parse::ids(input.name(), input.text())?,
        (Some(_), _) => vec![default_uid(draft)],
        // With its cgroup the proxy is known already, and its user may be an application's, too.
        (None, _) if has_cgroup => Vec::new(),
        (None, Some(proxy)) => vec![container_id("runAsUser of istio-proxy", proxy.uid)?],
        (None, None) if draft.base == Base::Istio => vec![default_uid(draft)],
        (None, None) => draft.policy.proxy_uids.clone(),
    };
    let gids = match (flags.input(&PROXY_GID), &container) {
        (Some(input), _) if !input.text().is_empty() => parse::ids(input.name(), input.text())?,
        (None, Some(proxy)) if !has_cgroup => vec![container_id("runAsGroup of istio-proxy", proxy.gid)?],
        (None, None) if draft.base == Base::File && !has_cgroup => draft.policy.proxy_gids.clone(),
        _ => uids.clone(),
    };
    if uids.is_empty() && gids.is_empty() && draft.policy.proxy_cgroup.is_none() {
        let text = "no user and no group is the proxy's: its own connections would be sent back to it";
        draft.notes.push(Note::warning("--proxy-uid", text));
    }
    (draft.policy.proxy_uids, draft.policy.proxy_gids) = (uids, gids);
    Ok(())
}

/// What the CNI plugin makes of an id of the container's security context.
fn container_id(name: &str, id: Option<i64>) -> Result<u32, ConfigError> {
    match id {
        None | Some(0) => Ok(DEFAULT_PROXY_ID),
        Some(id) => {
            let refuse = |(why, remedy)| ConfigError::invalid(name, &id.to_string(), why, remedy);
            u64::try_from(id).map_err(|_| range::NO_USER_OR_GROUP).and_then(range::id).map_err(refuse)
        }
    }
}

fn default_uid(draft: &mut Draft<'_>) -> u32 {
    let input = draft.flags.input(&ENVOY_USER);
    let user = input.map_or(DEFAULT_PROXY_USER, |input| input.text());
    match (draft.target.user(user), input) {
        (Ok(uid), _) if uid != range::NO_ID => return uid,
        (_, None) => {}
        (found, Some(input)) => {
            let why = found.err().map_or("its uid is not valid".into(), |error| error.to_string());
            let text = format!("user {user:?} is not used ({why}): {DEFAULT_PROXY_ID} is the proxy's uid");
            draft.notes.push(Note::warning(input.name(), text));
        }
    }
    DEFAULT_PROXY_ID
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
