//! The maps of an instance: made for it alone, and found by programs that others share.

use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use redirector_common::abi::{Meta, meta_flag, name};

use super::maps::Instance;
use super::programs;
use crate::base::error::{Context, Error, Result, chain};
use crate::kernel::Kernel;
use crate::policy::Policy;
use crate::programs::hooks;
use crate::programs::maps::{self, Definition};
use crate::programs::node::{Node, SHARED_SK_LOOKUP};
use crate::sys::bpf;

fn make(map: &Definition, dir: &Path) -> Result<()> {
    let path = dir.join(map.name);
    let pinned = map.make()?.pin(&path);
    pinned.map_err(|e| Error::failed(format!("pin the map {}: {}", path.display(), chain(&e))))
}

/// Makes the maps of an instance in its directory, with room for a policy, for programs of these flags.
///
/// # Errors
///
/// [`Error::unsupported`] if the kernel refuses one.
pub(super) fn create(dir: &Path, node: &Node, policy: &Policy, flags: u32) -> Result<()> {
    let maps = maps::all(policy.max_destinations, policy.max_connections, flags);
    maps.iter().try_for_each(|map| make(map, dir))?;
    pin_sockets(dir, node)
}

/// All instances share the state of sockets: each of such maps would cost each socket.
fn pin_sockets(dir: &Path, node: &Node) -> Result<()> {
    let sockets = dir.join(name::SOCKETS);
    let _ = std::fs::remove_file(&sockets);
    bpf::obj_pin(node.open(name::SOCKETS)?.as_fd(), &sockets).context(|| format!("pin {}", sockets.display()))
}

/// Makes room for guests, of which there were none.
///
/// # Errors
///
/// If the map cannot be made, or not be put where the programs find it.
pub(super) fn make_room_for_guests(instance: &Instance, node: &Node, flags: u32) -> Result<()> {
    let path = instance.dir.join(name::GUESTS);
    let wanted = maps::guests(flags);
    let info = MapInfo::from_pin(&path).context(|| format!("open {}", path.display()))?;
    let index = instance.meta()?.index;
    if info.max_entries() >= wanted.entries && node.is_at(index, name::GUESTS, info.id())? {
        return Ok(());
    }
    // The pin gets its name last: until then the next command does it again.
    programs::replace(&path, wanted.make()?.fd().as_fd(), |guests| {
        node.replace_map(index, name::GUESTS, guests)
    })
}

/// Lets programs that are loaded now find the maps of an instance. They do already, unless what instances share has been removed
/// and made again: then the instance gets another number.
///
/// # Errors
///
/// The kernel's.
pub(super) fn find_place(instance: &mut Instance, node: &Node, kernel: &Kernel) -> Result<()> {
    let meta = instance.meta()?;
    let is_at = |name: &&str| {
        let path = instance.dir.join(name);
        let map = MapInfo::from_pin(&path).context(|| format!("open {}", path.display()))?;
        node.is_at(meta.index, name, map.id())
    };
    let has_number = is_at(&name::META)?;
    // The command that put them there may have been killed before all were.
    let are_there = || name::MAPS.iter().try_fold(true, |all, map| Ok::<_, Error>(all && is_at(map)?));
    let is_found = || Ok::<_, Error>(is_own(&meta) || node.is_entered(key(&meta, kernel), meta.index)?);
    if has_number && are_there()? && is_found()? {
        return Ok(());
    }
    if !has_number {
        let index = node.free_index(meta.netns_cookie)?;
        instance.set_meta(&Meta { index, generation: node.next_generation()?, ..meta })?;
    }
    pin_sockets(&instance.dir, node)?;
    publish(instance, node, kernel)
}

