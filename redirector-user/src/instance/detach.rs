//! detach: stop capturing at once, then take everything away. It works on whatever is left of
//! an instance, also when its cgroup, its namespace or half of its pins are gone.

use super::attach::PASSTHROUGH_V6;
use super::lock::WriteLock;
use super::record;
use super::root::Root;
use super::state::{Instance, Phase};
use crate::error::{Context, Result};
use crate::mirror;
use crate::sys::netns::NetNs;
use redirector_common::abi::{DRAINING, INERT, Meta, meta_flag};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

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
pub fn detach(root: &Root, name: &str, drain: Option<Duration>) -> Result<Report> {
    let mut lock = Some(WriteLock::take(root)?);
    let dir = root.instance(name);
    let mut notes = Vec::new();
    let mut alive = None;
    match Instance::open(root, name) {
        Ok(mut instance) => {
            let meta = instance.meta()?;
            if let Some(limit) = drain {
                set_active(&mut instance, DRAINING, boot_seconds() + limit.as_secs() + 1)?;
                // Others may work on other instances meanwhile.
                drop(lock.take());
                wait_until_idle(&instance, limit)?;
                lock = Some(WriteLock::take(root)?);
            } else {
                set_active(&mut instance, INERT, 0)?;
            }
            alive = instance.live().ok();
            notes.extend(remove_lo6(&dir, &meta));
        }
        Err(e) if dir.is_dir() => notes.push(format!("the instance is damaged and was removed as it is: {e}")),
        Err(e) => return Err(e),
    }
    remove_dir(&dir)?;
    root.remove_if_empty();
    drop(lock);
    Ok(Report { name: name.to_owned(), alive, notes })
}

fn set_active(instance: &mut Instance, active: u32, drain_until: u64) -> Result<()> {
    let mut meta = instance.meta()?;
    meta.active = active;
    meta.drain_until = drain_until;
    instance.set_meta(&meta)
}

fn wait_until_idle(instance: &Instance, limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    while instance.live()? > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Seconds since boot, suspended time included.
fn boot_seconds() -> u64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs()
}

/// Takes `::6` from lo if attach has put it there. No error: the namespace may be gone.
fn remove_lo6(dir: &Path, meta: &Meta) -> Option<String> {
    if meta.flags & meta_flag::ADDED_LO6 == 0 {
        return None;
    }
    let record = [0, 1].into_iter().find_map(|slot| record::read(dir, slot).ok())?;
    let netns = open_same(&record, meta)?;
    let e = mirror::remove_loopback_address(netns.as_fd(), PASSTHROUGH_V6).err()?;
    Some(format!("::6 could not be removed from lo: {}", crate::error::chain(&e)))
}

/// The instance's namespace, by the file it was given, or by any process that is in it.
fn open_same(record: &record::Record, meta: &Meta) -> Option<NetNs> {
    let same = |path: &Path| NetNs::open(path).ok().filter(|netns| netns.cookie == meta.netns_cookie);
    same(&record.netns).or_else(|| {
        let pids = crate::target::process::in_netns(meta.netns_inode).ok()?;
        pids.iter().find_map(|pid| same(Path::new(&format!("/proc/{pid}/ns/net"))))
    })
}

/// Removes an instance's directory and with it the pins, which is what detaches.
pub(super) fn remove_dir(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.context(|| format!("read {}", dir.display()))?,
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    // Links first: what they run must not outlive its maps' names, should we be killed here.
    paths.sort_by_key(|path| !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("link_")));
    for path in paths {
        std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))?;
    }
    std::fs::remove_dir(dir).context(|| format!("remove {}", dir.display()))
}

/// Removes what commands that were killed have left: staging directories, instances that were
/// never activated or not wholly removed, drains whose command is gone.
pub fn sweep(root: &Root, _lock: &WriteLock) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for dir in root.staged()? {
        sweep_dir(&dir)?;
        swept.push(dir.display().to_string());
    }
    for name in root.names()? {
        let dir = root.instance(&name);
        let dead = match Instance::open(root, &name).and_then(|i| i.meta()) {
            Ok(meta) => match Phase::of(&meta) {
                Phase::Inert => true,
                Phase::Draining => meta.drain_until < boot_seconds(),
                Phase::Active(_) => false,
            },
            // Without its head nothing can be activated. An instance of another version has one.
            Err(_) => !dir.join(redirector_common::abi::name::META).exists(),
        };
        if dead {
            sweep_dir(&dir)?;
            swept.push(dir.display().to_string());
        }
    }
    Ok(swept)
}

fn sweep_dir(dir: &Path) -> Result<()> {
    if let Ok(meta) = Instance::open_unchecked(dir, "").and_then(|i| i.meta()) {
        let _ = remove_lo6(dir, &meta);
    }
    remove_dir(dir)
}

/// Sweeps if nobody is at work; for commands that only read.
pub fn sweep_if_idle(root: &Root) -> Result<Vec<String>> {
    match WriteLock::try_take(root)? {
        Some(lock) => {
            let swept = sweep(root, &lock)?;
            if !swept.is_empty() {
                root.remove_if_empty();
            }
            Ok(swept)
        }
        None => Ok(Vec::new()),
    }
}
