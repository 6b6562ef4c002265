//! Virtual destinations: the loopback addresses that stand for original destinations.

use bytemuck::{Pod, Zeroable};

use super::Addr;

/// Loopback addresses that an instance gives: a power of two of them, aligned to their number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct VirtualRange {
    /// The first, host byte order; 0: there are none.
    pub first: u32,
    /// Their number minus 1.
    pub mask: u32,
}

impl VirtualRange {
    /// No addresses.
    pub const NONE: Self = Self { first: 0, mask: 0 };

    /// Whether it has any.
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.first == 0
    }

    /// Whether `addr` is one of them.
    #[inline(always)]
    pub const fn holds(&self, addr: &Addr) -> bool {
        self.first != 0 && addr.is_v4() && u32::from_be(addr.v4_be()) & !self.mask == self.first
    }

    /// The address with this number; after the last comes the first again.
    #[inline(always)]
    pub const fn address(&self, number: u32) -> Addr {
        Addr::v4((self.first | number & self.mask).to_be())
    }
}

/// Whether an instance may give this address: in 127.128.0.0/9. A test without memory access, for hooks that see the
/// names of all sockets.
#[inline(always)]
pub const fn may_be_virtual(addr: &Addr) -> bool {
    const FIRST: u32 = 0x7f80_0000;
    addr.is_v4() && u32::from_be(addr.v4_be()) & 0xff80_0000 == FIRST
}

/// Value of `ORIGINAL_DST`: the only meaning that an address ever has in the life of its instance.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct OriginalDst {
    /// Where the client wanted to go.
    pub addr: Addr,
    /// Its port, host byte order.
    pub port: u16,
    /// [`crate::rule::Verdict`] as a number: 1 outbound, 2 inbound, 3 DNS; or [`DIRECT`].
    pub verdict: u16,
    /// [`crate::rule::Counter`] of the rule that decided.
    pub rule: u32,
    /// The proxy's port, host byte order. At another port the address means itself; 0: at every port.
    pub proxy_port: u16,
    /// 1 if the source address of the clients is bound by redirector.
    pub source_bound: u16,
}

/// Key of `DESTINATIONS`: the same of an IPv4 destination, for a stack that has no room for more.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Destination {
    /// The IPv4 address, network byte order.
    pub addr: u32,
    /// As in [`OriginalDst`].
    pub port: u16,
    /// As in [`OriginalDst`].
    pub proxy_port: u16,
    /// As in [`OriginalDst`].
    pub verdict: u16,
    /// As in [`OriginalDst`].
    pub source_bound: u16,
    /// As in [`OriginalDst`].
    pub rule: u32,
}

impl Destination {
    /// What its address will mean.
    #[inline(always)]
    pub const fn meaning(&self) -> OriginalDst {
        OriginalDst {
            addr: Addr::v4(self.addr),
            port: self.port,
            verdict: self.verdict,
            rule: self.rule,
            proxy_port: self.proxy_port,
            source_bound: self.source_bound,
        }
    }
}

/// A verdict: the client connected to the proxy's port by itself, at an address that redirector gives to others. It is
/// told that address, as under iptables.
pub const DIRECT: u16 = 4;

/// Value of `SEQUENCE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sequence {
    /// Number of the next address for a destination; it starts at random.
    pub destination: u64,
    /// How many addresses have been given to destinations.
    pub given: u64,
    /// Number of the next address for a single connection.
    pub connection: u64,
    /// Number of the next element of `UNTAKEN`.
    pub untaken: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(a: u8, b: u8, c: u8, d: u8) -> Addr {
        Addr::v4(u32::from_ne_bytes([a, b, c, d]))
    }

    #[test]
    fn a_range_gives_each_of_its_addresses_once_in_a_turn() {
        let range = VirtualRange { first: 0x7fa0_4000, mask: 0x3fff };
        let mut given: Vec<Addr> = (0..0x4000).map(|n| range.address(n)).collect();
        assert!(given.iter().all(|addr| range.holds(addr) && may_be_virtual(addr)));
        given.sort();
        given.dedup();
        assert_eq!(given.len(), 0x4000);
        assert_eq!(range.address(0x4000), range.address(0));
    }

    #[test]
    fn what_a_range_does_not_hold() {
        let range = VirtualRange { first: 0x7fa0_4000, mask: 0x3fff };
        for other in [v4(127, 160, 63, 255), v4(127, 160, 128, 0), v4(127, 0, 0, 1), v4(10, 160, 64, 1)] {
            assert!(!range.holds(&other), "{other:?}");
        }
        assert!(range.holds(&v4(127, 160, 64, 0)) && range.holds(&v4(127, 160, 127, 255)));
        for any in [v4(0, 0, 0, 0), v4(127, 160, 64, 0), Addr::UNSPECIFIED] {
            assert!(!VirtualRange::NONE.holds(&any), "{any:?}");
        }
        for other in [v4(127, 127, 255, 255), v4(128, 128, 0, 0), Addr::LOOPBACK_V4, Addr::LOOPBACK_V6] {
            assert!(!may_be_virtual(&other), "{other:?}");
        }
    }
}
