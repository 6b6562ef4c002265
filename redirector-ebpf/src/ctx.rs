//! The only place that touches a context or a kernel socket.
//!
//! The verifier accepts only single loads and stores of whole fields at fixed offsets. LLVM
//! likes to merge two of them or to compute a pointer to the middle, so every access is one
//! volatile access of one field.

use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops, bpf_sockopt};
use aya_ebpf::helpers::generated::{
    bpf_bind, bpf_get_netns_cookie, bpf_probe_read_kernel, bpf_set_retval, bpf_sock_ops_cb_flags_set,
};
use core::ffi::c_void;
use redirector_common::Addr;

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;
pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;
pub const IPPROTO_MPTCP: u32 = 262;
pub const TCP_CLOSE: u32 = 7;
pub const TCP_LISTEN: u32 = 10;

macro_rules! get {
    ($p:expr, $($field:tt)+) => {
        // SAFETY: the kernel hands the context for the whole run; the verifier checks the access.
        unsafe { core::ptr::read_volatile(&raw const (*$p).$($field)+) }
    };
}
macro_rules! put {
    ($p:expr, $v:expr, $($field:tt)+) => {
        // SAFETY: as for `get!`; the verifier refuses stores to fields a hook may not write.
        unsafe { core::ptr::write_volatile(&raw mut (*$p).$($field)+, $v) }
    };
}

/// Ends one of two branches that load different fields: LLVM would otherwise sink the loads
/// into one, from a pointer chosen before, which is arithmetic on a context or socket pointer.
#[inline(always)]
fn keep_apart<T>(value: T) -> T {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    value
}

/// The same value, of which the verifier knows nothing any more.
///
/// It follows every path on its own as long as any register or stack slot differs: constants that
/// an earlier branch chose multiply the paths of all that follows. After a helper has written
/// the bytes, the paths that led here are one.
#[inline(always)]
pub fn opaque<T: Copy>(value: T) -> T {
    let mut copy = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: both are on the stack and of the size given; reading the stack cannot fail, and
    // the helper fills `copy` whatever happens.
    unsafe {
        bpf_probe_read_kernel(copy.as_mut_ptr().cast(), size_of::<T>() as u32, (&raw const value).cast());
        copy.assume_init()
    }
}

/// A socket the verifier knows to be valid.
#[derive(Clone, Copy)]
pub struct Sock(pub *mut bpf_sock);

impl Sock {
    #[inline(always)]
    pub fn family(self) -> u32 {
        get!(self.0, family)
    }

    #[inline(always)]
    pub fn protocol(self) -> u32 {
        get!(self.0, protocol)
    }

    /// SO_BINDTODEVICE, or the scope of a link-local peer: an interface's index, 0 if none.
    #[inline(always)]
    pub fn bound_interface(self) -> u32 {
        get!(self.0, bound_dev_if)
    }

    /// SO_MARK.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        get!(self.0, mark)
    }

    #[inline(always)]
    pub fn state(self) -> u32 {
        get!(self.0, state)
    }

    /// Local port, host byte order; 0 while none is bound.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        get!(self.0, src_port) as u16
    }

    /// Peer's port, host byte order.
    #[inline(always)]
    pub fn peer_port(self) -> u16 {
        u16::from_be(get!(self.0, dst_port))
    }

    #[inline(always)]
    pub fn local4(self) -> Addr {
        Addr::v4(get!(self.0, src_ip4))
    }

    #[inline(always)]
    pub fn local6(self) -> Addr {
        Addr::v6([
            get!(self.0, src_ip6[0]),
            get!(self.0, src_ip6[1]),
            get!(self.0, src_ip6[2]),
            get!(self.0, src_ip6[3]),
        ])
    }

    /// Local address of a socket of either family.
    #[inline(always)]
    pub fn local(self) -> Addr {
        if self.family() == AF_INET6 { self.local6() } else { keep_apart(self.local4()) }
    }

    /// Peer's address of a socket of either family.
    #[inline(always)]
    pub fn peer(self) -> Addr {
        if self.family() == AF_INET6 {
            Addr::v6([
                get!(self.0, dst_ip6[0]),
                get!(self.0, dst_ip6[1]),
                get!(self.0, dst_ip6[2]),
                get!(self.0, dst_ip6[3]),
            ])
        } else {
            keep_apart(Addr::v4(get!(self.0, dst_ip4)))
        }
    }
}

macro_rules! ebpf_context {
    ($($context:ty),*) => { $(
        impl aya_ebpf::EbpfContext for $context {
            fn as_ptr(&self) -> *mut c_void {
                self.0.cast()
            }
        }
    )* };
}
ebpf_context!(Ops, Lookup);

