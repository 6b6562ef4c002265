//! setsockopt(): a process of the pod asks for source routing. Its packets would go to the first host of the list, whatever
//! connect() has decided, also of a connection that is established. Under iptables they are redirected, and come to nothing.

use redirector_common::rule::Counter;

use super::{ALLOW, EPERM, refuse};
use crate::ctx::{SOL_IP, SOL_IPV6, Sockopt};
use crate::instance::Instance;
use crate::maps::count;

const IP_OPTIONS: i32 = 4;
/// Options in the form of ancillary data (RFC 2292), a routing header among them; TCP has no other use for it.
const IPV6_2292PKTOPTIONS: i32 = 6;
const IPV6_RTHDR: i32 = 57;
/// Loose and strict source routing (`IPOPT_LSRR`, `IPOPT_SSRR`).
const SOURCE_ROUTES: [u8; 2] = [131, 137];
/// Length in bytes of all options of an IPv4 header (`MAX_IPOPTLEN`).
const MAX_IPOPTLEN: usize = 40;

#[inline(always)]
pub fn check(ctx: &Sockopt) -> i32 {
    let wanted = match (ctx.level(), ctx.optname()) {
        (SOL_IPV6, IPV6_RTHDR | IPV6_2292PKTOPTIONS) => ctx.optlen() > 0,
        (SOL_IP, IP_OPTIONS) => holds_source_route(ctx),
        _ => false,
    };
    if wanted && let Some(active) = Instance::of(ctx).and_then(Instance::active) {
        count(active.instance, Counter::RefusedSourceRoute);
        return refuse(EPERM);
    }
    ctx.leave_alone();
    ALLOW
}

/// Any byte of these values: also one within another option, which a caller of connect() has no use for.
#[inline(always)]
fn holds_source_route(ctx: &Sockopt) -> bool {
    let mut n = 0;
    while n < MAX_IPOPTLEN {
        match ctx.byte(n) {
            None => return false,
            Some(byte) if SOURCE_ROUTES.contains(&byte) => return true,
            Some(_) => n += 1,
        }
    }
    false
}
