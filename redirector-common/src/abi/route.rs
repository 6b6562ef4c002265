//! `TABLES`: routes and lists.

use bytemuck::{Pod, Zeroable};

use super::{Addr, List, Slot};

/// Key of `TABLES`: which list (and of which policy slot), then an address or a number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ListKey {
    /// `(slot << 8 | List)` in network byte order, so that it is a prefix.
    pub list: u32,
    /// The address, or a number in its last word (network byte order).
    pub addr: Addr,
}

impl ListKey {
    /// Bits of `list`.
    pub const LIST_BITS: u32 = 32;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::LIST_BITS + 128;

    /// Key of an address in a list of prefixes.
    #[inline(always)]
    pub const fn address(slot: Slot, list: List, addr: Addr) -> Self {
        Self { list: (slot.index() << 8 | list as u32).to_be(), addr }
    }

    /// Key of a number in a list of numbers.
    #[inline(always)]
    pub const fn number(slot: Slot, list: List, value: u32) -> Self {
        Self::address(slot, list, Addr { words: [0, 0, 0, value.to_be()] })
    }

    /// Whether the key is of a list in this slot.
    pub const fn is_in(&self, slot: Slot) -> bool {
        u32::from_be(self.list) >> 8 == slot.index()
    }
}

/// Value of `TABLES`: how the namespace routes a destination. Of a virtual interface `source` is the
/// address REDIRECT would send to; [`Route::UNKNOWN`] in the other lists.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Route {
    /// Address the kernel would choose as source; unspecified if not known, and for a local
    /// destination if it is the destination itself.
    pub source: Addr,
    /// Index of the interface the packet leaves on.
    pub oif: u32,
    /// 0, or the positive errno connect() gives.
    pub errno: u16,
    /// 1 if the destination is an address of the namespace (it leaves on lo).
    pub local: u16,
}

impl Route {
    /// The route of a destination that no entry covers.
    pub const UNKNOWN: Self = Self { source: Addr::UNSPECIFIED, oif: 0, errno: 0, local: 0 };

    /// The source address to `dst`: to an address of its own the namespace sends from that
    /// address, unless the route says otherwise.
    #[inline(always)]
    pub const fn source_for(&self, dst: &Addr) -> Addr {
        if self.local != 0 && self.source.is_unspecified() { *dst } else { self.source }
    }
}
