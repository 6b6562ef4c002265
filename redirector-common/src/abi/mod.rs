//! Layout of the maps of an instance. `ORIGINAL_DST` is public: see docs/abi.md.

mod addr;
mod flags;
mod meta;
mod policy;
mod route;
mod socket;

pub use addr::Addr;
pub use flags::{flag, guest_mark, meta_flag};
pub use meta::{ActiveWord, Meta, ProgramConstants, Slot};
pub use policy::{List, Policy};
pub use route::{ListKey, Route};
pub use socket::{
    FlowKey, LISTENER_SLOTS, LISTENERS_LEN, LISTENERS_OF_POLICY, ListenerRole, OriginalDst, SockKind,
    SockState,
};

/// Version of everything in this module. It goes up when a layout or a meaning changes; an
/// instance made with another version is replaced as a whole, never edited.
pub const ABI_VERSION: u32 = 2;

/// Index of `lo` in every network namespace (LOOPBACK_IFINDEX).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Names of maps and programs: at most 15 bytes, so that the kernel keeps them whole.
pub mod name {
    /// HASH [`super::FlowKey`] → [`super::OriginalDst`]: the exposed map.
    pub const ORIGINAL_DST: &str = "ORIGINAL_DST";
    /// LPM_TRIE [`super::ListKey`] → [`super::Route`]: routes and the policy's lists.
    pub const TABLES: &str = "TABLES";
    /// ARRAY of two [`super::Policy`], indexed by [`super::Slot`].
    pub const POLICIES: &str = "POLICIES";
    /// ARRAY of one [`super::Meta`].
    pub const META: &str = "META";
    /// PERCPU_ARRAY of u64, indexed by [`crate::rule::Counter`].
    pub const COUNTERS: &str = "COUNTERS";
    /// ARRAY of one u64: how many entries `ORIGINAL_DST` has.
    pub const LIVE: &str = "LIVE";
    /// SOCKMAP (value: u64 cookie) of the proxy's listeners, [`super::ListenerRole::first_element`].
    pub const LISTENERS: &str = "LISTENERS";
    /// SK_STORAGE [`super::SockState`].
    pub const SOCKETS: &str = "SOCKETS";
    /// LRU_HASH of [`super::FlowKey`]: connections to refuse on lo.
    pub const REFUSED: &str = "REFUSED";
    /// Every map, in the order in which they are pinned.
    pub const MAPS: [&str; 9] =
        [META, POLICIES, TABLES, COUNTERS, LIVE, LISTENERS, SOCKETS, REFUSED, ORIGINAL_DST];
    /// `.rodata` symbol that holds [`super::ProgramConstants`].
    pub const CONSTANTS: &str = "CONSTANTS";
}

const _: () = {
    assert!(size_of::<Policy>() == 48);
    assert!(size_of::<ProgramConstants>() == 80);
    assert!(size_of::<Meta>() == 48);
    assert!(size_of::<ListKey>() == 20);
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
    pod!(Policy, ProgramConstants, Meta, ListKey, Route, FlowKey, OriginalDst, SockState);
}
