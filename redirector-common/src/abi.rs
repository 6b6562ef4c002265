//! Layout of the maps of an instance. `ORIGINAL_DST` is public: see docs/abi.md.

use crate::Addr;
use crate::policy::{Policy, Table};
use bytemuck::{Pod, Zeroable};

/// Version of everything in this module. It goes up when a layout or a meaning changes; an
/// instance made with another version is replaced as a whole, never edited.
pub const ABI_VERSION: u32 = 1;

/// Names of maps and programs: at most 15 bytes, so that the kernel keeps them whole.
pub mod name {
    /// HASH [`super::FlowKey`] → [`super::OriginalDst`]: the exposed map.
    pub const ORIGINAL_DST: &str = "ORIGINAL_DST";
    /// LPM_TRIE [`super::TableKey`] → [`super::Route`]: routes and the policy's lists.
    pub const TABLES: &str = "TABLES";
    /// ARRAY of two [`super::Policy`]: the one in force and the next.
    pub const POLICIES: &str = "POLICIES";
    /// ARRAY of one [`super::Meta`].
    pub const META: &str = "META";
    /// PERCPU_ARRAY of u64, indexed by [`crate::counter::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// ARRAY of one u64: how many entries `ORIGINAL_DST` has.
    pub const LIVE: &str = "LIVE";
    /// SOCKMAP (value: u64 cookie) of the proxy's listeners, [`super::listener_slot`].
    pub const LISTENERS: &str = "LISTENERS";
    /// SK_STORAGE [`super::SockState`].
    pub const SOCKETS: &str = "SOCKETS";
    /// LRU_HASH of [`super::FlowKey`]: connections to refuse on lo.
    pub const REFUSED: &str = "REFUSED";
    /// Every map, in the order in which they are pinned.
    pub const MAPS: [&str; 9] =
        [META, POLICIES, TABLES, COUNTERS, LIVE, LISTENERS, SOCKETS, REFUSED, ORIGINAL_DST];
    /// `.rodata` symbol that holds [`super::Target`].
    pub const TARGET: &str = "TARGET";
}

/// Constants of an instance, set at load time; the verifier removes what they rule out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Target {
    /// Cookie of the network namespace; sockets of another one are left alone. 0 where not every
    /// hook can ask for a socket's (before 5.15): then `netns_inode` tells.
    pub netns_cookie: u64,
    /// Id of the cgroup the programs are attached to.
    pub cgroup_id: u64,
    /// Inode number of the network namespace.
    pub netns_inode: u32,
    /// Offset in bytes of `sock_common.skc_net`, with which a `sock` begins.
    pub sock_net: u32,
    /// Offset of `net.ns.inum`.
    pub net_inum: u32,
    /// 1 if sk_lookup tells the interface (5.17).
    pub has_ingress_ifindex: u32,
    /// Offset in bytes of `sock.sk_socket`, from the running kernel's BTF.
    pub sock_socket: u32,
    /// Offset of `socket.file`.
    pub socket_file: u32,
    /// Offset of `file.f_cred`.
    pub file_cred: u32,
    /// Offset of `cred.fsuid`.
    pub cred_fsuid: u32,
    /// Offset of `cred.fsgid`.
    pub cred_fsgid: u32,
    /// Offset of `sock.sk_cgrp_data.cgroup`; this and the next three are 0 where the kernel has another layout.
    pub sock_cgroup: u32,
    /// Offset of `cgroup.self.parent`.
    pub cgroup_parent: u32,
    /// Offset of `cgroup.kn`.
    pub cgroup_node: u32,
    /// Offset of `kernfs_node.id`.
    pub node_id: u32,
    /// 1 if the kernel has `bpf_set_retval` (5.18); else a refusal reads EPERM.
    pub has_set_retval: u32,
    /// [`Policy::flags`] that may be set while these programs run. What a policy does not use
    /// the verifier removes; a policy that uses more gets programs of its own.
    pub flags: u32,
    /// Always 0.
    pub _pad: u32,
}

/// What an instance is: written once at attach, except for `active`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Meta {
    /// [`ABI_VERSION`] of the object that made the instance.
    pub abi: u32,
    /// [`INERT`], policy slot + 1, or [`DRAINING`]. The one write that turns an instance on,
    /// and the one that swaps policies.
    pub active: u32,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Inode number of the network namespace.
    pub netns_inode: u64,
    /// Id of the cgroup (its inode number).
    pub cgroup_id: u64,
    /// Bits of [`meta_flag`].
    pub flags: u32,
    /// [`Target::flags`] of the attached programs.
    pub program_flags: u32,
    /// While draining: when it ends, in seconds of CLOCK_BOOTTIME.
    pub drain_until: u64,
}

