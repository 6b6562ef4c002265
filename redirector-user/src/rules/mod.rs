//! The rules of a policy as iptables would have them. `explain` and `show -v` print them, `import` compares with them.
//!
//! The order is that of istio-iptables (`tools/istio-iptables/pkg/capture/run.go`, `Run`). Every user, port and network has
//! a rule of its own. A rule that decides about connections names its [`Counter`]; several rules may share one. The other
//! rules (jumps, and the rules of chains that only redirect) have none.
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
