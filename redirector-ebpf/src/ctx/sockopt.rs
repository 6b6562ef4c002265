//! getsockopt and setsockopt.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sockopt;

/// Context of both.
pub struct Sockopt(*mut bpf_sockopt);

of_socket!(Sockopt, 0, __bindgen_anon_1.sk);

impl Sockopt {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sockopt) -> Self {
        Self(ctx)
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

    /// Leaves the option to the kernel. A buffer of more than a page is copied only in part,
    /// and the call would fail with EFAULT (before 6.6) unless the length says "keep out". Only then: a length
    /// of 0 is seen by programs of parent cgroups too.
    #[inline(always)]
    pub fn leave_alone(&self) {
        if self.optlen() as i64 > self.buffered() {
            self.set_optlen(0);
        }
    }

    /// A byte of the buffer; None behind its end.
    #[inline(always)]
    pub fn byte(&self, n: usize) -> Option<u8> {
        let start: *mut u8 = get!(self.0, __bindgen_anon_2.optval).cast();
        let end: *mut c_void = get!(self.0, __bindgen_anon_3.optval_end);
        if start.wrapping_add(n + 1).cast::<c_void>() > end {
            return None;
        }
        // SAFETY: the check above is the one the verifier asks for.
        Some(unsafe { core::ptr::read_volatile(start.wrapping_add(n)) })
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
