//! The decision: which connection goes where, and the rule that says so.
//!
//! The rules and their order are those of istio-iptables (`tools/istio-iptables/pkg/capture/run.go`),
//! nat OUTPUT → ISTIO_OUTPUT and nat PREROUTING → ISTIO_INBOUND. The functions are pure: they ask for the policy's
//! lists through [`Lists`], which the programs implement with a map and tests with plain sets.

mod inbound;
mod outbound;

pub use inbound::{Incoming, incoming, is_included};
pub use outbound::{Outgoing, outgoing};

use crate::Addr;
use crate::abi::{List, Policy};
use crate::rule::{Counter, Outcome, Verdict};

/// What a policy's lists say. The programs override the other methods for the sake of the verifier.
pub trait Lists {
    /// Whether a list of numbers (ports, users, groups, interface indices) holds `value`.
    fn holds(&self, list: List, value: u32) -> bool;
    /// Whether a list of prefixes covers `addr`.
    fn covers(&self, list: List, addr: &Addr) -> bool;
    /// Whether every bit of `bits` is set in the policy's flags.
    #[inline(always)]
    fn has(&self, policy: &Policy, bits: u32) -> bool {
        policy.has(bits)
    }
    /// Reads a value.
    #[inline(always)]
    fn read<T: Copy>(&self, value: &T) -> T {
        *value
    }
    /// The same decision, wherever it was taken.
    #[inline(always)]
    fn join(&self, decision: Decision) -> Decision {
        decision
    }
}

/// A verdict and the rule that decided.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where it goes.
    pub verdict: Verdict,
    /// Why.
    pub rule: Counter,
}

impl Decision {
    /// The decision of a rule.
    #[inline(always)]
    pub const fn by(rule: Counter) -> Self {
        match rule.outcome() {
            Outcome::Decided(verdict) => Self { verdict, rule },
            Outcome::Refused | Outcome::Other => Self { verdict: Verdict::Pass, rule },
        }
    }

    /// Whether the connection goes on its own way.
    #[inline(always)]
    pub const fn is_pass(&self) -> bool {
        // As a number: derived equality is no `const fn`.
        self.verdict as u16 == Verdict::Pass as u16
    }
}

/// Reads a field of the connection.
macro_rules! fields {
    ($($name:ident: $type:ty),*) => { $(
        #[inline(always)]
        fn $name(&self) -> $type {
            self.lists.read(&self.connection.$name)
        }
    )* };
}
use fields;

/// A policy that is asked about a connection.
struct Question<'a, L, C> {
    policy: &'a Policy,
    lists: &'a L,
    connection: &'a C,
}

impl<L: Lists, C> Question<'_, L, C> {
    #[inline(always)]
    fn has(&self, bits: u32) -> bool {
        self.lists.has(self.policy, bits)
    }

    #[inline(always)]
    fn in_list(&self, list: List, value: u32) -> bool {
        self.has(list.flag()) && self.lists.holds(list, value)
    }

    #[inline(always)]
    fn in_networks(&self, list: List, addr: &Addr) -> bool {
        self.has(list.flag()) && self.lists.covers(list, addr)
    }

    /// The ports of ISTIO_INBOUND in mangle.
    #[inline(always)]
    fn is_inbound_port(&self, port: u16) -> bool {
        if self.has(crate::abi::flag::INBOUND_ALL) {
            !self.in_list(List::ExcludeInPorts, port.into())
        } else {
            self.in_list(List::IncludeInPorts, port.into())
        }
    }

    #[inline(always)]
    fn is_included(&self, dst: &Addr) -> bool {
        self.has(crate::abi::flag::OUTBOUND_ALL) || self.in_networks(List::IncludeCidrs, dst)
    }
}
