//! What `-k` needs in the namespace: TCP that enters a virtual interface must be delivered here
//! although its destination is elsewhere; sk_lookup then gives it to the proxy. `ip rule iif IF
//! fwmark 0/0x40000000 ipproto tcp lookup 15001` (4.17) and, for each network of `-i`, `local NETWORK dev lo` in
//! that table. What [`super::classifier`] has marked is none of ours, and routed as ever.
//! A network of `-i '*'` is everything; what no route covers is forwarded as ever.
//!
//! Of what is forwarded TO a guest, IPv4 looks up the way back (`__fib_validate_source`): as if it had entered the virtual
//! interface, and without a mark. A local route would be the end of it, so such a lookup ends in table 15002, in a route
//! that leads back to the guest. [`super::classifier`] makes it for the interfaces it is attached to, and it goes with them:
//! packets without a mark are captured where there is no classifier, and never leave the pod where there was one.
//!
//! Rules and routes carry a protocol number of their own, so whoever cleans up can tell them from
//! those of others, and needs to know nothing else.

use std::collections::BTreeSet;

use ipnet::IpNet;
use redirector_common::abi::guest_mark;

use super::rules::{self, Change};
use crate::base::error::{Error, Result};
use crate::netlink::{self, Netlink};
use crate::policy::{Mode, Policy, Selection};
use crate::sys::netns::NetNs;

/// The table of the routes; named after the port that everything in it goes to.
const TABLE: u32 = 15001;
/// The table in which the source of what is sent to a guest is validated.
pub(super) const REVERSE: u32 = 15002;
/// Who made a route or rule (rtm_protocol, FRA_PROTOCOL). Of 5 to 255 the kernel lets anybody choose;
/// iproute2's list has nobody at this number.
pub(super) const PROTOCOL: u8 = 151;
/// Priority and mask of the rules that lead to [`TABLE`]: right after the table `local` (0), as netfilter would
/// redirect before any routing.
const CAPTURE_RULE: (u32, u32) = (2, guest_mark::FOREIGN);
/// The same of those that lead to [`REVERSE`].
const REVERSE_RULE: (u32, u32) = (1, guest_mark::BOTH);

const WHAT: &str = "the rules and routes of the virtual interfaces";

/// A rule or a route, rules before routes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    /// What enters the interface is routed by the table, but for what is marked otherwise.
    Rule { v6: bool, interface: String, table: u32 },
    /// Destinations that are captured.
    Route(IpNet),
}

/// Refuses what cannot be: beside TPROXY the original's mangle rules come first.
pub fn check(policy: &Policy) -> Result<()> {
    if policy.virtual_interfaces.is_empty() || policy.mode == Mode::Redirect {
        return Ok(());
    }
    Err(Error::input(
        "-k (virtual interfaces) needs -m REDIRECT: beside TPROXY the original's rules give what enters them to the \
         inbound listener",
    ))
}

/// Makes what a policy needs and is not there. What an older policy needed stays.
pub(super) fn add(netns: &NetNs, policy: &Policy) -> Result<()> {
    let entries = of(policy);
    if entries.is_empty() {
        return Ok(());
    }
    netlink::within(netns, |netlink| {
        rules::check_free(netlink, TABLE, "remove them, or attach without -k")?;
        // No rule leads to half a table.
        change(netlink, Change::Add, entries.into_iter().rev().collect())
    })
}

/// Takes away what is there and `policy` does not need; None needs nothing.
pub(super) fn keep(netns: &NetNs, policy: Option<&Policy>) -> Result<()> {
    let needed = policy.map(of).unwrap_or_default();
    netlink::within(netns, |netlink| {
        let mut there = list(netlink)?;
        there.retain(|entry| !needed.contains(entry));
        // Rules first: without them nothing asks the table.
        change(netlink, Change::Remove, there.into_iter().collect())
    })
}

