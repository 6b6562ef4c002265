//! The policy in force, and the lookups in its lists.

use aya_ebpf::btf_maps::lpm_trie::Key;
use redirector_common::Addr;
use redirector_common::abi::{List, ListKey, Policy, Route, Slot};
use redirector_common::decision::{Decision, Lists};
use redirector_common::rule::Counter;

use crate::instance::Instance;
use crate::maps::{self, MapOf};
use crate::verifier::{fresh, opaque};

/// The policy in force and where its lists are.
#[derive(Clone, Copy)]
pub struct ActivePolicy {
    pub policy: &'static Policy,
    pub tables: MapOf<Key<ListKey>, Route>,
    pub instance: Instance,
    pub slot: Slot,
}

impl ActivePolicy {
    /// Whether every bit of `bits` is set in the policy's flags. A bit that no policy of these programs
    /// can set is a constant to the verifier, and costs nothing.
    #[inline(always)]
    pub fn has(&self, bits: u32) -> bool {
        maps::may_have(bits) && fresh(&self.policy.flags) & bits == bits
    }

    #[inline(always)]
    fn find(&self, key: ListKey) -> Option<&'static Route> {
        // SAFETY: values of an LPM trie are freed after an RCU grace period, and not written in place.
        self.tables.get(&Key::new(ListKey::BITS, key)).map(|route| unsafe { &*route.as_ptr() })
    }

    /// The entry of a number in a list of numbers.
    #[inline(always)]
    pub fn number(&self, list: List, value: u32) -> Option<&'static Route> {
        self.find(ListKey::number(self.slot, list, value))
    }

    /// How the namespace routes `dst`.
    #[inline(always)]
    pub fn route(&self, dst: Addr) -> &'static Route {
        self.find(ListKey::address(self.slot, List::Routes, dst)).unwrap_or(&Route::UNKNOWN)
    }

    /// Whether `addr` is one of the namespace's own.
    #[inline(always)]
    pub fn is_local(&self, addr: Addr) -> bool {
        self.find(ListKey::address(self.slot, List::Routes, addr)).is_some_and(|route| route.local != 0)
    }

    /// Whether as many connections have an entry in `FLOWS` as the policy allows.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        maps::live(self.instance) >= u64::from(self.policy.capacity)
    }

    #[inline(always)]
    pub fn count(&self, counter: Counter) {
        maps::count(self.instance, counter);
    }
}

impl Lists for ActivePolicy {
    #[inline(always)]
    fn holds(&self, list: List, value: u32) -> bool {
        self.number(list, value).is_some()
    }

    #[inline(always)]
    fn covers(&self, list: List, addr: &Addr) -> bool {
        self.find(ListKey::address(self.slot, list, *addr)).is_some()
    }

    #[inline(always)]
    fn join(&self, decision: Decision) -> Decision {
        opaque(decision)
    }

    #[inline(always)]
    fn has(&self, _policy: &Policy, bits: u32) -> bool {
        ActivePolicy::has(self, bits)
    }

    #[inline(always)]
    fn read<T: Copy>(&self, value: &T) -> T {
        fresh(value)
    }
}
