//! The files in the agent's directory that agents lock.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::base::error::{Context, Result};

/// Held by the agent that works.
pub const LOCK: &str = "agent.lock";
/// Held, shared, by agents that would keep the plugin when the working one ends.
const STANDBY: &str = "standby.lock";

pub fn stand_by(run_dir: &Path) -> Result<File> {
    let file = open(run_dir, STANDBY)?;
    flock(&file, FlockOperation::NonBlockingLockShared).context(|| format!("lock {STANDBY}"))?;
    Ok(file)
}

/// Whether another agent would keep the plugin. If that is unknown, it may.
pub fn stands_by(run_dir: &Path) -> bool {
    open(run_dir, STANDBY).and_then(|file| try_lock(&file)).map_or(true, |is_free| !is_free)
}

pub fn open(run_dir: &Path, name: &str) -> Result<File> {
    let path = run_dir.join(name);
    let mut options = File::options();
    // A FIFO in its place would be waited for.
    options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
    let file = options.open(&path);
    file.context(|| format!("open {}", path.display()))
}

pub fn try_lock(file: &File) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e).context(|| "lock out other agents".into()),
    }
}
