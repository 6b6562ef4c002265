//! The agent's directory, and the locks that let one agent work on a node.

use super::health::Health;
use crate::base::error::{Context, Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

const LOCK: &str = "agent.lock";
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The lock of the agent that works on this node. The kernel releases it when its process ends.
pub struct HeldLock {
    /// The mount point of the bpffs, which nobody can remove while instances are in it.
    _bpffs: File,
    /// `agent.lock`, which agents of older versions and of other bpffs wait for.
    run_dir: Mutex<File>,
}

/// Waits until no other agent works; meanwhile others see whether this one would keep the plugin (`heir`).
///
/// # Errors
///
/// If others than root can write to the directory.
pub async fn lock(
    health: &Health,
    run_dir: &Path,
    bpffs: &Path,
    heir: impl Fn() -> bool,
) -> Result<HeldLock> {
    make_private(run_dir)?;
    let file = open(run_dir, LOCK)?;
    let mount = File::open(bpffs).context(|| format!("open {}", bpffs.display()))?;
    let (mut is_waiting, mut standby) = (false, None);
    while !(try_lock(&file)? && try_lock(&mount)?) {
        if !is_waiting {
            let (run_dir, bpffs) = (run_dir.display(), bpffs.display());
            tracing::info!(%run_dir, %bpffs, "another agent is at work on this node; waiting for it to end");
            health.standby(true);
            is_waiting = true;
        }
        standby = match heir() {
            true => standby.or_else(|| stand_by(run_dir).ok()),
            false => None,
        };
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    health.standby(false);
    Ok(HeldLock { _bpffs: mount, run_dir: Mutex::new(file) })
}

impl HeldLock {
    /// Takes the lock in a directory that may have been removed and made again.
    pub fn renew(&self, run_dir: &Path) -> Result<()> {
        make_private(run_dir)?;
        let file = open(run_dir, LOCK)?;
        // An agent that was quicker waits for the other lock.
        if try_lock(&file)? {
            *super::sync::lock(&self.run_dir) = file;
        }
        Ok(())
    }
}

/// Held, shared, by agents that would keep the plugin when the working one ends.
const STANDBY: &str = "standby.lock";

fn stand_by(run_dir: &Path) -> Result<File> {
    let file = open(run_dir, STANDBY)?;
    flock(&file, FlockOperation::NonBlockingLockShared).context(|| format!("lock {STANDBY}"))?;
    Ok(file)
}

/// Whether another agent would keep the plugin. Where nobody can say it may.
pub fn stands_by(run_dir: &Path) -> bool {
    open(run_dir, STANDBY).and_then(|file| try_lock(&file)).map_or(true, |is_free| !is_free)
}

fn open(run_dir: &Path, name: &str) -> Result<File> {
    let path = run_dir.join(name);
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
