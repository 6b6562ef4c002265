//! The rules of legacy iptables, from the kernel's tables (uapi/linux/netfilter_ipv4/ip_tables.h and its sister).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::evaluate::{Base, Chains, Entry, Ruleset};
use super::packet::{Field, Hook};
use super::program::Step;
use super::rule::{Action, Rule};
use super::verdict::Verdict;
use super::xt::{self, Readers};
use crate::base::text::nul_terminated;
use crate::sys::xtables;

/// Where `struct ipt_entry` and `struct ip6t_entry` have what is read of them.
struct Layout {
    family: u8,
    /// Length of the addresses and masks at the beginning.
    addresses: usize,
    /// Where the network header has the source; the destination follows.
    source: usize,
    protocol: usize,
    flags: usize,
    /// IPT_F_GOTO, and IPT_F_FRAG, which only IPv4 has.
    goto: u8,
    fragment: u8,
    /// Which conditions are inverted; those of interfaces, addresses and the protocol among them.
    inverted: usize,
    target_offset: usize,
    len: usize,
}

const IPV4: Layout = Layout {
    family: 2,
    addresses: 16,
    source: 12,
    protocol: 80,
    flags: 82,
    goto: 2,
    fragment: 1,
    inverted: 83,
    target_offset: 88,
    len: 112,
};
const IPV6: Layout = Layout {
    family: 10,
    addresses: 64,
    source: 8,
    protocol: 128,
    flags: 131,
    goto: 4,
    fragment: 0,
    inverted: 132,
    target_offset: 140,
    len: 168,
};
/// Length of an interface's name, of which there are two and two masks.
const INTERFACE: usize = 16;
/// `struct xt_entry_match` and `struct xt_entry_target`: length, name, revision.
const HEADER: usize = 32;
/// Names of the hooks; nothing that is captured is forwarded.
const HOOKS: [(Hook, &str); 5] = [
    (Hook::PreRouting, "PREROUTING"),
    (Hook::Input, "INPUT"),
    (Hook::Ingress, "FORWARD"),
    (Hook::Output, "OUTPUT"),
    (Hook::PostRouting, "POSTROUTING"),
];

/// Adds those of a namespace's tables.
pub(super) fn read(tables: &[xtables::Table], readers: &Readers, into: &mut Ruleset) {
    for table in tables {
        let (layout, program) = if table.v6 { (&IPV6, "ip6tables") } else { (&IPV4, "iptables") };
        let told = format!("{program} {}", table.name);
        let mut reading = Reading { layout, told, hooks: &table.hooks, readers, chains: Chains::new() };
        let policies = reading.parse(&table.entries);
        let number = into.tables.len();
        into.tables.push(reading.chains);
        into.bases.extend(policies.into_iter().map(|(hook, policy)| Base {
            family: layout.family,
            hook: HOOKS[hook].0,
            priority: priority(&table.name, HOOKS[hook].0),
            devices: Vec::new(),
            is_nat: table.name == "nat",
            table: number,
            chain: table.hooks[hook].map(|(first, _)| first.to_string()).unwrap_or_default(),
            policy,
        }));
    }
}

/// `enum nf_ip_hook_priorities`.
fn priority(table: &str, hook: Hook) -> i32 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::PreRouting | Hook::Output) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    }
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..at + 2).map(|two| usize::from(u16::from_ne_bytes([two[0], two[1]])))
}

struct Reading<'a> {
    layout: &'a Layout,
    told: String,
    hooks: &'a xtables::Hooks,
    readers: &'a Readers,
    /// By the offset of the first rule, which is what jumps name.
    chains: Chains,
}

