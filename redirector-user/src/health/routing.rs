//! Rules of routing that the programs do not follow.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::captures;
use super::finding::{Finding, Level, some_of};
use crate::base::error::{Context, Result};
use crate::instance::status::Status;
use crate::netdev;
use crate::netlink::{self, Message, Netlink, Payload};
use crate::policy::Policy;
use crate::routes::rules::{self, UnknownRule};
use crate::routes::{Outcome, Route, RouteSnapshot};
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

/// Whether captured connections reach the proxy over lo.
pub(super) fn judge_loopback(
    netns: &NetNs,
    policy: &Policy,
    status: &Status,
    now: &RouteSnapshot,
) -> Result<Vec<Finding>> {
    if !captures::outbound(policy) {
        return Ok(Vec::new());
    }
    // What comes over lo is dropped then (net/ipv6/ip6_input.c: ip6_rcv_core).
    const OFF: &str = "/proc/sys/net/ipv6/conf/lo/disable_ipv6";
    let is_off = || match std::fs::read_to_string(OFF) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        other => other.map(|text| text.trim() != "0").context(|| format!("read {OFF}")),
    };
    let (is_up, ipv6_is_off) = netlink::within(netns, |netlink| Ok((is_up(netlink)?, is_off()?)))?;
    let ipv6_is_off = ipv6_is_off && policy.ipv6 && others_use_ipv6(now);
    let of_lo = judge_routes_of_loopback(policy, now, is_up, ipv6_is_off);
    Ok(of_lo.or_else(|| judge_given(status.virtual_destinations, now)).into_iter().collect())
}

/// Whether the addresses that the instance gives are the pod's own, as all of 127.0.0.0/8 is by the kernel's route.
fn judge_given(given: Option<Ipv4Net>, now: &RouteSnapshot) -> Option<Finding> {
    let takes = |route: &&Route| {
        let IpNet::V4(prefix) = route.prefix else { return false };
        let may_take = prefix.addr().is_loopback() && !matches!(route.outcome, Outcome::Local { .. });
        may_take && given.is_some_and(|range| range.contains(&prefix) || prefix.contains(&range))
    };
    now.routes.iter().find(takes).map(|route| {
        Finding::fault(
            "loopback_down",
            format!("the route {} takes addresses that stand for original destinations", route.prefix),
            "captured connections to them do not reach the proxy",
            format!("in the namespace: ip route del {} table local, or whichever table has it", route.prefix),
        )
    })
}

/// Its routes stay when lo is down.
fn is_up(netlink: &mut Netlink) -> Result<bool> {
    // struct ifinfomsg: family, type, index, flags, change.
    const HEADER: usize = 16;
    let request = Message::new(libc::RTM_GETLINK, 0, &[0; HEADER]);
    let links = netlink.list("the interfaces", &request, |payload| {
        let link = Payload::split(payload, HEADER)?;
        let flags = link.number(8);
        (flags & libc::IFF_LOOPBACK as u32 != 0).then_some(flags & libc::IFF_UP as u32 != 0)
    })?;
    Ok(links.contains(&true))
}

fn judge_routes_of_loopback(
    policy: &Policy,
    now: &RouteSnapshot,
    is_up: bool,
    ipv6_is_off: bool,
) -> Option<Finding> {
    let is_local = |ip: IpAddr| {
        let to = now.routes.iter().filter(|route| route.prefix.contains(&ip));
        let route = to.max_by_key(|route| route.prefix.prefix_len());
        route.is_some_and(|route| matches!(route.outcome, Outcome::Local { .. }))
    };
    if !is_up || !is_local(Ipv4Addr::LOCALHOST.into()) {
        return Some(Finding::fault(
            "loopback_down",
            "127.0.0.1 is not reachable in the pod: lo is down, or its route is gone".into(),
            "captured connections do not reach the proxy and time out",
            "in the namespace: ip link set lo up, or ip route add local 127.0.0.0/8 dev lo table local"
                .into(),
        ));
    }
    if ipv6_is_off {
        return Some(Finding::fault(
            "loopback_down",
            "IPv6 is off on the pod's lo".into(),
            "captured connections over IPv6 do not reach the proxy and time out",
            "in the namespace: sysctl -w net.ipv6.conf.lo.disable_ipv6=0; or attach with --ipv6 off".into(),
        ));
    }
    // Captured connections over IPv6 go to the address that they come from.
    let unreachable = global_ipv6(now).find(|ip| policy.ipv6 && !is_local(*ip))?;
    Some(Finding::fault(
        "own_address_unreachable",
        format!("the pod's own address {unreachable} is not reachable in the pod"),
        "captured connections over IPv6 that come from it do not reach the proxy",
        "see `ip -6 rule` and `ip -6 route show table all` in the namespace: own addresses are to be looked up in table local first".into(),
    ))
}

/// Whether another interface has an address of IPv6 that others can reach.
pub(super) fn others_use_ipv6(now: &RouteSnapshot) -> bool {
    global_ipv6(now).next().is_some()
}

fn global_ipv6(now: &RouteSnapshot) -> impl Iterator<Item = IpAddr> {
    let others = now.interfaces.iter().filter(|interface| !interface.loopback);
    let is_global = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if !v6.is_unicast_link_local());
    others.flat_map(|it| &it.addresses).map(ipnet::IpNet::addr).filter(is_global)
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
