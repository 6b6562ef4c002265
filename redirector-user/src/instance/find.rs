//! Which instance belongs to a network namespace, and which namespace to an instance; also when
//! half of its pins are gone.

use super::directory::Directory;
use super::links;
use super::maps::Instance;
use super::record::{self, Record};
use crate::base::error::{Error, Result};
use crate::pod::cgroup::Cgroup;
use crate::pod::{Target, process};
use crate::programs::hooks;
use crate::sys::bpf::Link;
use crate::sys::netns::{NetNs, NetnsId};
use redirector_common::abi::Meta;
use std::path::{Path, PathBuf};

/// Name of the instance of an open namespace.
pub fn by_netns(root: &Directory, netns: &NetNs) -> Result<Option<String>> {
    Ok(identified(root, netns)?.map(|(name, _)| name))
}

/// The same, with what tells it from a later one of the same name ([`Directory::identity`]).
pub fn identified(root: &Directory, netns: &NetNs) -> Result<Option<(String, u64)>> {
    let of_it = |name: &String| match Instance::open(root, name).and_then(|i| i.meta()) {
        Ok(meta) => netns_id(&meta) == netns.id,
        // Inode numbers are used again, but the kernel's link is of now.
        Err(_) => match linked_to(&root.instance(name)) {
            Some(inode) => inode == netns.inode,
            None => any_record(&root.instance(name))
                .is_some_and(|record| NetNs::open(&record.netns).is_ok_and(|given| given.id == netns.id)),
        },
    };
    // Before the look: see `take_inventory`.
    let mut all = root.names()?.into_iter().map(|name| (root.identity(&name).unwrap_or(0), name));
    Ok(all.find(|(_, name)| of_it(name)).map(|(identity, name)| (name, identity)))
}

/// Name of the instance that was attached by this file, which is gone meanwhile.
pub fn by_file(root: &Directory, path: &Path) -> Result<Option<String>> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let was_given =
        |name: &String| any_record(&root.instance(name)).is_some_and(|record| record.netns == path);
    Ok(root.names()?.into_iter().find(was_given))
}

/// The cgroup that an instance was given.
pub fn recorded_cgroup(root: &Directory, name: &str) -> Option<PathBuf> {
    any_record(&root.instance(name)).map(|record| record.cgroup)
}

/// What an instance is attached to.
///
/// # Errors
///
/// [`Error::failed`] if it is gone, or the instance is damaged.
pub fn target(root: &Directory, name: &str) -> Result<Target> {
    let meta = Instance::open(root, name)?.meta()?;
    let record = any_record(&root.instance(name));
    let record = record.ok_or_else(|| Error::failed(format!("the instance {name} has no record")))?;
    target_of(name, &record, &meta)
}

/// The namespace of an instance, if it still exists.
pub fn netns(root: &Directory, name: &str) -> Option<NetNs> {
    let meta = Instance::open(root, name).ok()?.meta().ok()?;
    netns_of(&any_record(&root.instance(name))?, &meta)
}

/// The namespace that an instance was attached to.
pub(super) fn netns_id(meta: &Meta) -> NetnsId {
    NetnsId::recorded(meta.netns_cookie, meta.netns_inode)
}

/// Inode number of the namespace that an instance's programs are attached to; 0 if it is gone.
pub(super) fn linked_to(dir: &Path) -> Option<u64> {
    let hook = hooks::ALL.iter().find(|hook| hook.netns)?;
    let link = Link::open(&dir.join(hook.link_pin())).ok()?;
    link.info().ok().map(|info| info.target)
}

/// Whether an instance's namespace is gone. A link that has no target tells so, unless somebody has detached it (`bpftool
/// link detach`) and the namespace is still to be found.
pub(super) fn netns_is_gone(dir: &Path, meta: &Meta) -> bool {
    linked_to(dir) == Some(0) && !any_record(dir).is_some_and(|record| netns_is_found(&record, meta))
}

fn netns_is_found(record: &Record, meta: &Meta) -> bool {
    if netns_id(meta).is_unique() {
        return netns_of(record, meta).is_some();
    }
    // The file may lead to a later namespace with the same inode number. Processes of the same cgroup tell; ids of cgroups
    // are not used again.
    let cgroup = Cgroup::open(&record.cgroup).ok().filter(|cgroup| cgroup.id == meta.cgroup_id);
    let pids = cgroup.and_then(|cgroup| cgroup.processes().ok()).unwrap_or_default();
    pids.into_iter().any(|pid| process::netns_inode(pid) == Some(meta.netns_inode))
}

/// The same of its cgroup.
pub(super) fn cgroup_is_gone(dir: &Path, meta: &Meta) -> bool {
    let same = |record: Record| Cgroup::open(&record.cgroup).is_ok_and(|cgroup| cgroup.id == meta.cgroup_id);
    let hook = hooks::ALL.iter().find(|hook| !hook.netns);
    let detached = |hook: &hooks::Hook| {
        dir.join(hook.link_pin()).exists() && links::is_missing(dir, hook).unwrap_or(false)
    };
    hook.is_some_and(detached) && !any_record(dir).is_some_and(same)
}

/// A record of an instance, whatever its policy slot.
pub(super) fn any_record(dir: &Path) -> Option<Record> {
    record::all(dir).into_iter().next()
}

/// The instance's namespace, by the file it was given, or by any process that is in it.
pub(super) fn netns_of(record: &Record, meta: &Meta) -> Option<NetNs> {
    let same = |path: &Path| NetNs::open(path).ok().filter(|netns| netns.id == netns_id(meta));
    same(&record.netns).or_else(|| {
        let pids = process::in_netns(meta.netns_inode).ok()?;
        pids.iter().find_map(|pid| same(Path::new(&format!("/proc/{pid}/ns/net"))))
    })
}

/// What an instance is attached to, open.
///
/// # Errors
///
/// [`Error::failed`] if either is gone.
pub fn target_of(name: &str, record: &Record, meta: &Meta) -> Result<Target> {
    let gone = |what: &str, path: &Path| {
        Error::failed(format!("{what} of the instance {name} is gone ({})", path.display()))
            .remedy("detach the instance")
    };
    let netns = netns_of(record, meta).ok_or_else(|| gone("the network namespace", &record.netns))?;
    let cgroup = Cgroup::open(&record.cgroup).ok().filter(|cgroup| cgroup.id == meta.cgroup_id);
    let cgroup = cgroup.ok_or_else(|| gone("the cgroup", &record.cgroup))?;
    Ok(Target { netns, netns_path: record.netns.clone(), cgroup, pid: record.pid })
}