/// [`Meta::active`]: programs capture nothing, the instance is being made or taken down.
pub const INERT: u32 = 0;
/// [`Meta::active`]: nothing new is captured; connections that were keep their names.
pub const DRAINING: u32 = 3;

/// Bits of [`Meta::flags`].
pub mod meta_flag {
    /// attach put `::6` on lo, detach takes it away.
    pub const ADDED_LO6: u32 = 1;
    /// attach changed `net.ipv4.tcp_fwmark_accept` from 0 to 1.
    pub const FWMARK_ACCEPT: u32 = 1 << 2;
    /// attach added the IPv4 rule of TPROXY mode.
    pub const TPROXY_RULE4: u32 = 1 << 3;
    /// attach added the IPv4 route of TPROXY mode.
    pub const TPROXY_ROUTE4: u32 = 1 << 4;
    /// The same for IPv6.
    pub const TPROXY_RULE6: u32 = 1 << 5;
    /// The same for IPv6.
    pub const TPROXY_ROUTE6: u32 = 1 << 6;
    /// The programs tell their decisions (`attach --trace`).
    pub const TRACE: u32 = 1 << 7;
    /// attach added rules and routes for virtual interfaces (`-k`), and made the proxy's outbound
    /// listeners transparent.
    pub const VIRTUAL: u32 = 1 << 8;
    /// attach changed `net.ipv4.fwmark_reflect` from 0 to 1.
    pub const FWMARK_REFLECT4: u32 = 1 << 9;
    /// attach changed `net.ipv6.fwmark_reflect` from 0 to 1.
    pub const FWMARK_REFLECT6: u32 = 1 << 10;
}

/// Bits of the mark that the classifier of a virtual interface gives TCP packets.
pub mod guest_mark {
    /// It is for the proxy.
    pub const OURS: u32 = 1 << 29;
    /// It answers a connection that somebody else has begun, past every socket here.
    pub const FOREIGN: u32 = 1 << 30;
    /// Both; without any nobody has looked at it.
    pub const BOTH: u32 = OURS | FOREIGN;
}

/// Key of `TABLES`: which list (and of which policy slot), then an address or a number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct TableKey {
    /// `(slot << 8 | Table)` in network byte order, so that it is a prefix.
    pub table: u32,
    /// The address, or a number in its last word (network byte order).
    pub addr: Addr,
}

impl TableKey {
    /// Bits of `table`.
    pub const TABLE_BITS: u32 = 32;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::TABLE_BITS + 128;

    /// Key of an address in a list of prefixes.
    #[inline(always)]
    pub const fn address(slot: u32, table: Table, addr: Addr) -> Self {
        Self { table: (slot << 8 | table as u32).to_be(), addr }
    }

    /// Key of a number in a list of numbers.
    #[inline(always)]
    pub const fn number(slot: u32, table: Table, value: u32) -> Self {
        Self::address(slot, table, Addr { words: [0, 0, 0, value.to_be()] })
    }

    /// The slot this key belongs to.
    pub const fn slot(&self) -> u32 {
        u32::from_be(self.table) >> 8
    }
}

/// Value of `TABLES`: how the namespace routes a destination. Of a virtual interface `source` is the
/// address REDIRECT would send to; all zero in the other lists.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Route {
    /// Address the kernel would choose as source; unspecified if not known, and for a local
    /// destination if it is the destination itself.
    pub source: Addr,
    /// Index of the interface the packet leaves on.
    pub oif: u32,
    /// 0, or the positive errno connect() gives.
    pub errno: u16,
    /// 1 if the destination is an address of the namespace (it leaves on lo).
    pub local: u16,
}

impl Route {
    /// What holds for a destination that no entry covers: nothing is known of it.
    pub const UNKNOWN: Self = Self { source: Addr::UNSPECIFIED, oif: 0, errno: 0, local: 0 };

    /// The source address to `dst`: to an address of its own the namespace sends from that
    /// address, unless the route says otherwise.
    #[inline(always)]
    pub const fn source_for(&self, dst: &Addr) -> Addr {
        if self.local != 0 && self.source.is_unspecified() { *dst } else { self.source }
    }
}

