//! The proxy's ports, users and groups.

use super::{CaptureOption, Empty, Group, NO_VARIABLE, PROXY, Value, flag, owners};
use crate::policy::parse;

/// The ports and ids that are the proxy's.
pub(super) static GROUP: Group = Group {
    heading: Some(PROXY),
    options: &[&ENVOY_PORT, &INBOUND_CAPTURE_PORT, &INBOUND_TUNNEL_PORT, &PROXY_UID, &PROXY_GID],
    finish: owners::set_proxy,
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
