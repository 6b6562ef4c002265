//! nat PREROUTING and ISTIO_INBOUND.

use redirector_common::rule::Counter;

use super::chains::{Builder, Chain, nat};
use super::spec::{Is, Spec};
use crate::policy::{Mode, Policy, Selection};

const PREROUTING: Chain = nat("PREROUTING");
const ISTIO_INBOUND: Chain = nat("ISTIO_INBOUND");

pub(super) fn from(interface: &str, spec: Spec) -> Spec {
    Spec { input: Some(Is::exactly(interface.to_owned())), ..spec }
}

pub(super) fn add(rules: &mut Builder, policy: &Policy) {
    for name in &policy.virtual_interfaces {
        let redirect = from(name, Spec::jump("ISTIO_REDIRECT"));
        if policy.outbound_cidrs == Selection::All {
            rules.both(PREROUTING, Counter::InVirtualCaptured, redirect.clone());
        }
        for net in policy.outbound_cidrs.items() {
            let spec = redirect.clone().destined(*net);
            rules.one(PREROUTING, Counter::InVirtualCaptured, net.addr().is_ipv4(), spec);
        }
    }
    for name in &policy.virtual_interfaces {
        rules.both(PREROUTING, Counter::InVirtualPassed, from(name, Spec::default()));
    }
    for name in &policy.exclude_interfaces {
        rules.both(PREROUTING, Counter::InExcludedInterface, from(name, Spec::default()));
    }
    let reached = policy.mode == Mode::Redirect && policy.inbound_ports != Selection::None;
    if reached {
        rules.both(PREROUTING, None, Spec::jump("ISTIO_INBOUND").tcp());
    }
    // istio-iptables makes this rule even where nothing jumps to the chain.
    let counter = reached.then_some(Counter::InTunnel);
    rules.both(ISTIO_INBOUND, counter, Spec::default().port(policy.tunnel_port));
    if reached {
        ports(rules, policy, ISTIO_INBOUND, &[Spec::jump("ISTIO_IN_REDIRECT").tcp()]);
    }
}

/// The rules for ports. Captured packets go through the rules of `captured`; the last one decides.
pub(super) fn ports(rules: &mut Builder, policy: &Policy, chain: Chain, captured: &[Spec]) {
    let last = captured.len().saturating_sub(1);
    let capture = |rules: &mut Builder, counter: Counter, port: Option<u16>| {
        for (n, spec) in captured.iter().enumerate() {
            let spec = port.map_or_else(|| spec.clone(), |port| spec.clone().port(port));
            rules.both(chain, (n == last).then_some(counter), spec);
        }
    };
    if policy.inbound_ports == Selection::All {
        for port in &policy.inbound_exclude_ports {
            rules.both(chain, Counter::InExcludedPort, Spec::default().port(*port));
        }
        capture(rules, Counter::InAll, None);
    }
    for port in policy.inbound_ports.items() {
        capture(rules, Counter::InListed, Some(*port));
    }
}