impl Reading<'_> {
    /// The policies by hook.
    fn parse(&mut self, all: &[u8]) -> Vec<(usize, Rule)> {
        let (mut policies, mut chain, mut begins, mut at) = (Vec::new(), String::new(), 0, 0);
        let hook_at = |is_it: &dyn Fn(&(usize, usize)) -> bool| {
            self.hooks.iter().position(|hook| hook.as_ref().is_some_and(is_it))
        };
        while let Some(entries) = all.get(at..)
            && let (Some(target), Some(next)) =
                (half(entries, self.layout.target_offset), half(entries, self.layout.target_offset + 2))
        {
            let Some(entry) = entries.get(..next).filter(|_| next >= self.layout.len) else { break };
            let Some(rule) = rule(entry, target, self.layout) else { break };
            if let Some(hook) = hook_at(&|(first, _)| *first == at) {
                (chain, begins) = (HOOKS[hook].1.to_owned(), at);
            }
            match rule {
                Ok(rule) => {
                    let rule = Rule { table: self.told.clone(), chain: chain.clone(), ..rule };
                    if let Some(hook) = hook_at(&|(_, last)| *last == at) {
                        policies.push((hook, Rule { chain: format!("{chain} (policy)"), ..rule }));
                    } else {
                        let steps =
                            self.steps(entry, target, at + next).unwrap_or_else(|| vec![Step::Unknown]);
                        let entry = Entry { steps, told: vec![rule] };
                        self.chains.entry(begins.to_string()).or_default().push(entry);
                    }
                }
                Err(name) => (chain, begins) = (name, at + next),
            }
            at += next;
        }
        policies
    }

    fn steps(&self, entry: &[u8], target: usize, next: usize) -> Option<Vec<Step>> {
        let layout = self.layout;
        let mut steps = self.conditions(entry)?;
        let name = |bytes: &[u8]| bytes.get(2..31).map(nul_terminated);
        let mut at = layout.len;
        while at < target {
            let found = entry.get(at..target)?;
            let len = half(found, 0)?.max(HEADER);
            steps.extend(xt::condition(&name(found)?, *found.get(31)?, found.get(HEADER..len)?));
            at += len;
        }
        let found = entry.get(target..)?;
        let data = found.get(HEADER..)?;
        let name = name(found)?;
        if !name.is_empty() {
            steps.extend(xt::target(&name, *found.get(31)?, data, self.readers));
            return Some(steps);
        }
        let is_goto = entry.get(layout.flags)? & layout.goto != 0;
        // A verdict is -NF_DROP - 1, -NF_ACCEPT - 1, -NF_QUEUE - 1, XT_RETURN, or where to jump (`ipt_do_table`).
        let verdict = match i32::from_ne_bytes(*data.first_chunk()?) {
            -1 => Verdict::Drop,
            -2 => Verdict::Accept,
            -4 => xt::queue(0, 1, false, self.readers),
            -5 => Verdict::Return,
            to => match usize::try_from(to).ok()? {
                to if to == next && !is_goto => Verdict::Continue,
                to if is_goto => Verdict::Goto(to.to_string()),
                to => Verdict::Jump(to.to_string()),
            },
        };
        steps.push(Step::Verdict(verdict));
        Some(steps)
    }

    /// Those of addresses, interfaces and the protocol.
    fn conditions(&self, entry: &[u8]) -> Option<Vec<Step>> {
        let layout = self.layout;
        let inverted = *entry.get(layout.inverted)?;
        let mut steps = Vec::new();
        let mut add = |field, value: &[u8], mask: &[u8], bit: u8| {
            if mask.iter().any(|byte| *byte != 0) || inverted & bit != 0 {
                steps.extend(xt::masked(field, mask, value, inverted & bit != 0));
            }
        };
        // Source, destination, their masks; IPT_INV_SRCIP and _DSTIP.
        let len = layout.addresses / 4;
        for (at, bit) in [(0, 8), (1, 16)] {
            let part = |at: usize| entry.get(at * len..(at + 1) * len);
            let field = Field::Network { offset: layout.source + at * len, len };
            add(field, part(at)?, part(at + 2)?, bit);
        }
        for (at, field) in [(0, Field::InName), (1, Field::OutName)] {
            let part = |at: usize| {
                entry.get(layout.addresses + at * INTERFACE..layout.addresses + (at + 1) * INTERFACE)
            };
            add(field, part(at)?, part(at + 2)?, 1 << at);
        }
        let protocol = u8::try_from(half(entry, layout.protocol)?).ok()?;
        let mask = if protocol == 0 { 0 } else { 0xff };
        add(Field::Protocol, &[protocol], &[mask], 0x40);
        // Nothing that is captured is a later fragment (IPT_INV_FRAG).
        if entry.get(layout.flags)? & layout.fragment != 0 && inverted & 0x20 == 0 {
            steps.push(Step::Never);
        }
        Some(steps)
    }
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
    rule.is_everything_on_lo = is_lo(0) || is_lo(1);
    rule.is_of_interface = (0..2).any(|at| named(at) && !is_lo(at));
    rule.is_to_loopback = is_to_loopback(entry.get(..layout.addresses)?);
    rule.other = entry[..layout.addresses].iter().any(|byte| *byte != 0) && !rule.is_to_loopback
        || entry.get(layout.inverted) != Some(&0);
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
            -4 => Action::Queue,
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

    fn parsed(bytes: &[u8], layout: &Layout) -> usize {
        let hooks = [Some((0, 0)), None, Some((112, 224)), None, None];
        let readers = None;
        let mut reading =
            Reading { layout, told: "t".into(), hooks: &hooks, readers: &readers, chains: Chains::new() };
        reading.parse(bytes).len() + reading.chains.len()
    }

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
                parsed(&bytes, layout);
            }
        }
    }

    #[test]
    fn malformed_tables_have_no_rules() {
        assert_eq!(parsed(&[0; 4096], &IPV4), 0);
        assert_eq!(parsed(&[0xff; 4096], &IPV6), 0);
        assert_eq!(parsed(&[], &IPV4), 0);
    }
}
