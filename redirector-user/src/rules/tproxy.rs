//! The mangle table of TPROXY mode.

use redirector_common::rule::Counter;

use super::chains::{Builder, Chain, mangle};
use super::inbound::{from, ports};
use super::outbound::{loopback, passthrough, proxy_cgroup};
use super::spec::{Is, Spec, Target};
use crate::policy::{Policy, Selection};

const PREROUTING: Chain = mangle("PREROUTING");
const OUTPUT: Chain = mangle("OUTPUT");
const ISTIO_INBOUND: Chain = mangle("ISTIO_INBOUND");

/// The mark of packets that the proxy sends to its own pod (`OutboundMark` in `pkg/constants`). Packets to the application
/// have another one.
pub(super) const OWN_POD: u32 = 1338;

pub(super) fn add(rules: &mut Builder, policy: &Policy) {
    let mark = policy.tproxy_mark;
    let marked = |spec: Spec| Spec { mark: Some(Is::exactly(mark)), ..spec };
    let captures = policy.inbound_ports != Selection::None;

    for name in &policy.exclude_interfaces {
        let spec = Spec { output: Some(Is::exactly(name.clone())), ..Spec::default() };
        rules.both(OUTPUT, None, spec);
    }
    rules.both(OUTPUT, None, marked(Spec::default().tcp().on_lo()));
    let [v4, v6] =
        loopback(policy).map(|net| Spec::to(Target::Mark(OWN_POD)).tcp().on_lo().not_destined(net));
    // Only what the rules for ports then capture is counted.
    let counter = captures.then_some(Counter::OutTproxyLoopback);
    if let Some(cgroup) = proxy_cgroup(policy).map(Is::exactly) {
        let of = |spec: &Spec| Spec { cgroup: Some(cgroup.clone()), ..spec.clone() };
        rules.each(OUTPUT, counter, of(&v4), of(&v6));
    }
    for uid in policy.proxy_uids.iter().map(|uid| Is::exactly(*uid)) {
        rules.each(OUTPUT, counter, v4.clone().uid(uid.clone()), v6.clone().uid(uid));
    }
    for gid in policy.proxy_gids.iter().map(|gid| Is::exactly(*gid)) {
        rules.each(OUTPUT, counter, v4.clone().gid(gid.clone()), v6.clone().gid(gid));
    }
    let restore = Spec { connection_mark: Some(Is::exactly(mark)), ..Spec::to(Target::RestoreMark).tcp() };
    rules.both(OUTPUT, None, restore);

    for name in &policy.exclude_interfaces {
        // Counted by the rule in nat, which says the same.
        rules.both(PREROUTING, None, from(name, Spec::default()));
    }
    if captures {
        rules.both(PREROUTING, None, Spec::jump("ISTIO_INBOUND").tcp());
    }
    rules.both(PREROUTING, None, marked(Spec::to(Target::SaveMark).tcp()));

    rules.both(ISTIO_INBOUND, None, marked(Spec::default().tcp()));
    let [v4, v6] =
        passthrough().map(|net| Spec { source: Some(Is::exactly(net)), ..from("lo", Spec::default().tcp()) });
    rules.each(ISTIO_INBOUND, None, v4, v6);
    let own = Spec { mark: Some(Is::not(OWN_POD)), ..from("lo", Spec::default().tcp()) };
    rules.both(ISTIO_INBOUND, None, own);
    if !captures {
        return;
    }
    let states = ["ESTABLISHED", "RELATED"].map(str::to_owned).to_vec();
    let divert = Spec { states, ..Spec::jump("ISTIO_DIVERT").tcp() };
    ports(rules, policy, ISTIO_INBOUND, &[divert, Spec::jump("ISTIO_TPROXY").tcp()]);
    rules.both(mangle("ISTIO_DIVERT"), None, Spec::to(Target::Mark(mark)));
    rules.both(mangle("ISTIO_DIVERT"), None, Spec::to(Target::Accept));
    let [v4, v6] = loopback(policy)
        .map(|net| Spec::to(Target::Tproxy { port: policy.inbound_port, mark }).tcp().not_destined(net));
    rules.each(mangle("ISTIO_TPROXY"), None, v4, v6);
}
