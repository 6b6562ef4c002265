//! The only place that touches a context or a kernel socket.
//!
//! The verifier accepts only single loads and stores of whole fields at fixed offsets. LLVM
//! likes to merge two of them or to compute a pointer to the middle, so every access is one
//! volatile access of one field.

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

/// What a context has that is about a socket.
macro_rules! of_socket {
    ($context:ty, $pointer:tt, $($sk:tt)+) => {
        impl super::OfSocket for $context {
            #[inline(always)]
            fn sock(&self) -> Option<super::Sock> {
                let sk = get!(self.$pointer, $($sk)+);
                if sk.is_null() { None } else { Some(super::Sock(sk)) }
            }

            #[inline(always)]
            fn netns_cookie(&self) -> u64 {
                // SAFETY: a helper of these hooks; the context is this run's.
                unsafe { aya_ebpf::helpers::generated::bpf_get_netns_cookie(self.$pointer.cast()) }
            }
        }
    };
}

mod lookup;
mod ops;
mod packet;
mod sock_addr;
mod sockopt;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_set_retval;
pub use lookup::Lookup;
pub use ops::Ops;
pub use packet::Packet;
use redirector_common::Addr;
pub use sock_addr::SockAddr;
pub use sockopt::Sockopt;

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;
pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;
pub const IPPROTO_MPTCP: u32 = 262;
pub const SOL_IP: i32 = 0;
pub const SOL_IPV6: i32 = 41;
pub const TCP_SYN_SENT: u32 = 2;
pub const TCP_CLOSE: u32 = 7;
pub const TCP_LISTEN: u32 = 10;

/// The context of a hook of the cgroup.
pub trait OfSocket {
    fn sock(&self) -> Option<Sock>;
    /// Cookie of its network namespace. Every hook has the helper since 5.15.
    fn netns_cookie(&self) -> u64;
}

/// Ends one of two branches that load different fields: LLVM would otherwise sink the loads
/// into one, from a pointer chosen before, which is arithmetic on a context or socket pointer.
#[inline(always)]
fn keep_apart<T>(value: T) -> T {
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    value
}

/// The family of a socket, whatever its destination is: an IPv6 socket may use IPv4-mapped addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
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

    /// Local address of a socket of a family that the program knows.
    #[inline(always)]
    pub fn local_of(self, family: Family) -> Addr {
        match family {
            Family::V4 => Addr::v4(get!(self.0, src_ip4)),
            Family::V6 => Addr::v6([
                get!(self.0, src_ip6[0]),
                get!(self.0, src_ip6[1]),
                get!(self.0, src_ip6[2]),
                get!(self.0, src_ip6[3]),
            ]),
        }
    }

    /// Local address.
    #[inline(always)]
    pub fn local(self) -> Addr {
        if self.family() == AF_INET6 {
            self.local_of(Family::V6)
        } else {
            keep_apart(self.local_of(Family::V4))
        }
    }

    /// Peer's address.
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

/// Makes the system call fail with `-errno`. Without this helper (before 5.18) it is EPERM.
#[inline(always)]
pub fn set_errno(errno: u16) {
    // Since 7.2 the verifier wants to see that it is an errno (MAX_ERRNO).
    let errno = i32::from(errno & 0xfff);
    // SAFETY: a helper without memory arguments.
    unsafe { bpf_set_retval(-errno) };
}
