//! Which outbound connections are captured.

use super::{Annotation, CaptureOption, Empty, Group, OPTION, Row, Set, Value, example, nothing};
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

static CIDRS: CaptureOption = CaptureOption {
    long: Some("istio-service-cidr"),
    short: Some('i'),
    variable: Some("ISTIO_SERVICE_CIDR"),
    value: Value::Text("CIDRS"),
    help: "Comma list of destinations captured, `*` for all, empty for none",
    row: Row {
        original: "none",
        here: "`*`, a list of both families, or empty for none. A loopback prefix in it takes away the rule for the app on lo, \
               as in the original",
        tested: "`*`: `parity_default` `outbound`; list of both families with a loopback prefix: `parity_options` \
                 `options_one_by_one`; 50,000: `long_lists` `fifty_thousand_networks`",
    },
    set: Set::Text(|draft, input| input.store(&mut draft.policy.outbound_cidrs, parse::cidr_selection)),
    annotations: &[Annotation {
        key: "traffic.sidecar.istio.io/includeOutboundIPRanges",
        without: "`*`",
        allowed: "`*`, or networks; empty for none",
        tested: "`one_by_one`",
        read: |draft, reader, key| {
            draft.policy.outbound_cidrs = match reader.get(key) {
                None | Some("*") => Selection::All,
                Some(_) => Selection::of(reader.cidrs(key)?),
            };
            Ok(())
        },
    }],
    example: example(
        "10.1.2.3/8,fd00::/8",
        |p| p.outbound_cidrs = Selection::List(vec![net("10.0.0.0/8"), net("fd00::/8")]),
        Empty::Means(|p| p.outbound_cidrs = Selection::None),
    ),
    ..OPTION
};

static EXCLUDE_CIDRS: CaptureOption = CaptureOption {
    long: Some("istio-service-exclude-cidr"),
    short: Some('x'),
    variable: Some("ISTIO_SERVICE_EXCLUDE_CIDR"),
    value: Value::Text("CIDRS"),
    help: "Comma list of destinations never captured",
    row: Row {
        original: "none",
        here: "never captured; wins over `-q`",
        tested: "`parity_options` `options_one_by_one`; 50,000: `long_lists` `fifty_thousand_networks`",
    },
    set: Set::Text(|draft, input| {
        input.store(&mut draft.policy.outbound_exclude_cidrs, parse::excluded_cidrs)
    }),
    annotations: &[Annotation {
        key: "traffic.sidecar.istio.io/excludeOutboundIPRanges",
        without: "none",
        allowed: "networks",
        tested: "`one_by_one`",
        read: |draft, reader, key| {
            draft.policy.outbound_exclude_cidrs = reader.cidrs(key)?;
            Ok(())
        },
    }],
    example: example(
        "10.9.9.9/16",
        |p| p.outbound_exclude_cidrs = vec![net("10.9.0.0/16")],
        Empty::Means(|p| p.outbound_exclude_cidrs.clear()),
    ),
    ..OPTION
};

static PORTS: CaptureOption = CaptureOption {
    long: Some("istio-outbound-ports"),
    short: Some('q'),
    variable: Some("ISTIO_OUTBOUND_PORTS"),
    value: Value::Text("PORTS"),
    help: "Comma list of destination ports captured whatever the address",
    row: Row {
        original: "none",
        here: "captured whatever the address",
        tested: "`parity_options` `options_one_by_one`; after `-x`: `a_wrong_order_of_rules_is_found`",
    },
    set: Set::Text(|draft, input| input.store(&mut draft.policy.outbound_ports, parse::ports)),
    annotations: &[Annotation {
        key: "traffic.sidecar.istio.io/includeOutboundPorts",
        without: "none",
        allowed: "ports",
        tested: "`one_by_one`",
        read: |draft, reader, key| {
            draft.policy.outbound_ports = reader.ports(key, "", &mut draft.notes)?;
            Ok(())
        },
    }],
    example: example(
        "443,80",
        |p| p.outbound_ports = vec![80, 443],
        Empty::Means(|p| p.outbound_ports.clear()),
    ),
    ..OPTION
};

static EXCLUDE_PORTS: CaptureOption = CaptureOption {
    long: Some("istio-local-outbound-ports-exclude"),
    short: Some('o'),
    variable: Some("ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"),
    value: Value::Text("PORTS"),
    help: "Comma list of destination ports never captured",
    row: Row {
        original: "none",
        here: "never captured, TCP and DNS",
        tested: "`parity_options` `options_one_by_one`, `lifecycle` `another_policy_is_swapped_in`",
    },
    set: Set::Text(|draft, input| input.store(&mut draft.policy.outbound_exclude_ports, parse::ports)),
    annotations: &[Annotation {
        key: "traffic.sidecar.istio.io/excludeOutboundPorts",
        without: "15020",
        allowed: "ports; empty for none",
        tested: "`one_by_one`",
        read: |draft, reader, key| {
            draft.policy.outbound_exclude_ports = reader.ports(key, "15020", &mut draft.notes)?;
            Ok(())
        },
    }],
    example: example(
        "53",
        |p| p.outbound_exclude_ports = vec![53],
        Empty::Means(|p| p.outbound_exclude_ports.clear()),
    ),
    ..OPTION
};

static LOOPBACK_CIDR: CaptureOption = CaptureOption {
    variable: Some("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"),
    value: Value::Text(""),
    help: "the application's own loopback range (127.0.0.1/32)",
    row: Row {
        original: "127.0.0.1/32",
        here: "IPv4 loopback network, mask 8 to 32; IPv6 is always `::1/128`",
        tested: "`parity_options` `options_one_by_one`",
    },
    set: Set::Text(|draft, input| input.store(&mut draft.policy.loopback_cidr, parse::loopback)),
    ..OPTION
};
