//! Whether there is room for more connections, and whether anything is captured at all.

use std::collections::HashSet;

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::captures;
use super::finding::{Finding, Level, some_of};
use crate::base::error::{Context, Error, Result};
use crate::base::input;
use crate::instance::directory::Directory;
use crate::instance::status::Status;
use crate::netlink::sock_diag::Socket;
use crate::policy::{Dns, Policy};
use crate::routes::{Interface, RouteSnapshot};
use crate::sys::netns::NetNs;

/// What is to be said of it.
pub(super) fn judge(status: &Status, now: &RouteSnapshot) -> Vec<Finding> {
    let policy = &status.record.policy;
    let room = judge_room(&status.name, status.stored_connections, policy.max_connections.into());
    let destinations = judge_destinations(&status.name, status.destinations, policy);
    let nothing = judge_nothing(policy, &now.interfaces);
    let mistakes = if nothing.as_ref().is_some_and(|it| it.level == Level::Fault) {
        Vec::new()
    } else {
        judge_mistakes(policy, &now.interfaces)
    };
    room.into_iter().chain(destinations).chain(nothing).chain(mistakes).collect()
}

fn judge_room(instance: &str, live: u64, most: u64) -> Option<Finding> {
    let raise = format!("detach {instance}, and attach again with a larger --max-connections");
    if live >= most {
        let what = format!("stored connections {live} of {most}: full");
        return Some(Finding::fault("full", what, "further connections are refused (ENOBUFS)", raise));
    }
    (live * 10 >= most * 9).then(|| {
        let what = format!("stored connections {live} of {most}: nearly full");
        Finding::notice("nearly_full", what, "beyond that they are refused (ENOBUFS)", raise)
    })
}

/// The kernel opens no map of a file system that is mounted read-only.
pub(super) fn read_only(root: &Directory) -> Option<Finding> {
    let bpffs = root.dir().parent()?;
    let is_it = statvfs(bpffs).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY));
    let bpffs = bpffs.display();
    is_it.then(|| {
        Finding::fault(
            "bpffs",
            format!("the bpffs {bpffs} is mounted read-only"),
            "instances go on as they were, and follow no change of addresses and routes",
            format!("mount -o remount,rw {bpffs}"),
        )
    })
}

/// What is to be said of the ports of a namespace with these connections.
pub(super) fn judge_ports(netns: &NetNs, connections: &[Socket]) -> Result<Vec<Finding>> {
    let used = connections.iter().map(|socket| socket.local.port()).collect();
    Ok(netns.run(Ports::read)?.judge(&used).into_iter().collect())
}

/// The ports that the namespace chooses from, for a connection or bind(0).
struct Ports {
    first: u16,
    last: u16,
    reserved: Vec<(u16, u16)>,
}

impl Ports {
    /// Of the calling thread's network namespace.
    fn read() -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/sys/net/ipv4/{name}");
            input::of_the_kernel(&path).context(|| format!("read {path}"))
        };
        let (range, reserved) = (read("ip_local_port_range")?, read("ip_local_reserved_ports")?);
        let strange = || Error::failed(format!("strange ports: {range:?}, {reserved:?}"));
        let number = |text: &str| text.parse().map_err(|_| strange());
        let [first, last] = range.split_whitespace().collect::<Vec<_>>()[..] else { return Err(strange()) };
        // "8080,9148-9160"
        let pair = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Ok((number(first)?, number(last)?))
        };
        let reserved =
            reserved.trim().split(',').filter(|text| !text.is_empty()).map(pair).collect::<Result<_>>()?;
        Ok(Self { first: number(first)?, last: number(last)?, reserved })
    }

    /// `used`: local ports of connections. Over IPv4 connections to several destinations may share one.
    fn judge(&self, used: &HashSet<u16>) -> Option<Finding> {
        const FEW: usize = 64;
        const FEWEST: usize = 10;
        let is_reserved =
            |port: &u16| self.reserved.iter().any(|(first, last)| (first..=last).contains(&port));
        let all = (self.first..=self.last).filter(|port| !is_reserved(port)).collect::<HashSet<u16>>();
        let free = all.difference(used).count();
        let is_scarce = free * 10 < all.len();
        let (level, effect) = match free {
            // Each captured connection takes two: its own, and the proxy's.
            0..FEW if is_scarce || all.len() < FEWEST => (
                Level::Fault,
                "further connections of the pod, the proxy's among them, fail with EADDRNOTAVAIL",
            ),
            // Few from the beginning: how many connections the pod makes is not known.
            _ if is_scarce || all.len() < FEW => {
                (Level::Notice, "without one connections of the pod fail with EADDRNOTAVAIL")
            }
            _ => return None,
        };
        Some(Finding::new(
            level,
            "ports_used_up",
            format!("{free} of the pod's {} ports for connections are free", all.len()),
            effect,
            "in the namespace: sysctl -w net.ipv4.ip_local_port_range='1024 65535', and see what holds them: ss -tan".into(),
        ))
    }
}

