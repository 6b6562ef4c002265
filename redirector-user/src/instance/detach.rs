//! detach: stop capturing at once, then take everything away. It works on whatever is left of
//! an instance, also when its cgroup, its namespace or half of its pins are gone.

use super::lock::WriteLock;
use super::root::Root;
use super::state::{Instance, Phase, no_instance};
use super::surroundings;
use crate::base::error::{Context, Error, Result};
use crate::netdev::tproxy;
use crate::programs::hooks;
use crate::sys::bpf::Link;
use redirector_common::abi::{self, DRAINING, INERT, Meta};
use std::path::Path;
use std::time::{Duration, Instant};

/// The replies of the application to the client's address find the proxy by the rules that go.
pub(super) const BROKEN_BY_LEAVING_TPROXY: &str = "connections from the network that the proxy has handed on in TPROXY mode \
                                                   lose their way back and end by their timeouts";

/// What detach did.
#[derive(Debug)]
pub struct Report {
    /// Name of the instance.
    pub name: String,
    /// Captured connections that were alive, and whose getpeername and SO_ORIGINAL_DST now tell
    /// what they really are; None if the instance was too damaged to know.
    pub alive: Option<u64>,
    /// Remarks.
    pub notes: Vec<String>,
}

/// Detaches an instance. With `drain`, connections that are alive keep their names until they
/// have ended, for at most that long.
///
/// # Errors
///
/// [`Error::NothingMatched`] if there is none.
pub fn detach(root: &Root, name: &str, drain: Option<Duration>) -> Result<Report> {
    let ended = match drain {
        Some(limit) => drained(root, name, limit)?,
        None => None,
    };
    let locked = WriteLock::take_if_any(root)?;
    if let Some(until) = ended {
        // Whoever was quicker has ended the drain; a new instance of this name is none of ours.
        let ours = |meta: &Meta| meta.active == DRAINING && meta.drain_until == until;
        if !Instance::open(root, name).and_then(|i| i.meta()).is_ok_and(|meta| ours(&meta)) {
            let notes = vec!["another command has ended the drain and removed the instance".to_owned()];
            return Ok(Report { name: name.to_owned(), alive: None, notes });
        }
    }
    let lock = locked.ok_or_else(|| no_instance(name))?;
    let result = remove(root, name);
    root.remove_if_empty();
    drop(lock);
    result
}

/// Detaches an instance, but no later one of the same name (see [`Root::identity`]); None if it has gone.
///
/// # Errors
///
/// If a pin cannot be removed.
pub fn detach_only(root: &Root, name: &str, identity: u64) -> Result<Option<Report>> {
    let Some(lock) = WriteLock::take_if_any(root)? else { return Ok(None) };
    if root.identity(name) != Some(identity) {
        return Ok(None);
    }
    let result = remove(root, name);
    root.remove_if_empty();
    drop(lock);
    match result {
        Err(Error::NothingMatched(_)) => Ok(None),
        other => other.map(Some),
    }
}

fn remove(root: &Root, name: &str) -> Result<Report> {
    let dir = root.instance(name);
    let mut report = Report { name: name.to_owned(), alive: None, notes: Vec::new() };
    match Instance::open(root, name) {
        Ok(mut instance) => {
            let meta = instance.meta()?;
            instance.set_meta(&Meta { active: INERT, ..meta })?;
            report.alive = instance.live().ok();
            if meta.flags & tproxy::ALL_FLAGS != 0 && report.alive != Some(0) {
                report.notes.push(BROKEN_BY_LEAVING_TPROXY.into());
            }
            report.notes.extend(surroundings::restore(&dir, &meta));
        }
        Err(e @ Error::NothingMatched(_)) => return Err(e),
        Err(e) => {
            report.notes.push(format!("the instance was damaged and has been removed as it was: {e}"));
            report.notes.extend(surroundings::unknown(&dir));
        }
    }
    remove_dir(&dir)?;
    Ok(report)
}

