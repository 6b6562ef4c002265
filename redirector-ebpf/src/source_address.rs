//! The source address of a socket: what the application has bound, and what is bound for it, so that the proxy sees the
//! address that the connection would have come from.

use redirector_common::Addr;
use redirector_common::abi::SockState;
use redirector_common::rule::Counter;

use crate::ctx::{Family, Sock, SockAddr};
use crate::hooks::outbound::Outbound;
use crate::instance::Instance;
use crate::{destinations, socket_state};

pub const EADDRNOTAVAIL: u16 = 99;

/// What the application has bound before connect().
#[derive(Clone, Copy)]
pub struct Bound {
    /// Unspecified if it has bound no address.
    pub addr: Addr,
    /// 0 if none.
    pub port: u16,
    /// An earlier connect() of this socket was redirected, and our bind of its source is still there.
    pub ours: bool,
}

impl Bound {
    /// Of a socket that connects, if `connects`. For a connection to a virtual destination nothing is stored; the address
    /// that an earlier connect() has left in the socket tells who has bound its source.
    #[inline(always)]
    pub fn of(ctx: &SockAddr, sk: Sock, instance: Instance, connects: bool) -> Self {
        let (addr, port) = (sk.local_of(ctx.family), sk.local_port());
        // We bind only addresses: with a port, the address is the application's too.
        let ours = connects && port == 0 && !addr.is_unspecified() && is_bound_by_us(sk, instance);
        Self { addr: if ours { Addr::UNSPECIFIED } else { addr }, port, ours }
    }

    /// Takes our bind back, if there is one.
    #[inline(always)]
    pub fn undo(&self, ctx: &SockAddr, sk: Sock, instance: Instance) {
        if self.ours {
            ctx.bind(&unspecified(ctx));
            // SOCK_BINDADDR_LOCK stays, and with it the kernel keeps the source address that it chooses for this
            // connection over a failed connect.
            if let Some(state) = socket_state::get_or_create(sk, instance) {
                state.bound_by_us = 1;
            }
        }
    }
}

/// Binds the source address that routing would choose, if the application has bound none. Returns the address that the
/// connection comes from, unspecified where the kernel chooses it; None: the socket has a port, and bpf_bind takes no
/// such socket.
///
/// # Errors
///
/// That of [`bind_source`].
#[inline(always)]
pub fn bind(ctx: &SockAddr, sk: Sock, o: &Outbound, state: &mut SockState) -> Result<Option<Addr>, u16> {
    let (bound, source) = (&o.bound, &o.way.source);
    if !bound.addr.is_unspecified() {
        return Ok(Some(bound.addr));
    }
    if !is_worth_binding(source) {
        bound.undo(ctx, sk, o.active.instance);
        return Ok(Some(Addr::UNSPECIFIED));
    }
    if bound.port != 0 {
        return Ok(None);
    }
    if !bind_source(ctx, o)? {
        return Ok(Some(Addr::UNSPECIFIED));
    }
    state.bound_by_us = 1;
    Ok(Some(*source))
}

/// Binds the source address. False if the kernel binds none of its kind (`__inet6_bind`): for a link-local one it wants the
/// interface, and it refuses IPv4 to an IPV6_V6ONLY socket, whose connect() then fails by itself (`tcp_v6_connect`).
///
/// # Errors
///
/// EADDRNOTAVAIL: it has left the namespace, or IPv6 is not sure of it yet. The proxy would see a loopback peer.
#[inline(always)]
pub fn bind_source(ctx: &SockAddr, o: &Outbound) -> Result<bool, u16> {
    if ctx.bind(&o.way.source) {
        return Ok(true);
    }
    if o.way.source.is_link_local() {
        o.active.count(Counter::SourceNotBound);
        return Ok(false);
    }
    if matches!(ctx.family, Family::V6) && o.way.source.is_v4() {
        if !ctx.bind(&Addr::LOOPBACK_V4) {
            return Ok(false);
        }
        ctx.bind(&unspecified(ctx));
    }
    o.active.count(Counter::RefusedWithoutSource);
    Err(EADDRNOTAVAIL)
}

/// Whether the source address of a TCP socket without a port was bound for it.
#[inline(always)]
pub fn is_bound_by_us(sk: Sock, instance: Instance) -> bool {
    destinations::meaning(instance, &sk.peer()).is_some_and(|original| original.source_bound != 0)
        || socket_state::get(sk, instance).is_some_and(|state| state.bound_by_us != 0)
}

/// A loopback address as source needs no bind: it is what the kernel chooses to the proxy.
#[inline(always)]
pub fn is_worth_binding(source: &Addr) -> bool {
    !source.is_unspecified() && !source.is_loopback()
}

/// `0.0.0.0` or `::`, as the socket's family has it.
#[inline(always)]
pub fn unspecified(ctx: &SockAddr) -> Addr {
    match ctx.family {
        Family::V4 => Addr::v4(0),
        Family::V6 => Addr::UNSPECIFIED,
    }
}