/// What has no address any more takes room for each connection.
fn judge_destinations(instance: &str, given: u64, policy: &Policy) -> Option<Finding> {
    let (most, connections) = (u64::from(policy.max_destinations), policy.max_connections);
    (most > 0 && given >= most).then(|| {
        Finding::notice(
            "destinations_full",
            format!("all {most} addresses for IPv4 destinations are given"),
            &format!("connections to further ones are stored, of which {connections} may be alive (--max-connections)"),
            format!("detach {instance}, and attach again with a larger --max-destinations"),
        )
    })
}

/// What a policy may mean, and mostly does not.
fn judge_mistakes(policy: &Policy, interfaces: &[Interface]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let whole = |v6| {
        policy.outbound_exclude_cidrs.iter().any(|net| net.prefix_len() == 0 && net.addr().is_ipv6() == v6)
    };
    let families: Vec<&str> = [(false, "IPv4"), (true, "IPv6")]
        .into_iter()
        .filter_map(|(v6, name)| (whole(v6) && (!v6 || policy.ipv6)).then_some(name))
        .collect();
    if captures::outbound(policy) && !families.is_empty() {
        findings.push(Finding::notice(
            "outbound_excluded",
            format!("every destination over {} is excluded (-x)", families.join(" and ")),
            "outbound connections go past the proxy",
            "attach again with narrower networks, or with -i '' if nothing outbound is meant".into(),
        ));
    }
    if policy.proxy_uids.contains(&0) && policy.proxy_cgroup.is_none() {
        findings.push(Finding::notice(
            "proxy_is_root",
            "the proxy's user is root (-u 0)".into(),
            "what any process of root in the pod sends goes past the proxy",
            "run the proxy as a user of its own, or attach with --proxy-cgroup in place of -u".into(),
        ));
    }
    let named = policy.exclude_interfaces.iter().chain(&policy.virtual_interfaces);
    let missing: Vec<String> = named
        .filter(|name| !name.ends_with('+') && !interfaces.iter().any(|it| it.name == **name))
        .cloned()
        .collect();
    if !missing.is_empty() {
        findings.push(Finding::notice(
            "interface_missing",
            format!("the pod has no interface {} (-c, -k)", some_of(&missing, 4)),
            "what the policy says of it has no effect until there is one",
            "see `ip link` in the pod for its name, and attach again".into(),
        ));
    }
    findings
}

