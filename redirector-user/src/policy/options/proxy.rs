//! The proxy's ports, users and groups.

use super::{CaptureOption, Empty, Group, OPTION, PROXY, Row, Set, Value, example, owners};
use crate::policy::parse;

/// The ports and ids that are the proxy's.
pub(super) static GROUP: Group = Group {
    heading: Some(PROXY),
    options: &[&ENVOY_PORT, &INBOUND_CAPTURE_PORT, &INBOUND_TUNNEL_PORT, &PROXY_UID, &PROXY_GID],
    finish: owners::set_proxy,
};

/// `-p`.
pub static ENVOY_PORT: CaptureOption = CaptureOption {
    long: Some("envoy-port"),
    short: Some('p'),
    value: Value::Text("PORT"),
    help: "Port the proxy accepts outbound connections on (15001)",
    row: Row {
        original: "15001",
        here: "outbound capture port",
        tested: "`parity_default` `spelled_out`; another: `parity_options` `options_one_by_one`, `lifecycle_load` \
                 `no_connection_is_lost_while_policies_alternate`",
    },
    set: Set::Text(|draft, input| input.store(&mut draft.policy.outbound_port, parse::port)),
    example: example("1", |p| p.outbound_port = 1, Empty::Refused),
    ..OPTION
};

/// `-z`.
pub static INBOUND_CAPTURE_PORT: CaptureOption = CaptureOption {
    long: Some("inbound-capture-port"),
    short: Some('z'),
    variable: Some("INBOUND_CAPTURE_PORT"),
    value: Value::Text("PORT"),
    help: "Port the proxy accepts inbound connections on (15006)",
    row: Row {
        original: "15006",
        here: "inbound capture port",
        tested: "as `-p`: `parity_options` `options_one_by_one`",
    },
    set: Set::Text(|draft, input| input.store(&mut draft.policy.inbound_port, parse::port)),
    example: example("2", |p| p.inbound_port = 2, Empty::Refused),
    ..OPTION
};

static INBOUND_TUNNEL_PORT: CaptureOption = CaptureOption {
    long: Some("inbound-tunnel-port"),
    short: Some('e'),
    variable: Some("INBOUND_TUNNEL_PORT"),
    value: Value::Text("PORT"),
    help: "HBONE port of the proxy, never captured (15008)",
    row: Row {
        original: "15008",
        here: "never captured inbound, exempt from the rule for the proxy's calls to its own pod",
        tested: "`parity_default` `inbound`, `outbound` (15008); another: `parity_options` `options_one_by_one`",
    },
    set: Set::Text(|draft, input| input.store(&mut draft.policy.tunnel_port, parse::port)),
    example: example("3", |p| p.tunnel_port = 3, Empty::Refused),
    ..OPTION
};

/// `-u`.
pub static PROXY_UID: CaptureOption = CaptureOption {
    long: Some("proxy-uid"),
    short: Some('u'),
    variable: Some("PROXY_UID"),
    value: Value::Text("UIDS"),
    help: "Comma list of uids whose traffic is the proxy's own",
    long_help: "Empty: the uid of $ENVOY_USER or istio-proxy in the target, else 1337.",
    row: Row {
        original: "uid of `$ENVOY_USER` or istio-proxy, else 1337",
        here: "the same; in the target's /etc/passwd, with `--pid`. Sidecar default: 1337. `,` names none",
        tested: "`parity_default` `outbound`, `sockets` `user_switched_after_creation`; several: `parity_options` \
                 `options_one_by_one`",
    },
    example: example(
        "7,0",
        |p| (p.proxy_uids, p.proxy_gids) = (vec![7, 0], vec![7, 0]),
        Empty::Means(|p| (p.proxy_uids, p.proxy_gids) = (vec![1337], vec![1337])),
    ),
    ..OPTION
};

/// `-g`.
pub static PROXY_GID: CaptureOption = CaptureOption {
    long: Some("proxy-gid"),
    short: Some('g'),
    variable: Some("PROXY_GID"),
    value: Value::Text("GIDS"),
    help: "Comma list of gids whose traffic is the proxy's own (as --proxy-uid)",
    row: Row {
        original: "as `--proxy-uid`",
        here: "the same",
        tested: "`parity_default` `outbound` (callers `proxy-gid`); several: `parity_options` `options_one_by_one`",
    },
    example: example("8,1", |p| p.proxy_gids = vec![8, 1], Empty::Means(|_| ())),
    ..OPTION
};
