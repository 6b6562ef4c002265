//! Chains and their rules.

use redirector_common::rule::Counter;

use super::spec::{Spec, Target};

/// An address family.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// `iptables`.
    V4,
    /// `ip6tables`.
    V6,
}

/// A table.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Connection tracking zones.
    Raw,
    /// Marks and TPROXY.
    Mangle,
    /// REDIRECT.
    Nat,
    /// Istio has no rule there.
    Filter,
}

impl Table {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// A chain of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chain {
    /// The table.
    pub table: Table,
    /// The chain's name.
    pub name: &'static str,
}

/// A chain of nat.
pub(super) const fn nat(name: &'static str) -> Chain {
    Chain { table: Table::Nat, name }
}

/// The built-in chain whose policy ACCEPT a counter counts.
pub fn end(counter: Counter) -> Option<Chain> {
    match counter {
        Counter::OutDefault => Some(nat("OUTPUT")),
        Counter::InDefault => Some(nat("PREROUTING")),
        _ => None,
    }
}

/// A chain of mangle.
pub(super) const fn mangle(name: &'static str) -> Chain {
    Chain { table: Table::Mangle, name }
}

/// A rule of a chain, in each family that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its chain.
    pub chain: Chain,
    /// The counter of the connections that it decides. Rules of one kind share a counter.
    pub counter: Option<Counter>,
    /// The IPv4 rule.
    pub v4: Option<Spec>,
    /// The IPv6 rule.
    pub v6: Option<Spec>,
}

impl Rule {
    /// The rule of a family.
    pub fn of(&self, family: Family) -> Option<&Spec> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// The rule of the first family that has it: both differ only in addresses.
    pub fn any(&self) -> &Spec {
        static NOTHING: std::sync::LazyLock<Spec> = std::sync::LazyLock::new(Spec::default);
        self.v4.as_ref().or(self.v6.as_ref()).unwrap_or(&NOTHING)
    }

    /// Whether it jumps to another chain.
    pub fn jumps_to(&self, chain: &str) -> bool {
        self.jump() == Some(chain)
    }

    /// The chain that it jumps to.
    pub fn jump(&self) -> Option<&str> {
        match &self.any().target {
            Target::Jump(to) => Some(to),
            _ => None,
        }
    }
}

/// Collects the rules of a policy.
pub(super) struct Builder {
    pub ipv6: bool,
    pub list: Vec<Rule>,
}

impl Builder {
    /// Adds a rule that is equal in both families.
    pub fn both(&mut self, chain: Chain, counter: impl Into<Option<Counter>>, spec: Spec) {
        self.each(chain, counter, spec.clone(), spec);
    }

    /// Adds a rule whose addresses depend on the family.
    pub fn each(&mut self, chain: Chain, counter: impl Into<Option<Counter>>, v4: Spec, v6: Spec) {
        self.push(chain, counter.into(), Some(v4), Some(v6));
    }

    /// Adds a rule of one family.
    pub fn one(&mut self, chain: Chain, counter: impl Into<Option<Counter>>, is_v4: bool, spec: Spec) {
        let (v4, v6) = if is_v4 { (Some(spec), None) } else { (None, Some(spec)) };
        self.push(chain, counter.into(), v4, v6);
    }

    fn push(&mut self, chain: Chain, counter: Option<Counter>, v4: Option<Spec>, v6: Option<Spec>) {
        let v6 = v6.filter(|_| self.ipv6);
        if v4.is_some() || v6.is_some() {
            self.list.push(Rule { chain, counter, v4, v6 });
        }
    }
}
