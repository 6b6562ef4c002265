//! Layout of the maps of an instance. `META`, `ORIGINAL_DST` and `FLOWS` are public: see docs/abi.md.

mod addr;
mod destination;
mod event;
mod flags;
mod meta;
mod policy;
mod route;
mod socket;

pub use addr::Addr;
pub use destination::{DIRECT, Destination, OriginalDst, Sequence, VirtualRange, may_be_virtual};
pub use event::{Event, EventKind, NO_RULE};
pub use flags::{flag, guest_mark, meta_flag};
pub use meta::{ActiveWord, LookedUp, Meta, ProgramConstants, Slot};
pub use policy::{List, Policy};
pub use route::{ListKey, Route};
pub use socket::{
    Flow, FlowKey, LISTENER_SLOTS, LISTENERS_LEN, LISTENERS_OF_POLICY, ListenerRole, SockKind, SockState,
    UNTAKEN_LEN,
};

/// Version of everything in this module. It goes up when a layout or a meaning changes; an
/// instance made with another version is replaced as a whole, never edited.
pub const ABI_VERSION: u32 = 2;

/// How many instances a node may have.
pub const INSTANCES: u32 = 4096;

/// How many addresses may be getting a meaning at a moment: more than a node has CPUs.
pub const CLAIMS_LEN: u32 = 8192;

/// Index of `lo` in every network namespace (LOOPBACK_IFINDEX).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Names of maps and programs: at most 15 bytes, so that the kernel keeps them whole.
pub mod name {
    /// LPM_TRIE u32, an IPv4 address in network byte order → [`super::OriginalDst`]: what the addresses stand for that the
    /// instance has given. Exposed.
    pub const ORIGINAL_DST: &str = "ORIGINAL_DST";
    /// LPM_TRIE [`super::Destination`] → u32, the IPv4 address in network byte order: the same the other way round.
    pub const DESTINATIONS: &str = "DESTINATIONS";
    /// LPM_TRIE [`super::FlowKey`] → [`super::Flow`]: connections to an address that stands for none. Exposed.
    pub const FLOWS: &str = "FLOWS";
    /// PERCPU_ARRAY of [`super::FlowKey`]: those that no accepted socket has taken when their client closed.
    pub const UNTAKEN: &str = "UNTAKEN";
    /// ARRAY of one [`super::Sequence`].
    pub const SEQUENCE: &str = "SEQUENCE";
    /// LPM_TRIE [`super::ListKey`] → [`super::Route`]: routes and the policy's lists.
    pub const TABLES: &str = "TABLES";
    /// ARRAY of two [`super::Policy`], indexed by [`super::Slot`].
    pub const POLICIES: &str = "POLICIES";
    /// ARRAY of one [`super::Meta`].
    pub const META: &str = "META";
    /// PERCPU_ARRAY of u64, indexed by [`crate::rule::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// ARRAY of one u64: how many entries `FLOWS` has.
    pub const LIVE: &str = "LIVE";
    /// SOCKMAP (value: u64 cookie) of the proxy's listeners, [`super::ListenerRole::first_element`].
    pub const LISTENERS: &str = "LISTENERS";
    /// LRU_HASH of [`super::FlowKey`]: connections to refuse on lo.
    pub const REFUSED: &str = "REFUSED";
    /// LRU_HASH of [`super::FlowKey`]: captured connections of guests, also after their sockets.
    pub const GUESTS: &str = "GUESTS";
    /// Every map of an instance, in the order in which they are pinned; of each, the node has an ARRAY_OF_MAPS of this name.
    pub const MAPS: [&str; 13] = [
        META,
        POLICIES,
        TABLES,
        COUNTERS,
        LIVE,
        LISTENERS,
        REFUSED,
        GUESTS,
        ORIGINAL_DST,
        DESTINATIONS,
        FLOWS,
        UNTAKEN,
        SEQUENCE,
    ];
    /// SK_STORAGE [`super::SockState`], for all instances of the node.
    pub const SOCKETS: &str = "SOCKETS";
    /// HASH u64 → u32: the instances that share programs, by the cookie (before 5.15 the inode number) of their network
    /// namespace.
    pub const NAMESPACES: &str = "NAMESPACES";
    /// PERCPU_ARRAY of one [`super::LookedUp`].
    pub const LOOKED_UP: &str = "LOOKED_UP";
    /// PERCPU_ARRAY of one u32: the ports that a classifier looks up.
    pub const PROBED: &str = "PROBED";
    /// HASH u64, the generation of an instance and an IPv4 address → u32: addresses that are getting a meaning.
    pub const CLAIMS: &str = "CLAIMS";
    /// The maps that all instances share.
    pub const SHARED: [&str; 5] = [SOCKETS, NAMESPACES, LOOKED_UP, PROBED, CLAIMS];
    /// RINGBUF of [`super::Event`], of each load of programs that tell their decisions.
    pub const EVENTS: &str = "EVENTS";
    /// PERCPU_ARRAY of one u64: events for which `EVENTS` had no room.
    pub const LOST: &str = "LOST";
    /// `.rodata` symbol, a u32: whether the programs tell their decisions.
    pub const TELLS: &str = "TELLS";
    /// `.rodata` symbol that holds [`super::ProgramConstants`].
    pub const CONSTANTS: &str = "CONSTANTS";
}

const _: () = {
    assert!(size_of::<Policy>() == 48);
    assert!(size_of::<ProgramConstants>() == 64);
    assert!(size_of::<Meta>() == 72);
    assert!(size_of::<ListKey>() == 20);
    assert!(size_of::<Route>() == 24);
    assert!(size_of::<FlowKey>() == 36);
    assert!(size_of::<Flow>() == 28);
    assert!(size_of::<OriginalDst>() == 28);
    assert!(size_of::<Destination>() == 16);
    assert!(size_of::<Sequence>() == 32);
    assert!(size_of::<SockState>() == 52);
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
    pod!(
        Addr,
        Policy,
        ProgramConstants,
        Meta,
        ListKey,
        Route,
        FlowKey,
        Flow,
        Destination,
        OriginalDst,
        Sequence,
        SockState
    );
}