/// Whether the programs of an instance find it. Where what instances share has been removed, they have it still.
///
/// # Errors
///
/// The kernel's.
pub fn are_found(instance: &Instance) -> Result<bool> {
    let (meta, node) = (instance.meta()?, Node::beside(&instance.dir));
    let shared = if is_own(&meta) { name::META } else { name::NAMESPACES };
    let ids = |pin: &str| ProgramInfo::from_pin(instance.dir.join(pin)).ok()?.map_ids().ok()?;
    let used = hooks::ALL.iter().find_map(|hook| ids(&hook.program_pin()).filter(|_| !hook.netns));
    let pinned = MapInfo::from_pin(node.dir().join(shared));
    let (Some(used), Ok(pinned)) = (used, pinned) else { return Ok(true) };
    if !used.contains(&pinned.id()) {
        return Ok(true);
    }
    for name in name::MAPS {
        let path = instance.dir.join(name);
        let map = MapInfo::from_pin(&path).context(|| format!("open {}", path.display()))?;
        if !node.is_at(meta.index, name, map.id())? {
            return Ok(false);
        }
    }
    let entered = |netns| node.is_entered(netns, meta.index);
    Ok(is_own(&meta) || entered(meta.netns_cookie)? || entered(meta.netns_inode)?)
}

/// Lets the programs find an instance again whose entry somebody has removed. False if there was no need.
///
/// # Errors
///
/// The kernel's.
pub(super) fn enter_again(instance: &mut Instance) -> Result<bool> {
    let (meta, node) = (instance.meta()?, Node::beside(&instance.dir));
    // The question that costs little first: it is asked at each refresh.
    let may_be_lost = !is_own(&meta) && node.dir().join(name::NAMESPACES).exists();
    let entered = |netns| node.is_entered(netns, meta.index);
    if !may_be_lost || entered(meta.netns_cookie)? || entered(meta.netns_inode)? || are_found(instance)? {
        return Ok(false);
    }
    find_place(instance, &node, &Kernel::probe()?)?;
    Ok(true)
}

/// Whether the entry of sk_lookup finds no program to go on in.
///
/// # Errors
///
/// The kernel's.
pub fn lost_sk_lookup(instance: &Instance) -> Result<bool> {
    let what = || format!("read {}", instance.dir.display());
    for entry in std::fs::read_dir(&instance.dir).context(what)? {
        let path = entry.context(what)?.path();
        let is_it = |name: &str| name.starts_with(SHARED_SK_LOOKUP);
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_it) {
            let array = bpf::obj_get(&path).context(|| format!("open {}", path.display()))?;
            let id = bpf::array_id(array.as_fd(), 0).context(|| format!("read {}", path.display()))?;
            return Ok(id.is_none());
        }
    }
    Ok(false)
}

fn is_own(meta: &Meta) -> bool {
    meta.flags & meta_flag::OWN_PROGRAMS != 0
}

/// By which number of its network namespace the programs look for an instance.
fn key(meta: &Meta, kernel: &Kernel) -> u64 {
    if kernel.has_netns_cookie { meta.netns_cookie } else { meta.netns_inode }
}

/// Lets the programs find the maps of an instance.
///
/// # Errors
///
/// The kernel's.
pub(super) fn publish(instance: &Instance, node: &Node, kernel: &Kernel) -> Result<()> {
    let meta = instance.meta()?;
    let opened = name::MAPS.map(|name| {
        let path = instance.dir.join(name);
        bpf::obj_get(&path).context(|| format!("open {}", path.display())).map(|map| (name, map))
    });
    node.put_maps(meta.index, opened.into_iter().collect::<Result<Vec<_>>>()?)?;
    if is_own(&meta) { Ok(()) } else { node.enter(key(&meta, kernel), meta.index) }
}

/// Ends that, once nothing of the instance is attached any more. Afterwards its number may be another's.
///
/// # Errors
///
/// The kernel's. Where the shared maps, or those of the instance, are gone there is nothing to end.
pub(super) fn withdraw(dir: &Path) -> Result<()> {
    let node = Node::beside(dir);
    if !node.dir().is_dir() {
        return Ok(());
    }
    let meta = match Instance::open_unchecked(dir, "").and_then(|instance| instance.meta()) {
        Err(e) if e.is_no_verdict() => return Err(e),
        Err(_) => return Ok(()),
        Ok(meta) => meta,
    };
    let path = dir.join(name::META);
    let map = MapInfo::from_pin(&path).context(|| format!("open {}", path.display()))?;
    node.leave(meta.netns_cookie, meta.index)?;
    node.leave(meta.netns_inode, meta.index)?;
    node.take_maps(meta.index, map.id())
}
