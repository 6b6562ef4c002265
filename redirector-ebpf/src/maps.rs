//! Every map of an instance, and the lookups all hooks share.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::{
    BPF_F_CLONE, BPF_F_NO_PREALLOC,
    bpf_map_type::{BPF_MAP_TYPE_SK_STORAGE, BPF_MAP_TYPE_SOCKMAP},
};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key};
use aya_ebpf::macros::btf_map;
use redirector_common::Addr;
use redirector_common::abi::{
    ActiveWord, Destination, Flow, FlowKey, LISTENERS_LEN, List, ListKey, Meta, OriginalDst, Policy,
    ProgramConstants, Route, Sequence, Slot, SockState, UNTAKEN_LEN,
};
use redirector_common::decision::{Decision, Lists};
use redirector_common::rule::Counter;

use crate::verifier::{fresh, opaque};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static META: Array<Meta, 1> = Array::new();
#[btf_map]
pub static POLICIES: Array<Policy, 2> = Array::new();
/// No memory is taken for entries that are not there, so the bound is generous.
#[btf_map]
static TABLES: LpmTrie<ListKey, Route, 4_194_304> = LpmTrie::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
static LIVE: Array<u64, 1> = Array::new();
#[btf_map]
pub static LISTENERS: Listeners = Listeners::new();
/// The size is set at load: the quota of destinations.
#[btf_map]
pub static ORIGINAL_DST: HashMap<Addr, OriginalDst, 16_384, NO_PREALLOC> = HashMap::new();
/// The size is that of `ORIGINAL_DST`.
#[btf_map]
pub static DESTINATIONS: HashMap<Destination, u32, 16_384, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static SEQUENCE: Array<Sequence, 1> = Array::new();
/// The size is set at load from the policy's capacity.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 32_768, NO_PREALLOC> = HashMap::new();
/// Flows that no accepted socket has taken when their client closed, the latest on each CPU.
#[btf_map]
pub static UNTAKEN: PerCpuArray<FlowKey, UNTAKEN_LEN> = PerCpuArray::new();
#[btf_map]
pub static REFUSED: LruHashMap<FlowKey, u32, 128> = LruHashMap::new();
/// Captured connections of guests, also after their sockets; made anew with each load. The size is set there.
#[btf_map]
pub static GUESTS: LruHashMap<FlowKey, u32, 4096> = LruHashMap::new();
/// The ports a classifier is looking up on this CPU, 0 while none is.
#[btf_map]
static PROBED: PerCpuArray<u32, 1> = PerCpuArray::new();
#[btf_map]
pub static SOCKETS: SockStorage = SockStorage::new();

macro_rules! definition {
    ($(#[$doc:meta])* $name:ident: $type:expr, $key:ty, $value:ty, $max_entries:expr, $flags:expr) => {
        $(#[$doc])*
        #[repr(C)]
        pub struct $name {
            r#type: *const [i32; $type as usize],
            key: *const $key,
            value: *const $value,
            max_entries: *const [i32; $max_entries as usize],
            map_flags: *const [i32; $flags as usize],
        }

        // SAFETY: never dereferenced; a definition that the loader reads from BTF.
        unsafe impl Sync for $name {}

        impl $name {
            const fn new() -> Self {
                use core::ptr::null;
                Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
            }

            #[inline(always)]
            pub fn raw(&self) -> *mut c_void {
                core::ptr::from_ref(self).cast_mut().cast()
            }
        }
    };
}

// Two maps that aya's own types cannot express.
definition!(
    /// SOCKMAP whose elements user space can read: as cookies, which takes values of 8 bytes.
    Listeners: BPF_MAP_TYPE_SOCKMAP, u32, u64, LISTENERS_LEN, 0
);
definition!(
    /// sk_storage whose values are copied from a listener to the sockets accepted from it.
    SockStorage: BPF_MAP_TYPE_SK_STORAGE, i32, SockState, 0, BPF_F_NO_PREALLOC | BPF_F_CLONE
);

/// Set by the loader; constants to the verifier.
#[unsafe(no_mangle)]
pub static CONSTANTS: ProgramConstants = ProgramConstants {
    netns_cookie: 0,
    cgroup_id: 0,
    netns_inode: 0,
    sock_net: 0,
    net_inum: 0,
    has_ingress_ifindex: 0,
    sock_socket: 0,
    socket_file: 0,
    file_cred: 0,
    cred_fsuid: 0,
    cred_fsgid: 0,
    sock_cgroup: 0,
    cgroup_parent: 0,
    cgroup_node: 0,
    node_id: 0,
    has_set_retval: 0,
    flags: 0,
    _pad: 0,
};

/// Reads one field of [`CONSTANTS`]; volatile, or LLVM would take the zeros above for good.
macro_rules! constant {
    ($field:ident) => {
        // SAFETY: a static, valid for reads.
        unsafe { core::ptr::read_volatile(&raw const $crate::maps::CONSTANTS.$field) }
    };
}
pub(crate) use constant;

#[inline(always)]
pub fn has_set_retval() -> bool {
    constant!(has_set_retval) != 0
}

#[inline(always)]
pub fn has_ingress_ifindex() -> bool {
    constant!(has_ingress_ifindex) != 0
}

/// The policy in force and where its lists are.
#[derive(Clone, Copy)]
pub struct ActivePolicy {
    pub policy: &'static Policy,
    pub slot: Slot,
}

/// None while the instance is not active.
#[inline(always)]
pub fn active() -> Option<ActivePolicy> {
    policy(active_word()?.slot()?)
}

/// The policy in force, or the one that will be while the instance is being made.
#[inline(always)]
pub fn active_or_next() -> Option<ActivePolicy> {
    match active_word()? {
        ActiveWord::INERT => policy(Slot::FIRST),
        word => policy(word.slot()?),
    }
}

#[inline(always)]
fn active_word() -> Option<ActiveWord> {
    let meta = META.get_ptr(0)?;
    // SAFETY: an element of an array map; user space writes it, hence volatile.
    Some(unsafe { core::ptr::read_volatile(&raw const (*meta).active) })
}

#[inline(always)]
fn policy(slot: Slot) -> Option<ActivePolicy> {
    let policy = POLICIES.get_ptr(slot.index())?;
    // SAFETY: a slot is not written while a program that found it active may be running.
    Some(ActivePolicy { policy: unsafe { &*policy }, slot })
}

impl ActivePolicy {
    /// Whether every bit of `bits` is set in the policy's flags. A bit that no policy of these programs
    /// can set is a constant to the verifier, and costs nothing.
    #[inline(always)]
    pub fn has(&self, bits: u32) -> bool {
        constant!(flags) & bits == bits && fresh(&self.policy.flags) & bits == bits
    }

    #[inline(always)]
    fn find(&self, key: ListKey) -> Option<&'static Route> {
        // SAFETY: values of an LPM trie are freed after an RCU grace period, and not written in place.
        TABLES.get(&Key::new(ListKey::BITS, key)).map(|r| unsafe { &*core::ptr::from_ref(r) })
    }

    /// The entry of a number in a list of numbers.
    #[inline(always)]
    pub fn number(&self, list: List, value: u32) -> Option<&'static Route> {
        self.find(ListKey::number(self.slot, list, value))
    }

    /// How the namespace routes `dst`.
    #[inline(always)]
    pub fn route(&self, dst: Addr) -> &'static Route {
        self.find(ListKey::address(self.slot, List::Routes, dst)).unwrap_or(&Route::UNKNOWN)
    }

    /// Whether `addr` is one of the namespace's own.
    #[inline(always)]
    pub fn is_local(&self, addr: Addr) -> bool {
        self.find(ListKey::address(self.slot, List::Routes, addr)).is_some_and(|route| route.local != 0)
    }

    /// Whether as many connections have an entry in `FLOWS` as the policy allows.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        live() >= u64::from(self.policy.capacity)
    }
}

