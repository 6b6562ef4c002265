//! The agent's directory, and the locks that let one agent work on a node.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::health::Health;
use super::lock_file::{LOCK, open, stand_by, try_lock};
use super::standby::Standby;
use crate::base::error::{Context, Error, Result};
use crate::base::input;

/// Between looks whether this agent could take over.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The lock of the agent that works on this node. The kernel releases it when its process ends.
pub struct HeldLock {
    /// The mount point of the bpffs, which nobody can remove while instances are in it.
    bpffs: Mutex<Arc<File>>,
    /// `agent.lock`, which agents of older versions and of other bpffs wait for.
    run_dir: Mutex<File>,
}

/// Waits until no other agent works; meanwhile others see whether this one would keep the plugin.
///
/// # Errors
///
/// If others than root can write to the directory.
pub async fn lock(health: &Health, run_dir: &Path, bpffs: &Path, standby: &Standby) -> Result<HeldLock> {
    make_private(run_dir)?;
    let file = open(run_dir, LOCK)?;
    let open_bpffs = || input::directory(bpffs).context(|| format!("open {}", bpffs.display()));
    let mut mount = open_bpffs()?;
    let (mut checked, mut seen): (Option<Instant>, _) = (None, None);
    while !(try_lock(&file)? && try_lock(&mount)?) {
        if checked.is_none() {
            let (run_dir, bpffs) = (run_dir.display(), bpffs.display());
            tracing::info!(%run_dir, %bpffs, "another agent is at work on this node; waiting for it to end");
        }
        if checked.is_none_or(|checked| checked.elapsed() > CHECK_INTERVAL) {
            health.standby(Some(standby.could_take_over().await));
            checked = Some(Instant::now());
        }
        seen = match standby.would_keep_plugin() {
            true => seen.or_else(|| stand_by(run_dir).ok()),
            false => None,
        };
        tokio::time::sleep(POLL_INTERVAL).await;
        // Another one may have been mounted, to which the working agent has moved on.
        mount = open_bpffs()?;
    }
    health.standby(None);
    Ok(HeldLock { bpffs: Mutex::new(Arc::new(mount)), run_dir: Mutex::new(file) })
}

impl HeldLock {
    /// The bpffs that the agent works on, whatever is mounted over it or in its place.
    pub fn bpffs(&self) -> Arc<File> {
        Arc::clone(&super::sync::lock(&self.bpffs))
    }

    /// Whether that is at this place. If it is unknown, it is.
    pub fn is_of(&self, place: &Path) -> bool {
        let device = |metadata: std::fs::Metadata| metadata.dev();
        let (own, there) = (self.bpffs().metadata().map(device), std::fs::metadata(place).map(device));
        !matches!((own, there), (Ok(own), Ok(there)) if own != there)
    }

    /// Goes on to another bpffs, once no agent works on that and `carry` has done its work; then the one before may end.
    pub fn move_to(&self, place: &Path, carry: impl FnOnce() -> Result<()>) -> Result<()> {
        let next = File::open(place).context(|| format!("open {}", place.display()))?;
        if !try_lock(&next)? {
            return Err(Error::failed("another agent is at work on the bpffs that has been mounted"));
        }
        carry()?;
        *super::sync::lock(&self.bpffs) = Arc::new(next);
        Ok(())
    }

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
