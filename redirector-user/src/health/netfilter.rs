//! Rules of netfilter in the pod's namespace that stand in the way of what is captured: those that came after the attach.

mod legacy;
mod nftables;
mod rule;
mod sets;

use rule::{Action, Rule};

use super::finding::{Finding, Level, some_of};
use super::listeners::Role;
use crate::base::error::Result;
use crate::pod::live_rules::{self, Netfilter};
use crate::policy::{Dns, Policy};
use crate::sys::netns::NetNs;

/// What is to be said of them.
pub(super) fn judge(netns: &NetNs, policy: &Policy) -> Result<Vec<Finding>> {
    let (chains, rules) = netns.run(|| {
        let netfilter = Netfilter::read()?;
        let mut rules = legacy::rules(&netfilter.legacy);
        rules.extend(nftables::rules(&netfilter.chains)?);
        Ok((netfilter.meshes(), rules))
    })?;
    let mut findings: Vec<Finding> = judge_meshes(&chains).into_iter().collect();
    findings.extend(judge_drops(&rules, policy));
    findings.extend(judge_arriving(&rules, policy));
    findings.extend(judge_drops_of_the_proxy(&rules, policy));
    if chains.is_empty() {
        findings.extend(judge_redirects(&rules, policy));
    }
    Ok(findings)
}

fn judge_meshes(chains: &[String]) -> Option<Finding> {
    (!chains.is_empty()).then(|| {
        Finding::fault(
            "istio_rules",
            format!(
                "the network namespace has live netfilter rules of a service mesh ({})",
                some_of(chains, 6)
            ),
            "connections are redirected twice",
            live_rules::REMEDY.into(),
        )
    })
}

/// Protocol and port of what is sent to the proxy.
fn to_proxy(policy: &Policy) -> Vec<(u8, u16)> {
    let mut all: Vec<(u8, u16)> =
        Role::of(policy).iter().map(|role| (libc::IPPROTO_TCP as u8, role.port(policy))).collect();
    if policy.dns != Dns::Off {
        all.push((libc::IPPROTO_UDP as u8, policy.dns_port));
    }
    all
}

fn names_proxy(rule: &Rule, policy: &Policy) -> bool {
    rule.ports.is_some() && to_proxy(policy).iter().any(|(protocol, port)| rule.takes(*protocol, *port))
}

/// Whether a rule may accept the first packet of an application's connection to the proxy, which goes over lo.
fn lets_through(rule: &Rule, policy: &Policy) -> bool {
    let is_taken = |(protocol, port): &(u8, u16)| rule.takes(*protocol, *port);
    let is_of_the_proxy = rule.user.is_some_and(|uid| policy.proxy_uids.contains(&uid))
        || rule.group.is_some_and(|gid| policy.proxy_gids.contains(&gid));
    rule.action == Action::Accept
        && !(rule.is_policy() || rule.established || rule.is_of_interface || is_of_the_proxy)
        && to_proxy(policy).first().is_none_or(is_taken)
}

fn judge_drops(rules: &[Rule], policy: &Policy) -> Option<Finding> {
    // What is known of jumps is that there are some: an exception may stand in any chain of the table.
    let has_exceptions =
        |of: &Rule| rules.iter().any(|rule| rule.table == of.table && lets_through(rule, policy));
    let is_before = |of: &Rule| {
        let before = rules.iter().take_while(|rule| !std::ptr::eq(*rule, of));
        before
            .filter(|rule| rule.chain == of.chain && rule.table == of.table)
            .any(|rule| lets_through(rule, policy))
    };
    let stops = |rule: &&Rule| {
        let named = names_proxy(rule, policy) && !rule.is_of_interface && !rule.established;
        let is_broad = rule.is_of_lo() && rule.is_unconditional() || named && rule.is_broad();
        matches!(rule.action, Action::Drop | Action::Reject)
            && if is_broad {
                !rule.is_particular() && !has_exceptions(rule)
            } else {
                named && !is_before(rule)
            }
    };
    let found: Vec<String> = rules.iter().filter(stops).map(Rule::told).collect();
    (!found.is_empty() && !to_proxy(policy).is_empty()).then(|| {
        Finding::fault(
            "netfilter_drops",
            format!("netfilter stops what is sent to the proxy: {}", some_of(&found, 4)),
            "captured connections are refused or time out",
            "remove the rule: nft list ruleset, or iptables-save, shows it in the namespace".into(),
        )
    })
}

