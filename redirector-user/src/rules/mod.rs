//! The rules of a policy as iptables would have them: what `explain` and `show -v` print and `import` compares with.
//!
//! They are made in the order of istio-iptables (`tools/istio-iptables/pkg/capture/run.go`, `Run`), every user, port
//! and network a rule of its own. A rule that decides about connections names the [`Counter`] that counts it here;
//! several rules may share one. The other rules (jumps, and what the chains they lead to do) have none.
//!
//! [`Counter`]: redirector_common::rule::Counter

mod chains;
mod inbound;
mod listing;
mod outbound;
mod packet;
mod spec;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod tproxy;
mod whole;

pub use chains::{Chain, Family, Rule, Table, end};
pub use listing::{Count, Entry, Listed, Row};
pub use packet::Packet;
pub use spec::{Is, Protocol, Spec, Target};
pub use whole::Rules;
