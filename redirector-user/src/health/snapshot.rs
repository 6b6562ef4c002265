//! Whether the programs know the namespace's addresses, routes and interfaces as they are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use redirector_common::abi::{Addr, List, flag};

use super::finding::{Finding, Level, some_of};
use crate::compile::tables::Compiled;

/// How two states of a namespace differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Addresses that were added, or are gone.
    pub addresses: Vec<String>,
    /// Prefixes that are routed in another way.
    pub routes: Vec<String>,
    /// Lists of interfaces that name others by now: `-c`, `-k`.
    pub interfaces: Vec<&'static str>,
    /// All of it is about link-local addresses, which come a moment after an interface.
    pub only_link_local: bool,
}

impl Difference {
    /// Between what is in force and what there is now.
    pub fn between(in_force: &Compiled, now: &Compiled) -> Self {
        let mut this = Self { only_link_local: true, ..Self::default() };
        // What is not captured is not asked for.
        let asked = |addr: &Addr| addr.is_v4() || in_force.policy.has(flag::IPV6);
        let changed = |list| in_force.beyond(now, list).chain(now.beyond(in_force, list));
        let (mut addresses, mut routes) = (BTreeSet::new(), BTreeSet::new());
        for (addr, bits, value) in changed(List::Routes).filter(|(addr, ..)| asked(addr)) {
            this.only_link_local &= is_link_local(addr);
            let host = bits == 128;
            if host && value.local != 0 {
                addresses.insert(shown(addr, bits))
            } else {
                routes.insert(shown(addr, bits))
            };
        }
        // An address takes routes with it that say nothing new: its own as a broadcast's, a network's.
        routes.retain(|route| !addresses.contains(route));
        this.addresses = addresses.into_iter().collect();
        this.routes = routes.into_iter().collect();
        for (table, name) in [
            (List::ExcludeInterfaces, "-c"),
            (List::VirtualInterfaces, "-k"),
            (List::VirtualInterfaces6, "-k"),
        ] {
            if changed(table).next().is_some() && !this.interfaces.contains(&name) {
                this.interfaces.push(name);
                this.only_link_local = false;
            }
        }
        this
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.routes.is_empty() && self.interfaces.is_empty()
    }

    /// For people: `1 address (10.77.0.9), 2 routes (…) differ`.
    pub fn told(&self) -> String {
        let mut parts = Vec::new();
        let mut part = |list: &[String], one: &str, many: &str| {
            if !list.is_empty() {
                let word = if list.len() == 1 { one } else { many };
                parts.push(format!("{} {word} ({})", list.len(), some_of(list, 3)));
            }
        };
        part(&self.addresses, "address", "addresses");
        part(&self.routes, "route", "routes");
        let names: Vec<String> = self.interfaces.iter().map(|name| format!("those of {name}")).collect();
        part(&names, "list of interfaces", "lists of interfaces");
        let verb =
            if self.addresses.len() + self.routes.len() + names.len() == 1 { "differs" } else { "differ" };
        format!("{} {verb}", parts.join(", "))
    }
}

/// fe80::/10, and the multicast that comes with it.
fn is_link_local(addr: Addr) -> bool {
    addr.is_link_local() || matches!(IpAddr::from(addr), IpAddr::V6(v6) if v6.is_multicast())
}

fn shown(addr: Addr, bits: u32) -> String {
    let ip = IpAddr::from(addr);
    let (bits, whole) = if ip.is_ipv4() { (bits.saturating_sub(96), 32) } else { (bits, 128) };
    if bits == whole { ip.to_string() } else { format!("{ip}/{bits}") }
}

/// What is to be said of it.
pub(super) fn judge(instance: &str, difference: &Difference) -> Option<Finding> {
    (!difference.is_empty()).then(|| {
        let level = if difference.only_link_local { Level::Notice } else { Level::Fault };
        Finding::new(
            level,
            "snapshot_stale",
            format!("the programs' copy of addresses and routes is stale: {}", difference.told()),
            "connections are decided by what was there before",
            format!("redirector refresh {instance} (the agent does it by itself)"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;
    use crate::routes::{Interface, Outcome, Route as Routed, RouteSnapshot};

    fn namespace(routes: &[(&str, Outcome)], eth1: bool) -> Compiled {
        let routes = routes
            .iter()
            .map(|(prefix, outcome)| Routed { prefix: prefix.parse().unwrap(), outcome: outcome.clone() });
        let interface = |index, name: &str| Interface {
            index,
            name: name.into(),
            addresses: Vec::new(),
            loopback: false,
        };
        let mut interfaces = vec![interface(10, "eth0")];
        if eth1 {
            interfaces.push(interface(11, "eth1"));
        }
        let policy = Policy { exclude_interfaces: vec!["eth1".into()], ..Policy::default() };
        Compiled::new(&policy, &RouteSnapshot { routes: routes.collect(), interfaces })
    }

    #[test]
    fn what_differs() {
        let local = Outcome::Local { source: None };
        let via = |oif| Outcome::Via { oif, source: None };
        let before = [("10.77.0.2/32", local.clone()), ("0.0.0.0/0", via(10))];
        let difference = |routes: &[(&str, Outcome)], eth1| {
            Difference::between(&namespace(&before, false), &namespace(routes, eth1))
        };
        assert!(difference(&before, false).is_empty());
        let moved = difference(&[("10.77.0.3/32", local.clone()), ("0.0.0.0/0", via(10))], false);
        assert_eq!(moved.told(), "2 addresses (10.77.0.2, 10.77.0.3) differ");
        let routed = difference(&[before[0].clone(), ("0.0.0.0/0", via(11)), ("fd00::/64", via(11))], true);
        assert_eq!(
            routed.told(),
            "2 routes (0.0.0.0/0, fd00::/64), 1 list of interfaces (those of -c) differ"
        );
        let mut link_local = before.to_vec();
        link_local.extend([("fe80::1/128", local.clone()), ("fe80::/64", via(10)), ("ff00::/8", via(10))]);
        let only = judge("n1", &difference(&link_local, false)).unwrap();
        assert_eq!(only.level, Level::Notice, "{only:?}");
        let found = judge("n1", &moved).unwrap();
        assert_eq!(found.level, Level::Fault);
        assert!(found.remedy.starts_with("redirector refresh n1"));
        assert_eq!(judge("n1", &Difference::default()), None);
        // Of IPv6 nobody asks.
        let four = |routes: &[(&str, Outcome)]| {
            let mut compiled = namespace(routes, false);
            compiled.policy.flags &= !flag::IPV6;
            compiled
        };
        let mut six = before.to_vec();
        six.push(("fd00::1/128", local));
        assert!(Difference::between(&four(&before), &four(&six)).is_empty());
    }
}
