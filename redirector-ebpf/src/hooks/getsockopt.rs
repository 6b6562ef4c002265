//! getsockopt(SO_ORIGINAL_DST): the answer conntrack gives under iptables.

use redirector_common::Addr;
use redirector_common::abi::{FlowKey, ListenerRole, SockKind, flag};
use redirector_common::rule::Counter;

use crate::ctx::{
    AF_INET, AF_INET6, IPPROTO_MPTCP, IPPROTO_TCP, OfSocket, SOL_IP, SOL_IPV6, Sock, Sockopt, TCP_CLOSE,
    TCP_LISTEN, set_errno,
};
use crate::instance::Instance;
use crate::maps::{self, count};
use crate::verifier::opaque;
use crate::{destinations, socket_state};

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

/// Leaves the kernel's answer as it is. Also where the kernel refused before 5.18, because it copies to the caller
/// all the same what it has not filled (`__cgroup_bpf_run_filter_getsockopt`): zeroes.
#[inline(always)]
fn untouched(ctx: &Sockopt) {
    if !maps::has_set_retval() && ctx.retval() != 0 {
        ctx.set_optlen(0);
    }
    ctx.leave_alone();
}

/// True if the answer is ours.
#[inline(always)]
fn tell(ctx: &Sockopt, level: i32) -> bool {
    let Some(sk) = ctx.sock() else { return false };
    let protocol = sk.protocol();
    if protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP || level == SOL_IPV6 && sk.family() != AF_INET6 {
        return false;
    }
    let Some(instance) = Instance::of(ctx) else { return false };
    let retval = ctx.retval();
    // 0: conntrack is there and knows the connection. ENOENT: it does not. ENOPROTOOPT: there
    // is no conntrack in this kernel. Anything else (a short buffer) stands.
    if retval != 0 && retval != -ENOENT && retval != -ENOPROTOOPT {
        return false;
    }
    let need = if level == SOL_IP { SOCKADDR_IN } else { SOCKADDR_IN6 };
    let answer = original(instance, sk, level, retval == 0);
    let (kind, (addr, port)) = opaque((answer.kind, (answer.addr, answer.port)));
    if kind == Answer::UNKNOWN {
        count(instance, Counter::OriginalDstUnknown);
        // conntrack may know the address that the connection was sent to.
        if retval == 0 && maps::has_set_retval() {
            set_errno(ENOENT as u16);
        }
    }
    let told = kind == Answer::ORIGINAL && addr.is_v4() == (level == SOL_IP);
    let found = told.then_some((addr, port));
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

/// What there is to tell. Every field always has a value: the verifier refuses to copy one that has none.
#[derive(Clone, Copy)]
struct Answer {
    kind: u32,
    addr: Addr,
    port: u16,
}

impl Answer {
    const UNDECIDED: u32 = 0;
    /// An original destination.
    const ORIGINAL: u32 = 1;
    /// What the kernel tells.
    const KERNELS: u32 = 2;
    /// The connection was redirected, and where to is not known any more.
    const UNKNOWN: u32 = 3;

    #[inline(always)]
    const fn original(addr: Addr, port: u16) -> Self {
        Self { kind: Self::ORIGINAL, addr, port }
    }

    #[inline(always)]
    const fn without(kind: u32) -> Self {
        Self { kind, addr: Addr::UNSPECIFIED, port: 0 }
    }
}

/// Original destination of a connection. `known`: the kernel has an answer of its own, which
/// counts unless the connection is one we redirected.
#[inline(always)]
fn original(instance: Instance, sk: Sock, level: i32, known: bool) -> Answer {
    let tcp_state = sk.state();
    if tcp_state == TCP_LISTEN {
        return Answer::without(Answer::KERNELS);
    }
    let state = socket_state::get(sk, instance);
    let kind = state.as_ref().map_or(SockKind::NONE, |s| s.kind);
    let client = kind == SockKind::PASSED || kind == SockKind::LOCAL || kind == SockKind::REDIRECTED;
    if let Some(state) = state.as_deref()
        && kind == SockKind::ACCEPTED
    {
        return Answer::original(state.orig, state.orig_port);
    }
    if !client {
        let answer = accepted(instance, sk, tcp_state == TCP_CLOSE);
        if answer.kind != Answer::UNDECIDED {
            return answer;
        }
    }
    if tcp_state == TCP_CLOSE {
        return match state {
            // From the network; the kernel has forgotten the port.
            Some(state) if kind == SockKind::LISTENER && state.orig_port != 0 => {
                Answer::original(state.orig, state.orig_port)
            }
            _ => Answer::without(Answer::KERNELS),
        };
    }
    if let Some(original) = destinations::original(instance, &sk.peer(), sk.peer_port()) {
        return Answer::original(original.addr, original.port);
    }
    if sk.protocol() == IPPROTO_MPTCP {
        // Only a client gets here (accepted ones: EOPNOTSUPP). Its state is on the subflow.
        let key = FlowKey {
            client: sk.local(),
            proxy: sk.peer(),
            client_port: sk.local_port(),
            proxy_port: sk.peer_port(),
        };
        let original = maps::flow(instance, &key).map(|flow| (flow.addr, flow.port));
        let (addr, port) = original.unwrap_or((key.proxy, key.proxy_port));
        return Answer::original(addr, port);
    }
    if let Some(state) = state
        && kind == SockKind::REDIRECTED
    {
        return Answer::original(state.orig, state.orig_port);
    }
    if known {
        return Answer::without(Answer::KERNELS);
    }
    // Without IPv6 rules nothing tracks IPv6: ENOENT stays.
    if level == SOL_IPV6 && instance.active().is_some_and(|active| !active.has(flag::IPV6)) {
        return Answer::without(Answer::KERNELS);
    }
    // conntrack tracks every connection: one that was not redirected has its own destination.
    // Both are read whatever is chosen, or LLVM would choose between two pointers into the socket.
    let (peer, local) = ((sk.peer(), sk.peer_port()), (sk.local(), sk.local_port()));
    let (addr, port) = if client { peer } else { local };
    Answer::original(addr, port)
}

/// By the local address of a connection that the proxy has accepted; also when the client has reset it, of which conntrack
/// still knows. The kernel has forgotten the local port then. Undecided: the address is not one that was given.
#[inline(always)]
fn accepted(instance: Instance, sk: Sock, closed: bool) -> Answer {
    let (local, port) = (sk.local(), sk.local_port());
    if !destinations::is_given(instance, &local) {
        return Answer::without(Answer::UNDECIDED);
    }
    match destinations::meaning(instance, &local) {
        // Not the port of a listener: a change of policy between connect() and the SYN may have given the connection to
        // the listener of another.
        Some(original) if original.proxy_port != 0 && (closed || original.proxy_port == port) => {
            Answer::original(original.addr, original.port)
        }
        None if closed || is_proxys(instance, port) => Answer::without(Answer::UNKNOWN),
        _ => Answer::without(Answer::UNDECIDED),
    }
}

/// Whether a port is one of the proxy's.
#[inline(always)]
fn is_proxys(instance: Instance, port: u16) -> bool {
    instance.active().is_some_and(|active| ListenerRole::of_port(active.policy, port).is_some())
}
