//! One writer at a time: a flock on the directory of all instances.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::directory::Directory;
use crate::base::error::{Context, Result};

/// Whoever waits longer wants to know what for.
const SOON: Duration = Duration::from_secs(1);

/// Proof that this process may change instances. Released on drop, and by the kernel if the
/// process is killed.
#[derive(Debug)]
#[must_use]
pub struct WriteLock {
    _dir: File,
}

impl WriteLock {
    /// Waits for other writers. Makes the directory if there is none.
    pub fn take(root: &Directory) -> Result<Self> {
        loop {
            if let Some(lock) = Self::take_if_any(root)? {
                return Ok(lock);
            }
            // Another process has removed the empty directory: make it again.
            root.create()?;
        }
    }

    /// Waits for other writers; None if there is nothing to lock, and so no instance.
    pub fn take_if_any(root: &Directory) -> Result<Option<Self>> {
        while let Some(dir) = root.open()? {
            if let Some(lock) = Self::lock(root, dir, FlockOperation::LockExclusive)? {
                return Ok(Some(lock));
            }
        }
        Ok(None)
    }

    /// None if another process holds it, or if there is nothing to lock.
    pub fn try_take(root: &Directory) -> Result<Option<Self>> {
        match root.open()? {
            Some(dir) => Self::lock(root, dir, FlockOperation::NonBlockingLockExclusive),
            None => Ok(None),
        }
    }

    fn lock(root: &Directory, dir: File, operation: FlockOperation) -> Result<Option<Self>> {
        match take(root, &dir, operation) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            other => other.context(|| format!("lock {}", root.dir().display()))?,
        }
        // What was locked may have been removed and made anew while we waited.
        let same = |m: std::fs::Metadata| dir.metadata().is_ok_and(|ours| ours.ino() == m.ino());
        Ok(std::fs::metadata(root.dir()).is_ok_and(same).then_some(Self { _dir: dir }))
    }
}

fn take(root: &Directory, dir: &File, operation: FlockOperation) -> rustix::io::Result<()> {
    let (Some(tell), FlockOperation::LockExclusive) = (root.tell, operation) else {
        return flock(dir, operation);
    };
    match flock(dir, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {}
        other => return other,
    }
    std::thread::scope(|scope| {
        let (taken, wait) = mpsc::channel::<()>();
        scope.spawn(move || {
            if wait.recv_timeout(SOON) == Err(RecvTimeoutError::Timeout) {
                tell(&format!(
                    "waits for another command that changes instances ({} is locked)",
                    root.dir().display()
                ));
            }
        });
        let result = flock(dir, operation);
        drop(taken);
        result
    })
}
