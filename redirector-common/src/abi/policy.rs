//! The policy of an instance in the form the kernel reads.

use bytemuck::{Pod, Zeroable};

use super::{Addr, flag};

/// Scalars of a policy. Lists (ports, CIDRs, users, interfaces) live in the `TABLES` map.
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
    /// How many connections of those whose address stands for no destination may be alive at once; more are refused.
    pub capacity: u32,
    /// `-t`: mark of the proxy's connections that carry the client's source address.
    pub tproxy_mark: u32,
    /// How many original destinations may have an address of their own.
    pub destinations: u32,
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

/// A list of a policy, as the `TABLES` map has it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum List {
    /// The routes of the namespace.
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

impl List {
    /// The flag without which nobody looks into the list.
    #[inline(always)]
    pub const fn flag(self) -> u32 {
        match self {
            Self::Routes => 0,
            Self::IncludeCidrs => flag::HAS_INCLUDE_CIDRS,
            Self::ExcludeCidrs => flag::HAS_EXCLUDE_CIDRS,
            Self::DnsServers => flag::DNS,
            Self::ExcludeOutPorts => flag::HAS_EXCLUDE_OUT_PORTS,
            Self::IncludeOutPorts => flag::HAS_INCLUDE_OUT_PORTS,
            Self::ExcludeInPorts => flag::HAS_EXCLUDE_IN_PORTS,
            Self::IncludeInPorts => flag::INBOUND_LIST,
            Self::ExcludeInterfaces => flag::HAS_EXCLUDE_INTERFACES,
            Self::VirtualInterfaces | Self::VirtualInterfaces6 => flag::HAS_VIRTUAL_INTERFACES,
            Self::ProxyUids => flag::HAS_MORE_UIDS,
            Self::ProxyGids => flag::HAS_MORE_GIDS,
            Self::OwnerGroups => flag::OWNER_GROUPS_LIST,
            Self::OwnerGroupsExclude => flag::HAS_OWNER_GROUPS_EXCLUDE,
        }
    }
}
