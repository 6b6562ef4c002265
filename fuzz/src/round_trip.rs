//! A policy, written down in every way there is, and read again.

use redirector_user::import::{Flags, import};
use redirector_user::policy::{Dns, Mode, Policy, Selection, TargetDetails, file, resolve};
use redirector_user::rules::Rules;

use super::flags;

/// Checks a policy that was accepted.
pub fn check(policy: &Policy) {
    assert_eq!(policy.validate(), Ok(()));
    let mut normal = policy.clone();
    normal.normalise();
    assert_eq!(normal, *policy, "it is not in normal form");

    let json = serde_json::to_string(policy).expect("JSON");
    assert_eq!(file::parse(&json).as_ref(), Ok(policy), "{json}");
    let toml = toml::to_string(policy).expect("TOML");
    assert_eq!(file::parse(&toml).as_ref(), Ok(policy), "{toml}");

    if policy.proxy_cgroup.is_none() {
        // Neither istio's flags nor its rules know a cgroup.
        as_flags(policy);
        as_rules(policy);
    }
}

/// DNS servers come from the target, two more settings from a policy file only.
fn as_flags(policy: &Policy) {
    let default = Policy::default();
    let redirect = policy.mode == Mode::Redirect;
    let expected = Policy {
        dns_port: default.dns_port,
        max_connections: default.max_connections,
        max_destinations: default.max_destinations,
        tproxy_mark: if redirect { default.tproxy_mark } else { policy.tproxy_mark },
        tproxy_table: if redirect { default.tproxy_table } else { policy.tproxy_table },
        ..policy.clone()
    };
    let printed = Flags::of(&expected);
    let words: Vec<&str> = printed.flags.iter().map(String::as_str).collect();
    let mut input = flags::parse(&words).unwrap_or_else(|| panic!("{printed}: not understood"));
    input.read_variables(|name| printed.variables.get(name).cloned());
    let servers = if let Dns::Servers(servers) = &policy.dns { Some(servers.clone()) } else { None };
    let target = TargetDetails { nameservers: servers, ..TargetDetails::default() };
    let resolved = resolve(&input, &target).unwrap_or_else(|error| panic!("{printed}: {error}"));
    assert_eq!(resolved.policy, expected, "{printed}");
}

/// What rules cannot say is left at its default, see `remarks` in `redirector-user/src/import`.
fn as_rules(policy: &Policy) {
    let Some(expected) = expressible(policy) else { return };
    let text = Rules::of(policy).save();
    let import = import(&text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    assert!(import.is_exact(), "{text}\n{import:#?}");
    assert_eq!(same_meaning(import.policy), same_meaning(expected), "{text}");
}

/// A policy without what leaves no trace in rules, or nothing if they would be misleading.
fn expressible(policy: &Policy) -> Option<Policy> {
    let default = Policy::default();
    // iptables-save does not quote them.
    let odd = |name: &String| name.contains('"') || name == "!";
    if policy.exclude_interfaces.iter().chain(&policy.virtual_interfaces).any(odd) {
        return None;
    }
    let mut policy = Policy {
        max_connections: default.max_connections,
        max_destinations: default.max_destinations,
        tproxy_table: default.tproxy_table,
        drop_invalid: default.drop_invalid,
        ..policy.clone()
    };
    if policy.mode == Mode::Redirect {
        policy.tproxy_mark = default.tproxy_mark;
    }
    if policy.dns == Dns::Off {
        policy.dns_port = default.dns_port;
    } else if policy.dns_port == policy.outbound_port {
        return None;
    }
    if !policy.ipv6 {
        // The rule that a loopback network takes away is missing, and the network is not seen.
        if policy.captures_loopback() && !without_v6(policy.clone()).captures_loopback() {
            return None;
        }
        policy = without_v6(policy);
    }
    Some(policy)
}

fn without_v6(mut policy: Policy) -> Policy {
    if let Selection::List(nets) = &mut policy.outbound_cidrs {
        nets.retain(|net| net.addr().is_ipv4());
    }
    policy.outbound_exclude_cidrs.retain(|net| net.addr().is_ipv4());
    if let Dns::Servers(servers) = &mut policy.dns {
        servers.retain(|server| server.is_ipv4());
    }
    policy.normalise();
    policy
}

/// A list that holds everything says what `*` says, unless it also takes the rules for others on lo away.
fn same_meaning(mut policy: Policy) -> Policy {
    let nets = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("network"));
    let list = policy.outbound_cidrs.items();
    let owned = !(policy.proxy_uids.is_empty() && policy.proxy_gids.is_empty());
    if !(policy.captures_loopback() && owned)
        && list.contains(&nets[0])
        && (list.contains(&nets[1]) || !policy.ipv6)
    {
        policy.outbound_cidrs = Selection::All;
    }
    policy
}
