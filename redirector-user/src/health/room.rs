//! Whether there is room for more connections, and whether anything is captured at all.

use super::captures;
use super::finding::{Finding, Level, some_of};
use crate::instance::status::Status;
use crate::policy::{Dns, Policy};
use crate::routes::{Interface, RouteSnapshot};

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
