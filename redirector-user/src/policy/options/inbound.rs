//! Which inbound connections are captured, and how they reach the proxy.

use super::option::{CaptureOption, Empty, Group, Value, annotation, flag};
use crate::policy::annotations::key;
use crate::policy::draft::Draft;
use crate::policy::error::ConfigError;
use crate::policy::flag_input::FlagInput;
use crate::policy::model::{Mode, Policy, Selection};
use crate::policy::note::Note;
use crate::policy::parse;

/// Ports that are never captured inbound, whatever the annotation says (`NewRedirect`): telemetry, health,
/// Prometheus.
const NEVER_CAPTURED: [u16; 3] = [15020, 15021, 15090];

pub(super) static GROUP: Group = Group {
    heading: Some("Inbound capture"),
    options: &[
        &INTERCEPTION_MODE,
        &INBOUND_PORTS,
        &EXCLUDE_PORTS,
        &VIRTUAL_INTERFACES,
        &EXCLUDE_INTERFACES,
        &TPROXY_MARK,
        &TPROXY_TABLE,
    ],
    finish: note_useless_exclusions,
};

static INTERCEPTION_MODE: CaptureOption =
    flag("istio-inbound-interception-mode", "ISTIO_INBOUND_INTERCEPTION_MODE", Value::Text("MODE"))
        .letter('m')
        .help("REDIRECT or TPROXY (which keeps the client's address)")
        .row(
            "REDIRECT | only `TPROXY` is TPROXY; any other word is REDIRECT, with a note | \
             REDIRECT: `parity_default`; TPROXY: `tproxy` (both legs), `envoy` `tproxy`, parity, \
             `lifecycle_surroundings`",
        )
        .text(|draft, input| {
            draft.policy.mode = if input.text() == "TPROXY" { Mode::Tproxy } else { Mode::Redirect };
            if !matches!(input.text(), "TPROXY" | "REDIRECT" | "") {
                let text = format!(
                    "{:?} is taken as REDIRECT, as by istio-iptables: only TPROXY is another",
                    input.text()
                );
                draft.notes.push(Note::warning(input.name(), text));
            }
            Ok(())
        })
        .annotations(&[annotation(
            "sidecar.istio.io/interceptionMode",
            "REDIRECT | REDIRECT, TPROXY; `NONE` is an error | `one_by_one` (REDIRECT)",
            |draft, reader, key| reader.mode(key).map(|it| draft.policy.mode = it),
        )])
        .example("TPROXY", |p| p.mode = Mode::Tproxy, Empty::Means(|p| p.mode = Mode::Redirect));

static INBOUND_PORTS: CaptureOption =
    flag("istio-inbound-ports", "ISTIO_INBOUND_PORTS", Value::Text("PORTS"))
        .letter('b')
        .help("Comma list of ports whose connections are captured, `*` for all, empty for none")
        .row(
            "none | `*`, a list, or empty for none | `*`: `parity_default` `inbound`; list and \
             none: `parity_options` `options_one_by_one`",
        )
        .text(|draft, input| input.store(&mut draft.policy.inbound_ports, parse::port_selection))
        .annotations(&[annotation(
            "traffic.sidecar.istio.io/includeInboundPorts",
            "`*` | `*`, or ports; empty for none | `one_by_one`",
            |draft, reader, key| {
                reader.port_selection(key, &mut draft.notes).map(|it| draft.policy.inbound_ports = it)
            },
        )])
        .example(
            "6000,7000,",
            |p| p.inbound_ports = Selection::List(vec![6000, 7000]),
            Empty::Means(|p| p.inbound_ports = Selection::None),
        );