/// A firewall of the iptables days, which lets in the proxy's ports: INPUT sees the application's here.
fn judge_arriving(rules: &[Rule], policy: &Policy) -> Option<Finding> {
    // 15008, 15020, 15021 and 15090 are of a sidecar, too.
    let is_of_a_sidecar = |port: u16| (15_000..=15_099).contains(&port) || port == policy.inbound_port;
    let accepts = |rule: &&Rule| rule.action == Action::Accept && !(rule.is_policy() || rule.established);
    let may_let_in = |rule: &Rule| {
        let lo = rule.is_everything_on_lo || rule.is_to_loopback;
        let others = |ports: &Vec<(u16, u16)>| {
            ports.iter().any(|(from, to)| !(is_of_a_sidecar(*from) && is_of_a_sidecar(*to)))
        };
        !lo && rule.protocol.is_none_or(|it| it == libc::IPPROTO_TCP as u8)
            && rule.ports.as_ref().is_none_or(others)
    };
    let closes = |rule: &&Rule| {
        let is_all =
            rule.is_input && rule.is_everything_on_lo && rule.is_unconditional() && rule.not_user.is_none();
        let same_table = |other: &&Rule| other.table == rule.table;
        let accepted: Vec<&Rule> = rules.iter().filter(same_table).filter(accepts).collect();
        // One that lets in nothing at all is the user's will.
        let is_for_proxy =
            |rule: &&Rule| rule.ports.is_some() && rule.takes(libc::IPPROTO_TCP as u8, policy.inbound_port);
        let is_meant = accepted.iter().any(is_for_proxy) && !accepted.iter().any(|rule| may_let_in(rule));
        matches!(rule.action, Action::Drop | Action::Reject) && is_all && is_meant
    };
    let found: Vec<String> = rules.iter().filter(closes).map(Rule::told).collect();
    (!found.is_empty() && Role::of(policy).contains(&Role::Inbound)).then(|| {
        Finding::fault(
            "netfilter_drops",
            format!("netfilter stops what arrives from the network: {}", some_of(&found, 4)),
            "inbound connections time out: a captured one keeps the application's port, which no rule accepts",
            "accept the application's ports in INPUT: nft list ruleset, or iptables-save, shows the rules".into(),
        )
    })
}

/// Rules by user, as a pod has them that keeps its application from the network.
fn judge_drops_of_the_proxy(rules: &[Rule], policy: &Policy) -> Option<Finding> {
    let stops = |rule: &&Rule| {
        matches!(rule.action, Action::Drop | Action::Reject)
            && (rule.user.is_some_and(|uid| policy.proxy_uids.contains(&uid))
                || rule.group.is_some_and(|gid| policy.proxy_gids.contains(&gid)))
    };
    let found: Vec<String> = rules.iter().filter(stops).map(Rule::told).collect();
    let is_whole = |rule: &Rule| !rule.other && rule.ports.is_none();
    let level = if rules.iter().filter(stops).any(is_whole) { Level::Fault } else { Level::Notice };
    (!found.is_empty()).then(|| {
        Finding::new(
            level,
            "netfilter_drops",
            format!("netfilter stops what the proxy sends: {}", some_of(&found, 4)),
            "what it makes for captured connections, or answers, is refused or times out",
            "remove the rule: nft list ruleset, or iptables-save, shows it in the namespace".into(),
        )
    })
}

