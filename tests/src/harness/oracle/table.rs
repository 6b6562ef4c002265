//! A table of rules under construction.

use std::fmt;

/// A table for `iptables-restore`.
pub(super) struct Table {
    name: &'static str,
    chains: &'static [&'static str],
    rules: Vec<(&'static str, String)>,
}

impl Table {
    pub fn new(name: &'static str) -> Self {
        Self { name, chains: &[], rules: Vec::new() }
    }

    /// Chains of the table's own.
    pub fn declare(&mut self, chains: &'static [&'static str]) {
        self.chains = chains;
    }

    /// Appends a rule to a chain.
    pub fn add(&mut self, chain: &'static str, rule: impl fmt::Display) {
        self.rules.push((chain, rule.to_string()));
    }

    /// Inserts a rule into `PREROUTING`, of which no rule stands before the position in the list.
    pub fn insert_into_prerouting(&mut self, position: usize, rule: impl fmt::Display) {
        self.rules.insert(position, ("PREROUTING", rule.to_string()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.name)?;
        self.chains.iter().try_for_each(|chain| writeln!(f, ":{chain} - [0:0]"))?;
        self.rules.iter().try_for_each(|(chain, rule)| writeln!(f, "-A {chain} {rule}"))?;
        writeln!(f, "COMMIT")
    }
}
