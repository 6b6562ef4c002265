//! nat OUTPUT and ISTIO_OUTPUT, and the chains that redirect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use redirector_common::rule::Counter;

use super::chains::{Builder, Chain, nat};
use super::spec::{Is, Protocol, Spec, Target};
use crate::policy::{Dns, Policy, Selection};

const OUTPUT: Chain = nat("OUTPUT");
const ISTIO_OUTPUT: Chain = nat("ISTIO_OUTPUT");
const DNS: u16 = 53;

/// 127.0.0.6 and ::6, from which the proxy connects to the application.
pub(super) fn passthrough() -> [IpNet; 2] {
    [IpAddr::from(Ipv4Addr::new(127, 0, 0, 6)), IpAddr::from(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6))]
        .map(IpNet::from)
}

/// The application's own loopback addresses.
pub(super) fn loopback(policy: &Policy) -> [IpNet; 2] {
    [policy.loopback_cidr.into(), IpAddr::from(Ipv6Addr::LOCALHOST).into()]
}

pub(super) fn add(rules: &mut Builder, policy: &Policy) {
    for name in &policy.exclude_interfaces {
        let spec = Spec { output: Some(Is::exactly(name.clone())), ..Spec::default() };
        rules.both(OUTPUT, Counter::OutExcludedInterface, spec);
    }
    rules.both(OUTPUT, None, Spec::jump("ISTIO_OUTPUT"));
    for port in &policy.outbound_exclude_ports {
        let tcp = Spec::default().port(*port);
        let udp = Spec { protocol: Some(Protocol::Udp), ..tcp.clone() };
        rules.both(ISTIO_OUTPUT, Counter::OutExcludedPort, tcp);
        rules.both(ISTIO_OUTPUT, Counter::OutExcludedPort, udp);
    }
    let [v4, v6] =
        passthrough().map(|net| Spec { source: Some(Is::exactly(net)), ..Spec::default().on_lo() });
    rules.each(ISTIO_OUTPUT, Counter::OutPassthroughSource, v4, v6);
    let spared: &[u16] = if policy.dns == Dns::Off { &[] } else { &[DNS] };
    if let Some(path) = proxy_cgroup(policy) {
        let counters =
            [Counter::OutProxyCgroupLoopback, Counter::OutNotProxyCgroupLoopback, Counter::OutProxyCgroup];
        let of = |spec: Spec, not| Spec { cgroup: Some(Is { not, value: path.clone() }), ..spec };
        owner(rules, policy, spared, counters, of);
    }
    for uid in &policy.proxy_uids {
        let counters = [Counter::OutProxyUidLoopback, Counter::OutNotProxyUidLoopback, Counter::OutProxyUid];
        owner(rules, policy, spared, counters, |spec, not| spec.uid(Is { not, value: *uid }));
    }
    for gid in &policy.proxy_gids {
        let counters = [Counter::OutProxyGidLoopback, Counter::OutNotProxyGidLoopback, Counter::OutProxyGid];
        owner(rules, policy, &[], counters, |spec, not| spec.gid(Is { not, value: *gid }));
    }
    owner_groups(rules, policy);
    dns(rules, policy);
    destinations(rules, policy);
    rules.both(nat("ISTIO_REDIRECT"), None, Spec::to(Target::Redirect(policy.outbound_port)).tcp());
    rules.both(nat("ISTIO_IN_REDIRECT"), None, Spec::to(Target::Redirect(policy.inbound_port)).tcp());
}

/// The proxy's cgroup for `-m cgroup --path`, relative to the mount point.
pub(super) fn proxy_cgroup(policy: &Policy) -> Option<String> {
    let path = policy.proxy_cgroup.as_ref()?.to_string_lossy().into_owned();
    let below = ["/sys/fs/cgroup/unified/", "/sys/fs/cgroup/"].iter().find_map(|at| path.strip_prefix(at));
    Some(below.map_or(path.clone(), str::to_owned))
}

/// The three rules of one user or group of the proxy: its calls on lo go inbound, others' traffic on lo passes, its own
/// passes.
fn owner(
    rules: &mut Builder,
    policy: &Policy,
    spared: &[u16],
    [own_on_lo, others_on_lo, own]: [Counter; 3],
    owned: impl Fn(Spec, bool) -> Spec,
) {
    let mut ports = spared.to_vec();
    ports.push(policy.tunnel_port);
    let [v4, v6] = loopback(policy).map(|net| {
        let spec = Spec::jump("ISTIO_IN_REDIRECT").on_lo().not_destined(net).no_port(&ports);
        owned(spec, false)
    });
    rules.each(ISTIO_OUTPUT, own_on_lo, v4, v6);
    if !policy.captures_loopback() {
        let spec = Spec::default().on_lo();
        let spec = if policy.dns == Dns::Off { spec } else { spec.no_port(&[DNS]) };
        rules.both(ISTIO_OUTPUT, others_on_lo, owned(spec, true));
    }
    rules.both(ISTIO_OUTPUT, own, owned(Spec::default(), false));
}

fn owner_groups(rules: &mut Builder, policy: &Policy) {
    if policy.owner_groups == Selection::All {
        for gid in &policy.owner_groups_exclude {
            rules.both(ISTIO_OUTPUT, Counter::OutOwnerGroupExcluded, Spec::default().gid(Is::exactly(*gid)));
        }
        return;
    }
    // One rule: a process in none of the groups passes. Without groups every process does.
    let gids = policy.owner_groups.items().iter().map(|gid| Is::not(*gid)).collect();
    rules.both(ISTIO_OUTPUT, Counter::OutOwnerGroupNotIncluded, Spec { gids, ..Spec::default() });
}

fn dns(rules: &mut Builder, policy: &Policy) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let spec = Spec { protocol: Some(protocol), ..Spec::to(Target::Redirect(policy.dns_port)).port(DNS) };
        match &policy.dns {
            Dns::Off => {}
            Dns::All => rules.both(ISTIO_OUTPUT, Counter::OutDns, spec),
            Dns::Servers(servers) => {
                for server in servers {
                    let spec = spec.clone().destined(IpNet::from(*server));
                    rules.one(ISTIO_OUTPUT, Counter::OutDns, server.is_ipv4(), spec);
                }
            }
        }
    }
}

fn destinations(rules: &mut Builder, policy: &Policy) {
    let [v4, v6] = loopback(policy).map(|net| Spec::default().destined(net));
    rules.each(ISTIO_OUTPUT, Counter::OutLoopback, v4, v6);
    for net in &policy.outbound_exclude_cidrs {
        let spec = Spec::default().destined(*net);
        rules.one(ISTIO_OUTPUT, Counter::OutExcludedCidr, net.addr().is_ipv4(), spec);
    }
    let redirect = Spec::jump("ISTIO_REDIRECT");
    for port in &policy.outbound_ports {
        rules.both(ISTIO_OUTPUT, Counter::OutIncludedPort, redirect.clone().port(*port));
    }
    if policy.outbound_cidrs == Selection::All {
        rules.both(ISTIO_OUTPUT, Counter::OutAll, redirect.clone());
    }
    for net in policy.outbound_cidrs.items() {
        let spec = redirect.clone().destined(*net);
        rules.one(ISTIO_OUTPUT, Counter::OutIncludedCidr, net.addr().is_ipv4(), spec);
    }
}
