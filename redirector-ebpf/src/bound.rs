//! What connect() and sendmsg() have in common: what the app has bound, where the kernel would go,
//! and how to refuse.

use crate::ctx::{Sock, set_errno};
use crate::maps;
use redirector_common::Addr;
use redirector_common::abi::Route;

pub const EINVAL: u16 = 22;
/// The system call goes on.
pub const ALLOW: i32 = 1;
/// The system call fails, with EPERM unless [`set_errno`] said better.
const REFUSE: i32 = 0;

#[inline(always)]
pub fn refuse(errno: u16) -> i32 {
    if maps::has_set_retval() {
        set_errno(errno);
    }
    REFUSE
}

/// What the app has bound before connect().
#[derive(Clone, Copy)]
pub struct Bound {
    /// Unspecified if the app has bound no address.
    pub addr: Addr,
    /// 0 if none.
    pub port: u16,
    /// An earlier connect() of this socket was redirected, and our bind of its source is still there.
    pub ours: bool,
}

impl Bound {
    #[inline(always)]
    pub fn of(sk: Sock, socket6: bool, bound_by_us: bool) -> Self {
        let port = sk.local_port();
        // We bind only addresses: with a port, the address is the app's too.
        let ours = bound_by_us && port == 0;
        let addr = if ours {
            Addr::UNSPECIFIED
        } else if socket6 {
            sk.local6()
        } else {
            sk.local4()
        };
        Self { addr, port, ours }
    }
}

/// Where the kernel will go for `asked`: connect() to an unspecified address means loopback.
#[inline(always)]
pub fn effective(asked: Addr, bound: &Bound) -> Addr {
    if !asked.is_unspecified() {
        return asked;
    }
    if asked.is_v4() {
        // ip_route_output_key_hash_rcu: the source if there is one, else 127.0.0.1.
        return if bound.addr.is_unspecified() { Addr::LOOPBACK_V4 } else { bound.addr };
    }
    // tcp_v6_connect: ::1, or ::ffff:127.0.0.1 if the socket is bound to a mapped address.
    if bound.addr.is_v4() { Addr::LOOPBACK_V4 } else { Addr::LOOPBACK_V6 }
}

/// Whether routing refuses the source: a loopback one may not leave on another interface, which a broadcast has, too
/// (`__mkroute_output`: EINVAL).
#[inline(always)]
pub fn is_martian(dst: &Addr, source: &Addr, route: &Route, lo: bool) -> bool {
    dst.is_v4() && source.is_loopback() && !lo && (route.errno == 0 || route.oif != 0)
}
