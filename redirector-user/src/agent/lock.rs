//! The agent's directory, and that only one agent is at work on a node.

use super::Agent;
use crate::base::error::{Context, Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

const AGAIN: Duration = Duration::from_millis(200);

/// Waits until no other agent is at work. The lock is the kernel's: it ends with its process.
///
/// # Errors
///
/// If the directory is none that only root can write to.
pub async fn lock(agent: &Agent, dir: &Path) -> Result<File> {
    make(dir)?;
    let path = dir.join("agent.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .context(|| format!("open {}", path.display()))?;
    let mut told = false;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(e).context(|| format!("lock {}", path.display())),
        }
        if !told {
            tracing::info!(lock = %path.display(), "another agent is at work on this node; waiting for it to end");
            agent.health.standby(true);
            told = true;
        }
        tokio::time::sleep(AGAIN).await;
    }
    agent.health.standby(false);
    Ok(file)
}

fn make(dir: &Path) -> Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(e).context(|| format!("create {}", dir.display()));
        }
        _ => {}
    }
    let there = std::fs::metadata(dir).context(|| format!("stat {}", dir.display()))?;
    if there.uid() != 0 || there.mode() & 0o022 != 0 {
        return Err(Error::input(format!(
            "{} can be written to by others than root; give another --run-dir, or chmod 700 it",
            dir.display()
        )));
    }
    // The kubelet makes directories of volumes for everybody to read.
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .context(|| format!("chmod 700 {}", dir.display()))
}
