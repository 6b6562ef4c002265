//! The rules of legacy iptables, from the kernel's tables (uapi/linux/netfilter_ipv4/ip_tables.h and its sister).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::rule::{Action, Rule};
use crate::base::text::nul_terminated;
use crate::sys::xtables;

/// Where `struct ipt_entry` and `struct ip6t_entry` have what is read of them.
struct Layout {
    /// Length of the addresses and masks at the beginning.
    addresses: usize,
    protocol: usize,
    /// Which conditions are inverted; those of interfaces, addresses and the protocol among them.
    inverted: usize,
    target_offset: usize,
    len: usize,
}

const IPV4: Layout = Layout { addresses: 16, protocol: 80, inverted: 83, target_offset: 88, len: 112 };
const IPV6: Layout = Layout { addresses: 64, protocol: 128, inverted: 132, target_offset: 140, len: 168 };
/// Length of an interface's name, of which there are two and two masks.
const INTERFACE: usize = 16;
/// `struct xt_entry_match` and `struct xt_entry_target`: length, name, revision.
const HEADER: usize = 32;

/// Those of a namespace's tables.
pub(super) fn rules(tables: &[xtables::Table]) -> Vec<Rule> {
    let rules = |table: &xtables::Table| {
        let (layout, program) = if table.v6 { (&IPV6, "ip6tables") } else { (&IPV4, "iptables") };
        parse(&table.entries, layout, &format!("{program} {}", table.name), &table.hooks)
    };
    tables.iter().flat_map(rules).collect()
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at + 2).map(|two| usize::from(u16::from_ne_bytes([two[0], two[1]])))
}

const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

fn parse(all: &[u8], layout: &Layout, table: &str, hooks: &xtables::Hooks) -> Vec<Rule> {
    let (mut rules, mut chain, mut base) = (Vec::new(), String::new(), None);
    let mut entries = all;
    while let (Some(target), Some(next)) =
        (half(entries, layout.target_offset), half(entries, layout.target_offset + 2))
    {
        let at = all.len() - entries.len();
        let Some((entry, rest)) = entries.split_at_checked(next).filter(|_| next >= layout.len) else {
            break;
        };
        entries = rest;
        let begins = |hook: &Option<(usize, usize)>| hook.is_some_and(|(begin, _)| begin == at);
        if let Some(hook) = hooks.iter().position(begins) {
            (chain, base) = (HOOKS[hook].to_owned(), Some(hook));
        }
        let Some(rule) = rule(entry, target, layout) else { break };
        match rule {
            Ok(rule) => {
                let is_policy = base.and_then(|hook| hooks[hook]).is_some_and(|(_, policy)| policy == at);
                let chain = if is_policy { format!("{chain} (policy)") } else { chain.clone() };
                let rule = Rule { table: table.to_owned(), chain, ..rule };
                rules.push(rule.of_base_chain(base.and_then(|hook| u32::try_from(hook).ok())));
            }
            Err(begins) => (chain, base) = (begins, None),
        }
    }
    rules
}

/// A rule, or the name of the chain that begins there. None: it is malformed.
fn rule(entry: &[u8], target: usize, layout: &Layout) -> Option<Result<Rule, String>> {
    let mut rule = Rule::default();
    let name = |bytes: &[u8]| bytes.get(2..31).map(nul_terminated);
    let protocol = u8::try_from(half(entry, layout.protocol)?).ok()?;
    rule.protocol = (protocol != 0).then_some(protocol);
    let interface =
        |at: usize| entry.get(layout.addresses + at * INTERFACE..layout.addresses + (at + 1) * INTERFACE);
    let named = |at| interface(at).is_some_and(|name| name.iter().any(|byte| *byte != 0));
    let is_lo = |at| interface(at).is_some_and(|name| name.starts_with(b"lo\0"));
    // IPT_INV_VIA_IN and IPT_INV_VIA_OUT.
    let inverted = *entry.get(layout.inverted)?;
    let is_but = |at: usize| inverted & (1 << at) != 0;
    rule.is_everything_on_lo = (0..2).any(|at| is_lo(at) && !is_but(at));
    rule.is_of_interface = (0..2).any(|at| named(at) && is_lo(at) == is_but(at));
    rule.is_to_loopback = is_to_loopback(entry.get(..layout.addresses)?);
    rule.other =
        entry[..layout.addresses].iter().any(|byte| *byte != 0) && !rule.is_to_loopback || inverted & !3 != 0;
    let mut at = layout.len;
    while at < target {
        let found = entry.get(at..target)?;
        let len = half(found, 0)?.max(HEADER);
        rule.condition(&name(found)?, *found.get(31)?, found.get(HEADER..len)?);
        at += len;
    }
    let found = entry.get(target..)?;
    let verdict =
        || found.get(HEADER..HEADER + 4).and_then(|four| Some(i32::from_ne_bytes(four.try_into().ok()?)));
    rule.action = match name(found)?.as_str() {
        // A standard target: a verdict is -NF_DROP - 1, -NF_ACCEPT - 1; others jump.
        "" => match verdict()? {
            -1 => Action::Drop,
            -2 => Action::Accept,
            _ => Action::Other,
        },
        // `struct xt_error_target`: a chain begins, or the table ends.
        "ERROR" => return Some(Err(nul_terminated(found.get(HEADER..)?))),
        other => Action::of_target(other),
    };
    Some(Ok(rule))
}

/// Source, destination and their masks.
fn is_to_loopback(addresses: &[u8]) -> bool {
    let (v4, v6) = (Ipv4Addr::LOCALHOST.octets(), Ipv6Addr::LOCALHOST.octets());
    let own: &[u8] = if addresses.len() == 4 * v4.len() { &v4 } else { &v6 };
    let field = |at: usize| &addresses[at * own.len()..(at + 1) * own.len()];
    let is_any = |field: &[u8]| field.iter().all(|byte| *byte == 0);
    let holds = own.iter().zip(field(1)).zip(field(3)).all(|((own, to), mask)| own & mask == *to);
    is_any(field(0)) && is_any(field(2)) && !is_any(field(3)) && holds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_table_makes_it_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            offsets in any::<[u8; 2]>(),
        ) {
            for layout in [&IPV4, &IPV6] {
                let mut bytes = bytes.clone();
                // Small ones, or few entries would be within the table.
                for (at, offset) in offsets.into_iter().enumerate() {
                    let at = layout.target_offset + 2 * at;
                    bytes.get_mut(at..at + 2).into_iter().for_each(|two| two.copy_from_slice(&[offset, 0]));
                }
                parse(&bytes, layout, "t", &[Some((0, 0)); 5]);
            }
        }
    }

    #[test]
    fn malformed_tables_have_no_rules() {
        assert!(parse(&[0; 4096], &IPV4, "t", &[None; 5]).is_empty());
        assert!(parse(&[0xff; 4096], &IPV6, "t", &[None; 5]).is_empty());
        assert!(parse(&[], &IPV4, "t", &[None; 5]).is_empty());
    }
}
