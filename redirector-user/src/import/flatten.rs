//! Brings rules into one normal form. Versions of Istio used other chains and spellings for the same meaning.

use std::collections::HashSet;

use super::model::Placed;
use crate::rules::Family;
use crate::rules::{Protocol, Rules, Spec, Table, Target};

/// A rule in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub table: Table,
    pub chain: String,
    pub spec: Spec,
    /// Its line in the text; 0 for a rule of a policy.
    pub line: usize,
    pub text: String,
    /// Whether the rule is reachable.
    pub reached: bool,
}

/// All rules of a family.
#[derive(Debug, Default)]
pub(super) struct Flat {
    pub items: Vec<Item>,
    /// Port of each chain that only redirects.
    pub redirects: Vec<(String, u16)>,
}

const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// The readable rules of a text.
pub(super) fn given(rules: &[Placed], family: Family) -> Flat {
    let of_family = rules.iter().filter(|rule| rule.family == family);
    let items = of_family.filter_map(|rule| {
        let Placed { table, chain, line, text, spec, .. } = rule;
        let spec = spec.as_ref().ok()?.clone();
        Some(Item {
            table: *table,
            chain: chain.clone(),
            spec,
            line: *line,
            text: text.clone(),
            reached: false,
        })
    });
    flatten(items.collect())
}

/// The rules of a policy.
pub(super) fn meant(rules: &Rules, family: Family) -> Flat {
    let items = rules.list.iter().filter_map(|rule| {
        let spec = rule.of(family)?.clone();
        let text = rule.line(family)?;
        Some(Item {
            table: rule.chain.table,
            chain: rule.chain.name.into(),
            spec,
            line: 0,
            text,
            reached: false,
        })
    });
    flatten(items.collect())
}

fn flatten(mut items: Vec<Item>) -> Flat {
    let redirects: Vec<(String, u16)> = ["ISTIO_REDIRECT", "ISTIO_IN_REDIRECT"]
        .into_iter()
        .filter_map(|chain| Some((chain.to_owned(), redirects(&items, chain)?)))
        .collect();
    items.retain(|item| item.table != Table::Nat || !redirects.iter().any(|(chain, _)| *chain == item.chain));
    for item in &mut items {
        if let (Table::Nat, Target::Jump(chain)) = (item.table, &item.spec.target)
            && let Some((_, port)) = redirects.iter().find(|(known, _)| known == chain)
        {
            // The chain takes only TCP; anything else comes back.
            item.spec.target = Target::Redirect(*port);
            item.spec.protocol = item.spec.protocol.or(Some(Protocol::Tcp));
        }
        let jumps = matches!(&item.spec.target, Target::Jump(chain) if chain == "ISTIO_INBOUND");
        if item.table != Table::Raw && (jumps || item.chain == "ISTIO_INBOUND") {
            // None of its rules does anything to other protocols.
            item.spec.protocol = item.spec.protocol.or(Some(Protocol::Tcp));
        }
        if let Some(ports) = &mut item.spec.ports {
            ports.value.sort_unstable();
        }
        item.spec.gids.sort_by_key(|is| (is.value, is.not));
    }
    let mut flat = Flat { items: inlined(items), redirects };
    flat.reach();
    flat
}

/// The port of a chain that only redirects TCP.
fn redirects(items: &[Item], chain: &str) -> Option<u16> {
    let mut of_chain = items.iter().filter(|item| item.table == Table::Nat && item.chain == chain);
    let Target::Redirect(port) = of_chain.next()?.spec.target else { return None };
    let only = Spec::to(Target::Redirect(port)).tcp();
    let all = items.iter().filter(|item| item.table == Table::Nat && item.chain == chain);
    all.map(|item| &item.spec).all(|spec| *spec == only).then_some(port)
}

/// The rules for DNS, in the place of the jump to their chain.
fn inlined(items: Vec<Item>) -> Vec<Item> {
    const DNS: &str = "ISTIO_OUTPUT_DNS";
    let is_dns = |item: &Item| item.table == Table::Nat && item.chain == DNS;
    let of_dns: Vec<Item> = items.iter().filter(|item| is_dns(item)).cloned().collect();
    let jump = Spec::jump(DNS);
    let mut list = Vec::new();
    let mut done = false;
    for item in items {
        if item.table == Table::Nat && item.chain == "ISTIO_OUTPUT" && item.spec == jump {
            // A second time they find nothing any more.
            if !std::mem::replace(&mut done, true) {
                list.extend(of_dns.iter().map(|dns| Item { chain: "ISTIO_OUTPUT".into(), ..dns.clone() }));
            }
        } else if !(is_dns(&item) && done) {
            list.push(item);
        }
    }
    list.retain(|item| !(done && is_dns(item)));
    list
}

impl Flat {
    /// Marks the reachable chains: built-in chains and targets of jumps.
    fn reach(&mut self) {
        let mut chains: HashSet<(Table, String)> = HashSet::new();
        loop {
            let before = chains.len();
            for item in &self.items {
                let here = BUILT_IN.contains(&item.chain.as_str())
                    || chains.contains(&(item.table, item.chain.clone()));
                if let (true, Target::Jump(to)) = (here, &item.spec.target) {
                    chains.insert((item.table, to.clone()));
                }
            }
            if chains.len() == before {
                break;
            }
        }
        for item in &mut self.items {
            item.reached =
                BUILT_IN.contains(&item.chain.as_str()) || chains.contains(&(item.table, item.chain.clone()));
        }
    }

    /// The rules of a chain.
    pub fn of(&self, table: Table, chain: &str) -> impl Iterator<Item = &Spec> {
        self.of_chain(table, chain).map(|item| &item.spec)
    }

    /// The rules of a chain with their places.
    pub fn of_chain(&self, table: Table, chain: &str) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(move |item| item.table == table && item.chain == chain)
    }

    /// The target of a chain that only redirects.
    pub fn redirect(&self, chain: &str) -> Option<u16> {
        self.redirects.iter().find(|(known, _)| known == chain).map(|(_, port)| *port)
    }
}
