//! A policy, its rules, and the policy again; and by way of flags.

use clap::Parser;
use proptest::prelude::*;

use super::super::{Flags, import};
use crate::policy::{CaptureFlags, Dns, Policy, Selection, TargetDetails, resolve};
use crate::rules::Rules;
use crate::rules::tests::policy;

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

#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Command {
    #[command(flatten)]
    capture: CaptureFlags,
}

/// What `redirector attach` would make of the flags.
fn resolved(flags: &Flags, servers: &Dns) -> Policy {
    let mut capture = Command::try_parse_from(&flags.flags).expect("flags").capture;
    capture.read_variables(|name| flags.variables.get(name).cloned());
    let nameservers = if let Dns::Servers(servers) = servers { Some(servers.clone()) } else { None };
    let facts = TargetDetails { nameservers, ..TargetDetails::default() };
    resolve(&capture, &facts).expect("policy").policy
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_of_a_policy_give_the_policy(policy in policy(), ports: [u16; 2], loopback in 0..3_usize) {
        let loopback = ["127.0.0.1/32", "127.0.0.0/8", "127.0.0.2/31"][loopback].parse().expect("network");
        let [outbound_port, inbound_port] = ports.map(|port| port.max(1));
        prop_assume!(outbound_port != policy.dns_port);
        let policy = Policy { outbound_port, inbound_port, loopback_cidr: loopback, proxy_cgroup: None, ..policy };
        let text = Rules::of(&policy).save();
        let import = import(&text).expect("rules");
        prop_assert!(import.is_exact(), "{}\n{:#?}", text, import);
        prop_assert_eq!(same_meaning(import.policy), same_meaning(policy));
    }

    #[test]
    fn the_flags_of_a_policy_give_the_policy(policy in policy()) {
        // No rule of Istio's names a cgroup.
        let policy = Policy { proxy_cgroup: None, ..policy };
        prop_assert_eq!(resolved(&Flags::of(&policy), &policy.dns), policy);
    }
}
