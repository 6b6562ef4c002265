//! Sweeping: what commands that were killed have left is removed by the next one.

use std::path::Path;

use redirector_common::abi;

use super::detach::remove_dir;
use super::directory::Directory;
use super::journal;
use super::lock::WriteLock;
use super::maps::Instance;
use super::phase::Phase;
use super::phase::boot_seconds;
use crate::base::error::Result;
use crate::programs::hooks;

/// Removes what commands that were killed have left: staging directories, instances that were
/// never activated or not wholly removed, drains whose command is gone. Says what it did; what
/// cannot be removed does not keep others from their work.
pub fn sweep(root: &Directory, _lock: &WriteLock) -> Result<Vec<String>> {
    let mut notes = sweep_staged(root)?;
    let dead = root.names()?.into_iter().filter(|name| is_dead(root, name));
    notes.extend(dead.flat_map(|name| sweep_one(&root.instance(&name))));
    Ok(notes)
}

/// The same of staging directories alone, which are known by their names: no instance is opened.
pub(super) fn sweep_staged(root: &Directory) -> Result<Vec<String>> {
    Ok(root.staged()?.iter().flat_map(|dir| sweep_one(dir)).collect())
}

pub(super) fn sweep_one(dir: &Path) -> Vec<String> {
    let mut notes = Vec::new();
    if let Ok(meta) = Instance::open_unchecked(dir, "").and_then(|i| i.meta()) {
        notes.extend(journal::restore(dir, &meta));
    }
    notes.push(match remove_dir(dir) {
        Ok(()) => format!("swept {}, left by a command that was killed", dir.display()),
        Err(e) => format!("could not sweep {}: {e}", dir.display()),
    });
    notes
}

/// Whether an instance was never activated, not wholly removed, or is drained and its command gone.
pub(super) fn is_dead(root: &Directory, name: &str) -> bool {
    match Instance::open(root, name).and_then(|i| i.meta()) {
        Ok(meta) => match Phase::of(&meta) {
            Phase::Inert => true,
            Phase::Draining => meta.drain_until < boot_seconds(),
            Phase::Active(_) => false,
        },
        // Links are removed first. With one, the programs may be at work: whoever has removed the
        // pin of META was none of us, and has to say `detach`.
        Err(_) => {
            let dir = root.instance(name);
            let is_gone = |pin: &str| matches!(std::fs::exists(dir.join(pin)), Ok(false));
            is_gone(abi::name::META) && hooks::ALL.iter().all(|hook| is_gone(&hook.link_pin()))
        }
    }
}

/// Sweeps if nobody is at work; for commands that only read.
pub fn sweep_if_idle(root: &Directory) -> Result<Vec<String>> {
    let Some(lock) = WriteLock::try_take(root)? else { return Ok(Vec::new()) };
    let remarks = sweep(root, &lock)?;
    root.remove_if_empty();
    Ok(remarks)
}