/// One of a whole protocol, or of the proxy's ports, is a second redirection. Others may be meant: that of a container's
/// name server, say.
fn judge_redirects(rules: &[Rule], policy: &Policy) -> Vec<Finding> {
    let all = rules.iter().filter(|rule| matches!(rule.action, Action::Redirect(_)));
    let (whole, some): (Vec<&Rule>, Vec<&Rule>) = all.partition(|rule| {
        names_proxy(rule, policy)
            || rule.is_unconditional() && !rule.is_to_loopback && rule.takes(libc::IPPROTO_TCP as u8, 0)
    });
    let finding = |level, rules: Vec<&Rule>, effect| {
        let told: Vec<String> = rules.iter().map(|rule| rule.told()).collect();
        (!told.is_empty()).then(|| {
            let what = format!("netfilter redirects, too: {}", some_of(&told, 4));
            Finding::new(
                level,
                "netfilter_redirects",
                what,
                effect,
                "remove the rule: nft list ruleset, or iptables-save, shows it in the namespace".into(),
            )
        })
    };
    let found = [
        finding(Level::Fault, whole, "connections are redirected twice, or past the proxy"),
        finding(Level::Notice, some, "what it takes goes where it says, after our programs have decided"),
    ];
    found.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(ports: Option<Vec<(u16, u16)>>, action: Action) -> Rule {
        Rule { table: "filter".into(), protocol: Some(6), ports, action, ..Rule::default() }
    }

    #[test]
    fn what_stands_in_the_way() {
        let policy = Policy::default();
        let stops = |rules: &[Rule]| judge_drops(rules, &policy).is_some();
        let outbound = Some(vec![(15_000, 15_001)]);
        assert!(stops(&[rule(outbound.clone(), Action::Drop)]));
        assert!(stops(&[Rule {
            protocol: None,
            other: true,
            ..rule(Some(vec![(15_006, 15_006)]), Action::Reject)
        }]));
        assert!(!stops(&[rule(Some(vec![(22, 22)]), Action::Drop)]));
        assert!(!stops(&[Rule { protocol: Some(17), ..rule(outbound.clone(), Action::Drop) }]));
        assert!(!stops(&[rule(outbound.clone(), Action::Accept)]));
        // `-m conntrack --ctstate INVALID -j DROP` is Istio's own.
        assert!(!stops(&[Rule { other: true, ..rule(None, Action::Drop) }]));
        let all = Rule { protocol: None, is_everything_on_lo: true, ..rule(None, Action::Drop) };
        assert!(stops(std::slice::from_ref(&all)));
        assert!(
            !stops(&[all.clone(), rule(outbound.clone(), Action::Accept)]),
            "nobody knows which comes first"
        );
        assert!(!stops(&[all.clone(), Rule { action: Action::Accept, ..all }]));
        let of_proxy = |rule: Rule| judge_drops_of_the_proxy(&[rule], &policy).map(|finding| finding.level);
        let by = |user| Rule { user: Some(user), is_of_interface: true, ..rule(None, Action::Drop) };
        assert_eq!([1000, 1337].map(|user| of_proxy(by(user))), [None, Some(Level::Fault)]);
        assert_eq!(of_proxy(Rule { other: true, ..by(1337) }), Some(Level::Notice));
        assert!(!stops(&[by(1337)]), "it is not sent to the proxy");
        let level = |rule: Rule| judge_redirects(&[rule], &policy).first().map(|finding| finding.level);
        let to = || Action::Redirect("REDIRECT".into());
        assert_eq!(level(rule(None, to())), Some(Level::Fault));
        assert_eq!(level(rule(outbound, to())), Some(Level::Fault));
        assert_eq!(level(Rule { other: true, ..rule(Some(vec![(53, 53)]), to()) }), Some(Level::Notice));
        assert_eq!(level(rule(None, Action::Accept)), None);
    }
}
