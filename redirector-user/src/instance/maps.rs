//! An instance's maps, opened from their pins.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapData, MapInfo, PerCpuArray, SkStorage};
use redirector_common::abi::{
    ABI_VERSION, ActiveWord, Flow, FlowKey, ListKey, Meta, OriginalDst, Policy, Route, Sequence, Slot,
    SockState, name,
};

use super::directory::Directory;
use super::phase::{self, Phase};
use crate::base::error::{Context, Error, Result};
use crate::sys::bpf;

/// An existing instance.
pub struct Instance {
    /// Its directory.
    pub dir: PathBuf,
    /// Its name.
    pub name: String,
    meta: Array<MapData, Meta>,
}

impl Instance {
    /// Opens an instance by name.
    ///
    /// # Errors
    ///
    /// [`Error::nothing_matched`] if there is none, [`Error::unsupported`] if it is of another ABI, [`Error::failed`]
    /// if it is damaged.
    pub fn open(root: &Directory, name: &str) -> Result<Self> {
        let dir = root.instance(name);
        match std::fs::metadata(&dir) {
            Ok(found) if found.is_dir() => Self::open_dir(&dir, name),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).context(|| format!("open {}", dir.display()))
            }
            _ => Err(no_instance(name)),
        }
    }

    /// Opens a directory whose META may not be written yet.
    pub(super) fn open_unchecked(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name::META);
        let data = open_map(&path, size_of::<u32>(), size_of::<Meta>())?;
        let meta = Array::try_from(Map::Array(data)).context(|| format!("open {}", path.display()))?;
        Ok(Self { dir: dir.to_owned(), name: name.to_owned(), meta })
    }

    pub(super) fn open_dir(dir: &Path, name: &str) -> Result<Self> {
        if is_of_first_layout(dir) {
            return Err(other_layout(name, 1));
        }
        let this = Self::open_unchecked(dir, name)?;
        let abi = this.meta()?.abi;
        if abi != ABI_VERSION { Err(other_layout(name, abi)) } else { Ok(this) }
    }

    /// What the instance is attached to and does.
    pub fn meta(&self) -> Result<Meta> {
        self.meta.get(&0, 0).context(|| format!("read META of {}", self.name))
    }

    /// Writes META: the one write that activates, swaps or stops.
    pub fn set_meta(&mut self, meta: &Meta) -> Result<()> {
        self.meta.set(0, meta, 0).context(|| format!("write META of {}", self.name))
    }

    /// Brings a slot into force.
    pub fn activate(&mut self, slot: Slot) -> Result<()> {
        let meta = self.meta()?;
        self.set_meta(&Meta { active: ActiveWord::of(slot), ..meta })
    }

    /// The slot that is in force.
    ///
    /// # Errors
    ///
    /// If none is: what would change it has to wait, or to begin again.
    pub fn active_slot(&self) -> Result<Slot> {
        let meta = self.meta()?;
        match Phase::of(&meta) {
            Phase::Active(slot) => Ok(slot),
            Phase::Draining => Err(phase::is_draining(&self.name, &meta)),
            Phase::Inert => Err(Error::failed(format!(
                "the instance {} was left half-made or half-removed by a command that was killed",
                self.name
            ))
            .usage("`redirector list` sweeps it")),
        }
    }

    /// The scalars of the policy in a slot.
    pub fn policy(&self, slot: Slot) -> Result<Policy> {
        self.policies()?.get(&slot.index(), 0).context(|| format!("read POLICIES of {}", self.name))
    }

    /// Writes the scalars of the policy in a slot.
    pub fn write_policy(&self, slot: Slot, policy: Policy) -> Result<()> {
        let written = self.policies()?.set(slot.index(), policy, 0);
        written.context(|| format!("write POLICIES of {}", self.name))
    }

    fn policies(&self) -> Result<Array<MapData, Policy>> {
        let data = self.map(name::POLICIES, 4, size_of::<Policy>())?;
        Array::try_from(Map::Array(data)).context(|| "open POLICIES".into())
    }

    /// Lists and routes.
    pub fn tables(&self) -> Result<LpmTrie<MapData, ListKey, Route>> {
        self.trie(name::TABLES)
    }

    /// Address, network byte order → original destination.
    pub fn original_dst(&self) -> Result<LpmTrie<MapData, u32, OriginalDst>> {
        self.trie(name::ORIGINAL_DST)
    }

    /// Connection → original destination, where the address stands for none.
    pub fn flows(&self) -> Result<LpmTrie<MapData, FlowKey, Flow>> {
        self.trie(name::FLOWS)
    }

    /// The addresses that are given next.
    pub fn sequence(&self) -> Result<Array<MapData, Sequence>> {
        let data = self.map(name::SEQUENCE, 4, size_of::<Sequence>())?;
        Array::try_from(Map::Array(data)).context(|| "open SEQUENCE".into())
    }

    /// State of sockets.
    pub fn sockets(&self) -> Result<SkStorage<MapData, SockState>> {
        let data = self.map(name::SOCKETS, 4, size_of::<SockState>())?;
        SkStorage::try_from(Map::SkStorage(data)).context(|| "open SOCKETS".into())
    }

    /// The registry of listeners.
    pub fn listeners(&self) -> Result<OwnedFd> {
        let path = self.dir.join(name::LISTENERS);
        bpf::obj_get(&path).context(|| format!("open {}", path.display()))
    }

    /// Number of redirected connections that are alive, of those in `FLOWS`.
    pub fn live(&self) -> Result<u64> {
        let data = self.map(name::LIVE, 4, 8)?;
        let live: Array<MapData, u64> = Array::try_from(Map::Array(data)).context(|| "open LIVE".into())?;
        live.get(&0, 0).context(|| "read LIVE".into())
    }

    /// Counters, summed over CPUs, indexed by `Counter`.
    pub fn counters(&self) -> Result<Vec<u64>> {
        let data = self.map(name::COUNTERS, 4, 8)?;
        let counters: PerCpuArray<MapData, u64> =
            PerCpuArray::try_from(Map::PerCpuArray(data)).context(|| "open COUNTERS".into())?;
        let sums = counters.iter().map(|values| values.map(|v| v.iter().sum()));
        sums.collect::<Result<_, _>>().context(|| "read COUNTERS".into())
    }

    fn trie<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> Result<LpmTrie<MapData, K, V>> {
        let data = self.map(name, size_of::<Key<K>>(), size_of::<V>())?;
        LpmTrie::try_from(Map::LpmTrie(data)).context(|| format!("open {name}"))
    }

    fn map(&self, name: &str, key: usize, value: usize) -> Result<MapData> {
        open_map(&self.dir.join(name), key, value)
    }
}

