//! Whether a socket is in the network namespace of the instance.

use crate::ctx::{Ops, Sock, SockAddr, Sockopt};
use crate::maps::constant;
use crate::socket_owner::{address_of, read};

/// For connect, sendmsg and the like.
#[inline(always)]
pub fn is_ours(ctx: &SockAddr) -> bool {
    if by_cookie() { ctx.netns_cookie() == constant!(netns_cookie) } else { has_our_inode(ctx.sock()) }
}

/// For sockops.
#[inline(always)]
pub fn is_ours_in_sockops(ctx: &Ops) -> bool {
    if by_cookie() { ctx.netns_cookie() == constant!(netns_cookie) } else { has_our_inode(ctx.sock()) }
}

/// For getsockopt.
#[inline(always)]
pub fn is_ours_in_getsockopt(ctx: &Sockopt) -> bool {
    if by_cookie() { ctx.netns_cookie() == constant!(netns_cookie) } else { has_our_inode(ctx.sock()) }
}

/// A constant to the verifier: of the helper that a kernel lacks it sees nothing.
#[inline(always)]
fn by_cookie() -> bool {
    constant!(netns_cookie) != 0
}

/// Before 5.15. An inode number is used again only after the namespace is gone, and with it the instance's
/// sk_lookup; the next attach there removes what is left of the older instance.
#[inline(always)]
fn has_our_inode(sk: Option<Sock>) -> bool {
    let Some(sk) = sk else { return false };
    let net: u64 = read(address_of(sk).wrapping_add(constant!(sock_net) as u64));
    let inode: u32 = read(net.wrapping_add(constant!(net_inum) as u64));
    inode == constant!(netns_inode)
}
