//! A rule of the text, and the findings about rules.

use schemars::JsonSchema;
use serde::Serialize;

use crate::rules::{Family, Spec, Table};

/// A rule of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub family: Family,
    pub table: Table,
    pub chain: String,
    /// Its line number, from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// The rule, or the reason why it cannot be expressed.
    pub spec: Result<Spec, String>,
}

/// A rule that no policy expresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Inexpressible {
    /// Its address family.
    pub family: Family,
    /// Its line number.
    pub line: usize,
    /// Its text.
    pub rule: String,
    /// The reason, or the alternative.
    pub why: String,
}

/// A rule that the text lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Missing {
    /// Its address family.
    pub family: Family,
    /// Its table.
    pub table: Table,
    /// The rule as iptables-save would print it.
    pub rule: String,
}

/// The text has nothing to import.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// No line is an iptables rule.
    #[error("no rules in it; give what iptables-save prints (or iptables -t nat -S, or -vnL)")]
    NoRules,
    /// A listing without interfaces (`iptables -L` without `-v`).
    #[error("line {0}: a listing without -v does not show interfaces; give what iptables-save prints")]
    ListingWithoutInterfaces(usize),
    /// The rules are not Istio's.
    #[error("it has no chain of istio-iptables that is in use, so nothing is redirected")]
    NotIstio,
}

/// Whether istio-iptables makes this chain.
pub(super) fn is_istio(chain: &str) -> bool {
    chain.starts_with("ISTIO_")
}
