//! A rule in the text, and what can be said of one.

use serde::Serialize;

use crate::rules::{Family, Spec, Table};

/// A rule in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub family: Family,
    pub table: Table,
    pub chain: String,
    /// Number of its line, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// What it says, or why that cannot be said here.
    pub spec: Result<Spec, String>,
}

/// A rule without an equivalent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inexpressible {
    /// Whose rule it is.
    pub family: Family,
    /// Number of its line.
    pub line: usize,
    /// The rule as it was written.
    pub rule: String,
    /// Why, or what there is instead.
    pub why: String,
}

/// A rule that was not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Whose rule it would be.
    pub family: Family,
    /// Its table.
    pub table: Table,
    /// The rule as iptables-save would print it.
    pub rule: String,
}

/// Why there is nothing to import.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// No line is of iptables.
    #[error("no rules in it; give what iptables-save prints (or iptables -t nat -S, or -vnL)")]
    NoRules,
    /// A listing that leaves out interfaces.
    #[error("line {0}: a listing without -v does not show interfaces; give what iptables-save prints")]
    ListingWithoutInterfaces(usize),
    /// iptables has rules, none of which are of istio.
    #[error("it has no chain of istio-iptables that is in use, so nothing is redirected")]
    NotIstio,
}

/// Whether the chain is one of istio-iptables.
pub(super) fn is_istio(chain: &str) -> bool {
    chain.starts_with("ISTIO_")
}
