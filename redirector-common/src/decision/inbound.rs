//! PREROUTING → ISTIO_INBOUND: connections that arrive from the network.

use super::{Decision, Lists, Question, fields};
use crate::Addr;
use crate::abi::{List, Policy, flag};
use crate::rule::Counter;

/// A TCP connection that arrives from the network (never one that arrives on `lo`: its
/// decision was taken in [`super::outgoing`], as netfilter takes it in OUTPUT).
#[derive(Clone, Copy, Debug)]
pub struct Incoming {
    /// Destination.
    pub dst: Addr,
    /// Destination port, host byte order.
    pub dport: u16,
    /// Index of the interface it arrived on.
    pub iif: u32,
    /// The destination is an address of the namespace. Of others only what enters a virtual
    /// interface is delivered here, by the routes that user space makes for it.
    pub local: bool,
}

/// nat PREROUTING → ISTIO_INBOUND, or mangle PREROUTING in TPROXY mode. First match wins.
#[inline(always)]
pub fn incoming<L: Lists>(policy: &Policy, lists: &L, connection: &Incoming) -> Decision {
    let c = Question { policy, lists, connection };
    if c.is_from_virtual_interface() {
        return Decision::by(if c.is_included(&c.dst()) {
            Counter::InVirtualCaptured
        } else {
            Counter::InVirtualPassed
        });
    }
    if c.in_list(List::ExcludeInterfaces, c.iif()) {
        return Decision::by(Counter::InExcludedInterface);
    }
    if c.is_tunnel() {
        return Decision::by(Counter::InTunnel);
    }
    if c.has(flag::INBOUND_ALL) {
        if c.in_list(List::ExcludeInPorts, c.dport().into()) {
            return Decision::by(Counter::InExcludedPort);
        }
        return Decision::by(Counter::InAll);
    }
    if c.in_list(List::IncludeInPorts, c.dport().into()) {
        return Decision::by(Counter::InListed);
    }
    Decision::by(Counter::InDefault)
}

/// Whether `-i` names the destination: the one rule for what enters a virtual interface.
#[inline(always)]
pub fn is_included<L: Lists>(policy: &Policy, lists: &L, dst: &Addr) -> bool {
    Question { policy, lists, connection: &() }.is_included(dst)
}

impl<L: Lists> Question<'_, L, Incoming> {
    fields! { dst: Addr, dport: u16, iif: u32, local: bool }

    /// The routes know the interface by its name, so it may be younger than the list.
    #[inline(always)]
    fn is_from_virtual_interface(&self) -> bool {
        self.has(flag::HAS_VIRTUAL_INTERFACES)
            && (!self.local() || self.lists.holds(List::VirtualInterfaces, self.iif()))
    }

    /// TPROXY's chain has no rule for the tunnel port.
    #[inline(always)]
    fn is_tunnel(&self) -> bool {
        (self.has(flag::INBOUND_ALL) || self.has(flag::INBOUND_LIST))
            && !self.has(flag::TPROXY)
            && self.dport() == self.policy.tunnel_port
    }
}