static EXCLUDE_PORTS: CaptureOption =
    flag("istio-local-exclude-ports", "ISTIO_LOCAL_EXCLUDE_PORTS", Value::Text("PORTS"))
        .letter('d')
        .help("Comma list of ports not captured, only with `-b '*'`")
        .row(
            "none | only with `-b '*'`, otherwise a note | `parity_default` `inbound`, \
             `parity_options` `options_one_by_one`",
        )
        .text(|draft, input| {
            input.store(&mut draft.policy.inbound_exclude_ports, parse::ports)?;
            draft.excluded_ports = (input.name().into(), draft.policy.inbound_exclude_ports.clone());
            Ok(())
        })
        .annotations(&[
            annotation(
                "traffic.sidecar.istio.io/excludeInboundPorts",
                "15020 | ports; 15020, 15021 and 15090 are always added | `one_by_one`",
                |draft, reader, key| {
                    let mut ports = reader.ports(key, "15020", &mut draft.notes)?;
                    // Where only some ports are captured nothing is excluded; worth a remark only if somebody wanted it.
                    if ports.iter().all(|port| NEVER_CAPTURED.contains(port)) {
                        draft.excluded_ports = (key.into(), Vec::new());
                    } else {
                        draft.excluded_ports = (key.into(), ports.clone());
                    }
                    ports.extend(NEVER_CAPTURED);
                    draft.policy.inbound_exclude_ports = ports;
                    Ok(())
                },
            ),
            annotation(
                "status.sidecar.istio.io/port",
                "none | not read, as by the plugin: the injector adds it to excludeInboundPorts. A \
                 note if it is missing there | `annotations_without_effect_are_named`",
                note_status_port,
            ),
        ])
        .example(
            "22,21",
            |p| p.inbound_exclude_ports = vec![21, 22],
            Empty::Means(|p| p.inbound_exclude_ports.clear()),
        );

#[expect(clippy::unnecessary_wraps, reason = "one type for all options")]
fn note_status_port(
    draft: &mut Draft<'_>,
    reader: &crate::policy::annotations::Reader<'_>,
    key: &'static str,
) -> Result<(), ConfigError> {
    let excluded = &draft.policy.inbound_exclude_ports;
    if let Some(status) = reader.get(key)
        && draft.policy.inbound_ports == Selection::All
        && !matches!(status.trim(), "" | "0")
        && !status.trim().parse().is_ok_and(|port| excluded.contains(&port))
    {
        let text = format!(
            "{status:?} is captured like any port: the CNI plugin reads {}, to which the injector adds it",
            EXCLUDE_PORTS.annotations[0].key
        );
        draft.notes.push(Note::warning(key, text));
    }
    Ok(())
}

fn note_useless_exclusions(draft: &mut Draft<'_>) -> Result<(), ConfigError> {
    let (name, ports) = &draft.excluded_ports;
    if draft.policy.inbound_ports != Selection::All && !ports.is_empty() {
        let text = "has no effect: ports are excluded only where all inbound ports are captured (-b '*')";
        draft.notes.push(Note::warning(name, text));
    }
    Ok(())
}

static VIRTUAL_INTERFACES: CaptureOption =
    flag("kube-virt-interfaces", "KUBE_VIRT_INTERFACES", Value::Dashes("IFS"))
        .letter('k')
        .help("Comma list of interfaces (of VMs) whose incoming traffic is treated as outbound")
        .row(
            "none | TCP that enters them, the traffic of a guest, is outbound: by `-i` alone it \
             goes to `-p` or passes. Known by name, also when they come later. Not beside TPROXY \
             (exit code 2). The proxy's listener must be transparent for IPv4: attach and \
             `refresh` make it so | `virtual_interfaces`, `parity_options` `options_one_by_one`, \
             `lifecycle_surroundings`",
        )
        .text(|draft, input| input.store(&mut draft.policy.virtual_interfaces, parse::interfaces))
        .annotations(&[
            annotation(
                key::REROUTE_INTERFACES,
                "none | interfaces | `annotations_one_by_one`; the flag: `parity_options` \
                 `options_one_by_one`",
                |draft, reader, key| reader.interfaces(key).map(|it| draft.policy.virtual_interfaces = it),
            ),
            annotation(
                key::KUBEVIRT_INTERFACES,
                "none | interfaces; deprecated, read only without the former | \
                 `annotations_one_by_one`",
                |draft, reader, key| {
                    let new = key::REROUTE_INTERFACES;
                    if reader.get(key).is_none() {
                        return Ok(());
                    }
                    if reader.get(new).is_some() {
                        draft.notes.push(Note::remark(key, format!("is not read beside {new}")));
                        return Ok(());
                    }
                    draft.notes.push(Note::remark(key, format!("is deprecated: write {new}")));
                    draft.policy.virtual_interfaces = reader.interfaces(key)?;
                    Ok(())
                },
            ),
        ])
        .example(
            "vm0",
            |p| p.virtual_interfaces = vec!["vm0".into()],
            Empty::Means(|p| p.virtual_interfaces.clear()),
        );

