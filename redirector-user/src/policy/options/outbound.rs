//! Which outbound connections are captured.

use super::option::{CaptureOption, Empty, Group, Value, annotation, flag, nothing, variable};
use crate::policy::model::Selection;
use crate::policy::parse;

pub(super) static GROUP: Group = Group {
    heading: Some("Outbound capture"),
    options: &[&CIDRS, &EXCLUDE_CIDRS, &PORTS, &EXCLUDE_PORTS, &LOOPBACK_CIDR],
    finish: nothing,
};

fn net(text: &str) -> ipnet::IpNet {
    text.parse().unwrap_or_default()
}

static CIDRS: CaptureOption = flag("istio-service-cidr", "ISTIO_SERVICE_CIDR", Value::Text("CIDRS"))
    .letter('i')
    .help("Comma list of destinations captured, `*` for all, empty for none")
    .row(
        "none | `*`, a list of both families, or empty for none. A loopback prefix in it \
         takes away the rule for the app on lo, as in the original | `*`: `parity_default` \
         `outbound`; list of both families with a loopback prefix: `parity_options` \
         `options_one_by_one`; 50,000: `long_lists` `fifty_thousand_networks`",
    )
    .text(|draft, input| input.store(&mut draft.policy.outbound_cidrs, parse::cidr_selection))
    .annotations(&[annotation(
        "traffic.sidecar.istio.io/includeOutboundIPRanges",
        "`*` | `*`, or networks; empty for none | `one_by_one`",
        |draft, reader, key| {
            draft.policy.outbound_cidrs = match reader.get(key) {
                None | Some("*") => Selection::All,
                Some(_) => Selection::of(reader.cidrs(key)?),
            };
            Ok(())
        },
    )])
    .example(
        "10.1.2.3/8,fd00::/8",
        |p| p.outbound_cidrs = Selection::List(vec![net("10.0.0.0/8"), net("fd00::/8")]),
        Empty::Means(|p| p.outbound_cidrs = Selection::None),
    );

static EXCLUDE_CIDRS: CaptureOption =
    flag("istio-service-exclude-cidr", "ISTIO_SERVICE_EXCLUDE_CIDR", Value::Text("CIDRS"))
        .letter('x')
        .help("Comma list of destinations never captured")
        .row(
            "none | never captured; wins over `-q` | `parity_options` `options_one_by_one`; \
             50,000: `long_lists` `fifty_thousand_networks`",
        )
        .text(|draft, input| input.store(&mut draft.policy.outbound_exclude_cidrs, parse::excluded_cidrs))
        .annotations(&[annotation(
            "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            "none | networks | `one_by_one`",
            |draft, reader, key| reader.cidrs(key).map(|it| draft.policy.outbound_exclude_cidrs = it),
        )])
        .example(
            "10.9.9.9/16",
            |p| p.outbound_exclude_cidrs = vec![net("10.9.0.0/16")],
            Empty::Means(|p| p.outbound_exclude_cidrs.clear()),
        );

static PORTS: CaptureOption = flag("istio-outbound-ports", "ISTIO_OUTBOUND_PORTS", Value::Text("PORTS"))
    .letter('q')
    .help("Comma list of destination ports captured whatever the address")
    .row(
        "none | captured whatever the address | `parity_options` `options_one_by_one`; after \
         `-x`: `a_wrong_order_of_rules_is_found`",
    )
    .text(|draft, input| input.store(&mut draft.policy.outbound_ports, parse::ports))
    .annotations(&[annotation(
        "traffic.sidecar.istio.io/includeOutboundPorts",
        "none | ports | `one_by_one`",
        |draft, reader, key| {
            reader.ports(key, "", &mut draft.notes).map(|it| draft.policy.outbound_ports = it)
        },
    )])
    .example("443,80", |p| p.outbound_ports = vec![80, 443], Empty::Means(|p| p.outbound_ports.clear()));

static EXCLUDE_PORTS: CaptureOption =
    flag("istio-local-outbound-ports-exclude", "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", Value::Text("PORTS"))
        .letter('o')
        .help("Comma list of destination ports never captured")
        .row(
            "none | never captured, TCP and DNS | `parity_options` `options_one_by_one`, \
             `lifecycle` `another_policy_is_swapped_in`",
        )
        .text(|draft, input| input.store(&mut draft.policy.outbound_exclude_ports, parse::ports))
        .annotations(&[annotation(
            "traffic.sidecar.istio.io/excludeOutboundPorts",
            "15020 | ports; empty for none | `one_by_one`",
            |draft, reader, key| {
                reader
                    .ports(key, "15020", &mut draft.notes)
                    .map(|it| draft.policy.outbound_exclude_ports = it)
            },
        )])
        .example(
            "53",
            |p| p.outbound_exclude_ports = vec![53],
            Empty::Means(|p| p.outbound_exclude_ports.clear()),
        );

static LOOPBACK_CIDR: CaptureOption = variable("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR")
    .help("the application's own loopback range (127.0.0.1/32)")
    .row(
        "127.0.0.1/32 | IPv4 loopback network, mask 8 to 32; IPv6 is always `::1/128` | \
         `parity_options` `options_one_by_one`",
    )
    .text(|draft, input| input.store(&mut draft.policy.loopback_cidr, parse::loopback));
