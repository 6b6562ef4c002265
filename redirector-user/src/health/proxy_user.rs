//! Whether the proxy's own connections are known as the proxy's: if not, they come back to it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use redirector_common::rule::{Outcome, Verdict};

use super::finding::{Finding, Level};
use crate::explain::{self, Offline, Outgoing};
use crate::policy::{Policy, Selection};
use crate::routes::{Outcome as Leaving, Route};
use crate::rules::Protocol;

/// The documentation's networks (RFC 5737, RFC 3849): nobody is there.
const NOBODY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// Networks and ports of a list that are tried.
const TRIED: usize = 64;

/// Who has a listener of the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// Port of the listener.
    pub port: u16,
    /// User of the process; of the socket where the process is not told.
    pub uid: u32,
    /// Group of the process.
    pub gid: Option<u32>,
    /// It is in the proxy's cgroup.
    pub proxy: bool,
    /// For people.
    pub told: Option<String>,
}

/// Some destination that an application's connection to is captured. A pod may have no route to where nobody is.
fn captured_destination(policy: &Policy, in_force: &Offline, routes: &[Route]) -> Option<SocketAddr> {
    let mut hosts: Vec<IpAddr> = NOBODY.into();
    let leads_out = |route: &&Route| matches!(route.outcome, Leaving::Via { .. });
    hosts.extend(routes.iter().filter(leads_out).take(TRIED).filter_map(|route| route.prefix.hosts().next()));
    if let Selection::List(nets) = &policy.outbound_cidrs {
        hosts.extend(nets.iter().take(TRIED).filter_map(|net| net.hosts().next()));
    }
    let ports: Vec<u16> =
        [80, 9].into_iter().chain(policy.outbound_ports.iter().copied().take(TRIED)).collect();
    let all = hosts.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port)));
    let captured = |to: &SocketAddr| is_captured(policy, in_force, *to, None);
    all.into_iter().find(captured)
}

fn is_captured(policy: &Policy, in_force: &Offline, to: SocketAddr, by: Option<&Owner>) -> bool {
    let query = Outgoing {
        protocol: Protocol::Tcp,
        uid: by.map(|owner| owner.uid),
        gid: by.and_then(|owner| owner.gid),
        proxy: by.is_some_and(|owner| owner.proxy),
        source: None,
        to,
    };
    explain::outgoing(policy, in_force, &query).verdict == Outcome::Decided(Verdict::Outbound)
}

/// What is to be said of those who listen for the proxy. A listener may have several owners (a master and its workers): one
/// that is the proxy's user is enough.
pub(super) fn judge(
    policy: &Policy,
    in_force: &Offline,
    routes: &[Route],
    listeners: &[Vec<Owner>],
) -> Vec<Finding> {
    let Some(to) = captured_destination(policy, in_force, routes) else { return Vec::new() };
    // One process has several listeners.
    let mut ports_of: Vec<(Owner, BTreeSet<u16>)> = Vec::new();
    let mut is_there = false;
    let mut findings = Vec::new();
    for owners in listeners {
        let (strangers, proxy): (Vec<&Owner>, Vec<&Owner>) =
            owners.iter().partition(|owner| is_captured(policy, in_force, to, Some(owner)));
        is_there |= !proxy.is_empty();
        if owners.is_empty() || !proxy.is_empty() {
            // A master process of root is no rarity, and connects to nothing.
            findings.extend(strangers.iter().find(|owner| owner.uid != 0).map(|owner| shared(owner)));
            continue;
        }
        let same = |(other, _): &&mut (Owner, BTreeSet<u16>)| {
            *other == Owner { port: other.port, ..owners[0].clone() }
        };
        match ports_of.iter_mut().find(same) {
            Some((_, ports)) => drop(ports.insert(owners[0].port)),
            None => ports_of.push((owners[0].clone(), BTreeSet::from([owners[0].port]))),
        }
    }
    findings.dedup();
    findings.extend(ports_of.iter().map(|(owner, ports)| foreign(policy, owner, ports, is_there)));
    findings
}

/// A listener that a process of another user has, too.
fn shared(owner: &Owner) -> Finding {
    let whose = owner.told.as_ref().map(|told| format!(" ({told})")).unwrap_or_default();
    Finding::notice(
        "proxy_user",
        format!("uid {}{whose} has the proxy's listeners, too, and is not the proxy's user", owner.uid),
        "if it accepts what is captured, the connections that it makes are captured and loop",
        "run each process of the proxy as the user that the policy names".into(),
    )
}