static EXCLUDE_INTERFACES: CaptureOption =
    flag("istio-exclude-interfaces", "ISTIO_EXCLUDE_INTERFACES", Value::Dashes("IFS"))
        .letter('c')
        .help("Comma list of interfaces on which nothing is captured, in or out")
        .row(
            "none | nothing captured on them, in or out; known by the indices of the attach or \
             the last refresh; a note names those that are not there | `parity_options` \
             `options_one_by_one`; the route decides: `lifecycle_change` \
             `refresh_sees_new_routes_addresses_and_interfaces`, \
             `interfaces_that_are_not_there_are_named`",
        )
        .text(|draft, input| input.store(&mut draft.policy.exclude_interfaces, parse::interfaces))
        .annotations(&[annotation(
            "traffic.sidecar.istio.io/excludeInterfaces",
            "none | interfaces | `one_by_one`",
            |draft, reader, key| reader.interfaces(key).map(|it| draft.policy.exclude_interfaces = it),
        )])
        .example(
            "net1,eth1",
            |p| p.exclude_interfaces = vec!["eth1".into(), "net1".into()],
            Empty::Means(|p| p.exclude_interfaces.clear()),
        );

static TPROXY_MARK: CaptureOption =
    flag("istio-inbound-tproxy-mark", "ISTIO_INBOUND_TPROXY_MARK", Value::Text("MARK"))
        .letter('t')
        .help("Packet mark of the proxy's connections in TPROXY mode (1337)")
        .row(
            "1337 | mark of the proxy's connections that carry the client's address; fixed while \
             attached | `tproxy` `another_mark_and_table_and_listed_ports`, parity",
        )
        .text(|draft, input| only_tproxy(draft, input, |policy| &mut policy.tproxy_mark, parse::mark))
        .example("5", |p| p.tproxy_mark = 5, Empty::Means(|_| ()));

static TPROXY_TABLE: CaptureOption =
    flag("istio-inbound-tproxy-route-table", "ISTIO_INBOUND_TPROXY_ROUTE_TABLE", Value::Text("TABLE"))
        .letter('r')
        .help("Routing table for the marked packets in TPROXY mode (133)")
        .row(
            "133 | table of the marked packets; fixed while attached | `tproxy` \
             `another_mark_and_table_and_listed_ports`, parity, `lifecycle_surroundings` \
             `a_table_that_leads_elsewhere_is_refused`",
        )
        .text(|draft, input| only_tproxy(draft, input, |policy| &mut policy.tproxy_table, parse::table))
        .example("6", |p| p.tproxy_table = 6, Empty::Means(|_| ()));

/// Empty is an error only where the original uses the number.
fn only_tproxy(
    draft: &mut Draft<'_>,
    input: &FlagInput,
    field: fn(&mut Policy) -> &mut u32,
    parse: fn(&str, &str) -> Result<u32, ConfigError>,
) -> Result<(), ConfigError> {
    let is_redirect = draft.policy.mode == Mode::Redirect;
    if is_redirect {
        draft.notes.push(Note::remark(input.name(), "has no effect: the mode is not TPROXY (-m)"));
    }
    if is_redirect && input.text().is_empty() {
        return Ok(());
    }
    input.store(field(&mut draft.policy), parse)
}
