//! What the instances of a node share, in a directory of the bpffs beside theirs: arrays with the maps of each instance, and
//! sets of programs, each loaded once for all policies that use the same features.
//!
//! It is a cache of programs: an instance has pins of its own of all that it runs. It goes with the last instance.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY;
use redirector_common::abi::{INSTANCES, ProgramConstants, name};

use super::hooks::{self, Hook};
use super::maps;
use super::object::{self, Loaded, Maps};
use crate::base::error::{Context, Error, Result, chain};
use crate::sys::bpf;
use crate::sys::sk_lookup_entry::load_entry;
use crate::sys::workers::{self, Work};

/// Upper case: no instance has such a name. The number is that of the layout of the maps.
const DIRECTORY: &str = "NODE-2";
/// Pin of the PROG_ARRAY with a set's sk_lookup program.
pub const SHARED_SK_LOOKUP: &str = "SK_LOOKUP";
/// ARRAY of one u32: the generation that was given last.
const GENERATION: &str = "GENERATION";
/// A thread that puts a map somewhere needs less to begin, most times.
const BEGINNING: Duration = Duration::from_micros(200);
/// How long until the next look, if it needs more; then twice as long each time, up to the longest.
const LOOK_AGAIN: Duration = Duration::from_micros(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(2);
/// Sets that are being made.
const STAGING: &str = "NEW";

/// What the instances of a node share.
#[derive(Clone, Debug)]
pub struct Node {
    dir: PathBuf,
}

impl Node {
    /// Of the instances in a directory.
    pub fn of(instances: &Path) -> Self {
        Self { dir: instances.join(DIRECTORY) }
    }

    /// Of the instances beside this one.
    pub fn beside(instance: &Path) -> Self {
        Self::of(instance.parent().unwrap_or(instance))
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes it; for when there is no instance.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.dir)
    }

    /// The programs of a set, which are loaded if they are not there.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] if the kernel refuses a map or a program, with its reason.
    pub fn set(&self, constants: &ProgramConstants) -> Result<Set> {
        let dir = self.dir.join(format!("SET-{:06x}-{}", constants.flags, object::ID));
        // The command that removed it may have been killed.
        let there = names_in(&dir);
        let is_there = |name: &str| there.contains(OsStr::new(name));
        let whole = hooks::possible_for(constants.flags).all(|hook| is_there(&hook.program_pin()));
        if !whole || !is_there(SHARED_SK_LOOKUP) {
            remove_tree(&dir).context(|| format!("remove {}", dir.display()))?;
            self.load_set(constants, &dir)?;
        }
        Ok(Set { node: self.clone(), dir })
    }

    fn load_set(&self, constants: &ProgramConstants, dir: &Path) -> Result<()> {
        let hooks = || hooks::possible_for(constants.flags);
        let loaded = self.load(constants, false, hooks().map(|hook| hook.program))?;
        let staging = self.dir.join(STAGING);
        remove_tree(&staging).context(|| format!("remove {}", staging.display()))?;
        fs::create_dir(&staging).context(|| format!("create {}", staging.display()))?;
        for hook in hooks() {
            pin(loaded.program(hook.program)?, &staging.join(hook.program_pin()))?;
        }
        let array = aya_obj::Map::new_from_params(BPF_MAP_TYPE_PROG_ARRAY as u32, 4, 4, 1, 0);
        let array = MapData::create(array, SHARED_SK_LOOKUP, None)
            .map_err(|e| Error::failed(format!("create the map {SHARED_SK_LOOKUP}: {}", chain(&e))))?;
        let sk_lookup = hooks().find(|hook| hook.netns).ok_or_else(|| Error::failed("no sk_lookup"))?;
        bpf::array_put(array.fd().as_fd(), 0, loaded.program(sk_lookup.program)?)
            .context(|| format!("fill {}", staging.join(SHARED_SK_LOOKUP).display()))?;
        pin(array.fd().as_fd(), &staging.join(SHARED_SK_LOOKUP))?;
        fs::rename(&staging, dir).context(|| format!("rename {} to {}", staging.display(), dir.display()))?;
        self.forget_other_versions();
        Ok(())
    }

    /// An instance that runs programs of another version has pins of them.
    fn forget_other_versions(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("SET-") && !name.ends_with(object::ID) {
                // It stays as it was if that fails, and costs some memory.
                let _ = remove_tree(&entry.path());
            }
        }
    }

    /// Loads programs that find their maps here.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] if the kernel refuses a map or a program, with its reason.
    pub fn load(
        &self,
        constants: &ProgramConstants,
        trace: bool,
        programs: impl IntoIterator<Item = &'static str>,
    ) -> Result<Loaded> {
        self.make_maps(constants)?;
        Loaded::new(constants, Maps::In(&self.dir), trace, programs)
    }

    /// Makes the maps if they are not there.
    ///
    /// # Errors
    ///
    /// [`Error::unsupported`] if the kernel refuses one, with its reason.
    pub fn make_maps(&self, constants: &ProgramConstants) -> Result<()> {
        let there = names_in(&self.dir);
        if name::MAPS.iter().chain(&name::SHARED).all(|map| there.contains(OsStr::new(map))) {
            return Ok(());
        }
        // What is there of it is not what the programs of its sets use. Instances have pins of their own.
        self.remove().context(|| format!("remove {}", self.dir.display()))?;
        fs::create_dir(&self.dir).context(|| format!("create {}", self.dir.display()))?;
        for map in maps::all(1, 1, 0) {
            pin(map.make_array()?.as_fd(), &self.dir.join(map.name))?;
        }
        // The loader makes the others.
        Loaded::new(constants, Maps::In(&self.dir), false, []).map(drop)
    }

    /// A number that no instance has, from `first` on.
    ///
    /// # Errors
    ///
    /// [`Error::failed`] if all are taken.
    pub fn free_index(&self, first: u64) -> Result<u32> {
        let array = self.open(name::META)?;
        for turn in 0..u64::from(INSTANCES) {
            let index = (first.wrapping_add(turn) % u64::from(INSTANCES)) as u32;
            let id = bpf::array_id(array.as_fd(), index).context(|| self.told(name::META))?;
            if id.is_none() {
                return Ok(index);
            }
        }
        Err(Error::failed(format!("this node has {INSTANCES} instances, and can have no more"))
            .remedy("detach one: `redirector list` shows them"))
    }

    /// A generation that no instance of this node has had; never 0.
    ///
    /// # Errors
    ///
    /// If the counter cannot be read or written.
    pub fn next_generation(&self) -> Result<u32> {
        let path = self.dir.join(GENERATION);
        if !path.exists() {
            let map: Array<MapData, u32> =
                Array::create(1, 0).context(|| format!("create {}", path.display()))?;
            map.pin(&path).map_err(|e| Error::failed(format!("pin {}: {}", path.display(), chain(&e))))?;
        }
        let data = MapData::from_pin(&path).context(|| self.told(GENERATION))?;
        let mut map: Array<MapData, u32> =
            Array::try_from(Map::Array(data)).context(|| self.told(GENERATION))?;
        let last = map.get(&0, 0).context(|| self.told(GENERATION))?;
        let next = last.wrapping_add(1).max(1);
        map.set(0, next, 0).context(|| self.told(GENERATION))?;
        Ok(next)
    }

    /// Lets the programs find the maps of an instance, META first: while it is there no other instance gets the number.
    ///
    /// The kernel lets a thread that puts a map into an array wait until no program uses what was there before (10 to 30 ms).
    /// Nothing was, so the caller does not wait with it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn put_maps(&self, index: u32, maps: Vec<(&'static str, OwnedFd)>) -> Result<()> {
        let (meta, others): (Vec<_>, Vec<_>) = maps.into_iter().partition(|(name, _)| *name == name::META);
        for maps in [meta, others] {
            let begin = |(name, map): (&'static str, OwnedFd)| {
                let array = self.open(name)?;
                let ours = array.try_clone().context(|| self.told(name))?;
                let put = workers::begin(move || bpf::array_put(array.as_fd(), index, map.as_fd()));
                Ok((name, ours, put.context(|| "start a thread".into())?))
            };
            let begun: Vec<Result<_>> = maps.into_iter().map(begin).collect();
            std::thread::sleep(BEGINNING);
            // All of them, whatever one says: none may appear once the failed attach has been taken back.
            let ends = begun.into_iter().map(|begun| {
                let (name, array, put) = begun?;
                until_visible(array.as_fd(), index, put).context(|| self.told(name))
            });
            ends.collect::<Vec<Result<()>>>().into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    /// Puts another map in place of one of an instance's, and waits until no program uses that.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn replace_map(&self, index: u32, name: &str, map: BorrowedFd<'_>) -> Result<()> {
        bpf::array_put(self.open(name)?.as_fd(), index, map).context(|| self.told(name))
    }

    /// Whether the programs find the map of this id at a number.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn is_at(&self, index: u32, map: &str, id: u32) -> Result<bool> {
        let array = self.open(map)?;
        Ok(bpf::array_id(array.as_fd(), index).context(|| self.told(map))? == Some(id))
    }

    /// Whether the shared programs find this instance by its network namespace.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn is_entered(&self, netns: u64, index: u32) -> Result<bool> {
        match self.namespaces()?.get(&netns, 0) {
            Ok(found) => Ok(found == index),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(e) => Err(e).context(|| self.told(name::NAMESPACES)),
        }
    }

    /// Ends that, if they are the maps of this META.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take_maps(&self, index: u32, meta: u32) -> Result<()> {
        // Where one of the arrays is gone there is nothing to take out of it.
        let is_there = |map: &&str| self.dir.join(map).exists();
        if !is_there(&name::META) || !self.is_at(index, name::META, meta)? {
            return Ok(());
        }
        let array = self.open(name::META)?;
        // META last. All others at once: each waits until no program uses what it takes out.
        let others = name::MAPS.into_iter().filter(|name| *name != name::META && is_there(name));
        let take = |name: &'static str| {
            let array = self.open(name)?;
            let work = workers::begin(move || bpf::array_take(array.as_fd(), index));
            Ok((name, work.context(|| "start a thread".into())?))
        };
        let taking: Vec<Result<_>> = others.map(take).collect();
        // All of them, whatever one says.
        let ends = taking.into_iter().map(|taking| {
            let (name, work) = taking?;
            work.join().context(|| self.told(name))
        });
        ends.collect::<Vec<Result<()>>>().into_iter().collect::<Result<()>>()?;
        bpf::array_take(array.as_fd(), index).context(|| self.told(name::META))
    }

    /// Lets the shared programs find an instance by its network namespace.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn enter(&self, netns: u64, index: u32) -> Result<()> {
        self.namespaces()?.insert(netns, index, 0).context(|| self.told(name::NAMESPACES))
    }

    /// Ends that, if it is this instance that they find.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn leave(&self, netns: u64, index: u32) -> Result<()> {
        if !self.dir.join(name::NAMESPACES).exists() {
            return Ok(());
        }
        if self.is_entered(netns, index)? {
            self.namespaces()?.remove(&netns).context(|| self.told(name::NAMESPACES))?;
        }
        Ok(())
    }

    fn namespaces(&self) -> Result<HashMap<MapData, u64, u32>> {
        let data =
            MapData::from_pin(self.dir.join(name::NAMESPACES)).context(|| self.told(name::NAMESPACES))?;
        HashMap::try_from(Map::HashMap(data)).context(|| self.told(name::NAMESPACES))
    }

    /// Opens a map that is shared.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn open(&self, map: &str) -> Result<OwnedFd> {
        bpf::obj_get(&self.dir.join(map)).context(|| self.told(map))
    }

    fn told(&self, map: &str) -> String {
        format!("use {}", self.dir.join(map).display())
    }
}

