//! Users and groups: the proxy's own, and the groups whose traffic is captured.
//!
//! Source: `tools/common/config/config.go` (`FillConfigFromEnvironment`); group names are resolved by
//! iptables in the original, in the image it runs in, here in the target's root filesystem.

use super::error::ConfigError;
use super::facts::{FactError, Facts};
use super::note::Note;
use super::parse;
use super::resolve::{Base, Draft};

/// The uid istio-iptables falls back to (`DefaultProxyUID`).
const DEFAULT_PROXY_UID: u32 = 1337;

/// The user whose uid is taken if no uid is given.
const DEFAULT_PROXY_USER: &str = "istio-proxy";

/// The proxy's users and groups. An empty `--proxy-uid` is the uid of `$ENVOY_USER`, an empty or absent
/// `--proxy-gid` the same list as `--proxy-uid`. Only a policy file keeps its groups when just the users are
/// given.
pub(super) fn proxy(draft: &mut Draft<'_>) -> Result<(Vec<u32>, Vec<u32>), ConfigError> {
    let flags = draft.flags;
    let uids = match &flags.proxy_uid {
        Some(given) if !given.text().is_empty() => parse::ids(given.name(), given.text())?,
        Some(_) => vec![default_uid(draft)],
        None if flags.proxy_cgroup.is_some() => Vec::new(),
        None if draft.base == Base::Istio => vec![default_uid(draft)],
        None => draft.policy.proxy_uids.clone(),
    };
    let gids = match &flags.proxy_gid {
        Some(given) if !given.text().is_empty() => parse::ids(given.name(), given.text())?,
        None if draft.base == Base::File && flags.proxy_cgroup.is_none() => draft.policy.proxy_gids.clone(),
        _ => uids.clone(),
    };
    Ok((uids, gids))
}

fn default_uid(draft: &mut Draft<'_>) -> u32 {
    let given = draft.flags.variables.envoy_user.as_ref();
    let user = given.map_or(DEFAULT_PROXY_USER, |given| given.text());
    match (draft.facts.user(user), given) {
        (Ok(uid), _) if uid != parse::NO_ID => return uid,
        (_, None) => {}
        (found, Some(given)) => {
            let why = found.err().map_or("its uid is not valid".into(), |error| error.to_string());
            let text = format!("user {user:?} is not used ({why}): {DEFAULT_PROXY_UID} is the proxy's uid");
            draft.notes.push(Note::warning(given.name(), text));
        }
    }
    DEFAULT_PROXY_UID
}

/// A comma list of group numbers and names.
pub(super) fn groups(facts: &dyn Facts, name: &str, text: &str) -> Result<Vec<u32>, ConfigError> {
    parse::items(text).map(|item| group(facts, name, item)).collect()
}

fn group(facts: &dyn Facts, name: &str, item: &str) -> Result<u32, ConfigError> {
    parse::starless(name, item)?;
    if item.contains(char::is_whitespace) || item.bytes().all(|b| b.is_ascii_digit()) {
        return parse::id(name, item);
    }
    let refuse = |why: String, remedy: &str| Err(ConfigError::invalid(name, item, why, remedy));
    match facts.group(item) {
        Ok(gid) if gid != parse::NO_ID => Ok(gid),
        Ok(_) => refuse("has a gid that is not valid".into(), "give a number"),
        Err(FactError::Unknown) => refuse(
            "is a group name, and the target's groups are not known".into(),
            "give a number, or use --pid",
        ),
        Err(FactError::Absent) => {
            refuse("is no group of the target".into(), "give a number, or a name in its /etc/group")
        }
        Err(FactError::Unreadable(why)) => refuse(format!("cannot be looked up: {why}"), "give a number"),
    }
}