/// Captures nothing new and waits until what was captured has ended; the mark that this drain
/// left, or None if there is nothing that could be drained.
fn drained(root: &Root, name: &str, limit: Duration) -> Result<Option<u64>> {
    let Some(lock) = WriteLock::take_if_any(root)? else { return Ok(None) };
    let Ok(mut instance) = Instance::open(root, name) else { return Ok(None) };
    let drain_until = boot_seconds() + limit.as_secs() + 1;
    let meta = instance.meta()?;
    instance.set_meta(&Meta { active: DRAINING, drain_until, ..meta })?;
    // Others may work on other instances meanwhile, or end this one: then its maps are gone.
    drop(lock);
    let end = Instant::now() + limit;
    while instance.live().is_ok_and(|live| live > 0) && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(drain_until))
}

/// Seconds since boot, suspended time included.
fn boot_seconds() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs()
}

/// How many seconds a drain may still take; then the next command sweeps the instance.
pub(super) fn time_left(meta: &Meta) -> u64 {
    meta.drain_until.saturating_sub(boot_seconds())
}

/// What an instance that is draining cannot do, and what to do about it.
pub(super) fn is_draining(name: &str, meta: &Meta) -> Error {
    Error::Failed(format!(
        "the instance {name} is draining and captures nothing new; `redirector detach --name {name}` ends that at once, else \
         its detach does or, if that was interrupted, the first command after {} s",
        time_left(meta)
    ))
}

/// Removes an instance's directory and with it the pins, which is what detaches.
pub(super) fn remove_dir(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("read {}", dir.display()))?,
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    // Links first, and of those the ones that capture: without META they may be at work.
    let links: Vec<String> = hooks::ALL.iter().rev().map(hooks::Hook::link_pin).collect();
    entries.sort_by_key(|entry| {
        links.iter().position(|link| entry.file_name() == link.as_str()).unwrap_or(links.len())
    });
    for entry in entries {
        let path = entry.path();
        if links.iter().any(|link| entry.file_name() == link.as_str()) {
            // If that fails (what it was attached to may be gone), the pin was the last reference.
            let _ = Link::open(&path).and_then(|link| link.detach());
        }
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_dir(&path)?;
        } else {
            std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
        }
    }
    std::fs::remove_dir(dir).context(|| format!("remove {}", dir.display()))
}

/// Removes what commands that were killed have left: staging directories, instances that were
/// never activated or not wholly removed, drains whose command is gone. Says what it did; what
/// cannot be removed does not keep others from their work.
pub fn sweep(root: &Root, _lock: &WriteLock) -> Result<Vec<String>> {
    let mut dirs = root.staged()?;
    dirs.extend(root.names()?.iter().filter(|name| is_dead(root, name)).map(|name| root.instance(name)));
    let mut remarks = Vec::new();
    for dir in dirs {
        if let Ok(meta) = Instance::open_unchecked(&dir, "").and_then(|i| i.meta()) {
            remarks.extend(surroundings::restore(&dir, &meta));
        }
        remarks.push(match remove_dir(&dir) {
            Ok(()) => format!("swept {}, left by a command that was killed", dir.display()),
            Err(e) => format!("could not sweep {}: {e}", dir.display()),
        });
    }
    Ok(remarks)
}

fn is_dead(root: &Root, name: &str) -> bool {
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
            !dir.join(abi::name::META).exists() && !hooks::ALL.iter().any(|h| dir.join(h.link_pin()).exists())
        }
    }
}

/// Sweeps if nobody is at work; for commands that only read.
pub fn sweep_if_idle(root: &Root) -> Result<Vec<String>> {
    let Some(lock) = WriteLock::try_take(root)? else { return Ok(Vec::new()) };
    let remarks = sweep(root, &lock)?;
    root.remove_if_empty();
    Ok(remarks)
}
