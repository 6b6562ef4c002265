//! connect, getpeername, getsockname, sendmsg and recvmsg.

use super::{AF_INET, AF_INET6, Sock};
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_bind, bpf_get_netns_cookie};
use redirector_common::Addr;

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
        let mut sin6 = core::mem::MaybeUninit::<[u32; 7]>::uninit();
        let first: *mut u32 = sin6.as_mut_ptr().cast();
        // Word by word: for an unspecified address LLVM would call memset, and a call counts 32 bytes of the
        // stack more on kernels before 6.7, which connect6 does not have.
        for (i, word) in [AF_INET6, 0, a, b, c, d, 0].into_iter().enumerate() {
            // SAFETY: one of the seven words.
            unsafe { core::ptr::write_volatile(first.wrapping_add(i), word) };
        }
        // SAFETY: a sockaddr_in6 of 28 bytes: family and port, flow info, address, scope.
        unsafe { bpf_bind(self.0, first.cast(), 28) == 0 }
    }
}
