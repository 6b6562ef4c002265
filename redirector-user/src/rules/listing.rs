//! Lists the rules of a policy with the connections they decided, as `iptables -vnL --line-numbers` does.

use std::collections::BTreeSet;

use redirector_common::rule::Counter;
use schemars::JsonSchema;
use serde::Serialize;

use super::chains::{Chain, Family, Rule, Table, end};
use super::spec::Target;
use super::whole::Rules;
use crate::policy::Policy;

/// A reachable chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The chain.
    pub chain: Chain,
    /// Connections that reached the end of a built-in chain, its policy ACCEPT.
    pub rest: Option<u64>,
    /// Its rules, in order.
    pub rows: Vec<Row>,
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its place in the chain, from 1.
    pub number: usize,
    /// The connections that it decided.
    pub connections: Count,
    /// Target, prot, in, out, source, destination, extra.
    pub columns: [String; 7],
}

/// How many connections a rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Connections of this rule and of those that refer to it.
    Own(u64),
    /// Number of the rule of the chain that shares the counter.
    With(usize),
    /// The rule decides nothing.
    None,
}

/// A rule in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Entry {
    /// Its table.
    pub table: &'static str,
    /// Its chain.
    pub chain: &'static str,
    /// Its counter, which rules may share; `null` if the rule decides nothing.
    pub rule: Option<&'static str>,
    /// As iptables-save prints it.
    pub iptables: Option<String>,
    /// As ip6tables-save prints it.
    pub ip6tables: Option<String>,
}

const BUILT_IN: [&str; 2] = ["OUTPUT", "PREROUTING"];

impl Rules {
    /// The reachable rules: those of built-in chains and of targets of jumps.
    fn reached(&self) -> impl Iterator<Item = &Rule> {
        let jumps = self.list.iter().filter_map(|from| Some((from.chain.table, from.jump()?)));
        let reached: BTreeSet<(Table, &str)> = jumps.collect();
        self.list.iter().filter(move |rule| {
            let Chain { table, name } = rule.chain;
            BUILT_IN.contains(&name) || reached.contains(&(table, name))
        })
    }

    /// The chains and their rules. `count` gives the value of a counter.
    pub fn listing(&self, count: impl Fn(Counter) -> u64) -> Vec<Listed> {
        let mut list: Vec<Listed> = Vec::new();
        let mut counters: Vec<Vec<Option<Counter>>> = Vec::new();
        for rule in self.reached() {
            let at = list.iter().position(|listed| listed.chain == rule.chain).unwrap_or_else(|| {
                let rest = [Counter::OutDefault, Counter::InDefault].into_iter();
                let rest = rest.filter(|counter| end(*counter) == Some(rule.chain)).map(&count).next();
                list.push(Listed { chain: rule.chain, rest, rows: Vec::new() });
                counters.push(Vec::new());
                list.len() - 1
            });
            let connections = match rule.counter {
                None => self.redirected(rule, &count),
                Some(counter) => match counters[at].iter().position(|seen| *seen == Some(counter)) {
                    Some(first) => Count::With(first + 1),
                    None => Count::Own(count(counter)),
                },
            };
            counters[at].push(rule.counter);
            let rows = &mut list[at].rows;
            rows.push(Row { number: rows.len() + 1, connections, columns: rule.columns() });
        }
        list
    }

    /// A rule that redirects counts the connections of the rules that jump to it.
    fn redirected(&self, rule: &Rule, count: impl Fn(Counter) -> u64) -> Count {
        let Chain { table, name } = rule.chain;
        if BUILT_IN.contains(&name) || !matches!(rule.any().target, Target::Redirect(_)) {
            return Count::None;
        }
        let from = self.list.iter().filter(|from| from.chain.table == table && from.jumps_to(name));
        let mut counters: Vec<Counter> = from.filter_map(|from| from.counter).collect();
        counters.sort_unstable();
        counters.dedup();
        Count::Own(counters.into_iter().map(count).sum())
    }

    /// The same in JSON.
    pub fn entries(policy: &Policy) -> Vec<Entry> {
        let entry = |rule: &Rule| Entry {
            table: rule.chain.table.name(),
            chain: rule.chain.name,
            rule: rule.counter.map(Counter::name),
            iptables: rule.line(Family::V4),
            ip6tables: rule.line(Family::V6),
        };
        Self::of(policy).reached().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Selection;

    fn listing(policy: &Policy) -> Vec<Listed> {
        Rules::of(policy).listing(|counter| counter as u64 + 100)
    }

    #[test]
    fn rules_of_a_kind_refer_to_the_first() {
        let policy = Policy { proxy_uids: vec![1337, 42], proxy_gids: vec![1337], ..Policy::default() };
        let list = listing(&policy);
        let output = list.iter().find(|listed| listed.chain.name == "ISTIO_OUTPUT").expect("chain");
        let own = |counter: Counter| Count::Own(counter as u64 + 100);
        let counts: Vec<Count> = output.rows.iter().map(|row| row.connections).take(7).collect();
        assert_eq!(
            counts,
            [
                own(Counter::OutPassthroughSource),
                own(Counter::OutProxyUidLoopback),
                own(Counter::OutNotProxyUidLoopback),
                own(Counter::OutProxyUid),
                Count::With(2),
                Count::With(3),
                Count::With(4),
            ]
        );
        let rest = list[0].rest;
        assert_eq!((list[0].chain.name, rest), ("OUTPUT", Some(Counter::OutDefault as u64 + 100)));
    }

    #[test]
    fn a_redirecting_rule_has_the_sum() {
        let list = listing(&Policy::default());
        let chain = list.iter().find(|listed| listed.chain.name == "ISTIO_IN_REDIRECT").expect("chain");
        let sum = [Counter::OutProxyUidLoopback, Counter::OutProxyGidLoopback, Counter::InAll];
        assert_eq!(
            chain.rows[0].connections,
            Count::Own(sum.map(|counter| counter as u64 + 100).iter().sum())
        );
    }

    #[test]
    fn chains_nobody_jumps_to_are_left_out() {
        let policy = Policy { inbound_ports: Selection::None, ..Policy::default() };
        let names: Vec<&str> = listing(&policy).iter().map(|listed| listed.chain.name).collect();
        assert_eq!(names, ["OUTPUT", "ISTIO_OUTPUT", "ISTIO_REDIRECT", "ISTIO_IN_REDIRECT"]);
        assert!(Rules::entries(&policy).iter().all(|entry| entry.chain != "ISTIO_INBOUND"));
    }
}