/// A port that is not of the proxy's user. Where the proxy has others of its ports, this is not the proxy.
fn foreign(policy: &Policy, owner: &Owner, ports: &BTreeSet<u16>, is_there: bool) -> Finding {
    let list = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let known = match (&policy.proxy_cgroup, policy.proxy_uids.as_slice()) {
        (Some(cgroup), _) => format!("the proxy's cgroup is {}", cgroup.display()),
        (None, []) => "the policy names no user of the proxy".into(),
        (None, [uid]) => format!("the proxy's user is {uid}"),
        (None, uids) => format!("the proxy's users are {}", list(uids)),
    };
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let ports = match ports.as_slice() {
        [port] => format!("port {port} belongs"),
        ports => format!("ports {} belong", ports.join(" and ")),
    };
    let whose = owner.told.as_ref().map(|told| format!(" ({told})")).unwrap_or_default();
    // Its group is not known, and may be the proxy's.
    let level =
        if owner.gid.is_none() && !policy.proxy_gids.is_empty() { Level::Unknown } else { Level::Fault };
    Finding::new(
        level,
        "proxy_user",
        format!("{ports} to uid {}{whose}, and {known}", owner.uid),
        if is_there {
            "what is captured goes to it, and not to the proxy"
        } else {
            "the proxy's own connections are captured and loop"
        },
        if is_there {
            "have it listen on another port, and the proxy on this one; or attach with another port (-p, -z)"
                .into()
        } else if let Some(cgroup) = &policy.proxy_cgroup {
            format!("start the proxy in {}, or attach with its cgroup (--proxy-cgroup)", cgroup.display())
        } else {
            let gid = owner.gid.unwrap_or(owner.uid);
            format!(
                "run the proxy as the user that the policy names, or attach with -u {} -g {gid}",
                owner.uid
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::routes::RouteSnapshot;

    fn owner(uid: u32, gid: Option<u32>) -> Owner {
        Owner { port: 15001, uid, gid, proxy: false, told: Some("pid 7 envoy".into()) }
    }

    #[test]
    fn who_loops() {
        let sidecar = Policy::default();
        let by_cgroup = Policy {
            proxy_cgroup: Some("/c/proxy".into()),
            proxy_uids: Vec::new(),
            proxy_gids: Vec::new(),
            ..sidecar.clone()
        };
        let inside = Owner { proxy: true, ..owner(0, Some(0)) };
        let cases: [(&Policy, Vec<Owner>, Option<Level>); 8] = [
            (&sidecar, vec![owner(1337, Some(1337))], None),
            (&sidecar, vec![owner(2000, Some(2000))], Some(Level::Fault)),
            // TPROXY's proxy is known by its group.
            (&sidecar, vec![owner(0, Some(1337))], None),
            (&sidecar, vec![owner(0, Some(0)), owner(1337, Some(1337))], None),
            (&sidecar, vec![owner(2000, None)], Some(Level::Unknown)),
            (&sidecar, vec![], None),
            (&by_cgroup, vec![inside], None),
            (
                &Policy { outbound_cidrs: Selection::None, ..sidecar.clone() },
                vec![owner(2000, Some(2000))],
                None,
            ),
        ];
        for (policy, owners, level) in cases {
            let offline = Offline::new(policy, &[], &[]);
            let found = judge(policy, &offline, &[], std::slice::from_ref(&owners));
            assert_eq!(found.first().map(|finding| finding.level), level, "{owners:?}");
        }
        let offline = Offline::new(&sidecar, &[], &[]);
        let found =
            judge(&sidecar, &offline, &[], &[vec![owner(2000, Some(2000))], vec![owner(2000, Some(2000))]]);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].what,
            "port 15001 belongs to uid 2000 (pid 7 envoy), and the proxy's user is 1337"
        );
        let inbound = Owner { port: 15006, ..owner(2000, Some(2000)) };
        let found = judge(&sidecar, &offline, &[], &[vec![owner(2000, Some(2000))], vec![inbound]]);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].what.starts_with("ports 15001 and 15006 belong to uid 2000 (pid 7 envoy)"),
            "{found:?}"
        );
    }

    #[test]
    fn a_worker_of_another_user() {
        let (policy, offline) = (Policy::default(), Offline::new(&Policy::default(), &[], &[]));
        let found = |worker| {
            let owners = vec![owner(1337, Some(1337)), owner(worker, Some(worker))];
            let found = judge(&policy, &offline, &[], &[owners.clone(), owners]);
            found.iter().map(|finding| finding.level).collect::<Vec<_>>()
        };
        assert_eq!([found(2000), found(0), found(1337)], [vec![Level::Notice], vec![], vec![]]);
    }

    /// The application has taken a port of the proxy, which has the other.
    #[test]
    fn a_port_of_the_application() {
        let (policy, offline) = (Policy::default(), Offline::new(&Policy::default(), &[], &[]));
        let app = Owner { port: 15006, ..owner(1000, Some(1000)) };
        let found = judge(&policy, &offline, &[], &[vec![owner(1337, Some(1337))], vec![app]]);
        assert_eq!((found.len(), found[0].consequence.contains("loop")), (1, false), "{found:?}");
        assert!(found[0].what.contains("15006") && found[0].remedy.contains("-z"), "{found:?}");
    }

    /// A pod whose only route is that to its own network.
    #[test]
    fn without_a_default_route() {
        let policy = Policy::default();
        let route = |prefix: &str, outcome| Route { prefix: prefix.parse().unwrap(), outcome };
        let routes = vec![
            route("0.0.0.0/0", Leaving::Refused { errno: libc::ENETUNREACH }),
            route("10.44.0.0/24", Leaving::Via { oif: 2, source: None }),
            route("::/0", Leaving::Refused { errno: libc::ENETUNREACH }),
        ];
        let snapshot = RouteSnapshot { routes, interfaces: Vec::new() };
        let offline = Offline::of(&policy, &snapshot);
        let found = |routes| judge(&policy, &offline, routes, &[vec![owner(2000, Some(2000))]]).len();
        assert_eq!((found(&[]), found(&snapshot.routes)), (0, 1));
    }
}
