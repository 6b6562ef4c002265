//! The maps of an instance, as the programs know them. They are made here and not by the loader: an array of maps takes only
//! what is like the map that it was made with, and before Linux 6.2 a map with BTF is unlike one without
//! (`bpf_map_meta_equal`, `timer_off`).

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::MapData;
use aya_obj::generated::bpf_map_type::{
    BPF_MAP_TYPE_ARRAY as ARRAY, BPF_MAP_TYPE_LPM_TRIE as LPM_TRIE, BPF_MAP_TYPE_LRU_HASH as LRU_HASH,
    BPF_MAP_TYPE_PERCPU_ARRAY as PERCPU_ARRAY, BPF_MAP_TYPE_SOCKMAP as SOCKMAP,
};
use aya_obj::generated::{BPF_F_NO_PREALLOC as NO_PREALLOC, bpf_map_type};
use redirector_common::abi::{
    Destination, Flow, FlowKey, INSTANCES, LISTENERS_LEN, ListKey, Meta, OriginalDst, Policy, Route,
    Sequence, UNTAKEN_LEN, name,
};
use redirector_common::rule::Counter;

use super::hooks;
use crate::base::error::{Context, Error, Result, chain};
use crate::sys::bpf;

/// More entries than connections: those that are made while the limit is reached.
const BEYOND_MAX_CONNECTIONS: u32 = 1024;
/// No memory is taken for entries that are not there, so the bound is generous.
const TABLES: u32 = 4_194_304;
const REFUSED: u32 = 128;
/// Connections of guests that are remembered.
const GUESTS: u32 = 4096;

/// A map of an instance.
pub struct Definition {
    /// Its name, and that of its pin.
    pub name: &'static str,
    /// How many entries it takes; the programs know all else.
    pub entries: u32,
    kind: bpf_map_type,
    key: usize,
    value: usize,
    flags: u32,
}

const fn map<K, V>(name: &'static str, kind: bpf_map_type, entries: u32, flags: u32) -> Definition {
    Definition { name, entries, kind, key: size_of::<K>(), value: size_of::<V>(), flags }
}

/// A key of an LPM trie begins with its length.
type Lpm<K> = (u32, K);

/// The map of guests, for programs of these flags.
pub fn guests(flags: u32) -> Definition {
    let entries = if hooks::has_guests(flags) { GUESTS } else { 1 };
    map::<FlowKey, u32>(name::GUESTS, LRU_HASH, entries, 0)
}

/// All maps of an instance, for so many destinations and connections, and for programs of these flags.
pub fn all(destinations: u32, connections: u32, flags: u32) -> [Definition; name::MAPS.len()] {
    let destinations = destinations.max(1);
    // Those of clients that have closed, too.
    let untaken = aya::util::nr_cpus().unwrap_or(256) * UNTAKEN_LEN;
    let flows = connections.saturating_add(BEYOND_MAX_CONNECTIONS.saturating_add(untaken as u32));
    [
        map::<u32, Meta>(name::META, ARRAY, 1, 0),
        map::<u32, Policy>(name::POLICIES, ARRAY, 2, 0),
        map::<Lpm<ListKey>, Route>(name::TABLES, LPM_TRIE, TABLES, NO_PREALLOC),
        map::<u32, u64>(name::COUNTERS, PERCPU_ARRAY, Counter::COUNT, 0),
        map::<u32, u64>(name::LIVE, ARRAY, 1, 0),
        map::<u32, u64>(name::LISTENERS, SOCKMAP, LISTENERS_LEN, 0),
        map::<FlowKey, u32>(name::REFUSED, LRU_HASH, REFUSED, 0),
        guests(flags),
        map::<Lpm<u32>, OriginalDst>(name::ORIGINAL_DST, LPM_TRIE, destinations, NO_PREALLOC),
        map::<Lpm<Destination>, u32>(name::DESTINATIONS, LPM_TRIE, destinations, NO_PREALLOC),
        map::<Lpm<FlowKey>, Flow>(name::FLOWS, LPM_TRIE, flows, NO_PREALLOC),
        map::<u32, FlowKey>(name::UNTAKEN, PERCPU_ARRAY, UNTAKEN_LEN as u32, 0),
        map::<u32, Sequence>(name::SEQUENCE, ARRAY, 1, 0),
    ]
}

impl Definition {
    /// Makes the map.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] with the kernel's reason.
    pub fn make(&self) -> Result<MapData> {
        let Self { name, entries, kind, key, value, flags } = *self;
        let obj = aya_obj::Map::new_from_params(kind as u32, key as u32, value as u32, entries, flags);
        MapData::create(obj, name, None).map_err(|e| {
            Error::unsupported(format!("the kernel does not take our map {name}: {}", chain(&e)))
        })
    }

    /// Makes the array in which programs find a map like this of each instance.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] with the kernel's reason.
    pub fn make_array(&self) -> Result<OwnedFd> {
        let like = self.make()?;
        bpf::create_array_of_maps(self.name, INSTANCES, like.fd().as_fd())
            .context(|| format!("create an array of maps like {}", self.name))
    }
}