/// Key of `ORIGINAL_DST`: the connection between a client and the proxy, as both see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// The client's address: what the proxy's `accept` returns.
    pub client: Addr,
    /// The address the connection was redirected to.
    pub proxy: Addr,
    /// The client's port, host byte order.
    pub client_port: u16,
    /// The proxy's port, host byte order.
    pub proxy_port: u16,
}

/// Value of `ORIGINAL_DST`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct OriginalDst {
    /// Where the client wanted to go.
    pub addr: Addr,
    /// Its port, host byte order.
    pub port: u16,
    /// [`crate::decide::Verdict`] as a number: 1 outbound, 2 inbound, 3 DNS; 0 for a connection
    /// of the proxy to the app in TPROXY mode, which was not redirected.
    pub verdict: u16,
    /// [`crate::counter::Counter`] of the rule that decided.
    pub rule: u32,
}

/// What a socket is to us.
pub mod sock_kind {
    /// Nothing.
    pub const NONE: u32 = 0;
    /// A client that was let pass.
    pub const PASSED: u32 = 1;
    /// A client that was redirected.
    pub const REDIRECTED: u32 = 2;
    /// The proxy, connecting to the app from the address of another host (TPROXY mode).
    pub const TRANSPARENT: u32 = 5;
    /// A listener of the proxy, and (cloned) a connection accepted from it.
    pub const LISTENER: u32 = 3;
    /// A connection the proxy accepted, whose original destination is recorded here.
    pub const ACCEPTED: u32 = 4;
}

/// Value of `SOCKETS`: lives and dies with its socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SockState {
    /// One of [`sock_kind`].
    pub kind: u32,
    /// Client: 1 if we bound its source address. The kernel keeps that bind over a refused
    /// connect, so it must be told from one the app made. Listener: 1 if we made it transparent.
    pub bound_by_us: u8,
    /// Client: 1 until its original destination is in `ORIGINAL_DST`. A connect may fail before; what is in the map then is
    /// another socket's.
    pub pending: u8,
    /// [`crate::decide::Verdict`]; of a listener, which traffic it takes.
    pub verdict: u16,
    /// Original destination.
    pub orig: Addr,
    /// Client: where it was redirected to. Listener and accepted: unused.
    pub proxy: Addr,
    /// Original port, host byte order.
    pub orig_port: u16,
    /// Port of the proxy's listener, host byte order.
    pub proxy_port: u16,
    /// Counter of the rule that decided.
    pub rule: u32,
}

/// Slots for each kind of listener and family. Envoy has one listener for each worker, all in one
/// SO_REUSEPORT group; any of them leads to the group, so not all need a slot.
pub const LISTENER_SLOTS: u32 = 16;
/// Kinds: outbound, inbound, DNS (verdict - 1).
pub const LISTENER_KINDS: u32 = 3;
/// Slots of one policy.
pub const LISTENERS_OF_POLICY: u32 = LISTENER_KINDS * 2 * LISTENER_SLOTS;
/// Entries of `LISTENERS`: two policies, because another policy may have other ports.
pub const LISTENERS_LEN: u32 = 2 * LISTENERS_OF_POLICY;

/// First of the [`LISTENER_SLOTS`] slots for listeners of a policy slot, a verdict (1 to
/// [`LISTENER_KINDS`]) and a family.
#[inline(always)]
pub const fn listener_slot(policy: u32, verdict: u32, v6: bool) -> u32 {
    policy * LISTENERS_OF_POLICY + ((verdict - 1) * 2 + v6 as u32) * LISTENER_SLOTS
}

const _: () = {
    assert!(size_of::<Policy>() == 48);
    assert!(size_of::<Target>() == 80);
    assert!(size_of::<Meta>() == 48);
    assert!(size_of::<TableKey>() == 20);
    assert!(size_of::<Route>() == 24);
    assert!(size_of::<FlowKey>() == 36);
    assert!(size_of::<OriginalDst>() == 24);
    assert!(size_of::<SockState>() == 48);
};

/// The kernel reads these byte for byte; `bytemuck::Pod` has proved that they have no padding.
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya has a Pod trait of its own")]
mod aya_pod {
    use super::*;
    macro_rules! pod {
        ($($t:ty),*) => { $(
            // SAFETY: repr(C), Copy, 'static, and bytemuck::Pod: any bit pattern, no padding.
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(Policy, Target, Meta, TableKey, Route, FlowKey, OriginalDst, SockState);
}
