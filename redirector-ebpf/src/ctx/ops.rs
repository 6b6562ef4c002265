//! sockops.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated::bpf_sock_ops_cb_flags_set;
use redirector_common::Addr;

use super::{AF_INET6, keep_apart};

/// Context of sockops.
pub struct Ops(*mut bpf_sock_ops);

of_socket!(Ops, 0, __bindgen_anon_2.sk);

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

    /// Asks for BPF_SOCK_OPS_STATE_CB, keeping what other programs have asked for.
    #[inline(always)]
    pub fn watch_state(&self) {
        const STATE_CB_FLAG: u32 = 1 << 2;
        let flags = get!(self.0, bpf_sock_ops_cb_flags) | STATE_CB_FLAG;
        // SAFETY: helper of sock_ops programs (4.16).
        unsafe { bpf_sock_ops_cb_flags_set(self.0, flags as i32) };
    }
}

impl aya_ebpf::EbpfContext for Ops {
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.0.cast()
    }
}
