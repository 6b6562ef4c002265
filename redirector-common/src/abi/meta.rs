//! What an instance and its programs are.

use bytemuck::{Pod, Zeroable};

use super::VirtualRange;

/// Constants of programs, set at load time; the verifier removes what they rule out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ProgramConstants {
    /// The instance whose programs they are, [`Self::SHARED`] for those of many.
    pub instance: u32,
    /// 1 if every hook can ask for the cookie of a socket's network namespace (5.15); else its inode number tells.
    pub has_netns_cookie: u32,
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
    /// [`Policy::flags`](super::Policy::flags) that may be set while these programs run. The verifier removes the code
    /// of all other options; a policy that uses more options gets programs of its own.
    pub flags: u32,
}

impl ProgramConstants {
    /// The programs look for the instance of each socket.
    pub const SHARED: u32 = u32::MAX;
}

/// Whose sk_lookup runs on a CPU. The entry of a namespace writes it, the program that all share reads it at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct LookedUp {
    /// The instance.
    pub instance: u32,
    /// The one before it: sk_lookup for a packet may interrupt one for a question of user space (`inet_diag`), which goes on
    /// as it was.
    pub before: u32,
}

/// What an instance is. A change of its policy or programs writes it again, each time as a whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Meta {
    /// [`super::ABI_VERSION`] of the object that made the instance.
    pub abi: u32,
    /// The one word that turns an instance on, and that swaps policies.
    pub active: ActiveWord,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// Inode number of the network namespace.
    pub netns_inode: u64,
    /// Id of the cgroup (its inode number).
    pub cgroup_id: u64,
    /// Bits of [`super::meta_flag`].
    pub flags: u32,
    /// [`ProgramConstants::flags`] of the attached programs.
    pub program_flags: u32,
    /// While draining: when it ends, in seconds of CLOCK_BOOTTIME.
    pub drain_until: u64,
    /// Addresses that are given to original destinations.
    pub destinations: VirtualRange,
    /// Addresses that are given to single connections: beyond the quota of destinations.
    pub connections: VirtualRange,
    /// Where the programs find the instance's maps, below [`super::INSTANCES`].
    pub index: u32,
    /// Tells the instance from all others of the node, before and after it; never 0.
    pub generation: u32,
}

/// What an instance does: [`ActiveWord::INERT`], the number of the policy in force plus 1, or [`ActiveWord::DRAINING`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ActiveWord(u32);

impl ActiveWord {
    /// The programs capture nothing: the instance is being made or taken down.
    pub const INERT: Self = Self(0);
    /// Nothing new is captured; connections that were captured keep their names.
    pub const DRAINING: Self = Self(3);

    /// The policy in `slot` is in force.
    #[inline(always)]
    pub const fn of(slot: Slot) -> Self {
        Self(slot.0 + 1)
    }

    /// The slot of the policy in force.
    #[inline(always)]
    pub const fn slot(self) -> Option<Slot> {
        let slot = self.0.wrapping_sub(1);
        if slot < 2 { Some(Slot(slot)) } else { None }
    }
}

/// One of the two places for a policy: the policy in force is in one, the next one is made in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slot(u32);

impl Slot {
    /// Where the first policy of an instance is.
    pub const FIRST: Self = Self(0);
    /// Both.
    pub const BOTH: [Self; 2] = [Self(0), Self(1)];

    /// Index into `POLICIES`.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0
    }

    /// The slot that is not this one.
    #[must_use]
    pub const fn other(self) -> Self {
        Self(1 - self.0)
    }
}
