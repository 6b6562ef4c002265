//! The plugin's binary.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde_json::json;

use super::files;
use crate::base::error::{Context, Error, Result};
use crate::cni::protocol::PLUGIN_TYPE;

/// The file that was found to be our binary and was executed: both are read again only if it changes.
static INSTALLED: Mutex<Option<Stamp>> = Mutex::new(None);

/// Path, mode, device, inode, size, time of the last change (which some kernels tell by ticks), and whether the mount
/// forbids execution.
type Stamp = (PathBuf, u32, [u64; 3], [i64; 2], bool);

/// How often a binary that is open for writing is tried again, a millisecond apart.
const BUSY_TRIES: u32 = 200;

/// Copies the program into the directory and executes it there: only then is it installed.
///
/// # Errors
///
/// If it cannot be written or executed.
pub fn install(program: &Path, bin_dir: &Path) -> Result<()> {
    let path = bin_dir.join(PLUGIN_TYPE);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if installed.is_some() && *installed == stamp(&path) {
        return Ok(());
    }
    let own = std::fs::read(program).context(|| format!("read {}", program.display()))?;
    let there = std::fs::metadata(&path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) || path.is_symlink() {
        let what = format!("{} is there, and is no file of redirector", path.display());
        return Err(Error::failed(what).remedy("remove it, or name another directory with --cni-bin-dir"));
    }
    let executable = there.as_ref().is_some_and(|there| there.permissions().mode() & 0o111 == 0o111);
    match std::fs::read(&path) {
        Ok(there) if there == own && executable => {}
        _ => files::write(&path, &own, 0o755, there.as_ref())?,
    }
    execute(&path)?;
    *installed = stamp(&path);
    Ok(())
}

/// Has the installed plugin ask the agent, as a runtime would (STATUS).
///
/// # Errors
///
/// If it does not reach the agent.
pub fn probe(bin_dir: &Path, socket: &Path) -> Result<()> {
    // As others see it; the agent may have other mounts.
    if !socket.exists() {
        return Ok(());
    }
    let config = json!({"cniVersion": "1.1.0", "name": "probe", "type": PLUGIN_TYPE, "socket": socket});
    let path = bin_dir.join(PLUGIN_TYPE);
    let mut command = Command::new(&path);
    command
        .env_clear()
        .env("CNI_COMMAND", "STATUS")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut run = || -> std::io::Result<Output> {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.to_string().as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = run().context(|| format!("execute {}", path.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::failed(format!("the installed plugin does not reach this agent: {}", said.trim())))
}

fn execute(path: &Path) -> Result<()> {
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut version = command.status();
    // A process that another thread starts has this thread's descriptors until its execve(2), that of the file while it
    // was written among them: ETXTBSY, for microseconds.
    for _ in 0..BUSY_TRIES {
        if !version.as_ref().is_err_and(|e| e.kind() == ErrorKind::ExecutableFileBusy) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
        version = command.status();
    }
    let what = || format!("execute {}, as the container runtime does", path.display());
    let remedy = "see whether it is mounted noexec, or whether a security module forbids it";
    match version {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::failed(format!("{}: {status}", what())).remedy(remedy)),
        Err(e) => Err(Error::os(what(), e).remedy(remedy)),
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    let which = [file.dev(), file.ino(), file.size()];
    let noexec = statvfs(path).ok()?.f_flag.contains(StatVfsMountFlags::NOEXEC);
    Some((path.to_owned(), file.mode(), which, [file.ctime(), file.ctime_nsec()], noexec))
}
