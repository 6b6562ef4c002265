//! getsockopt(SO_ORIGINAL_DST): the answer conntrack gives under iptables.

use crate::ctx::{
    AF_INET, AF_INET6, IPPROTO_MPTCP, IPPROTO_TCP, Sock, Sockopt, TCP_CLOSE, TCP_LISTEN, set_errno,
};
use crate::{maps, socket_state};
use redirector_common::Addr;
use redirector_common::abi::{FlowKey, SockKind, flag};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.
const SO_ORIGINAL_DST: i32 = 80;
const ENOENT: i32 = 2;
const EINVAL: i32 = 22;
const ENOPROTOOPT: i32 = 92;
const SOCKADDR_IN: i32 = 16;
const SOCKADDR_IN6: i32 = 28;

pub fn answer(ctx: &Sockopt) {
    let level = ctx.level();
    let asked = (level == SOL_IP || level == SOL_IPV6) && ctx.optname() == SO_ORIGINAL_DST;
    if !asked || !tell(ctx, level) {
        untouched(ctx);
    }
}

/// Leaves the kernel's answer as it is. A buffer of more than a page is copied only in part,
/// and the call would fail with EFAULT unless the length says "keep out". Only then: a length
/// of 0 is seen by programs of parent cgroups too. And where the kernel refused before 5.18, because it copies to the caller
/// all the same what it has not filled (`__cgroup_bpf_run_filter_getsockopt`): zeroes.
#[inline(always)]
fn untouched(ctx: &Sockopt) {
    let overwrites = !maps::has_set_retval() && ctx.retval() != 0;
    if overwrites || ctx.optlen() as i64 > ctx.buffered() {
        ctx.set_optlen(0);
    }
}

/// True if the answer is ours.
#[inline(always)]
fn tell(ctx: &Sockopt, level: i32) -> bool {
    let Some(sk) = ctx.sock() else { return false };
    let protocol = sk.protocol();
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP || level == SOL_IPV6 && sk.family() != AF_INET6 {
        return false;
    }
    let retval = ctx.retval();
    // 0: conntrack is there and knows the connection. ENOENT: it does not. ENOPROTOOPT: there
    // is no conntrack in this kernel. Anything else (a short buffer) stands.
    if retval != 0 && retval != -ENOENT && retval != -ENOPROTOOPT {
        return false;
    }
    let need = if level == SOL_IP { SOCKADDR_IN } else { SOCKADDR_IN6 };
    let found = original(sk, level, retval == 0).filter(|(addr, _)| addr.is_v4() == (level == SOL_IP));
    if retval == -ENOPROTOOPT && maps::has_set_retval() {
        if ctx.optlen() < need {
            set_errno(EINVAL as u16);
            return false;
        }
        if found.is_none() {
            set_errno(ENOENT as u16);
        }
    }
    let Some((addr, port)) = found else { return false };

    // The kernel leaves the length as the caller gave it; a length beyond what we were given
    // of the buffer would be EFAULT.
    if ctx.optlen() as i64 > ctx.buffered() {
        ctx.set_optlen(need);
    }
    let port = u32::from(port.to_be()) << 16;
    let written = if level == SOL_IP {
        ctx.write([AF_INET | port, addr.v4_be(), 0, 0])
    } else {
        let [a, b, c, d] = addr.words;
        // ipv6_iface_scope_id: a link-local address has the scope the socket is bound to.
        let scope = if addr.is_link_local() { sk.bound_interface() } else { 0 };
        ctx.write([AF_INET6 | port, 0, a, b, c, d, scope])
    };
    if written {
        ctx.set_success();
    }
    written
}

/// A connection that the client has reset before its accepted socket was asked; conntrack still knows it.
#[inline(always)]
fn ended(sk: Sock) -> Option<(Addr, u16)> {
    let state = socket_state::get(sk)?;
    let accepted =
        state.kind == SockKind::ACCEPTED || state.kind == SockKind::LISTENER && state.orig_port != 0;
    accepted.then_some((state.orig, state.orig_port))
}

/// Original destination of a connection. `known`: the kernel has an answer of its own, which
/// counts unless the connection is one we redirected.
#[inline(always)]
fn original(sk: Sock, level: i32, known: bool) -> Option<(Addr, u16)> {
    let tcp_state = sk.state();
    if tcp_state == TCP_LISTEN {
        return None;
    }
    if tcp_state == TCP_CLOSE {
        return ended(sk);
    }
    if sk.protocol() == IPPROTO_MPTCP {
        // Only a client gets here (accepted ones: EOPNOTSUPP). Its state is on the subflow.
        let key = FlowKey {
            client: sk.local(),
            proxy: sk.peer(),
            client_port: sk.local_port(),
            proxy_port: sk.peer_port(),
        };
        let original = maps::original_dst(&key).map(|o| (o.addr, o.port));
        return Some(original.unwrap_or((key.proxy, key.proxy_port)));
    }
    let state = socket_state::get(sk);
    let kind = state.as_ref().map_or(SockKind::NONE, |s| s.kind);
    if let Some(state) = state
        && (kind == SockKind::ACCEPTED || kind == SockKind::REDIRECTED)
    {
        return Some((state.orig, state.orig_port));
    }
    if known {
        return None;
    }
    // Without IPv6 rules nothing tracks IPv6: ENOENT stays.
    if level == SOL_IPV6 && maps::active().is_some_and(|active| !active.has(flag::IPV6)) {
        return None;
    }
    // conntrack tracks every connection: one that was not redirected has its own destination.
    // Both are read whatever is chosen, or LLVM would choose between two pointers into the socket.
    let (peer, local) = ((sk.peer(), sk.peer_port()), (sk.local(), sk.local_port()));
    Some(if kind == SockKind::PASSED || kind == SockKind::TRANSPARENT { peer } else { local })
}
