//! tc: a packet, its IP header first whatever link layer is before it.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_skb_load_bytes_relative, bpf_skc_lookup_tcp};

use super::{Sock, TCP_LISTEN};

/// BPF_F_CURRENT_NETNS
const CURRENT_NETNS: u64 = u64::MAX;

/// Context of a classifier.
pub struct Packet(*mut __sk_buff);

impl Packet {
    #[inline(always)]
    pub fn new(ctx: *mut __sk_buff) -> Self {
        Self(ctx)
    }

    /// EtherType, host byte order; of what a VLAN tag is before, not the tag's.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        u16::from_be(get!(self.0, protocol) as u16)
    }

    #[inline(always)]
    pub fn mark(&self) -> u32 {
        get!(self.0, mark)
    }

    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        put!(self.0, mark, mark);
    }

    /// Words in network byte order; None if the packet is shorter.
    #[inline(always)]
    pub fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = MaybeUninit::<[u32; N]>::uninit();
        let size = size_of::<[u32; N]>() as u32;
        // SAFETY: the helper fills all of the size given, also if it fails.
        unsafe {
            let to = words.as_mut_ptr().cast();
            let failed = bpf_skb_load_bytes_relative(self.raw(), offset, to, size, BPF_HDR_START_NET);
            (failed == 0).then(|| words.assume_init())
        }
    }

    /// Whether a socket has this connection, in whatever state; listeners have none.
    #[inline(always)]
    pub fn has_connection(&self, tuple: &mut bpf_sock_tuple, size: usize) -> bool {
        // SAFETY: the tuple is on the stack; a socket is released that was found.
        unsafe {
            let found = bpf_skc_lookup_tcp(self.raw(), tuple, size as u32, CURRENT_NETNS, 0);
            if found.is_null() {
                return false;
            }
            let state = Sock(found).state();
            bpf_sk_release(found.cast());
            state != TCP_LISTEN
        }
    }

    #[inline(always)]
    fn raw(&self) -> *mut c_void {
        self.0.cast()
    }
}