/// Context of connect, getpeername and getsockname.
pub struct SockAddr(*mut bpf_sock_addr);

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sock_addr) -> Self {
        Self(ctx)
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        get!(self.0, protocol)
    }

    #[inline(always)]
    pub fn ip4(&self) -> Addr {
        Addr::v4(get!(self.0, user_ip4))
    }

    #[inline(always)]
    pub fn ip6(&self) -> Addr {
        Addr::v6([
            get!(self.0, user_ip6[0]),
            get!(self.0, user_ip6[1]),
            get!(self.0, user_ip6[2]),
            get!(self.0, user_ip6[3]),
        ])
    }

    /// Host byte order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(get!(self.0, user_port) as u16)
    }

    #[inline(always)]
    pub fn set_ip4(&self, addr: &Addr) {
        put!(self.0, addr.v4_be(), user_ip4);
    }

    #[inline(always)]
    pub fn set_ip6(&self, addr: &Addr) {
        put!(self.0, addr.words[0], user_ip6[0]);
        put!(self.0, addr.words[1], user_ip6[1]);
        put!(self.0, addr.words[2], user_ip6[2]);
        put!(self.0, addr.words[3], user_ip6[3]);
    }

    /// Host byte order.
    #[inline(always)]
    pub fn set_port(&self, port: u16) {
        put!(self.0, u32::from(port.to_be()), user_port);
    }

    #[inline(always)]
    pub fn sock(&self) -> Option<Sock> {
        let sk = get!(self.0, __bindgen_anon_1.sk);
        if sk.is_null() { None } else { Some(Sock(sk)) }
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: helper of sock_addr programs (5.7).
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// sendmsg only: the source address of this datagram.
    #[inline(always)]
    pub fn set_source4(&self, addr: &Addr) {
        put!(self.0, addr.v4_be(), msg_src_ip4);
    }

    /// sendmsg only: the same on a socket of family AF_INET6.
    #[inline(always)]
    pub fn set_source6(&self, addr: &Addr) {
        put!(self.0, addr.words[0], msg_src_ip6[0]);
        put!(self.0, addr.words[1], msg_src_ip6[1]);
        put!(self.0, addr.words[2], msg_src_ip6[2]);
        put!(self.0, addr.words[3], msg_src_ip6[3]);
    }

    /// Binds the socket's source address and leaves the port to connect().
    #[inline(always)]
    pub fn bind4(&self, addr: &Addr) -> bool {
        let mut sin = [AF_INET, addr.v4_be(), 0, 0];
        // SAFETY: a sockaddr_in of 16 bytes: family (and port 0) in the first word, address in the second.
        unsafe { bpf_bind(self.0, sin.as_mut_ptr().cast(), 16) == 0 }
    }

    /// The same for a socket of family AF_INET6.
    #[inline(always)]
    pub fn bind6(&self, addr: &Addr) -> bool {
        let [a, b, c, d] = addr.words;
        let mut sin6 = [AF_INET6, 0, a, b, c, d, 0];
        // SAFETY: a sockaddr_in6 of 28 bytes: family and port, flow info, address, scope.
        unsafe { bpf_bind(self.0, sin6.as_mut_ptr().cast(), 28) == 0 }
    }
}

/// Makes the system call fail with `-errno`. Without this helper (before 5.18) it is EPERM.
#[inline(always)]
pub fn set_errno(errno: u16) {
    // SAFETY: a helper without memory arguments.
    unsafe { bpf_set_retval(-i32::from(errno)) };
}

/// Context of sockops.
pub struct Ops(*mut bpf_sock_ops);

impl Ops {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sock_ops) -> Self {
        Self(ctx)
    }

    #[inline(always)]
    pub fn raw(&self) -> *mut bpf_sock_ops {
        self.0
    }

    #[inline(always)]
    pub fn op(&self) -> u32 {
        get!(self.0, op)
    }

    #[inline(always)]
    pub fn arg(&self, n: usize) -> u32 {
        match n {
            0 => keep_apart(get!(self.0, __bindgen_anon_1.args[0])),
            _ => get!(self.0, __bindgen_anon_1.args[1]),
        }
    }

    #[inline(always)]
    pub fn family(&self) -> u32 {
        get!(self.0, family)
    }

    #[inline(always)]
    pub fn local(&self) -> Addr {
        if self.family() == AF_INET6 {
            Addr::v6([
                get!(self.0, local_ip6[0]),
                get!(self.0, local_ip6[1]),
                get!(self.0, local_ip6[2]),
                get!(self.0, local_ip6[3]),
            ])
        } else {
            keep_apart(Addr::v4(get!(self.0, local_ip4)))
        }
    }

    #[inline(always)]
    pub fn remote(&self) -> Addr {
        if self.family() == AF_INET6 {
            Addr::v6([
                get!(self.0, remote_ip6[0]),
                get!(self.0, remote_ip6[1]),
                get!(self.0, remote_ip6[2]),
                get!(self.0, remote_ip6[3]),
            ])
        } else {
            keep_apart(Addr::v4(get!(self.0, remote_ip4)))
        }
    }

    /// Host byte order.
    #[inline(always)]
    pub fn local_port(&self) -> u16 {
        get!(self.0, local_port) as u16
    }

    /// Host byte order (the context holds it as the upper half of a big-endian word).
    #[inline(always)]
    pub fn remote_port(&self) -> u16 {
        u32::from_be(get!(self.0, remote_port)) as u16
    }

    #[inline(always)]
    pub fn sock(&self) -> Option<Sock> {
        let sk = get!(self.0, __bindgen_anon_2.sk);
        if sk.is_null() { None } else { Some(Sock(sk)) }
    }

    #[inline(always)]
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: helper of sock_ops programs (5.15).
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    /// Asks for BPF_SOCK_OPS_STATE_CB, keeping what other programs have asked for.
    #[inline(always)]
    pub fn watch_state(&self) {
        const STATE_CB_FLAG: u32 = 1 << 2;
        let flags = get!(self.0, bpf_sock_ops_cb_flags) | STATE_CB_FLAG;
        // SAFETY: helper of sock_ops programs (4.16).
        unsafe { bpf_sock_ops_cb_flags_set(self.0, flags as i32) };
    }
}