/// The key of a trie that means `key` alone.
pub fn whole<K: aya::Pod>(key: K) -> Key<K> {
    Key::new(8 * size_of::<K>() as u32, key)
}

/// META of version 0.1 was shorter.
fn is_of_first_layout(dir: &Path) -> bool {
    const META_OF_FIRST_LAYOUT: u32 = 48;
    MapInfo::from_pin(dir.join(name::META)).is_ok_and(|info| info.value_size() == META_OF_FIRST_LAYOUT)
}

/// Other programs would misread its maps, so no upgrade can help.
fn other_layout(name: &str, abi: u32) -> Error {
    Error::unsupported(format!("the instance {name} has map layout {abi}, this program has {ABI_VERSION}"))
        .usage(format!(
            "use the program that made it, or detach it (`redirector detach --name {name}`) and attach again"
        ))
}

/// There is no instance of this name.
pub(super) fn no_instance(name: &str) -> Error {
    Error::nothing_matched(format!("there is no instance {name}")).usage("see `redirector list`")
}

/// Opens a pinned map after comparing its sizes with ours: the kernel would hand out any map,
/// and reads through the wrong layout would be silent corruption.
fn open_map(path: &Path, key: usize, value: usize) -> Result<MapData> {
    let what = || format!("open {}", path.display());
    let data = MapData::from_fd(bpf::obj_get(path).context(what)?).context(what)?;
    let info = data.info().context(what)?;
    if (info.key_size() as usize, info.value_size() as usize) != (key, value) {
        return Err(Error::failed(format!(
            "{} has keys of {} and values of {} bytes, expected {key} and {value}: not a map of this version",
            path.display(),
            info.key_size(),
            info.value_size()
        )));
    }
    Ok(data)
}
