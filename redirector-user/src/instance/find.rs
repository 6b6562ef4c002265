//! Which instance belongs to a network namespace, and which namespace to an instance; also when
//! half of its pins are gone.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use redirector_common::abi::{Meta, name};

use super::directory::Directory;
use super::links;
use super::maps::Instance;
use super::record::{self, Record};
use crate::base::error::{Context, Error, Result};
use crate::pod::cgroup::Cgroup;
use crate::pod::name::PodName;
use crate::pod::{Target, process};
use crate::programs::hooks;
use crate::sys::bpf::Link;
use crate::sys::netns::{NetNs, NetnsId};

/// Name of the instance of an open namespace.
pub fn by_netns(root: &Directory, netns: &NetNs) -> Result<Option<String>> {
    Ok(identified(root, netns)?.map(|(name, _)| name))
}

/// The same, with what tells it from a later one of the same name ([`Directory::identity`]).
pub fn identified(root: &Directory, netns: &NetNs) -> Result<Option<(String, u64)>> {
    let mut unread = None;
    for name in root.names()? {
        // Before the look: see `take_inventory`.
        let identity = root.identity(&name).unwrap_or(0);
        match is_of(root, &name, netns) {
            Ok(true) => return Ok(Some((name, identity))),
            Ok(false) => {}
            Err(e) => unread = Some(e),
        }
    }
    unread.map_or(Ok(None), Err)
}

fn is_of(root: &Directory, name: &str, netns: &NetNs) -> Result<bool> {
    let unread = match Instance::open(root, name).and_then(|i| i.meta()) {
        Ok(meta) => return Ok(netns_id(&meta) == netns.id),
        Err(e) => e,
    };
    // Inode numbers are used again, but the kernel's link is of now.
    let dir = root.instance(name);
    match linked_to(&dir) {
        Some(inode) => Ok(inode == netns.inode),
        None if unread.is_no_verdict() => Err(unread),
        None => Ok(record::all(&dir)?.first().is_some_and(|record| {
            NetNs::open_of_node(&record.netns).is_ok_and(|given| given.id == netns.id)
        })),
    }
}

/// Name of the instance that was attached by this file, which is gone meanwhile.
pub fn by_file(root: &Directory, path: &Path) -> Result<Option<String>> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let was_given =
        |name: &String| any_record(&root.instance(name)).is_some_and(|record| record.netns == path);
    Ok(root.names()?.into_iter().find(was_given))
}

/// Ids of the programs that the other instances have attached. Each captures a namespace of its own.
pub fn programs_of_others(root: &Directory, name: &str) -> HashSet<u32> {
    let others = root.names().unwrap_or_default().into_iter().filter(|other| other != name);
    let links = others.flat_map(|other| {
        let dir = root.instance(&other);
        hooks::ALL.iter().map(move |hook| dir.join(hook.link_pin()))
    });
    // One that is missing, or just being removed, runs no program.
    links
        .filter_map(|pin| Link::open(&pin).and_then(|link| link.info()).ok())
        .map(|info| info.program)
        .collect()
}

/// The cgroup that an instance was given.
pub fn recorded_cgroup(root: &Directory, name: &str) -> Option<PathBuf> {
    any_record(&root.instance(name)).map(|record| record.cgroup)
}

/// The pod that an instance captures, if it is known to be one.
pub fn recorded_pod(root: &Directory, name: &str) -> Option<PodName> {
    any_record(&root.instance(name))?.pod
}

/// Name of the instance of a pod: of the last one that was made, as the namespace of a pod before may linger.
///
/// # Errors
///
/// If the directory of all instances cannot be read.
pub fn by_pod(root: &Directory, namespace: &str, pod: &str) -> Result<Option<String>> {
    let is_of = |name: &String| {
        recorded_pod(root, name).is_some_and(|known| known.namespace == namespace && known.name == pod)
    };
    let made = |name: &String| {
        std::fs::metadata(root.instance(name).join(name::META)).and_then(|pin| pin.modified()).ok()
    };
    Ok(root.names()?.into_iter().filter(is_of).max_by_key(made))
}

