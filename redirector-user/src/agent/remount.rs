//! A bpffs that is unmounted while the agent works, and another one in its place.
//!
//! The agent holds the old one open, so what is pinned there works on. From the new one no command would find it, and it would end
//! with the agent: it is pinned there, too.

use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::lock::HeldLock;
use crate::base::error::{Context, Error, Result};
use crate::instance::directory::{Directory, check_name, make_dir};
use crate::sys::bpf;

/// No event that is meant for this tells of a mount.
const INTERVAL: Duration = Duration::from_secs(2);

/// Wakes a pass when another file system is where the bpffs was.
pub async fn watch(lock: Arc<HeldLock>, bpffs: PathBuf, wake: Arc<Notify>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if !lock.is_of(&bpffs) {
            wake.notify_one();
        }
    }
}

/// Pins what is in the old bpffs in the new one, if there is a new one; names of the instances.
///
/// # Errors
///
/// If there is no bpffs now. What is captured stays so until the agent ends.
pub fn carry_over(lock: &HeldLock, root: &Directory) -> Result<Vec<String>> {
    let bpffs = root.dir().parent().unwrap_or(Path::new("/"));
    let shown = bpffs.display();
    root.require().map_err(|_| {
        Error::failed(format!(
            "the bpffs at {shown} has been unmounted; what is captured stays so while this agent runs"
        ))
        .remedy(format!(
            "mount one there again (mount -t bpf bpf {shown}): the agent carries the instances over"
        ))
    })?;
    if lock.is_of(bpffs) {
        return Ok(Vec::new());
    }
    let old = PathBuf::from(format!("/proc/self/fd/{}", lock.bpffs().as_raw_fd())).join("redirector");
    let mut carried = Vec::new();
    lock.move_to(bpffs, || {
        root.create()?;
        std::fs::read_dir(old).into_iter().flatten().flatten().try_for_each(|entry| {
            carried.extend(carry(root, &entry.path(), entry.file_name().to_string_lossy().into_owned())?);
            Ok(())
        })
    })?;
    Ok(carried)
}

/// One of the directory of instances. What is there already is newer.
fn carry(root: &Directory, from: &Path, name: String) -> Result<Option<String>> {
    let to = root.dir().join(&name);
    if to.exists() {
        return Ok(None);
    }
    if check_name(&name).is_err() {
        return copy(from, &to).map(|()| None);
    }
    // Whole or not at all, as attach does it.
    let staging = root.staging(&name);
    copy(from, &staging)?;
    std::fs::rename(&staging, &to).context(|| format!("rename {}", staging.display()))?;
    Ok(Some(name))
}

/// Pins the same objects in another place.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        let object = bpf::obj_get(from).context(|| format!("open {}", from.display()))?;
        return bpf::obj_pin(object.as_fd(), to).context(|| format!("pin {}", to.display()));
    }
    make_dir(to).context(|| format!("create {}", to.display()))?;
    for entry in std::fs::read_dir(from).context(|| format!("read {}", from.display()))? {
        let entry = entry.context(|| format!("read {}", from.display()))?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}
