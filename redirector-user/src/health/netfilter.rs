//! Rules of netfilter in the pod's namespace that stand in the way of what is captured: those that came after the attach.

mod evaluate;
mod expressions;
mod flows;
mod legacy;
mod nftables;
mod packet;
mod program;
mod rule;
mod sets;
mod verdict;
mod xt;

use evaluate::{Fate, Ruleset};
use flows::Pod;
use rule::{Action, Rule};

use super::captures;
use super::finding::{Finding, Level, some_of};
use super::listeners::Role;
use super::processes::Process;
use crate::base::error::Result;
use crate::netlink::sock_diag::{self, Kind};
use crate::pod::live_rules::{self, Netfilter};
use crate::policy::{Dns, Policy};
use crate::routes::RouteSnapshot;
use crate::sys::netns::NetNs;

/// What is to be said of them, to a pod with these addresses, routes and processes.
pub(super) fn judge(
    netns: &NetNs,
    policy: &Policy,
    (now, processes): (&RouteSnapshot, &[Process]),
) -> Result<Vec<Finding>> {
    let (meshes, rules, listeners) = netns.run(|| {
        let netfilter = Netfilter::read()?;
        let (readers, mut rules) = (xt::readers(), Ruleset::default());
        legacy::read(&netfilter.legacy, &readers, &mut rules);
        nftables::read(&netfilter.chains, &readers, &mut rules)?;
        Ok((netfilter.meshes(), rules, sock_diag::list(Kind::TcpListeners, None)?.list))
    })?;
    let pod = Pod { policy, now, processes, listeners };
    let mut findings: Vec<Finding> = judge_meshes(&meshes).into_iter().collect();
    findings.extend(judge_sent(&rules, &pod));
    findings.extend(judge_proxy(&rules, &pod));
    findings.extend(judge_arrivals(&rules, &pod));
    if meshes.is_empty() {
        findings.extend(judge_redirects(&rules.rules().collect::<Vec<_>>(), policy));
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

/// What stops packets, and what that means.
fn drops(level: Level, what: &str, rules: &[Rule], consequence: &str) -> Option<Finding> {
    let mut told: Vec<String> = Vec::new();
    for rule in rules.iter().map(Rule::told) {
        if !told.contains(&rule) {
            told.push(rule);
        }
    }
    (!told.is_empty()).then(|| {
        Finding::new(
            level,
            "netfilter_drops",
            format!("netfilter {what}: {}", some_of(&told, 4)),
            consequence,
            "remove the rule: nft list ruleset, or iptables-save, shows it in the namespace".into(),
        )
    })
}

fn stopped(fates: Vec<Fate>) -> Vec<Rule> {
    fates.into_iter().filter_map(|fate| fate.stopped).collect()
}

/// What applications send to the proxy. Rules may be about some users: those of processes count.
fn judge_sent(rules: &Ruleset, pod: &Pod<'_>) -> Vec<Finding> {
    const CONSEQUENCE: &str = "captured connections are refused or time out";
    let apps = pod.apps();
    let whatever_sends: Vec<Fate> = pod.sent(rules, &pod.some_app());
    let is_of_nobody =
        |rule: &Rule| rule.user.is_some_and(|uid| !apps.iter().any(|app| app.uid == Some(uid)));
    let doubtful: Vec<Rule> =
        whatever_sends.iter().flat_map(|fate| fate.doubtful.clone()).filter(is_of_nobody).collect();
    let by_app: Vec<Vec<Rule>> = apps.iter().map(|app| stopped(pod.sent(rules, app))).collect();
    let all_are_stopped = by_app.iter().all(|rules| !rules.is_empty());
    let (mut faults, mut some) = (stopped(whatever_sends), doubtful);
    for rule in by_app.into_iter().flatten() {
        if all_are_stopped || rule.user.is_some() { faults.push(rule) } else { some.push(rule) }
    }
    some.retain(|rule| !faults.contains(rule));
    let sent = "stops what is sent to the proxy";
    let answers = stopped(pod.answers(rules));
    let found = [
        drops(Level::Fault, sent, &faults, CONSEQUENCE),
        drops(Level::Notice, "stops what some users send to the proxy", &some, CONSEQUENCE),
        drops(Level::Fault, "stops what the proxy answers", &answers, CONSEQUENCE),
    ];
    found.into_iter().flatten().collect()
}

/// What the proxy sends: rules by user, as a pod has them that keeps its application from the network.
fn judge_proxy(rules: &Ruleset, pod: &Pod<'_>) -> Vec<Finding> {
    const WHAT: &str = "stops what the proxy sends";
    const CONSEQUENCE: &str = "what it makes for captured connections, or answers, is refused or times out";
    let policy = pod.policy;
    let (mut faults, mut some) = (Vec::new(), Vec::new());
    let names_it = |rule: &Rule| {
        rule.user.is_some_and(|uid| policy.proxy_uids.contains(&uid))
            || rule.group.is_some_and(|gid| policy.proxy_gids.contains(&gid))
    };
    for v6 in pod.families() {
        for (proxy, app) in pod.leaves(rules, v6) {
            // A pod that is kept from the network as a whole is meant so.
            faults.extend(proxy.stopped.filter(|_| app.stopped.is_none()));
            some.extend(proxy.doubtful.into_iter().filter(names_it));
        }
        if captures::inbound(policy) {
            faults.extend(pod.calls(rules, v6));
        }
    }
    some.retain(|rule| !faults.contains(rule));
    let found =
        [drops(Level::Fault, WHAT, &faults, CONSEQUENCE), drops(Level::Notice, WHAT, &some, CONSEQUENCE)];
    found.into_iter().flatten().collect()
}

/// What arrives from the network has the application's port, where iptables rewrote it to the proxy's before INPUT. A
/// firewall that lets nothing in, by whatever port, is meant so.
fn judge_arrivals(rules: &Ruleset, pod: &Pod<'_>) -> Vec<Finding> {
    if !captures::inbound(pod.policy) {
        return Vec::new();
    }
    let told = |(rule, takes_proxy): (Rule, bool)| {
        let is_of_lo = rule.is_everything_on_lo && !rule.chain.ends_with("(policy)");
        let rule = [Rule { is_everything_on_lo: is_of_lo, ..rule }];
        let (level, what) = if takes_proxy {
            (
                Level::Fault,
                "stops what arrives from the network: it accepts the proxy's port, and captured connections have the application's",
            )
        } else {
            (Level::Notice, "stops all that arrives from the network")
        };
        drops(level, what, &rule, "connections to the application time out or are refused")
    };
    let found = pod.families().into_iter().filter_map(|v6| pod.arrives(rules, v6).and_then(told));
    found.map(accept_ports).collect()
}

fn accept_ports(finding: Finding) -> Finding {
    Finding { remedy: "accept the application's ports at INPUT, not the proxy's".into(), ..finding }
}

/// One of a whole protocol, or of the proxy's ports, is a second redirection. Others may be meant: that of a container's
/// name server, say.
fn judge_redirects(rules: &[&Rule], policy: &Policy) -> Vec<Finding> {
    let all = rules.iter().copied().filter(|rule| matches!(rule.action, Action::Redirect(_)));
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
    fn what_is_redirected() {
        let policy = Policy::default();
        let outbound = Some(vec![(15_000, 15_001)]);
        let level = |rule: Rule| judge_redirects(&[&rule], &policy).first().map(|finding| finding.level);
        let to = || Action::Redirect("REDIRECT".into());
        assert_eq!(level(rule(None, to())), Some(Level::Fault));
        assert_eq!(level(rule(outbound, to())), Some(Level::Fault));
        assert_eq!(level(Rule { other: true, ..rule(Some(vec![(53, 53)]), to()) }), Some(Level::Notice));
        assert_eq!(level(rule(None, Action::Accept)), None);
    }
}
