//! getsockopt.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sockopt;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;

use super::Sock;

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
    pub fn netns_cookie(&self) -> u64 {
        // SAFETY: helper of getsockopt programs (5.15).
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
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
