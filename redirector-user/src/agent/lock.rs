//! The agent's directory, and the lock that lets one agent work on a node.

use super::health::Health;
use crate::base::error::{Context, Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Waits until no other agent works. The kernel releases the lock when its process ends.
///
/// # Errors
///
/// If others than root can write to the directory.
pub async fn lock(health: &Health, dir: &Path) -> Result<File> {
    make_private(dir)?;
    let path = dir.join("agent.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .context(|| format!("open {}", path.display()))?;
    let mut is_waiting = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e).context(|| format!("lock {}", path.display())),
        }
        if !is_waiting {
            tracing::info!(lock = %path.display(), "another agent is at work on this node; waiting for it to end");
            health.standby(true);
            is_waiting = true;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    health.standby(false);
    Ok(file)
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
