//! detach: stop capturing at once, then take everything away. It works on whatever is left of
//! an instance, also when its cgroup, its namespace or half of its pins are gone.

use std::fs::DirEntry;
use std::path::Path;
use std::time::Duration;

use redirector_common::abi::{ActiveWord, Meta, name};
use schemars::JsonSchema;
use serde::Serialize;

use super::directory::Directory;
use super::lock::WriteLock;
use super::maps::{Instance, no_instance};
use super::{connections, drain, find, journal, own_maps};
use crate::base::error::{Context, Kind, Result};
use crate::netdev;
use crate::programs::hooks;
use crate::sys::bpf::Link;

/// The replies of the application to the client's address find the proxy by the rules that go.
pub(super) const BROKEN_BY_LEAVING_TPROXY: &str = "connections from the network that the proxy has handed on in TPROXY mode \
                                                   lose their way back and end by their timeouts";

/// What detach did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Detached {
    /// Name of the instance.
    pub name: String,
    /// Captured connections that were alive, and whose getpeername and SO_ORIGINAL_DST now tell
    /// what they really are; null if the instance was too damaged to know.
    pub alive: Option<u64>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// Detaches an instance. With `drain`, connections that are alive keep their names until they
/// have ended, for at most that long.
///
/// # Errors
///
/// [`crate::Error::nothing_matched`] if there is none.
pub fn detach(root: &Directory, name: &str, drain: Option<Duration>) -> Result<Detached> {
    let ended = match drain {
        Some(limit) => drain::drain(root, name, limit)?,
        None => None,
    };
    let locked = WriteLock::take_if_any(root)?;
    if let Some(until) = ended {
        // Whoever was quicker has ended the drain; a new instance of this name is none of ours.
        let ours = |meta: &Meta| meta.active == ActiveWord::DRAINING && meta.drain_until == until;
        if !Instance::open(root, name).and_then(|i| i.meta()).is_ok_and(|meta| ours(&meta)) {
            let notes = vec!["another command has ended the drain and removed the instance".to_owned()];
            return Ok(Detached { name: name.to_owned(), alive: None, notes });
        }
    }
    let lock = locked.ok_or_else(|| no_instance(name))?;
    let result = remove(root, name);
    root.remove_if_empty();
    drop(lock);
    result
}

/// Detaches an instance, but no later one of the same name (see [`Directory::identity`]); None if it has gone.
///
/// # Errors
///
/// If a pin cannot be removed.
pub fn detach_only(root: &Directory, name: &str, identity: u64) -> Result<Option<Detached>> {
    let Some(lock) = WriteLock::take_if_any(root)? else { return Ok(None) };
    if root.identity(name) != Some(identity) {
        return Ok(None);
    }
    let result = remove(root, name);
    root.remove_if_empty();
    drop(lock);
    match result {
        Err(e) if e.kind() == Kind::NothingMatched => Ok(None),
        other => other.map(Some),
    }
}

fn remove(root: &Directory, name: &str) -> Result<Detached> {
    let dir = root.instance(name);
    let mut report = Detached { name: name.to_owned(), alive: None, notes: Vec::new() };
    match Instance::open(root, name) {
        Ok(mut instance) => {
            let meta = instance.meta()?;
            instance.set_meta(&Meta { active: ActiveWord::INERT, ..meta })?;
            let netns = find::any_record(&dir).and_then(|record| find::netns_of(&record, &meta).ok()?);
            report.alive = connections::alive(&instance, netns.as_ref()).ok();
            if meta.flags & netdev::TPROXY != 0 && report.alive != Some(0) {
                report.notes.push(BROKEN_BY_LEAVING_TPROXY.into());
            }
            report.notes.extend(journal::restore(&dir, &meta));
        }
        Err(e) if e.kind() == Kind::NothingMatched || e.is_no_verdict() => return Err(e),
        Err(e) => {
            report.notes.push(format!("the instance was damaged and has been removed as it was: {e}"));
            report.notes.extend(journal::unknown(&dir));
        }
    }
    remove_dir(&dir)?;
    Ok(report)
}

/// Removes an instance's directory and with it the pins, which is what detaches.
pub(super) fn remove_dir(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("read {}", dir.display()))?,
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    // Links first, and of those the ones that capture: without META they may be at work. META last: it tells where the
    // programs find the instance.
    let links: Vec<String> = hooks::ALL.iter().rev().map(hooks::Hook::link_pin).collect();
    let place = |entry: &DirEntry| {
        let link = links.iter().position(|link| entry.file_name() == link.as_str());
        link.unwrap_or(links.len() + usize::from(entry.file_name() == name::META))
    };
    entries.sort_by_key(place);
    let mut withdrawn = false;
    for entry in entries {
        let path = entry.path();
        if place(&entry) < links.len() {
            // If that fails (what it was attached to may be gone), the pin was the last reference.
            let _ = Link::open(&path).and_then(|link| link.detach());
        } else if !withdrawn {
            own_maps::withdraw(dir)?;
            withdrawn = true;
        }
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_dir(&path)?;
        } else {
            std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
        }
    }
    std::fs::remove_dir(dir).context(|| format!("remove {}", dir.display()))
}
