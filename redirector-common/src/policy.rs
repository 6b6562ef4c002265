//! The policy of an instance in the form the kernel reads.

use crate::Addr;
use bytemuck::{Pod, Zeroable};

/// Scalars of a policy. Lists (ports, CIDRs, users, interfaces) live in the `TABLES` map;
/// a `HAS_*` flag is set when the list is not empty, so that an absent list costs nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Policy {
    /// Id of the cgroup whose sockets are the proxy's (`--proxy-cgroup`), 0 for none.
    pub proxy_cgroup: u64,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Where outbound connections go (`-p`), host byte order.
    pub outbound_port: u16,
    /// Where inbound connections go (`-z`), host byte order.
    pub inbound_port: u16,
    /// HBONE port that is never captured (`-e`), host byte order.
    pub tunnel_port: u16,
    /// Where DNS goes, host byte order.
    pub dns_port: u16,
    /// The first of `-u`, as a uid of the initial user namespace.
    pub first_uid: u32,
    /// The first of `-g`, as a gid of the initial user namespace.
    pub first_gid: u32,
    /// ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: network, network byte order.
    pub loopback_net: u32,
    /// Its mask, network byte order.
    pub loopback_mask: u32,
    /// How many redirected connections may be alive at once; more are refused.
    pub capacity: u32,
    /// `-t`: mark of the proxy's connections that carry the client's source address.
    pub tproxy_mark: u32,
    /// Always 0.
    pub _pad: u32,
}

/// Bits of [`Policy::flags`].
pub mod flag {
    /// IPv6 is captured too.
    pub const IPV6: u32 = 1 << 0;
    /// `-i '*'`.
    pub const OUTBOUND_ALL: u32 = 1 << 1;
    /// `-b '*'`.
    pub const INBOUND_ALL: u32 = 1 << 2;
    /// `-b` with a list.
    pub const INBOUND_LIST: u32 = 1 << 3;
    /// `-m TPROXY`.
    pub const TPROXY: u32 = 1 << 4;
    /// `--redirect-dns`.
    pub const DNS: u32 = 1 << 5;
    /// `--capture-all-dns`.
    pub const DNS_ALL: u32 = 1 << 6;
    /// `-i` holds a loopback prefix, which takes away the "app on lo" rules.
    pub const LOOPBACK_INCLUDED: u32 = 1 << 7;
    /// ISTIO_OUTBOUND_OWNER_GROUPS is a list, not `*`.
    pub const OWNER_GROUPS_LIST: u32 = 1 << 8;
    /// There are proxy uids at all (`-u ,` names none, and then no rule of a user exists).
    pub const HAS_UIDS: u32 = 1 << 20;
    /// There are proxy gids at all.
    pub const HAS_GIDS: u32 = 1 << 21;
    /// The proxy is known by its cgroup.
    pub const PROXY_CGROUP: u32 = 1 << 22;
    /// More proxy uids than the first.
    pub const HAS_MORE_UIDS: u32 = 1 << 9;
    /// More proxy gids than the first.
    pub const HAS_MORE_GIDS: u32 = 1 << 10;
    /// ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE is not empty.
    pub const HAS_OWNER_GROUPS_EXCLUDE: u32 = 1 << 11;
    /// `-c` is not empty.
    pub const HAS_EXCLUDE_INTERFACES: u32 = 1 << 12;
    /// `-o` is not empty.
    pub const HAS_EXCLUDE_OUT_PORTS: u32 = 1 << 13;
    /// `-q` is not empty.
    pub const HAS_INCLUDE_OUT_PORTS: u32 = 1 << 14;
    /// `-x` is not empty.
    pub const HAS_EXCLUDE_CIDRS: u32 = 1 << 15;
    /// `-i` is a list.
    pub const HAS_INCLUDE_CIDRS: u32 = 1 << 16;
    /// `-d` is not empty (it counts only with `-b '*'`).
    pub const HAS_EXCLUDE_IN_PORTS: u32 = 1 << 17;
    /// `-k` is not empty.
    pub const HAS_VIRTUAL_INTERFACES: u32 = 1 << 18;
    /// All of 127.0.0.0/8 is local, so redirected connections may be spread over it.
    pub const SPREAD: u32 = 1 << 19;
}

impl Policy {
    /// Whether every bit of `bits` is set.
    #[inline(always)]
    pub const fn has(&self, bits: u32) -> bool {
        self.flags & bits == bits
    }

    /// Whether `dst` is in the loopback CIDR whose destinations are never captured:
    /// ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR (127.0.0.1/32), and always `::1/128` for IPv6.
    #[inline(always)]
    pub const fn is_loopback_exempt(&self, dst: &Addr) -> bool {
        if dst.is_v4() {
            dst.v4_be() & self.loopback_mask == self.loopback_net
        } else {
            dst.same(&Addr::LOOPBACK_V6)
        }
    }
}

/// A list of a policy: which part of the `TABLES` map holds it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The mirror of the namespace's routes.
    Routes = 1,
    /// `-i` as prefixes.
    IncludeCidrs = 2,
    /// `-x` as prefixes.
    ExcludeCidrs = 3,
    /// Servers whose DNS is captured.
    DnsServers = 4,
    /// `-o`.
    ExcludeOutPorts = 5,
    /// `-q`.
    IncludeOutPorts = 6,
    /// `-d`.
    ExcludeInPorts = 7,
    /// `-b`.
    IncludeInPorts = 8,
    /// `-c` as interface indices.
    ExcludeInterfaces = 9,
    /// `-k` as interface indices; the value's source is the interface's IPv4 address.
    VirtualInterfaces = 10,
    /// All of `-u`.
    ProxyUids = 11,
    /// All of `-g`.
    ProxyGids = 12,
    /// ISTIO_OUTBOUND_OWNER_GROUPS.
    OwnerGroups = 13,
    /// ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE.
    OwnerGroupsExclude = 14,
    /// `-k` as interface indices; the value's source is the interface's IPv6 address.
    VirtualInterfaces6 = 15,
}
