//! The maps. Those of an instance are its own; the programs, which all instances of a node share, find them by the number
//! of the instance in an array of maps for each kind.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::{NonNull, null};

use aya_ebpf::bindings::{
    BPF_F_CLONE, BPF_F_NO_PREALLOC,
    bpf_map_type::{
        BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_LPM_TRIE, BPF_MAP_TYPE_LRU_HASH,
        BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_SK_STORAGE, BPF_MAP_TYPE_SOCKMAP,
    },
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{HashMap, PerCpuArray};
use aya_ebpf::helpers::generated::{bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem};
use aya_ebpf::macros::btf_map;
use redirector_common::abi::{
    CLAIMS_LEN, Destination, Flow, FlowKey, INSTANCES, LISTENERS_LEN, ListKey, LookedUp, Meta, OriginalDst,
    Policy, ProgramConstants, Route, Sequence, SockState, UNTAKEN_LEN,
};
use redirector_common::rule::Counter;

use crate::instance::Instance;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;
const ARRAY: usize = BPF_MAP_TYPE_ARRAY as usize;
const PERCPU_ARRAY: usize = BPF_MAP_TYPE_PERCPU_ARRAY as usize;
const LRU_HASH: usize = BPF_MAP_TYPE_LRU_HASH as usize;
const LPM_TRIE: usize = BPF_MAP_TYPE_LPM_TRIE as usize;
const SOCKMAP: usize = BPF_MAP_TYPE_SOCKMAP as usize;

#[btf_map]
pub static META: PerInstance<ARRAY, u32, Meta, 1> = PerInstance::new();
#[btf_map]
pub static POLICIES: PerInstance<ARRAY, u32, Policy, 2> = PerInstance::new();
#[btf_map]
pub static TABLES: PerInstance<LPM_TRIE, Key<ListKey>, Route, 1, NO_PREALLOC> = PerInstance::new();
#[btf_map]
static COUNTERS: PerInstance<PERCPU_ARRAY, u32, u64, { Counter::COUNT as usize }> = PerInstance::new();
#[btf_map]
static LIVE: PerInstance<ARRAY, u32, u64, 1> = PerInstance::new();
/// Its values are cookies to user space, which takes 8 bytes.
#[btf_map]
pub static LISTENERS: PerInstance<SOCKMAP, u32, u64, { LISTENERS_LEN as usize }> = PerInstance::new();
// These grow with what is in them, and an idle instance has next to nothing: a hash has a bucket for each entry that it may ever
// have. Each key is whole, so there is one entry for it or none. Before 6.13 a trie knows no BPF_NOEXIST.
#[btf_map]
pub static ORIGINAL_DST: PerInstance<LPM_TRIE, Key<u32>, OriginalDst, 1, NO_PREALLOC> = PerInstance::new();
#[btf_map]
pub static DESTINATIONS: PerInstance<LPM_TRIE, Key<Destination>, u32, 1, NO_PREALLOC> = PerInstance::new();
#[btf_map]
pub static SEQUENCE: PerInstance<ARRAY, u32, Sequence, 1> = PerInstance::new();
#[btf_map]
pub static FLOWS: PerInstance<LPM_TRIE, Key<FlowKey>, Flow, 1, NO_PREALLOC> = PerInstance::new();
/// Flows that no accepted socket has taken when their client closed, the latest on each CPU.
#[btf_map]
pub static UNTAKEN: PerInstance<PERCPU_ARRAY, u32, FlowKey, UNTAKEN_LEN> = PerInstance::new();
#[btf_map]
pub static REFUSED: PerInstance<LRU_HASH, FlowKey, u32, 1> = PerInstance::new();
/// Captured connections of guests, also after their sockets.
#[btf_map]
pub static GUESTS: PerInstance<LRU_HASH, FlowKey, u32, 1> = PerInstance::new();

/// The instances that these programs serve, by the cookie or inode number of their network namespace.
#[btf_map]
pub static NAMESPACES: HashMap<u64, u32, { INSTANCES as usize }, NO_PREALLOC> = HashMap::new();
/// Addresses that are getting a meaning at this moment, by the generation of their instance: only one CPU gives it.
#[btf_map]
pub static CLAIMS: HashMap<u64, u32, { CLAIMS_LEN as usize }, NO_PREALLOC> = HashMap::new();
/// Whose sk_lookup runs on this CPU. Nothing comes between its entry and the shared program: packets are looked up with
/// softirqs disabled, and where that does not keep others from the CPU (PREEMPT_RT) each instance has programs of its own.
#[btf_map]
static LOOKED_UP: PerCpuArray<LookedUp, 1> = PerCpuArray::new();
/// The ports a classifier is looking up on this CPU, 0 while none is.
#[btf_map]
static PROBED: PerCpuArray<u32, 1> = PerCpuArray::new();
/// Values are copied from a listener to the sockets accepted from it.
#[btf_map]
pub static SOCKETS: SockStorage = SockStorage::new();

/// ARRAY_OF_MAPS: a map of one kind for each instance. How many entries the instances' maps have is up to user space.
#[repr(C)]
pub struct PerInstance<const TYPE: usize, K, V, const LEN: usize, const FLAGS: usize = 0> {
    r#type: *const [i32; BPF_MAP_TYPE_ARRAY_OF_MAPS as usize],
    key: *const u32,
    value: *const u32,
    max_entries: *const [i32; INSTANCES as usize],
    values: [*const Definition<TYPE, K, V, LEN, FLAGS>; 0],
}

/// A map, as the loader reads it from BTF.
#[repr(C)]
pub struct Definition<const TYPE: usize, K, V, const LEN: usize, const FLAGS: usize> {
    r#type: *const [i32; TYPE],
    key: *const K,
    value: *const V,
    max_entries: *const [i32; LEN],
    map_flags: *const [i32; FLAGS],
}

/// SK_STORAGE, which aya defines for no flags but its own.
pub type SockStorage = Definition<
    { BPF_MAP_TYPE_SK_STORAGE as usize },
    i32,
    SockState,
    0,
    { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize },
>;

// SAFETY: never dereferenced; definitions that the loader reads from BTF.
unsafe impl<const T: usize, K, V, const L: usize, const F: usize> Sync for PerInstance<T, K, V, L, F> {}
// SAFETY: the same.
unsafe impl<const T: usize, K, V, const L: usize, const F: usize> Sync for Definition<T, K, V, L, F> {}

impl<const T: usize, K, V, const L: usize, const F: usize> Definition<T, K, V, L, F> {
    const fn new() -> Self {
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), map_flags: null() }
    }

    #[inline(always)]
    pub fn raw(&self) -> *mut c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

