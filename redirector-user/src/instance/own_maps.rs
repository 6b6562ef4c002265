//! The maps of an instance: made for it alone, and found by programs that others share.

use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::MapInfo;
use redirector_common::abi::{Meta, meta_flag, name};

use super::maps::Instance;
use crate::base::error::{Context, Error, Result, chain};
use crate::policy::Policy;
use crate::programs::maps::{self, Definition};
use crate::programs::node::{Node, Putting};
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

/// The state of sockets is everybody's: each of such maps would cost each socket.
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
    if info.max_entries() >= wanted.entries {
        return Ok(());
    }
    std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
    make(&wanted, &instance.dir)?;
    let guests = bpf::obj_get(&path).context(|| format!("open {}", path.display()))?;
    node.replace_map(instance.meta()?.index, name::GUESTS, guests.as_fd())
}

/// Lets programs that are loaded now find the maps of an instance. They do already, unless somebody has removed what instances
/// share and it was made anew: then the instance gets another number.
///
/// # Errors
///
/// The kernel's.
pub(super) fn find_place(instance: &mut Instance, node: &Node) -> Result<()> {
    let meta = instance.meta()?;
    let path = instance.dir.join(name::META);
    let map = MapInfo::from_pin(&path).context(|| format!("open {}", path.display()))?;
    if node.is_at(meta.index, map.id())? {
        return Ok(());
    }
    let index = node.free_index(meta.netns_cookie)?;
    pin_sockets(&instance.dir, node)?;
    instance.set_meta(&Meta { index, generation: node.next_generation()?, ..meta })?;
    publish(instance, node).map(drop)
}

/// Lets the programs find the maps of an instance.
///
/// # Errors
///
/// The kernel's.
pub(super) fn publish(instance: &Instance, node: &Node) -> Result<Putting> {
    let meta = instance.meta()?;
    let opened = name::MAPS.map(|name| {
        let path = instance.dir.join(name);
        bpf::obj_get(&path).context(|| format!("open {}", path.display())).map(|map| (name, map))
    });
    let putting = node.put_maps(meta.index, opened.into_iter().collect::<Result<Vec<_>>>()?)?;
    if meta.flags & meta_flag::OWN_PROGRAMS == 0 {
        // The programs ask for one of the two.
        node.enter(meta.netns_cookie, meta.index)?;
        node.enter(meta.netns_inode, meta.index)?;
    }
    Ok(putting)
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
    let Ok(meta) = Instance::open_unchecked(dir, "").and_then(|instance| instance.meta()) else {
        return Ok(());
    };
    let Ok(map) = MapInfo::from_pin(dir.join(name::META)) else { return Ok(()) };
    node.leave(meta.netns_cookie, meta.index)?;
    node.leave(meta.netns_inode, meta.index)?;
    node.take_maps(meta.index, map.id())
}
