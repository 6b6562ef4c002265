//! connect, getpeername, getsockname, sendmsg and recvmsg.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::bpf_bind;
use redirector_common::Addr;

use super::{AF_INET, AF_INET6, Family};

/// Context of these hooks.
pub struct SockAddr {
    ctx: *mut bpf_sock_addr,
    /// Of the socket.
    pub family: Family,
}

of_socket!(SockAddr, ctx, __bindgen_anon_1.sk);

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sock_addr, family: Family) -> Self {
        Self { ctx, family }
    }

    /// The same of a family as a constant: for functions of their own.
    #[inline(always)]
    pub fn of<const FAMILY: u8>(ctx: *mut bpf_sock_addr) -> Self {
        Self::new(ctx, if FAMILY == Family::V4 as u8 { Family::V4 } else { Family::V6 })
    }

    #[inline(always)]
    pub fn raw(&self) -> *mut bpf_sock_addr {
        self.ctx
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        get!(self.ctx, protocol)
    }

    /// The address that the caller gave, or that the kernel is about to tell.
    #[inline(always)]
    pub fn addr(&self) -> Addr {
        match self.family {
            Family::V4 => Addr::v4(get!(self.ctx, user_ip4)),
            Family::V6 => Addr::v6([
                get!(self.ctx, user_ip6[0]),
                get!(self.ctx, user_ip6[1]),
                get!(self.ctx, user_ip6[2]),
                get!(self.ctx, user_ip6[3]),
            ]),
        }
    }

    /// Host byte order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(get!(self.ctx, user_port) as u16)
    }

    #[inline(always)]
    pub fn set_addr(&self, addr: &Addr) {
        match self.family {
            Family::V4 => put!(self.ctx, addr.v4_be(), user_ip4),
            Family::V6 => {
                put!(self.ctx, addr.words[0], user_ip6[0]);
                put!(self.ctx, addr.words[1], user_ip6[1]);
                put!(self.ctx, addr.words[2], user_ip6[2]);
                put!(self.ctx, addr.words[3], user_ip6[3]);
            }
        }
    }

    /// Address and port, host byte order.
    #[inline(always)]
    pub fn set_name(&self, addr: &Addr, port: u16) {
        self.set_addr(addr);
        put!(self.ctx, u32::from(port.to_be()), user_port);
    }

    /// sendmsg only: the source address of this datagram.
    #[inline(always)]
    pub fn set_source(&self, addr: &Addr) {
        match self.family {
            Family::V4 => put!(self.ctx, addr.v4_be(), msg_src_ip4),
            Family::V6 => {
                put!(self.ctx, addr.words[0], msg_src_ip6[0]);
                put!(self.ctx, addr.words[1], msg_src_ip6[1]);
                put!(self.ctx, addr.words[2], msg_src_ip6[2]);
                put!(self.ctx, addr.words[3], msg_src_ip6[3]);
            }
        }
    }

    /// Binds the socket's source address and leaves the port to connect(). An unspecified one unbinds it.
    #[inline(always)]
    pub fn bind(&self, addr: &Addr) -> bool {
        match self.family {
            Family::V4 => self.bind4(addr),
            Family::V6 => self.bind6(addr),
        }
    }

    #[inline(always)]
    fn bind4(&self, addr: &Addr) -> bool {
        // A sockaddr_in: family (and port 0) in the first word, address in the second.
        self.bind_to([AF_INET, addr.v4_be(), 0, 0])
    }

    #[inline(always)]
    fn bind6(&self, addr: &Addr) -> bool {
        let [a, b, c, d] = addr.words;
        // A sockaddr_in6: family and port, flow info, address, scope.
        self.bind_to([AF_INET6, 0, a, b, c, d, 0])
    }

    #[inline(always)]
    fn bind_to<const N: usize>(&self, words: [u32; N]) -> bool {
        let mut name = core::mem::MaybeUninit::<[u32; N]>::uninit();
        let first: *mut u32 = name.as_mut_ptr().cast();
        // Word by word: LLVM would call memset for the zeroes.
        for (i, word) in words.into_iter().enumerate() {
            // SAFETY: one of its words.
            unsafe { core::ptr::write_volatile(first.wrapping_add(i), word) };
        }
        // SAFETY: a sockaddr of this length.
        unsafe { bpf_bind(self.ctx, first.cast(), size_of::<[u32; N]>() as i32) == 0 }
    }
}