impl<const T: usize, K, V, const L: usize, const F: usize> PerInstance<T, K, V, L, F> {
    const fn new() -> Self {
        Self { r#type: null(), key: null(), value: null(), max_entries: null(), values: [] }
    }

    /// The map of an instance.
    #[inline(always)]
    pub fn of(&self, instance: Instance) -> Option<MapOf<K, V>> {
        let outer = core::ptr::from_ref(self).cast_mut().cast();
        let index = instance.index;
        // SAFETY: a lookup; the map is a static definition, the key is on the stack.
        let map = unsafe { bpf_map_lookup_elem(outer, (&raw const index).cast()) };
        Some(MapOf { map: NonNull::new(map)?, entries: core::marker::PhantomData })
    }

    #[inline(always)]
    pub fn get(&self, instance: Instance, key: &K) -> Option<NonNull<V>> {
        self.of(instance)?.get(key)
    }
}

/// The map of an instance.
pub struct MapOf<K, V> {
    map: NonNull<c_void>,
    entries: core::marker::PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for MapOf<K, V> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<K, V> Copy for MapOf<K, V> {}

impl<K, V> MapOf<K, V> {
    #[inline(always)]
    pub fn raw(self) -> *mut c_void {
        self.map.as_ptr()
    }

    #[inline(always)]
    pub fn get(self, key: &K) -> Option<NonNull<V>> {
        // SAFETY: a lookup with a key of this map's type.
        NonNull::new(unsafe { bpf_map_lookup_elem(self.raw(), core::ptr::from_ref(key).cast()) }.cast())
    }

