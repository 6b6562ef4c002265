//! The agent's directory, and the locks that let one agent work on a node.

use super::health::Health;
use crate::base::error::{Context, Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The lock of the agent that works on this node. The kernel releases it when its process ends.
pub struct HeldLock {
    /// The mount point of the bpffs, which nobody can remove while instances are in it.
    _bpffs: File,
    /// `agent.lock`, which agents of older versions and of other bpffs wait for.
    run_dir: Mutex<File>,
}

/// Waits until no other agent works.
///
/// # Errors
///
/// If others than root can write to the directory.
pub async fn lock(health: &Health, run_dir: &Path, bpffs: &Path) -> Result<HeldLock> {
    make_private(run_dir)?;
    let file = open(run_dir)?;
    let mount = File::open(bpffs).context(|| format!("open {}", bpffs.display()))?;
    let mut is_waiting = false;
    while !(try_lock(&file)? && try_lock(&mount)?) {
        if !is_waiting {
            let (run_dir, bpffs) = (run_dir.display(), bpffs.display());
            tracing::info!(%run_dir, %bpffs, "another agent is at work on this node; waiting for it to end");
            health.standby(true);
            is_waiting = true;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    health.standby(false);
    Ok(HeldLock { _bpffs: mount, run_dir: Mutex::new(file) })
}

impl HeldLock {
    /// Takes the lock in a directory that may have been removed and made again.
    pub fn renew(&self, run_dir: &Path) -> Result<()> {
        make_private(run_dir)?;
        let file = open(run_dir)?;
        // An agent that was quicker waits for the other lock.
        if try_lock(&file)? {
            *super::sync::lock(&self.run_dir) = file;
        }
        Ok(())
    }
}

fn open(run_dir: &Path) -> Result<File> {
    let path = run_dir.join("agent.lock");
    let mut options = File::options();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    file.context(|| format!("open {}", path.display()))
}

fn try_lock(file: &File) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e).context(|| "lock out other agents".into()),
    }
}

fn make_private(dir: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(e).context(|| format!("create {}", dir.display()));
        }
        _ => {}
    }
    let metadata = std::fs::metadata(dir).context(|| format!("stat {}", dir.display()))?;
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Err(Error::input(format!("{} can be written to by others than root", dir.display()))
            .usage("give another --run-dir, or chmod 700 it"));
    }
    // The kubelet makes directories of volumes for everybody to read.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .context(|| format!("chmod 700 {}", dir.display()))
}