fn of(policy: &Policy) -> BTreeSet<Entry> {
    let mut entries = BTreeSet::new();
    if policy.virtual_interfaces.is_empty() {
        return entries;
    }
    let everything = [false, true].map(rules::everything);
    let captured = match &policy.outbound_cidrs {
        Selection::All => &everything[..],
        some => some.items(),
    };
    for v6 in [false, true].into_iter().take(1 + usize::from(policy.ipv6)) {
        let nets =
            captured.iter().filter(|net| net.addr().is_ipv6() == v6).map(|net| Entry::Route(net.trunc()));
        let before = entries.len();
        entries.extend(nets);
        if entries.len() > before {
            let tables = if v6 { &[TABLE][..] } else { &[TABLE, REVERSE] };
            for table in tables {
                let interfaces = policy.virtual_interfaces.iter().cloned();
                entries.extend(interfaces.map(|interface| Entry::Rule { v6, interface, table: *table }));
            }
        }
    }
    entries
}

/// In the order of the entries; the first that fails is the error.
fn change(netlink: &mut Netlink, change: Change, entries: Vec<Entry>) -> Result<()> {
    let messages = entries.iter().map(|entry| entry.message(change)).collect();
    let answers = netlink.change(WHAT, messages)?;
    match entries.iter().zip(answers).find(|(_, errno)| !change.is_done(*errno)) {
        Some((entry, errno)) => {
            Err(rules::refused(format!("{} {}", change.verb(), entry.described(errno)), errno))
        }
        None => Ok(()),
    }
}

impl Entry {
    fn message(&self, change: Change) -> netlink::Message {
        match self {
            Self::Rule { v6, interface, table } => {
                let order = if *table == REVERSE { REVERSE_RULE } else { CAPTURE_RULE };
                change.interface_rule(*v6, interface, order, *table, PROTOCOL)
            }
            Self::Route(net) => change.local_route(*net, TABLE, PROTOCOL),
        }
    }

    fn described(&self, errno: i32) -> String {
        match self {
            Self::Rule { v6, interface, .. } => {
                format!("the IPv{} rule for what enters {interface}", if *v6 { 6 } else { 4 })
            }
            Self::Route(net) => {
                let hint = rules::hint(net.addr().is_ipv6(), errno);
                format!("the route local {net} dev lo table {TABLE}{hint}")
            }
        }
    }
}

/// Ours, of both families.
fn list(netlink: &mut Netlink) -> Result<BTreeSet<Entry>> {
    let mut entries = BTreeSet::new();
    for v6 in [false, true] {
        let ours = rules::interface_rules(netlink, WHAT, v6, PROTOCOL)?.into_iter();
        let ours = ours.filter(|(_, table)| matches!(*table, TABLE | REVERSE));
        entries.extend(ours.map(|(interface, table)| Entry::Rule { v6, interface, table }));
        let routes = rules::routes_in(netlink, WHAT, v6, TABLE, PROTOCOL)?;
        entries.extend(routes.into_iter().map(Entry::Route));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(policy: &Policy) -> Vec<String> {
        let shown = |entry: &Entry| match entry {
            Entry::Rule { v6, interface, table } => format!("{interface} {v6} {table}"),
            Entry::Route(net) => net.to_string(),
        };
        of(policy).iter().map(shown).collect()
    }

    #[test]
    fn only_what_is_captured_is_delivered_here() {
        let mut policy = Policy { virtual_interfaces: vec!["vnet0".into()], ..Policy::default() };
        assert_eq!(
            text(&policy),
            ["vnet0 false 15001", "vnet0 false 15002", "vnet0 true 15001", "0.0.0.0/0", "::/0"]
        );
        policy.ipv6 = false;
        assert_eq!(text(&policy), ["vnet0 false 15001", "vnet0 false 15002", "0.0.0.0/0"]);
        policy.outbound_cidrs = Selection::of(vec!["10.1.2.3/8".parse().expect("net")]);
        policy.ipv6 = true;
        assert_eq!(text(&policy), ["vnet0 false 15001", "vnet0 false 15002", "10.0.0.0/8"]);
        policy.outbound_cidrs = Selection::None;
        assert!(text(&policy).is_empty());
        policy = Policy::default();
        assert!(text(&policy).is_empty());
    }
}