/// What an instance is attached to.
///
/// # Errors
///
/// [`Error::failed`] if it is gone, or the instance is damaged.
pub fn target(root: &Directory, name: &str) -> Result<Target> {
    let meta = Instance::open(root, name)?.meta()?;
    let record = record::all(&root.instance(name))?.into_iter().next();
    let record = record.ok_or_else(|| Error::failed(format!("the instance {name} has no record")))?;
    target_of(name, &record, &meta)
}

/// The namespace of an instance, if it still exists.
pub fn netns(root: &Directory, name: &str) -> Option<NetNs> {
    let meta = Instance::open(root, name).ok()?.meta().ok()?;
    netns_of(&any_record(&root.instance(name))?, &meta).ok()?
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
/// link detach`) and the namespace is still to be found, or nobody can look for it now.
pub(super) fn netns_is_gone(dir: &Path, meta: &Meta) -> bool {
    linked_to(dir) == Some(0) && matches!(netns_is_found(dir, meta), Ok(false))
}

fn netns_is_found(dir: &Path, meta: &Meta) -> Result<bool> {
    let Some(record) = record::all(dir)?.into_iter().next() else { return Ok(false) };
    if netns_id(meta).is_unique() {
        return Ok(netns_of(&record, meta)?.is_some());
    }
    // The file may lead to a later namespace with the same inode number. Processes of the same cgroup tell; ids of cgroups
    // are not used again.
    let Some(cgroup) = cgroup_of(&record, meta)? else { return Ok(false) };
    Ok(cgroup.processes()?.into_iter().any(|pid| process::netns_inode(pid) == Some(meta.netns_inode)))
}

/// The same of its cgroup.
pub(super) fn cgroup_is_gone(dir: &Path, meta: &Meta) -> bool {
    let hook = hooks::ALL.iter().find(|hook| !hook.netns);
    let detached = |hook: &hooks::Hook| {
        dir.join(hook.link_pin()).exists() && links::is_missing(dir, hook).unwrap_or(false)
    };
    let is_found = || match record::all(dir)?.first() {
        Some(record) => Ok(cgroup_of(record, meta)?.is_some()),
        None => Ok::<_, Error>(false),
    };
    hook.is_some_and(detached) && matches!(is_found(), Ok(false))
}

/// A record of an instance, whatever its policy slot.
pub(super) fn any_record(dir: &Path) -> Option<Record> {
    record::all(dir).ok()?.into_iter().next()
}

/// The instance's cgroup; None if it is gone.
fn cgroup_of(record: &Record, meta: &Meta) -> Result<Option<Cgroup>> {
    match Cgroup::open(&record.cgroup) {
        Err(e) if e.is_no_verdict() => Err(e),
        found => Ok(found.ok().filter(|cgroup| cgroup.id == meta.cgroup_id)),
    }
}

/// The instance's namespace, by the file it was given, or by any process that is in it; None if it is gone.
pub(super) fn netns_of(record: &Record, meta: &Meta) -> Result<Option<NetNs>> {
    let same = |path: &Path| match NetNs::open_of_node(path) {
        Ok(netns) => Ok(Some(netns).filter(|netns| netns.id == netns_id(meta))),
        // Gone, or no file of a namespace any more.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(None),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOTTY)) => Ok(None),
        Err(e) => Err(e).context(|| format!("open the network namespace {}", path.display())),
    };
    if let Some(netns) = same(&record.netns)? {
        return Ok(Some(netns));
    }
    let pids = process::in_netns(meta.netns_inode)?.into_iter();
    pids.filter_map(|pid| same(Path::new(&format!("/proc/{pid}/ns/net"))).transpose()).next().transpose()
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
    let netns = netns_of(record, meta)?.ok_or_else(|| gone("the network namespace", &record.netns))?;
    let cgroup = cgroup_of(record, meta)?.ok_or_else(|| gone("the cgroup", &record.cgroup))?;
    Ok(Target { netns, netns_path: record.netns.clone(), cgroup, pid: record.pid, pod: record.pod.clone() })
}