/// Until something is at an index of an array, or the thread that puts it there has ended.
fn until_visible(array: BorrowedFd<'_>, index: u32, put: Work<io::Result<()>>) -> io::Result<()> {
    let mut pause = LOOK_AGAIN;
    loop {
        let end = put.take();
        match (bpf::array_id(array, index), end) {
            (Ok(Some(_)), _) => return Ok(()),
            (Ok(None), None) => {
                std::thread::sleep(pause);
                pause = LONGEST_PAUSE.min(2 * pause);
            }
            (Ok(None), Some(end)) => return end.and(Err(io::ErrorKind::NotFound.into())),
            (Err(e), end) => {
                if end.is_none() {
                    let _ = put.join();
                }
                return Err(e);
            }
        }
    }
}

/// Programs that instances share.
pub struct Set {
    node: Node,
    dir: PathBuf,
}

impl Set {
    /// The program of a hook for the instance of this number.
    ///
    /// # Errors
    ///
    /// If the set has none.
    pub fn program(&self, hook: &Hook, instance: u32) -> Result<OwnedFd> {
        if hook.netns {
            let (looked_up, shared) = (self.node.open(name::LOOKED_UP)?, self.sk_lookup()?);
            return load_entry(instance, looked_up.as_fd(), shared.as_fd())
                .context(|| format!("load the entry to {}", hook.program));
        }
        let path = self.dir.join(hook.program_pin());
        bpf::obj_get(&path).context(|| format!("open the program {}", path.display()))
    }

    /// The PROG_ARRAY behind the entries of sk_lookup. The kernel empties it when its last descriptor and pin go
    /// (`bpf_fd_array_map_clear`).
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn sk_lookup(&self) -> Result<OwnedFd> {
        let path = self.dir.join(SHARED_SK_LOOKUP);
        bpf::obj_get(&path).context(|| format!("open {}", path.display()))
    }
}

fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<()> {
    bpf::obj_pin(object, path).context(|| format!("pin {}", path.display()))
}

/// What is in a directory; nothing if that cannot be read.
fn names_in(dir: &Path) -> HashSet<OsString> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
