//! One address type for both families: IPv4 is kept in its IPv4-mapped IPv6 form.

use bytemuck::{Pod, Zeroable};

/// An IP address as four 32-bit words in network byte order, the way the kernel's
/// contexts hold it. IPv4 `a.b.c.d` is `::ffff:a.b.c.d`, so a connection made through a
/// mapped IPv6 socket and one made through an IPv4 socket are the same to every rule,
/// as they are to netfilter.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Addr {
    /// The words, most significant first, each in network byte order.
    pub words: [u32; 4],
}

const MAPPED_PREFIX: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// `::`.
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };
    /// `127.0.0.1`, where REDIRECT in the OUTPUT chain sends IPv4 (`nf_nat_redirect_ipv4`).
    pub const LOOPBACK_V4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// `::1`, where REDIRECT in the OUTPUT chain sends IPv6 (`nf_nat_redirect_ipv6`).
    pub const LOOPBACK_V6: Self = Self { words: [0, 0, 0, 1_u32.to_be()] };
    /// `127.0.0.6`, the source Envoy binds for traffic it hands to the app.
    pub const PASSTHROUGH_V4: Self = Self::v4(0x7f00_0006_u32.to_be());
    /// `::6`, the same for IPv6.
    pub const PASSTHROUGH_V6: Self = Self { words: [0, 0, 0, 6_u32.to_be()] };

    /// From an IPv4 address in network byte order.
    #[inline(always)]
    pub const fn v4(be: u32) -> Self {
        Self { words: [0, 0, MAPPED_PREFIX, be] }
    }

    /// From the four words of an IPv6 address, each in network byte order.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// Whether this is an IPv4 address (in mapped form).
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED_PREFIX
    }

    /// The IPv4 address in network byte order; meaningful only if [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.words[3]
    }

    /// `0.0.0.0` or `::`, either form.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        (self.words[0] | self.words[1] | self.words[3]) == 0
            && (self.words[2] == 0 || self.words[2] == MAPPED_PREFIX)
    }

    /// In `127.0.0.0/8`, or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() { self.words[3].to_ne_bytes()[0] == 127 } else { self.same(&Self::LOOPBACK_V6) }
    }

    /// `127.0.0.1` or `::1`, where REDIRECT sends what comes over `lo`.
    #[inline(always)]
    pub const fn is_localhost(&self) -> bool {
        self.same(&Self::LOOPBACK_V4) || self.same(&Self::LOOPBACK_V6)
    }

    /// `127.0.0.1` or `::1`, whichever is of this address's family: where REDIRECT in the OUTPUT chain sends it.
    #[inline(always)]
    pub const fn localhost(&self) -> Self {
        if self.is_v4() { Self::LOOPBACK_V4 } else { Self::LOOPBACK_V6 }
    }

    /// In `fe80::/10`.
    #[inline(always)]
    pub const fn is_link_local(&self) -> bool {
        self.words[0] & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be()
    }

    /// Equality that LLVM keeps as four word comparisons (no `memcmp` call in BPF).
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.difference(other) == 0
    }

    /// The bits in which the words differ; 0 if the addresses are equal.
    #[inline(always)]
    pub const fn difference(&self, other: &Self) -> u32 {
        (self.words[0] ^ other.words[0])
            | (self.words[1] ^ other.words[1])
            | (self.words[2] ^ other.words[2])
            | (self.words[3] ^ other.words[3])
    }
}

#[cfg(feature = "user")]
mod std_addr {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::Addr;

    impl From<IpAddr> for Addr {
        fn from(ip: IpAddr) -> Self {
            let v6 = match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            let o = v6.octets();
            let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
            Self { words: [word(0), word(4), word(8), word(12)] }
        }
    }

    impl From<Ipv4Addr> for Addr {
        fn from(ip: Ipv4Addr) -> Self {
            IpAddr::V4(ip).into()
        }
    }

    impl From<Ipv6Addr> for Addr {
        fn from(ip: Ipv6Addr) -> Self {
            IpAddr::V6(ip).into()
        }
    }

    impl From<Addr> for IpAddr {
        /// IPv4-mapped addresses come back as IPv4.
        fn from(addr: Addr) -> Self {
            let octets: [u8; 16] = bytemuck::cast(addr.words);
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
    }

    impl std::fmt::Display for Addr {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn constants_are_what_they_say() {
        assert_eq!(addr("127.0.0.1"), Addr::LOOPBACK_V4);
        assert_eq!(addr("::1"), Addr::LOOPBACK_V6);
        assert_eq!(addr("127.0.0.6"), Addr::PASSTHROUGH_V4);
        assert_eq!(addr("::6"), Addr::PASSTHROUGH_V6);
        assert_eq!(addr("::"), Addr::UNSPECIFIED);
    }

    #[test]
    fn mapped_and_v4_are_one_address() {
        assert_eq!(addr("::ffff:10.1.2.3"), addr("10.1.2.3"));
        assert_eq!(IpAddr::from(addr("::ffff:10.1.2.3")).to_string(), "10.1.2.3");
    }

    #[test]
    fn loopback_and_unspecified_forms() {
        for yes in ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.2"] {
            assert!(addr(yes).is_loopback(), "{yes}");
        }
        for no in ["128.0.0.1", "::2", "10.0.0.127", "::"] {
            assert!(!addr(no).is_loopback(), "{no}");
        }
        for yes in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
            assert!(addr(yes).is_unspecified(), "{yes}");
        }
        assert!(!addr("0.0.0.1").is_unspecified());
        assert!(!addr("::1:0:0").is_unspecified());
    }
}