    /// # Errors
    ///
    /// The helper's.
    #[inline(always)]
    pub fn insert(self, key: &K, value: &V, flags: u64) -> Result<(), i64> {
        let (key, value) = (core::ptr::from_ref(key).cast(), core::ptr::from_ref(value).cast());
        // SAFETY: key and value of this map's types.
        match unsafe { bpf_map_update_elem(self.raw(), key, value, flags) } {
            0 => Ok(()),
            errno => Err(errno),
        }
    }

    #[inline(always)]
    pub fn remove(self, key: &K) {
        // SAFETY: a key of this map's type.
        unsafe { bpf_map_delete_elem(self.raw(), core::ptr::from_ref(key).cast()) };
    }
}

/// The key of a trie that means `key` alone.
#[inline(always)]
pub fn whole<K: Copy>(key: &K) -> Key<K> {
    Key::new(8 * size_of::<K>() as u32, *key)
}

/// Set by the loader; constants to the verifier.
#[unsafe(no_mangle)]
pub static CONSTANTS: ProgramConstants = ProgramConstants {
    instance: 0,
    has_netns_cookie: 0,
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

/// Whether every bit of `bits` may be set in the flags of a policy of these programs.
#[inline(always)]
pub fn may_have(bits: u32) -> bool {
    constant!(flags) & bits == bits
}

/// The original destination that is stored for a connection.
#[inline(always)]
pub fn flow(instance: Instance, key: &FlowKey) -> Option<&'static Flow> {
    // SAFETY: values are written once, by insert, and freed after an RCU grace period.
    FLOWS.get(instance, &whole(key)).map(|flow| unsafe { &*flow.as_ptr() })
}

/// The instance whose entry has called sk_lookup on this CPU.
#[inline(always)]
pub fn looked_up() -> Option<u32> {
    // SAFETY: this CPU's own element.
    LOOKED_UP.get_ptr(0).map(|p| unsafe { core::ptr::read_volatile(&raw const (*p).instance) })
}

/// Ends what the entry has begun.
#[inline(always)]
pub fn forget_looked_up() {
    if constant!(instance) == ProgramConstants::SHARED
        && let Some(p) = LOOKED_UP.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own element.
        unsafe {
            let before = core::ptr::read_volatile(&raw const (*p).before);
            core::ptr::write_volatile(&raw mut (*p).instance, before);
        }
    }
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
pub fn count(instance: Instance, counter: Counter) {
    count_number(instance, counter as u32);
}

/// Nothing happens if there is no counter of this number.
#[inline(always)]
pub fn count_number(instance: Instance, counter: u32) {
    if let Some(value) = COUNTERS.get(instance, &counter) {
        // SAFETY: this CPU's own element.
        unsafe { *value.as_ptr() += 1 };
    }
}

/// How many entries `FLOWS` has.
#[inline(always)]
pub fn live(instance: Instance) -> u64 {
    // SAFETY: an element of an array map.
    LIVE.get(instance, &0).map_or(0, |p| unsafe { core::ptr::read_volatile(p.as_ptr()) })
}

#[inline(always)]
pub fn add_live(instance: Instance, delta: i64) {
    if let Some(p) = LIVE.get(instance, &0) {
        // Its result unused, this becomes BPF_XADD, which every kernel has (BPF_FETCH is of 5.12).
        // `core` offers no AtomicI64::fetch_add on targets without compare-and-swap.
        // SAFETY: an element of an array map, aligned to 8 bytes.
        unsafe { atomic_xadd::<_, _, { AtomicOrdering::Relaxed }>(p.as_ptr(), delta as u64) };
    }
}
