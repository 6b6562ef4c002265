//! What the kernel does with a connect() before netfilter sees a packet, and so before any rule.

use crate::Addr;
use crate::abi::Route;
use crate::decision::Outgoing;

/// The errno of an address that cannot be used so.
pub const EINVAL: u16 = 22;

/// Where the kernel goes for `asked` on a socket bound to `bound`: connect() to an unspecified address means loopback.
#[inline(always)]
pub const fn effective(asked: Addr, bound: &Addr) -> Addr {
    if !asked.is_unspecified() {
        return asked;
    }
    if asked.is_v4() {
        // ip_route_output_key_hash_rcu: the source if there is one, else 127.0.0.1.
        return if bound.is_unspecified() { Addr::LOOPBACK_V4 } else { *bound };
    }
    // tcp_v6_connect: ::1, or ::ffff:127.0.0.1 if the socket is bound to a mapped address.
    if bound.is_v4() { Addr::LOOPBACK_V4 } else { Addr::LOOPBACK_V6 }
}

/// What netfilter matches of a socket besides its addresses.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// fsuid of the socket's file, [`Owner::NOBODY`] if it has none.
    pub uid: u32,
    /// fsgid of the socket's file.
    pub gid: u32,
    /// The socket was created in the proxy's cgroup.
    pub proxy: bool,
    /// SO_MARK.
    pub mark: u32,
}

impl Owner {
    /// A uid or gid that no process has: a socket without a file. `xt_owner` matches such a
    /// socket to no `--uid-owner`, and to every `! --uid-owner`.
    pub const NOBODY: u32 = u32::MAX;
}

/// How packets to a destination leave.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The source address routing would choose.
    pub source: Addr,
    /// Index of the interface.
    pub oif: u32,
    /// On lo: the destination is loopback or an address of the namespace.
    pub lo: bool,
}

impl Way {
    /// To a destination by its route.
    #[inline(always)]
    pub const fn of(route: &Route, dst: &Addr) -> Self {
        Self { source: route.source_for(dst), oif: route.oif, lo: route.local != 0 || dst.is_loopback() }
    }
}

impl Outgoing {
    /// The first packet of a socket bound to `bound` (unspecified: to nothing), as routing sends it.
    #[inline(always)]
    pub const fn routed(tcp: bool, bound: &Addr, dst: Addr, dport: u16, way: Way, owner: Owner) -> Self {
        Self {
            dst,
            dport,
            src: if bound.is_unspecified() { way.source } else { *bound },
            tcp,
            lo: way.lo,
            oif: way.oif,
            uid: owner.uid,
            gid: owner.gid,
            proxy: owner.proxy,
            mark: owner.mark,
        }
    }
}

/// The errno by which connect() of a TCP socket fails before it sends a packet.
#[inline(always)]
pub const fn unroutable(dst: &Addr, bound: &Addr, route: &Route, lo: bool) -> Option<u16> {
    // tcp_v6_connect refuses a link-local address without a scope. The hook does not see the
    // scope, and with one the connection would come to nothing under iptables either: the packet
    // stays bound to its interface and never reaches ::1.
    if !lo && dst.is_link_local() { Some(EINVAL) } else { refused(dst, bound, route, lo) }
}

/// The errno by which routing refuses a packet, TCP or UDP.
#[inline(always)]
pub const fn refused(dst: &Addr, bound: &Addr, route: &Route, lo: bool) -> Option<u16> {
    if is_martian(dst, bound, route, lo) {
        return Some(EINVAL);
    }
    if route.errno != 0 { Some(route.errno) } else { None }
}

/// Whether the source is a loopback address that may not leave on another interface (`__mkroute_output`). A broadcast
/// leaves on an interface, too.
#[inline(always)]
const fn is_martian(dst: &Addr, source: &Addr, route: &Route, lo: bool) -> bool {
    dst.is_v4() && source.is_loopback() && !lo && (route.errno == 0 || route.oif != 0)
}