impl Lists for ActivePolicy {
    #[inline(always)]
    fn holds(&self, list: List, value: u32) -> bool {
        self.number(list, value).is_some()
    }

    #[inline(always)]
    fn covers(&self, list: List, addr: &Addr) -> bool {
        self.find(ListKey::address(self.slot, list, *addr)).is_some()
    }

    #[inline(always)]
    fn join(&self, decision: Decision) -> Decision {
        opaque(decision)
    }

    #[inline(always)]
    fn has(&self, _policy: &Policy, bits: u32) -> bool {
        ActivePolicy::has(self, bits)
    }

    #[inline(always)]
    fn read<T: Copy>(&self, value: &T) -> T {
        fresh(value)
    }
}

/// The original destination that is stored for a connection.
#[inline(always)]
pub fn flow(key: &FlowKey) -> Option<&'static Flow> {
    // SAFETY: values are written once, by insert, and freed after an RCU grace period.
    unsafe { FLOWS.get(key).map(|o| &*core::ptr::from_ref(o)) }
}

/// Before a lookup that is not for a SYN, and with zeros after it.
#[inline(always)]
pub fn set_probed(sport: u16, dport: u16) {
    if let Some(p) = PROBED.get_ptr_mut(0) {
        // SAFETY: this CPU's own element; sk_lookup reads it within a helper, hence volatile.
        unsafe { core::ptr::write_volatile(p, u32::from(sport) << 16 | u32::from(dport)) };
    }
}

/// Whether sk_lookup runs only because a classifier looks for a connection.
#[inline(always)]
pub fn is_probed(sport: u16, dport: u16) -> bool {
    let ports = u32::from(sport) << 16 | u32::from(dport);
    // SAFETY: this CPU's own element.
    ports != 0 && PROBED.get_ptr(0).is_some_and(|p| unsafe { core::ptr::read_volatile(p) } == ports)
}

#[inline(always)]
pub fn count(counter: Counter) {
    count_number(counter as u32);
}

/// Nothing happens if there is no counter of this number.
#[inline(always)]
pub fn count_number(counter: u32) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own element.
        unsafe { *value += 1 };
    }
}

/// How many entries `FLOWS` has.
#[inline(always)]
fn live() -> u64 {
    // SAFETY: an element of an array map.
    LIVE.get_ptr(0).map_or(0, |p| unsafe { core::ptr::read_volatile(p) })
}

#[inline(always)]
pub fn add_live(delta: i64) {
    if let Some(p) = LIVE.get_ptr_mut(0) {
        // Its result unused, this becomes BPF_XADD, which every kernel has (BPF_FETCH is of 5.12).
        // `core` offers no AtomicI64::fetch_add on targets without compare-and-swap.
        // SAFETY: an element of an array map, aligned to 8 bytes.
        unsafe { atomic_xadd::<_, _, { AtomicOrdering::Relaxed }>(p, delta as u64) };
    }
}
