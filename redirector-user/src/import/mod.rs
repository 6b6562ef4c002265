//! Turns the rules of istio-iptables into the policy that means the same.
//!
//! 1. The text becomes rules: `iptables-save`, `iptables -S`, `iptables -vnL`, or the commands themselves.
//! 2. The rules suggest a policy.
//! 3. The rules of that policy ([`crate::rules`]) are compared with those of the text. Every difference in meaning is
//!    named, so the suggestion need not be trusted.

mod blocks;
mod compare;
mod flags;
mod flatten;
mod guess;
mod listing;
mod model;
mod outbound;
mod reading;
mod save;
#[cfg(test)]
mod tests;

pub use flags::Flags;
use model::is_istio;
pub use model::{ImportError, Inexpressible, Missing};
use schemars::JsonSchema;
use serde::Serialize;

use crate::policy::{Dns, Mode, Policy};
use crate::rules::Family;

/// The result of an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Import {
    /// The flags and variables of the policy.
    #[serde(flatten)]
    pub flags: Flags,
    /// The policy.
    pub policy: Policy,
    /// Rules of the text that the policy does not express.
    pub inexpressible: Vec<Inexpressible>,
    /// Rules of the policy that the text does not have.
    pub missing: Vec<Missing>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// Imports rules.
///
/// # Errors
/// [`ImportError`]. A rule that cannot be expressed is part of the result, not an error.
pub fn import(text: &str) -> Result<Import, ImportError> {
    let blocks::Read { rules, has_v6, mut notes } = blocks::read(text)?;
    if !rules.iter().any(|rule| is_istio(&rule.chain)) {
        return Err(ImportError::NotIstio);
    }
    let has_v4 = rules.iter().any(|rule| rule.family == Family::V4);
    let v6_in_use = rules.iter().any(|rule| rule.family == Family::V6 && is_istio(&rule.chain));
    let mut policy = guess::policy(&rules, v6_in_use);
    let mut problems = Vec::new();
    if let Err(error) = policy.validate() {
        // Nothing of such a policy can be used.
        problems.push(error.to_string());
        policy = Policy { ipv6: policy.ipv6, ..Policy::istio_default() };
    }
    policy.normalise();

    let mut compared = compare::Compared::default();
    for family in [Family::V4, Family::V6] {
        let used = if family == Family::V4 { has_v4 } else { policy.ipv6 };
        if used {
            compared.family(&rules, &policy, family);
        }
    }
    let compare::Compared { mut inexpressible, missing, foreign } = compared;
    inexpressible.sort_by_key(|rule| rule.line);
    if !has_v4 {
        notes.push(
            "no IPv4 rules are in it, but IPv4 is always captured: give the output of iptables-save, too"
                .into(),
        );
    }
    if !has_v6 {
        notes.push("no IPv6 rules are in it, hence --ipv6 off; give the output of ip6tables-save, too, if there is any".into());
    }
    notes.extend(problems.into_iter().map(|problem| format!("the rules make no policy: {problem}")));
    if foreign > 0 {
        notes.push(format!(
            "{foreign} rules are not of istio and not in the way: redirector leaves them as they are"
        ));
    }
    notes.extend(remarks(&policy));
    Ok(Import { flags: Flags::of(&policy), policy, inexpressible, missing, notes })
}

impl Import {
    /// Whether policy and rules have exactly the same meaning.
    pub fn is_exact(&self) -> bool {
        self.inexpressible.is_empty() && self.missing.is_empty()
    }
}

/// Notes about options that leave no trace in rules.
fn remarks(policy: &Policy) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Dns::Servers(servers) = &policy.dns {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        remarks.push(format!(
            "--redirect-dns takes the servers of the target's resolv.conf; the rules have {}. A policy file says so \
             exactly (dns = [...], see --output json)",
            servers.join(", ")
        ));
    }
    if policy.dns != Dns::Off && policy.dns_port != Policy::default().dns_port {
        remarks
            .push(format!("the DNS port {} is no flag; it takes a policy file (dns_port)", policy.dns_port));
    }
    if policy.mode == Mode::Tproxy {
        let table = policy.tproxy_table;
        remarks.push(format!(
            "the routing table of TPROXY mode is in `ip rule`, not in iptables; taken as {table} (-r)"
        ));
    }
    remarks
}
