//! What a policy captures, in one line.

use std::fmt::Display;

use crate::policy::{Dns, Policy, Selection};

/// Whether anything that leaves the pod goes to the proxy.
pub fn outbound(policy: &Policy) -> bool {
    policy.outbound_cidrs != Selection::None
        || !policy.outbound_ports.is_empty()
        || !policy.virtual_interfaces.is_empty()
}

/// Whether anything that comes from the network does.
pub fn inbound(policy: &Policy) -> bool {
    policy.inbound_ports != Selection::None
}

/// One line.
pub fn line(policy: &Policy) -> String {
    let mut parts = Vec::new();
    if outbound(policy) {
        parts.push(outbound_line(policy));
    }
    if inbound(policy) {
        parts.push(inbound_line(policy));
    }
    match &policy.dns {
        Dns::Off => {}
        Dns::All => parts.push(format!("DNS to {}", policy.dns_port)),
        Dns::Servers(servers) => parts.push(format!("DNS of {} to {}", list(servers), policy.dns_port)),
    }
    if parts.is_empty() {
        return "nothing".into();
    }
    let families = if policy.ipv6 { "IPv4 and IPv6" } else { "IPv4 only" };
    format!("{} ({families})", parts.join("; "))
}

fn outbound_line(policy: &Policy) -> String {
    let mut wanted = Vec::new();
    match &policy.outbound_cidrs {
        Selection::All => wanted.push("everything".to_owned()),
        Selection::List(nets) => wanted.push(list(nets)),
        Selection::None => {}
    }
    if !policy.outbound_ports.is_empty() && policy.outbound_cidrs != Selection::All {
        wanted.push(format!("port {}", list(&policy.outbound_ports)));
    }
    if !policy.virtual_interfaces.is_empty() {
        wanted.push(format!("what enters {}", list(&policy.virtual_interfaces)));
    }
    let but = [
        but("port", &policy.outbound_exclude_ports),
        but("to", &policy.outbound_exclude_cidrs),
        but("on", &policy.exclude_interfaces),
    ];
    format!("outbound to {}: {}{}", policy.outbound_port, wanted.join(" and "), but.concat())
}

fn inbound_line(policy: &Policy) -> String {
    let ports = match &policy.inbound_ports {
        Selection::List(ports) => format!("port {}", list(ports)),
        _ => "every port".into(),
    };
    let but = but("port", &policy.inbound_exclude_ports) + &but("on", &policy.exclude_interfaces);
    format!("inbound to {}: {ports}{but}", policy.inbound_port)
}

fn but<T: Display>(what: &str, items: &[T]) -> String {
    if items.is_empty() { String::new() } else { format!(", not {what} {}", list(items)) }
}

fn list<T: Display>(items: &[T]) -> String {
    const MOST: usize = 8;
    let mut shown: Vec<String> = items.iter().take(MOST).map(T::to_string).collect();
    if items.len() > MOST {
        shown.push(format!("{} more", items.len() - MOST));
    }
    shown.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let sidecar = Policy::default();
        let cases = [
            (Policy::istio_default(), "nothing"),
            (
                sidecar.clone(),
                "outbound to 15001: everything; inbound to 15006: every port, not port 15020,15021,15090 (IPv4 and IPv6)",
            ),
            (
                Policy {
                    ipv6: false,
                    outbound_exclude_ports: vec![22],
                    exclude_interfaces: vec!["eth1".into()],
                    inbound_ports: Selection::None,
                    dns: Dns::All,
                    ..sidecar
                },
                "outbound to 15001: everything, not port 22, not on eth1; DNS to 15053 (IPv4 only)",
            ),
            (
                Policy { outbound_ports: vec![80], ..Policy::istio_default() },
                "outbound to 15001: port 80 (IPv4 and IPv6)",
            ),
        ];
        for (policy, expected) in cases {
            assert_eq!(line(&policy), expected);
        }
    }
}
