//! The proxy's ports, users and groups.

use super::option::{CaptureOption, Empty, Group, NO_VARIABLE, Value, flag};
use super::owners::ENVOY_USER;
use crate::policy::draft::{Base, Draft};
use crate::policy::error::ConfigError;
use crate::policy::flags::PROXY;
use crate::policy::note::Note;
use crate::policy::{parse, range};

/// The uid istio-iptables falls back to (`DefaultProxyUID`), and the CNI plugin for a proxy that has none of its
/// own, or root's (`defaultNoRedirectUID`): under TPROXY the injector runs Envoy as root.
const DEFAULT_PROXY_ID: u32 = 1337;

/// The user whose uid is taken if no uid is given.
const DEFAULT_PROXY_USER: &str = "istio-proxy";

/// The ports and ids that are the proxy's.
pub(super) static GROUP: Group = Group {
    heading: Some(PROXY),
    options: &[&ENVOY_PORT, &INBOUND_CAPTURE_PORT, &INBOUND_TUNNEL_PORT, &PROXY_UID, &PROXY_GID],
    finish: set_proxy,
};

/// `-p`.
pub static ENVOY_PORT: CaptureOption = flag("envoy-port", NO_VARIABLE, Value::Text("PORT"))
    .letter('p')
    .help("Port the proxy accepts outbound connections on (15001)")
    .row(
        "15001 | outbound capture port | `parity_default` `spelled_out`; another: \
         `parity_options` `options_one_by_one`, `lifecycle_load` \
         `no_connection_is_lost_while_policies_alternate`",
    )
    .text(|draft, input| input.store(&mut draft.policy.outbound_port, parse::port))
    .example("1", |p| p.outbound_port = 1, Empty::Refused);

/// `-z`.
pub static INBOUND_CAPTURE_PORT: CaptureOption =
    flag("inbound-capture-port", "INBOUND_CAPTURE_PORT", Value::Text("PORT"))
        .letter('z')
        .help("Port the proxy accepts inbound connections on (15006)")
        .row("15006 | inbound capture port | as `-p`: `parity_options` `options_one_by_one`")
        .text(|draft, input| input.store(&mut draft.policy.inbound_port, parse::port))
        .example("2", |p| p.inbound_port = 2, Empty::Refused);

static INBOUND_TUNNEL_PORT: CaptureOption =
    flag("inbound-tunnel-port", "INBOUND_TUNNEL_PORT", Value::Text("PORT"))
        .letter('e')
        .help("HBONE port of the proxy, never captured (15008)")
        .row(
            "15008 | never captured inbound, exempt from the rule for the proxy's calls to its \
             own pod | `parity_default` `inbound`, `outbound` (15008); another: `parity_options` \
             `options_one_by_one`",
        )
        .text(|draft, input| input.store(&mut draft.policy.tunnel_port, parse::port))
        .example("3", |p| p.tunnel_port = 3, Empty::Refused);

/// `-u`.
pub static PROXY_UID: CaptureOption = flag("proxy-uid", "PROXY_UID", Value::Text("UIDS"))
    .letter('u')
    .help("Comma list of uids whose traffic is the proxy's own")
    .long_help("Empty: the uid of $ENVOY_USER or istio-proxy in the target, else 1337.")
    .row(
        "uid of `$ENVOY_USER` or istio-proxy, else 1337 | the same; in the target's \
         /etc/passwd, with `--pid`. Sidecar default: 1337. `,` names none | `parity_default` \
         `outbound`, `sockets` `user_switched_after_creation`; several: `parity_options` \
         `options_one_by_one`",
    )
    .example(
        "7,0",
        |p| (p.proxy_uids, p.proxy_gids) = (vec![7, 0], vec![7, 0]),
        Empty::Means(|p| (p.proxy_uids, p.proxy_gids) = (vec![1337], vec![1337])),
    );

/// `-g`.
pub static PROXY_GID: CaptureOption = flag("proxy-gid", "PROXY_GID", Value::Text("GIDS"))
    .letter('g')
    .help("Comma list of gids whose traffic is the proxy's own (as --proxy-uid)")
    .row(
        "as `--proxy-uid` | the same | `parity_default` `outbound` (callers `proxy-gid`); \
         several: `parity_options` `options_one_by_one`",
    )
    .example("8,1", |p| p.proxy_gids = vec![8, 1], Empty::Means(|_| ()));

/// The proxy's cgroup, users and groups. An empty `--proxy-uid` is the uid of `$ENVOY_USER`, an empty or absent
/// `--proxy-gid` the same list as `--proxy-uid`. Only a policy file keeps its groups when just the users are
/// given.
fn set_proxy(draft: &mut Draft<'_>) -> Result<(), ConfigError> {
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
