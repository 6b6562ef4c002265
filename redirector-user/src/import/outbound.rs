//! Reads ISTIO_OUTPUT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::flatten::Flat;
use super::reading::{Reading, counted};
use crate::policy::{Dns, Selection};
use crate::rules::{Family, Is, Protocol, Spec, Table, Target};

const DNS: u16 = 53;

/// The network of every address of a family.
pub(super) fn everything(family: Family) -> IpNet {
    let addr: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new_assert(addr, 0)
}

/// Reads the rules of ISTIO_OUTPUT into `reading`.
pub(super) fn read(reading: &mut Reading, flat: &Flat, family: Family) {
    let rules: Vec<&Spec> = flat.of(Table::Nat, "ISTIO_OUTPUT").collect();
    let redirect = flat.redirect("ISTIO_REDIRECT").map(Target::Redirect);
    owners(reading, &rules);
    dns(reading, &rules, redirect.as_ref());
    let own = rules.iter().find_map(|rule| own_calls(rule));
    if let Some(own) = own {
        let not = own.ports.as_ref().filter(|is| is.not);
        let mut ports = not.map(|is| is.value.clone()).unwrap_or_default();
        // With DNS capture the rule of a user, but not that of a group, leaves out port 53, too.
        if let (Some(at), true) = (ports.iter().position(|port| *port == DNS), ports.len() > 1) {
            ports.remove(at);
        }
        reading.tunnel_port = ports.first().copied();
    }
    let own_loopback = own.and_then(|rule| rule.destination.as_ref()).map(|is| is.value);
    let passes = |rule: &&Spec| matches!(only_destination(rule), Some(Some(net)) if is_loopback(&net));
    let loopback = own_loopback
        .or_else(|| rules.iter().find(|rule| passes(rule)).and_then(|rule| only_destination(rule)?));
    if let Some(IpNet::V4(net)) = loopback {
        reading.loopback = Some(net);
    }
    let loopback = loopback.unwrap_or_else(|| match family {
        Family::V4 => Ipv4Net::from(Ipv4Addr::LOCALHOST).into(),
        Family::V6 => IpAddr::from(Ipv6Addr::LOCALHOST).into(),
    });
    destinations(reading, &rules, loopback, redirect.as_ref(), family);
}

/// The rule by which calls of the proxy to its own pod go inbound.
fn own_calls<'a>(rule: &&'a Spec) -> Option<&'a Spec> {
    let on_lo = rule.output == Some(Is::exactly("lo".into()));
    let redirects = matches!(rule.target, Target::Redirect(_));
    let not_to = rule.destination.as_ref().is_some_and(|is| is.not);
    let owned =
        rule.uid.as_ref().is_some_and(|is| !is.not) || matches!(rule.gids.as_slice(), [is] if !is.not);
    (on_lo && redirects && not_to && owned).then_some(*rule)
}

fn owners(reading: &mut Reading, rules: &[&Spec]) {
    let add = |list: &mut Vec<u32>, id: u32| {
        if !list.contains(&id) {
            list.push(id);
        }
    };
    for rule in rules {
        let own = own_calls(rule);
        if let Some(uid) = rule.uid.as_ref().filter(|is| !is.not)
            && (own.is_some() || **rule == Spec::default().uid(uid.clone()))
        {
            add(&mut reading.uids, uid.value);
        }
        if let (Some(_), [gid]) = (own, rule.gids.as_slice()) {
            add(&mut reading.gids, gid.value);
        }
        let others =
            rule.uid.as_ref().is_some_and(|is| is.not) || matches!(rule.gids.as_slice(), [is] if is.not);
        reading.others_pass |= others && rule.output.is_some() && rule.target == Target::Return;
    }
    let by_group: Vec<u32> = rules.iter().filter_map(|rule| only_gid(rule)).collect();
    let calls = rules.iter().any(|rule| own_calls(rule).is_some());
    if !calls && !reading.uids.is_empty() {
        // The first istio's rules for calls to the own pod did not name users and groups.
        reading.gids.extend(by_group.first());
    }
    for gid in &by_group {
        // One of these is that of the proxy's group itself.
        let own = usize::from(reading.gids.contains(gid));
        if counted(&by_group, gid) > own {
            add(&mut reading.owner_groups_exclude, *gid);
        }
    }
    for rule in rules {
        let none_of = |rule: &Spec| {
            let plain = Spec { gids: Vec::new(), ..rule.clone() } == Spec::default();
            plain && !rule.gids.is_empty() && rule.gids.iter().all(|is| is.not)
        };
        if none_of(rule) {
            reading.owner_groups = Selection::of(rule.gids.iter().map(|is| is.value).collect());
        }
    }
}

/// The group of a rule that matches only a group and returns.
fn only_gid(rule: &Spec) -> Option<u32> {
    let [gid] = rule.gids.as_slice() else { return None };
    (!gid.not && *rule == Spec::default().gid(gid.clone())).then_some(gid.value)
}

/// The destination (`None`: any) of a rule that matches only a destination and returns.
fn only_destination(rule: &Spec) -> Option<Option<IpNet>> {
    let net = rule.destination.as_ref().filter(|is| !is.not).map(|is| is.value);
    (*rule == Spec { destination: net.map(Is::exactly), ..Spec::default() }).then_some(net)
}

fn is_loopback(net: &IpNet) -> bool {
    net.addr().is_loopback()
}

/// DNS capture has rules for UDP, which nothing else has.
fn dns(reading: &mut Reading, rules: &[&Spec], redirect: Option<&Target>) {
    for rule in rules {
        let Target::Redirect(port) = rule.target else { continue };
        let query = rule.ports == Some(Is::exactly(vec![DNS])) && rule.protocol == Some(Protocol::Udp);
        if !query || redirect == Some(&rule.target) {
            continue;
        }
        reading.dns_port = Some(port);
        match (&rule.destination, &mut reading.dns) {
            (None, dns) => *dns = Dns::All,
            (Some(_), Dns::All) => {}
            (Some(is), Dns::Servers(servers)) => servers.push(is.value.addr()),
            (Some(is), dns) => *dns = Dns::Servers(vec![is.value.addr()]),
        }
    }
}

fn destinations(
    reading: &mut Reading,
    rules: &[&Spec],
    loopback: IpNet,
    redirect: Option<&Target>,
    family: Family,
) {
    let mut loopback_seen = false;
    for rule in rules {
        let port = rule.ports.as_ref().filter(|is| !is.not && is.value.len() == 1).map(|is| is.value[0]);
        if let Some(port) = port {
            let of = |target: &Target| Spec::to(target.clone()).port(port);
            if **rule == of(&Target::Return) {
                reading.exclude_out_ports.push(port);
            } else if redirect.is_some_and(|target| **rule == of(target)) {
                reading.include_out_ports.push(port);
            }
        }
        match only_destination(rule) {
            Some(Some(net)) if net == loopback && !loopback_seen => loopback_seen = true,
            Some(Some(net)) => reading.exclude_cidrs.push(net),
            // Without a group no process is included: the same rule in another place.
            Some(None) if !loopback_seen => reading.owner_groups = Selection::None,
            Some(None) => reading.exclude_cidrs.push(everything(family)),
            None => {}
        }
        let destination = rule.destination.as_ref().filter(|is| !is.not).map(|is| is.value);
        let net = destination.unwrap_or_else(|| everything(family));
        if redirect.is_some_and(|target| **rule == Spec::to(target.clone()).tcp().destined(net)) {
            reading.include_cidrs.push(net);
        }
    }
}
