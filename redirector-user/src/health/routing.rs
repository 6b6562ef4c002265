//! Rules of routing that the programs do not follow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::captures;
use super::finding::{Finding, Level, some_of};
use crate::base::error::Result;
use crate::netdev;
use crate::policy::Policy;
use crate::routes::rules::{self, UnknownRule};
use crate::routes::{Outcome, RouteSnapshot};
use crate::sys::netns::NetNs;

/// What is to be said of them.
pub(super) fn judge(netns: &NetNs) -> Result<Vec<Finding>> {
    rules::unknown_to_snapshot(netns).map(|rules| judge_rules(&rules))
}

/// What attach has changed in the namespace, and somebody has taken back.
pub(super) fn judge_undone(
    instance: &str,
    netns: &NetNs,
    policy: &Policy,
    noted: u32,
) -> Result<Option<Finding>> {
    let gone = netdev::gone(netns, policy, noted)?;
    Ok((!gone.is_empty()).then(|| {
        Finding::fault(
            "change_undone",
            format!("somebody has taken back what attach had changed in the pod: {}", some_of(&gone, 7)),
            "TPROXY mode, or virtual interfaces (-k), cannot do without: connections time out, or go past the proxy",
            format!("redirector refresh {instance}"),
        )
    }))
}

/// Captured connections go to 127.0.0.0/8, and over IPv6 to `::1`.
pub(super) fn judge_loopback(policy: &Policy, now: &RouteSnapshot) -> Option<Finding> {
    let is_local = |ip: IpAddr| {
        let to = now.routes.iter().filter(|route| route.prefix.contains(&ip));
        let route = to.max_by_key(|route| route.prefix.prefix_len());
        route.is_some_and(|route| matches!(route.outcome, Outcome::Local { .. }))
    };
    let ipv6 = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let (ip, family, remedy) = match (is_local(Ipv4Addr::LOCALHOST.into()), is_local(ipv6)) {
        (false, _) => (
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            "IPv4",
            "in the namespace: ip link set lo up, or ip route add local 127.0.0.0/8 dev lo table local",
        ),
        (true, false) if policy.ipv6 && others_use_ipv6(now) => (
            ipv6,
            "IPv6",
            "in the namespace: ip link set lo up; if IPv6 is off there: sysctl -w net.ipv6.conf.lo.disable_ipv6=0; or attach with --ipv6 off",
        ),
        _ => return None,
    };
    captures::outbound(policy).then(|| {
        Finding::fault(
            "loopback_down",
            format!("{ip} is not reachable in the pod: lo is down, or its route is gone"),
            &format!("captured connections over {family} do not reach the proxy and time out"),
            remedy.into(),
        )
    })
}

/// Whether another interface has an address of IPv6 that others can reach.
pub(super) fn others_use_ipv6(now: &RouteSnapshot) -> bool {
    let reachable = |ip: IpAddr| matches!(ip, IpAddr::V6(v6) if !v6.is_unicast_link_local());
    let others = now.interfaces.iter().filter(|interface| !interface.loopback);
    others.flat_map(|it| &it.addresses).any(|net| reachable(net.addr()))
}

fn judge_rules(rules: &[UnknownRule]) -> Vec<Finding> {
    let finding = |(forbids, level, consequence)| {
        let of_kind: Vec<String> =
            rules.iter().filter(|rule| rule.forbids == forbids).map(|rule| rule.text.clone()).collect();
        (!of_kind.is_empty()).then(|| {
            Finding::new(
                level,
                "routing_rule",
                format!("rules of routing by user, port or type of service: {}", some_of(&of_kind, 4)),
                consequence,
                "exclude what such a rule is about (-x, -o, ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE), or select by destination (`ip rule add to`)".into(),
            )
        })
    };
    let kinds = [
        (
            true,
            Level::Fault,
            "connections that such a rule forbids are captured, and the proxy makes them instead",
        ),
        (false, Level::Notice, "the programs decide as if there were no such rule"),
    ];
    kinds.into_iter().filter_map(finding).collect()
}
