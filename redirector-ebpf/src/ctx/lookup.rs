//! sk_lookup.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sk_lookup;
use redirector_common::Addr;

use super::{AF_INET6, keep_apart};

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

impl aya_ebpf::EbpfContext for Lookup {
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.0.cast()
    }
}
