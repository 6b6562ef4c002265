//! Bits of the words that hold flags.

/// Bits of [`super::Policy::flags`]. A `HAS_*` flag is set when the list is not empty, so that an absent list costs nothing.
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
    /// More proxy uids than the first.
    pub const HAS_MORE_UIDS: u32 = 1 << 9;
    /// More proxy gids than the first.
    pub const HAS_MORE_GIDS: u32 = 1 << 10;
    /// ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE.
    pub const HAS_OWNER_GROUPS_EXCLUDE: u32 = 1 << 11;
    /// `-c`.
    pub const HAS_EXCLUDE_INTERFACES: u32 = 1 << 12;
    /// `-o`.
    pub const HAS_EXCLUDE_OUT_PORTS: u32 = 1 << 13;
    /// `-q`.
    pub const HAS_INCLUDE_OUT_PORTS: u32 = 1 << 14;
    /// `-x`.
    pub const HAS_EXCLUDE_CIDRS: u32 = 1 << 15;
    /// `-i` with a list.
    pub const HAS_INCLUDE_CIDRS: u32 = 1 << 16;
    /// `-d` (it counts only with `-b '*'`).
    pub const HAS_EXCLUDE_IN_PORTS: u32 = 1 << 17;
    /// `-k`.
    pub const HAS_VIRTUAL_INTERFACES: u32 = 1 << 18;
    /// All of 127.0.0.0/8 is local, so redirected connections may be spread over it.
    pub const SPREAD: u32 = 1 << 19;
    /// There are proxy uids at all (`-u ,` names none, and then no rule of a user exists).
    pub const HAS_UIDS: u32 = 1 << 20;
    /// There are proxy gids at all.
    pub const HAS_GIDS: u32 = 1 << 21;
    /// The proxy is known by its cgroup.
    pub const PROXY_CGROUP: u32 = 1 << 22;
}

/// Bits of [`super::Meta::flags`].
pub mod meta_flag {
    /// attach put `::6` on lo, detach takes it away.
    pub const ADDED_LO6: u32 = 1;
    /// attach changed `net.ipv4.tcp_fwmark_accept` from 0 to 1.
    pub const FWMARK_ACCEPT: u32 = 1 << 2;
    /// attach added the IPv4 rule of TPROXY mode.
    pub const TPROXY_RULE4: u32 = 1 << 3;
    /// attach added the IPv4 route of TPROXY mode.
    pub const TPROXY_ROUTE4: u32 = 1 << 4;
    /// The same for IPv6.
    pub const TPROXY_RULE6: u32 = 1 << 5;
    /// The same for IPv6.
    pub const TPROXY_ROUTE6: u32 = 1 << 6;
    /// The programs tell their decisions (`attach --trace`, `redirector trace`).
    pub const TRACE: u32 = 1 << 7;
    /// attach added rules and routes for virtual interfaces (`-k`), and made the proxy's outbound
    /// listeners transparent.
    pub const VIRTUAL: u32 = 1 << 8;
    /// attach changed `net.ipv4.fwmark_reflect` from 0 to 1.
    pub const FWMARK_REFLECT4: u32 = 1 << 9;
    /// attach changed `net.ipv6.fwmark_reflect` from 0 to 1.
    pub const FWMARK_REFLECT6: u32 = 1 << 10;
    /// The instance shares no programs: another works at its cgroup, or above or below it.
    pub const OWN_PROGRAMS: u32 = 1 << 11;
    /// They tell them until the last `redirector trace` ends: each locks the instance's directory.
    pub const TRACE_FOR_A_WHILE: u32 = 1 << 12;
}

/// Bits of the mark that the classifier of a virtual interface gives TCP packets.
pub mod guest_mark {
    /// It is for the proxy.
    pub const OURS: u32 = 1 << 29;
    /// It answers a connection that somebody else has begun, past every socket here.
    pub const FOREIGN: u32 = 1 << 30;
    /// Both; a packet without either was not classified.
    pub const BOTH: u32 = OURS | FOREIGN;
}