/// A policy that captures nothing is a mistake.
fn judge_nothing(policy: &Policy, interfaces: &[Interface]) -> Option<Finding> {
    let past = "all traffic goes past the proxy";
    if !captures::outbound(policy) && !captures::inbound(policy) && policy.dns == Dns::Off {
        let remedy = "attach again without --istio-defaults, or with -i '*' -b '*'".to_owned();
        return Some(Finding::fault("captures_nothing", "the policy captures nothing".into(), past, remedy));
    }
    let used = |it: &&Interface| !it.loopback && !it.addresses.is_empty();
    let is_excluded = |it: &Interface| policy.exclude_interfaces.contains(&it.name);
    if interfaces.iter().any(|it| used(&it) && is_excluded(it))
        && interfaces.iter().filter(used).all(is_excluded)
    {
        let what =
            format!("every interface of the pod is excluded (-c {})", policy.exclude_interfaces.join(","));
        let remedy = "attach again without -c, or with other names".to_owned();
        return Some(Finding::fault("interfaces_excluded", what, past, remedy));
    }
    (!policy.ipv6).then(|| {
        let remedy = "attach again with --ipv6 on, if the pod uses IPv6".to_owned();
        Finding::notice("ipv4_only", "captures IPv4 only".into(), "IPv6 goes past the proxy", remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fills_up() {
        let kind = |live| judge_room("n1", live, 100).map(|finding| finding.kind);
        assert_eq!(
            [0, 89, 90, 99, 100, 101].map(kind),
            [None, None, Some("nearly_full"), Some("nearly_full"), Some("full"), Some("full")]
        );
    }

    #[test]
    fn ports_that_are_left() {
        let ports = Ports { first: 1000, last: 2000, reserved: vec![(1000, 1000), (1900, 3000)] };
        let level = |used: u16| ports.judge(&(1000..1000 + used).collect()).map(|finding| finding.level);
        assert_eq!([0, 800].map(level), [None, None]);
        assert_eq!(level(820), Some(Level::Notice));
        assert_eq!([837, 900].map(level), [Some(Level::Fault); 2]);
        let few = Ports { first: 15_000, last: 15_010, reserved: Vec::new() };
        assert_eq!(few.judge(&HashSet::new()).map(|finding| finding.level), Some(Level::Notice));
    }

    #[test]
    fn destinations_without_an_address() {
        let policy = |most| Policy { max_destinations: most, ..Policy::default() };
        let found = |given, most| judge_destinations("n1", given, &policy(most)).is_some();
        assert_eq!([found(99, 100), found(100, 100), found(0, 0)], [false, true, false]);
    }

    #[test]
    fn what_is_mostly_not_meant() {
        let eth0 = Interface { index: 2, name: "eth0".into(), addresses: Vec::new(), loopback: false };
        let kinds = |policy: Policy| -> Vec<&str> {
            judge_mistakes(&policy, std::slice::from_ref(&eth0)).iter().map(|found| found.kind).collect()
        };
        let plain = Policy::default;
        assert!(kinds(plain()).is_empty());
        let nets = |nets: &[&str]| nets.iter().map(|net| net.parse().unwrap()).collect();
        assert!(kinds(Policy { outbound_exclude_cidrs: nets(&["0.0.0.0/1"]), ..plain() }).is_empty());
        let all = Policy { outbound_exclude_cidrs: nets(&["10.0.0.0/8", "::/0"]), ..plain() };
        assert_eq!(kinds(all), ["outbound_excluded"]);
        assert_eq!(kinds(Policy { proxy_uids: vec![1337, 0], ..plain() }), ["proxy_is_root"]);
        let interfaces = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert!(kinds(Policy { exclude_interfaces: interfaces(&["eth0"]), ..plain() }).is_empty());
        assert_eq!(
            kinds(Policy { virtual_interfaces: interfaces(&["docker0"]), ..plain() }),
            ["interface_missing"]
        );
    }

    #[test]
    fn what_captures_nothing() {
        let interface = |name: &str, net: &str| Interface {
            index: 1,
            name: name.into(),
            addresses: net.parse().into_iter().collect(),
            loopback: name == "lo",
        };
        let all = [
            interface("lo", "127.0.0.1/8"),
            interface("eth0", "10.0.0.2/24"),
            interface("eth1", ""),
            interface("net1", "10.1.0.2/24"),
        ];
        let kind = |excluded: &[&str], interfaces: &[Interface]| {
            let exclude_interfaces = excluded.iter().map(|name| (*name).to_owned()).collect();
            judge_nothing(&Policy { exclude_interfaces, ..Policy::default() }, interfaces)
                .map(|finding| finding.kind)
        };
        assert_eq!(kind(&["eth0"], &all), None);
        assert_eq!(kind(&["eth0"], &all[..3]), Some("interfaces_excluded"));
        assert_eq!(kind(&["eth0", "net1"], &all), Some("interfaces_excluded"));
        assert_eq!(kind(&[], &all[..1]), None);
        assert_eq!(
            judge_nothing(&Policy::istio_default(), &all).map(|finding| finding.kind),
            Some("captures_nothing")
        );
        assert_eq!(
            judge_nothing(&Policy { ipv6: false, ..Policy::default() }, &all).map(|finding| finding.kind),
            Some("ipv4_only")
        );
    }
}