/// Context of getsockopt.
pub struct Sockopt(*mut bpf_sockopt);

impl Sockopt {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sockopt) -> Self {
        Self(ctx)
    }

    #[inline(always)]
    pub fn sock(&self) -> Option<Sock> {
        let sk = get!(self.0, __bindgen_anon_1.sk);
        if sk.is_null() { None } else { Some(Sock(sk)) }
    }

    #[inline(always)]
    pub fn level(&self) -> i32 {
        get!(self.0, level)
    }

    #[inline(always)]
    pub fn optname(&self) -> i32 {
        get!(self.0, optname)
    }

    /// Length of the caller's buffer in bytes.
    #[inline(always)]
    pub fn optlen(&self) -> i32 {
        get!(self.0, optlen)
    }

    #[inline(always)]
    pub fn set_optlen(&self, len: i32) {
        put!(self.0, len, optlen);
    }

    /// What the kernel answered: 0 or a negative errno.
    #[inline(always)]
    pub fn retval(&self) -> i32 {
        get!(self.0, retval)
    }

    #[inline(always)]
    pub fn set_success(&self) {
        put!(self.0, 0, retval);
    }

    /// How many bytes of the caller's buffer the kernel has copied for us (a page at most).
    #[inline(always)]
    pub fn buffered(&self) -> i64 {
        let start = get!(self.0, __bindgen_anon_2.optval) as i64;
        let end = get!(self.0, __bindgen_anon_3.optval_end) as i64;
        end - start
    }

    /// Writes the first `N` words of the buffer; false if it is shorter.
    #[inline(always)]
    pub fn write<const N: usize>(&self, words: [u32; N]) -> bool {
        let start: *mut u32 = get!(self.0, __bindgen_anon_2.optval).cast();
        let end: *mut c_void = get!(self.0, __bindgen_anon_3.optval_end);
        if start.wrapping_add(N).cast::<c_void>() > end {
            return false;
        }
        let mut i = 0;
        while i < N {
            // SAFETY: the check above is the one the verifier asks for.
            unsafe { core::ptr::write_volatile(start.wrapping_add(i), words[i]) };
            i += 1;
        }
        true
    }
}

/// Context of sk_lookup.
pub struct Lookup(*mut bpf_sk_lookup);

impl Lookup {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sk_lookup) -> Self {
        Self(ctx)
    }

    #[inline(always)]
    pub fn raw(&self) -> *mut c_void {
        self.0.cast()
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        get!(self.0, protocol)
    }

    #[inline(always)]
    pub fn family(&self) -> u32 {
        get!(self.0, family)
    }

    #[inline(always)]
    pub fn ingress_ifindex(&self) -> u32 {
        get!(self.0, ingress_ifindex)
    }

    #[inline(always)]
    pub fn local(&self) -> Addr {
        if self.family() == AF_INET6 {
            Addr::v6([
                get!(self.0, local_ip6[0]),
                get!(self.0, local_ip6[1]),
                get!(self.0, local_ip6[2]),
                get!(self.0, local_ip6[3]),
            ])
        } else {
            keep_apart(Addr::v4(get!(self.0, local_ip4)))
        }
    }

    #[inline(always)]
    pub fn remote(&self) -> Addr {
        if self.family() == AF_INET6 {
            Addr::v6([
                get!(self.0, remote_ip6[0]),
                get!(self.0, remote_ip6[1]),
                get!(self.0, remote_ip6[2]),
                get!(self.0, remote_ip6[3]),
            ])
        } else {
            keep_apart(Addr::v4(get!(self.0, remote_ip4)))
        }
    }

    /// Host byte order.
    #[inline(always)]
    pub fn local_port(&self) -> u16 {
        get!(self.0, local_port) as u16
    }

    /// Host byte order.
    #[inline(always)]
    pub fn remote_port(&self) -> u16 {
        u16::from_be(get!(self.0, remote_port))
    }
}
